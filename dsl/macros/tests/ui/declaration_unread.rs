//! Declarations that can't be read, and uses of what they declare.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size "vocab"; f: size = "inner"; n: count = "depth"; }
        axis r d / 2;
        weights { embed[v, d] = "embed"; }
        weights of { scale[d] = "scale"; }
        tensors { shift[d] = "shift"; }
        fn twice(x) [d] { x + x }
        layer l in n {
            weights "layers.{l}." { up[f, d] "up"; down[d, f] = ; }
            fn (x[t, d]) -> [t, d] {
                let k[t d] = x;
                cache k s;
                x + sum[f] relu(sum[d] x * up) * down + sum[s] (k where s <= t) + sum[r] x[d = 2 * r]
            }
        }
        layer m deep { fn (x[t, d]) -> [t, d] { 2 * x } }
        fn (tokens[t]) -> [t, d] { deep(n(twice(embed[v = tokens]))) * scale + shift }
    }
}

fn main() {}
