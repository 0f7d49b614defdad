//! A block with layers.

einfuse_macros::block! {
    pub Gated[d, f] {
        weights { up[f, d] = "up"; down[d, f] = "down"; }
        layer l in layers { }
        fn (x[t, d]) -> [t, d] { sum[f] (sum[d] x * up) * down }
    }
}

fn main() {}
