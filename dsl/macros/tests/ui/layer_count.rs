//! A stack of layers whose count the config does not declare.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{l}." { a[d] = "a"; }
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
