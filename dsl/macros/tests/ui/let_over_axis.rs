//! A `let` that takes the name of an axis.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let d = embed[v = tokens];
            sum[d] d * w
        }
    }
}

fn main() {}
