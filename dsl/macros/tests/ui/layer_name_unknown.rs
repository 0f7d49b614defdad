//! A name of a tensor with another number than the layer's.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; layers: count = "depth"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{i}." { a[d] = "a"; }
            fn (x[t, d]) -> [t, d] {
                x * a
            }
        }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            layers(x)
        }
    }
}

fn main() {}
