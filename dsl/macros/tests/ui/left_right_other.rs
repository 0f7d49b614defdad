//! Both sides of a `let` have an axis that the other has not.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            let y[t, d] = sum[d] x * w;
            sum[d] y * w
        }
    }
}

fn main() {}
