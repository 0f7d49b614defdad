//! Two bodies, and nothing says which layer has which.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; layers: count = "depth"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{l}." { a[d] = "a"; }
            fn even(x[t, d]) -> [t, d] { x * a }
            fn odd(x[t, d]) -> [t, d] { x + a }
        }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            layers(x)
        }
    }
}

fn main() {}
