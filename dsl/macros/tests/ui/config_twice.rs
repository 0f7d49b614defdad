//! Two values of the config of one name.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; f: size = "outer"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            sum[d] x * w
        }
    }
}

fn main() {}
