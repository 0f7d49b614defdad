//! The left side of a `let` has an axis more.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            let y[t, f, d] = sum[d] x * w;
            sum[d] y
        }
    }
}

fn main() {}
