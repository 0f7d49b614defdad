//! A block that yields an integer.

einfuse_macros::block! {
    pub Gated[d, f] {
        weights { up[f, d] = "up"; down[d, f] = "down"; }
        fn (x[t, d]) -> [t] { argmax[d] sum[f] (sum[d] x * up) * down }
    }
}

fn main() {}
