//! A value that is used before its `let`.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let y = x * w;
            let x = embed[v = tokens];
            sum[d] y
        }
    }
}

fn main() {}
