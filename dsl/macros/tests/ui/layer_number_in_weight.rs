//! The number of a layer in a weight's condition, and in its part of a tensor.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; layers: count = "depth"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{l}." { a[d] = "a" if l < 2 else 0; b[d] = "b"[d * l .. d * l + d]; }
            fn (x[t, d]) -> [t, d] {
                x * a * b
            }
        }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            layers(x)
        }
    }
}

fn main() {}
