//! A `fn` that gets anything but the tokens.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; f: size = "inner"; }
        weights { w[f, d] = "w"; }
        fn (x[t, d]) -> [t, f] {
            sum[d] x * w
        }
    }
}

fn main() {}
