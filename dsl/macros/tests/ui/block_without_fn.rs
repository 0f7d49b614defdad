//! A block without a `fn`.

einfuse_macros::block! {
    pub Gated[d, f] {
        weights { up[f, d] = "up"; down[d, f] = "down"; }
    }
}

fn main() {}
