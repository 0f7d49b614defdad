//! A function that calls itself.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn again(x) { again(x) + 1 }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            sum[d] again(x) * w
        }
    }
}

fn main() {}
