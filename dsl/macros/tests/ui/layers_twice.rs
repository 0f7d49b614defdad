//! A stack of layers that is called twice.

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
            let x = embed[v = tokens];
            let y = layers(x);
            layers(y)
        }
    }
}

fn main() {}
