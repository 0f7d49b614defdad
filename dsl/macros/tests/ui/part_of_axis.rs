//! A part of each coordinate of an axis that is not the weight's first.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; n: size = "n"; }
        weights { embed[v, d] = "embed"; w[n, d] = "w"[0 .. d in d]; }
        fn (tokens[t]) -> [t, d] { embed[v = tokens] * sum[n] w }
    }
}

fn main() {}
