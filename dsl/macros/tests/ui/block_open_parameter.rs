//! A parameter of a block that may have other axes.

einfuse_macros::block! {
    pub Gated[d, f] {
        weights { up[f, d] = "up"; down[d, f] = "down"; }
        fn (x[d, ..]) -> [t, d] { sum[f] (sum[d] x * up) * down }
    }
}

fn main() {}
