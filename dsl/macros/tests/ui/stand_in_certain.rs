//! Another weight behind a tensor without a condition.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; head[v, d] = "head" else embed; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            (sum[d] x * w) + sum[v, d] head * x
        }
    }
}

fn main() {}
