//! A mistake in the equations of a block.

einfuse_macros::block! {
    pub Gated[d, f] {
        weights { up[f, d] = "up"; down[d, f] = "down"; }
        fn (x[t, d]) -> [t, d] { sum[d] (sum[d] x * up) * down }
    }
}

fn main() {}
