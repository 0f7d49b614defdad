//! A summed axis that the body does not have: the help names those that would contract.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; h: size = "heads"; n: size = "groups"; c: size = "head"; }
        axis g = h / n;
        weights { embed[v, d] = "embed"; wq[n, g, c, d] = "wq"; wo[d, n, g, c] = "wo"; }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            let o[t, n, g, c] = sum[d] x * wq;
            x + sum[h, c] o * wo
        }
    }
}

fn main() {}
