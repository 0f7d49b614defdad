//! Words that begin nothing in a model, and nothing in a layer.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; n: count = "depth"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        wieghts { b[d] = "b"; }
        layer l in n {
            hots factor = 1.0;
            weight "layers.{l}." { a[d] = "a"; }
            axis g = 3;
            fn (x[t, d]) -> [t, d] { x * a * factor }
        }
        fn (tokens[t]) -> [t, f] {
            let x = n(embed[v = tokens] * b);
            sum[d] x * w
        }
    }
}

fn main() {}
