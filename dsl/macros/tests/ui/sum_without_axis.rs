//! Summed axes that the body does not have: the help names those that would contract, and an operand is named that has not the axis.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; h: size = "heads"; n: size = "groups"; c: size = "head"; }
        axis g = h / n;
        weights { embed[v, d] = "embed"; wq[n, g, c, d] = "wq"; wo[d, n, g, c] = "wo"; }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            let o[t, n, g, c] = sum[d] x * wq;
            let p[t, n, g, c] = sum[d] sum[d] x * wq;
            let y = x + sum[n, g, c] p * wo;
            y + sum[h, c] o * wo
        }
    }
}

fn main() {}
