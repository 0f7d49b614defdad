//! A size among the values of a block, whose axes are given.

einfuse_macros::block! {
    pub Gated[d, f] {
        config { h: size; }
        weights { up[f, d] = "up"; down[d, f] = "down"; }
        fn (x[t, d]) -> [t, d] { sum[f] (sum[d] x * up) * down }
    }
}

fn main() {}
