//! A reduction over the tokens of a step.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            let y = sum[t] x;
            sum[d] (x - y) * w
        }
    }
}

fn main() {}
