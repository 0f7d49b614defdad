//! A parameter over an axis that the use of the block does not know.

einfuse_macros::block! {
    pub Gated[d, f] {
        axis e = 2 * f;
        weights { up[e, d] = "up"; }
        fn (x[t, d], gain[e]) -> [t, d] { x * sum[e] gain * (sum[d] x * up) + 0 * size(f) }
    }
}

fn main() {}
