//! A value of the config that is never used.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; heads: count = "heads"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            sum[d] x * w
        }
    }
}

fn main() {}
