//! A choice along the tokens would depend on how a prompt is cut into steps.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; e: size = "experts"; j: size = "chosen"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; router[e, d] = "router"; w[e, f, d] = "{e}.w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            let r[t, e] = sum[d] x * router;
            let (a, i)[t, j] = top[t -> j](r);
            let z[t, j, f] = sum[d] x * w[e = i];
            sum[j] a * z
        }
    }
}

fn main() {}
