//! All mistakes are reported at once, and what was understood is there: `Model` and `ModelConfig` are used.

einfuse_macros::model! {
    pub Model for "Model" {
        config { d: size = "hidden"; v: size = "vocab"; f: size = "inner"; heads: cuont = "heads"; }
        weights { embed[v, d] = "embed"; w[f, d] = "w"; b[g] = "b"; }
        fn (tokens[t]) -> [t, f] {
            let x = embd[v = tokens];
            let y[t, d] = sum[d] embed[v = tokens] * w;
            let z = relu(y, 2);
            cache z over s;
            sum[d] (x * w * z * b where d)
        }
    }
}

fn main() {
    let config = ModelConfig { d: 1, v: 2, f: 3, heads: 4 };
    let _ = Model::graph(&config);
}
