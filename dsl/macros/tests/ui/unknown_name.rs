//! A name that stands for nothing, with the nearest that does.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let hidden = embed[v = tokens];
            sum[d] hiden * w
        }
    }
}

fn main() {}
