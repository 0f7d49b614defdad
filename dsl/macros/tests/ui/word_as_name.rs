//! A word of the language, and one of Rust, as names.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let layer = embed[v = tokens];
            let yield = embed[v = tokens];
            sum[d] embed[v = tokens] * w
        }
    }
}

fn main() {}
