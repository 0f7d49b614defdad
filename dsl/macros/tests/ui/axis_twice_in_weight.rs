//! The same axis twice in a declaration.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; square[d, d] = "square"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            sum[d] x * w
        }
    }
}

fn main() {}
