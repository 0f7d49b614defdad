//! Declares a model, prints its equations and the kernels that they become, and continues a sequence with it, from weights
//! made up on the spot: through the kernels, and as the interpreter understands the equations.

use std::error::Error;

use einfuse::graph::{Interpreter, Kind, Tensor};
use einfuse::runtime::Embedded;
use einfuse::{Checkpoint, Generate, Graph, Model, Settings};
use safetensors::tensor::{Dtype, TensorView};

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

/// A weight's numbers: any do, as long as they are small.
fn numbers(graph: &Graph, tensor: &Tensor, layer: Option<usize>) -> Vec<f32> {
    let elements: usize = tensor.axes.iter().filter_map(|&axis| graph.size(axis)).product();
    let seed = (tensor.name.len() + 7 * layer.unwrap_or(0)) as f32;
    (0..elements).map(|i| (i as f32 * (12.9 + seed)).sin()).collect()
}

/// `model.safetensors`, with every weight under the name that the declaration gives it.
fn weights(graph: &Graph, layers: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut file = Vec::new();
    for tensor in &graph.tensors {
        let Kind::Weight(places) = &tensor.kind else { continue };
        let name = &places[0].name;
        let shape: Vec<usize> = tensor.axes.iter().filter_map(|&axis| graph.size(axis)).collect();
        for layer in 0..if name.contains("{l}") { layers } else { 1 } {
            let numbers = numbers(graph, tensor, Some(layer));
            let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
            file.push((name.replace("{l}", &layer.to_string()), shape.clone(), bytes));
        }
    }
    let mut views = Vec::new();
    for (name, shape, bytes) in &file {
        views.push((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?));
    }
    Ok(safetensors::serialize(views, None)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = serde_json::json!({
        "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100, "num_hidden_layers": 2,
    });
    let graph = Distance::graph(&DistanceConfig::from_json(&config)?)?;
    println!("{graph}");

    // what a folder on disk would have; a model without a tokenizer reads and writes token ids
    let files = Embedded {
        name: "distance",
        config: config.to_string().leak().as_bytes(),
        generation_config: None,
        tokenizer: None,
        weights: weights(&graph, 2)?.leak(),
    };
    let model = Model::load(&Checkpoint::embedded(&files)?, &graph, Settings::default())?;
    for (kernel, times) in model.program().plan().runs() {
        println!("kernel {}, {times} times a step", kernel.name);
        for remark in &kernel.applied {
            println!("    {}: {}", remark.rule, remark.text);
        }
    }

    let prompt = vec![3, 1, 4, 1, 5];
    let mut session = model.session();
    let options = Generate { limit: Some(8), ..Generate::default() };
    let tokens = session.generate(&prompt, &options)?.map(|token| token.map(|token| token.id));
    println!("after {prompt:?} the kernels continue with    {:?}", tokens.collect::<Result<Vec<_>, _>>()?);

    let made_up = |tensor: &Tensor, layer| Ok(numbers(&graph, tensor, layer));
    let mut interpreter = Interpreter::new(&graph, &made_up)?;
    let (mut given, mut tokens) = (prompt.iter().map(|&token| token.into()).collect::<Vec<_>>(), Vec::new());
    while tokens.len() < 8 {
        let computed = interpreter.step(&[("tokens", &given)])?;
        let last = computed.output.chunks_exact(model.vocabulary()).next_back().unwrap_or_default();
        let likeliest = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap_or(0);
        tokens.push(likeliest);
        given = vec![likeliest as i64];
    }
    println!("after {prompt:?} the interpreter continues with {tokens:?}");
    Ok(())
}
