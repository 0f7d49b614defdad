//! Values and coordinates, nothing else.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; e: size = "experts"; j: size = "chosen"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; router[e, d] = "router"; w[e, f, d] = "{e}.w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            let r[t, e] = sum[d] x * router;
            let (a, i, k)[t, j] = top[e -> j](r);
            sum[d] x * w[e = 0]
        }
    }
}

fn main() {}
