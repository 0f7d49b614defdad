//! A position of a cache that keeps a window.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; layers: count = "depth"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{l}." { a[d] = "a"; }
            fn (x[t, d]) -> [t, d] {
                let k = x * a;
                cache k over s within 2;
                let near[t, d] = sum[s] (k[s = s] where s == t - 1);
                x + near + k[s = max(t - 1, 0)]
            }
        }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            layers(x)
        }
    }
}

fn main() {}
