//! A block that requires something of a config.json.

einfuse_macros::block! {
    pub Gated[d, f] {
        config { require "act" == "silu"; }
        weights { up[f, d] = "up"; down[d, f] = "down"; }
        fn (x[t, d]) -> [t, d] { sum[f] (sum[d] x * up) * down }
    }
}

fn main() {}
