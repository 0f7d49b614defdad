//! An axis that is declared below the weight that has it.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, o] = "w"; }
        axis o = alias d;
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            sum[d, o] x * w
        }
    }
}

fn main() {}
