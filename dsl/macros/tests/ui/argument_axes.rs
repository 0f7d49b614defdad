//! A call with axes that the argument does not have.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            let y[t, f] = sum[d] x * w;
            rms_norm[d](y, 1e-5)
        }
    }
}

fn main() {}
