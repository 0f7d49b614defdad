//! Bodies of one layer that take different values.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; layers: count = "depth"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{l}." { a[d] = "a"; }
            fn even(x[t, d]) -> [t, d] { x * a }
            fn odd(x[d, t]) -> [d, t] { x + a }
            match l % 2 { 0 => even, _ => odd }
        }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            layers(x)
        }
    }
}

fn main() {}
