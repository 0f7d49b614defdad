//! The number of a layer in the name of a weight of a block, whose prefix has it.

einfuse_macros::block! {
    pub Gated[d, f] {
        weights { up[f, d] = "{l}.up"; down[d, f] = "down"; }
        fn (x[t, d]) -> [t, d] { sum[f] (sum[d] x * up) * down }
    }
}

fn main() {}
