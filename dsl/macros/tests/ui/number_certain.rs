//! A number behind a tensor without a condition.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; }
        weights { embed[v, d] = "embed"; bias[d] = "bias" else 0; }
        fn (tokens[t]) -> [t, d] { embed[v = tokens] + bias }
    }
}

fn main() {}
