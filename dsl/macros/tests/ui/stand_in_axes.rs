//! A weight that stands in for one over other axes.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; tied: bool = "tied"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w" if !tied else embed; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            sum[d] x * w
        }
    }
}

fn main() {}
