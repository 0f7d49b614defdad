//! A context computed from an axis that the config does not give.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; }
        axis f = 2 * d;
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        context = 2 * f;
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            sum[d] x * w
        }
    }
}

fn main() {}
