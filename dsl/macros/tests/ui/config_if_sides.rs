//! The config chooses between sides with different axes.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; tied: bool = "tied"; }
        weights { embed[v, d] = "embed"; w[d] = "w"; }
        fn (tokens[t]) -> [t, d] { if tied then embed[v = tokens] else w }
    }
}

fn main() {}
