//! A block of which another result is declared than it yields.

einfuse_macros::block! {
    pub Gated[d, f] {
        config { biased: bool; }
        weights { up[f, d] = "up"; bias[f] = "bias" if biased else 0; down[d, f] = "down"; }
        fn (x[t, d], factor) -> [t, d] { factor * (sum[f] relu(bias + sum[d] x * up) * down) }
    }
}

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; layers: count = "depth"; }
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "layers.{l}." { block feed[d, f] -> [t, f] = Gated in "feed."; }
            fn (x[t, d]) -> [t, d] {
                x + sum[f] feed(x, 2)
            }
        }
        fn (tokens[t]) -> [t, d] {
            let x = embed[v = tokens];
            layers(x)
        }
    }
}

fn main() {}
