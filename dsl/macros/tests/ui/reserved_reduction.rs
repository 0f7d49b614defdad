//! The name of a reduction for something else.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let sum = embed[v = tokens];
            sum[d] sum * w
        }
    }
}

fn main() {}
