//! An operator without its right side.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            let y = x * ;
            sum[d] x * w * y
        }
    }
}

fn main() {}
