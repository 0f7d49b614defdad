//! An axis of a block that nothing has.

einfuse_macros::block! {
    pub Gated[d, f, h] {
        weights { up[f, d] = "up"; down[d, f] = "down"; }
        fn (x[t, d]) -> [t, d] { sum[f] (sum[d] x * up) * down }
    }
}

fn main() {}
