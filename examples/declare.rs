//! Declares a model, prints its equations and the kernels that they become, and computes with them: as the interpreter
//! understands them, from weights made up on the spot.

use std::error::Error;

use einfuse::codegen::{Options, Program, Storage};
use einfuse::graph::{Interpreter, Tensor};

einfuse::model! {
    /// A decoder whose attention knows no rotation: each head lowers its scores with the distance, by a slope that is
    /// learnt (Press et al., 2021, had it fixed). No kernel for that exists anywhere; it is derived from the equation.
    pub Distance for "DistanceForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
        }
        axis c = d / h;

        weights { embed[v, d] = "embed.weight"; }

        layer l in layers {
            weights "layers.{l}." {
                norm[d]     = "norm.weight";
                wq[h, c, d] = "q.weight";
                wk[h, c, d] = "k.weight";
                wv[h, c, d] = "v.weight";
                wo[d, h, c] = "o.weight";
                slope[h]    = "slope";
                up[f, d]    = "up.weight";
                down[d, f]  = "down.weight";
            }
            fn (x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, 1e-5) * norm;
                let q[t, h, c] = sum[d] a * wq;
                let k[t, h, c] = sum[d] a * wk;
                let u[t, h, c] = sum[d] a * wv;
                cache k, u over s;
                let e = size(c)^-0.5 * (sum[c] q * k) - slope * (t - s);
                let p = softmax[s](e where s <= t);
                let o[t, h, c] = sum[s] p * u;
                let y[t, d] = x + sum[h, c] o * wo;
                y + sum[f] gelu(sum[d] y * up) * down
            }
        }
        fn (tokens[t]) -> [t, v] {
            let x = embed[v = tokens];
            let y = layers(x);
            let logits[t, v] = sum[d] rms_norm[d](y, 1e-5) * embed;
            logits
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = DistanceConfig::from_json(&serde_json::json!({
        "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100, "num_hidden_layers": 2,
    }))?;
    let graph = Distance::graph(&config)?;
    println!("{graph}");

    let program = Program::compile(&graph, &|_| Storage::F32, &Options::default())?;
    for (kernel, times) in program.plan().runs() {
        println!("kernel {}, {times} times a step", kernel.name);
        for remark in &kernel.applied {
            println!("    {}: {}", remark.rule, remark.text);
        }
    }

    // any numbers do, as long as they are small
    let weights = |tensor: &Tensor, layer: Option<usize>| {
        let elements: usize = tensor.axes.iter().filter_map(|&axis| graph.size(axis)).product();
        let seed = tensor.name.len() + 7 * layer.unwrap_or(0);
        Ok((0..elements).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 101.0 - 0.5).collect())
    };
    let mut interpreter = Interpreter::new(&graph, &weights)?;
    let computed = interpreter.step(&[("tokens", &[3, 1, 4, 1, 5])])?;
    let last = &computed.output[4 * 100..];
    let likeliest = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap_or(0);
    println!("after 3 1 4 1 5, token {likeliest} is the likeliest");
    Ok(())
}
