//! A stack of layers that is never called.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; layers: count = "depth"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{l}." { a[d] = "a"; }
            fn (x[t, d]) -> [t, d] {
                x * a
            }
        }
        fn (tokens[t]) -> [t, d] {
            embed[v = tokens]
        }
    }
}

fn main() {}
