//! Reductions over positions that see later tokens, be they asked by the token or masked by something else.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; layers: count = "depth"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{l}." { a[d] = "a"; }
            fn (x[t, d]) -> [t, d] {
                let k = x * a;
                cache k over s;
                let p = softmax[s](sum[d] x * k);
                let o[t, d] = sum[s] p * k;
                let q[t, d] = sum[s] x * (k where s < 4);
                x + o + q + sum[s] k
            }
        }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            layers(x)
        }
    }
}

fn main() {}
