//! A default by a value that is declared further below.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden" else 4 * v; v: size = "vocab"; f: size = "inner"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; }
        fn (tokens[t]) -> [t, f] {
            let x = embed[v = tokens];
            sum[d] x * w
        }
    }
}

fn main() {}
