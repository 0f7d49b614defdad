//! A method of a Rust type, in an equation and of a size.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; name: String = "name"; }
        axis r = name.len() / d.len();
        weights { embed[v, d] = "embed"; w[r] = "w"; }
        fn (tokens[t]) -> [t, d] { name.len() * embed[v = tokens] * sum[r] w }
    }
}

fn main() {}
