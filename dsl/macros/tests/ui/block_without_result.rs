//! A block that does not say what it yields.

einfuse_macros::block! {
    pub Gated[d, f] {
        weights { up[f, d] = "up"; down[d, f] = "down"; }
        fn (x[t, d]) { sum[f] (sum[d] x * up) * down }
    }
}

fn main() {}
