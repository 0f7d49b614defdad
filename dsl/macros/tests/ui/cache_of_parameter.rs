//! A `cache` of something that is not computed in the layer.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; layers: count = "depth"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{l}." { a[d] = "a"; }
            fn (x[t, d]) -> [t, d] {
                cache a over s;
                x * (sum[s] (a where s <= t))
            }
        }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            layers(x)
        }
    }
}

fn main() {}
