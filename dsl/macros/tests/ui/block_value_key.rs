//! A value of a block with a key.

einfuse_macros::block! {
    pub Gated[d, f] {
        config { biased: bool = "bias"; }
        weights { up[f, d] = "up"; down[d, f] = "down"; }
        fn (x[t, d]) -> [t, d] { sum[f] (sum[d] x * up) * down }
    }
}

fn main() {}
