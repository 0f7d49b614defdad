//! `/` of two integers, which would round down.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens / 2];
            sum[d] x * w
        }
    }
}

fn main() {}
