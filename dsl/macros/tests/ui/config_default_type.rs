//! A default of another type than the value.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden" else true; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            sum[d] x * w
        }
    }
}

fn main() {}
