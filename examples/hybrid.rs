//! Declares a model, prints its equations and the kernels that they become, and continues a sequence with it, from weights
//! made up on the spot: through the kernels, and as the interpreter understands the equations.

use std::collections::BTreeMap;
use std::error::Error;

use einfuse::codegen::Batch;
use einfuse::graph::{Interpreter, Kind, Tensor};
use einfuse::models::blocks::SwiGlu;
use einfuse::runtime::Embedded;
use einfuse::{Checkpoint, Generate, Graph, Model, Settings};
use safetensors::tensor::{Dtype, SafeTensorError, TensorView};

einfuse::model! {
    /// A decoder of two kinds of layers. Most sum what they have seen with weights that fade with the distance, by a rate that
    /// each head learns (Sun et al., 2023); every third attends to the latest positions, and lowers its scores with the
    /// distance (Press et al., 2021). No kernel for either exists anywhere: both are derived from the equations.
    pub Hybrid for "HybridForCausalLM" {
        config {
            d: size = "hidden_size";
            h: size = "num_attention_heads";
            f: size = "intermediate_size";
            v: size = "vocab_size";
            layers: count = "num_hidden_layers";
            window: size = "window";
        }
        axis c = d / h;                        // elements of a head

        weights { embed[v, d] = "embed.weight"; }

        layer l in layers {
            weights "layers.{l}." {
                norm[d]     = "norm.weight";
                wq[h, c, d] = "q.weight";
                wk[h, c, d] = "k.weight";
                wv[h, c, d] = "v.weight";
                wo[d, h, c] = "o.weight";
                rate[h]     = "rate";
                block feed[d, f] -> [t, d] = SwiGlu in "feed.";
            }
            fn fade(x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, 1e-5) * norm;
                let q[t, h, c] = sum[d] a * wq;
                let k[t, h, c] = sum[d] a * wk;
                let u[t, h, c] = sum[d] a * wv;
                cache k, u over s;
                let e = (sum[c] q * k) * exp(-abs(rate) * (t - s));
                let o[t, h, c] = sum[s] (e where s <= t) * u;
                let y[t, d] = x + sum[h, c] rms_norm[c](o, 1e-5) * wo;
                y + feed(y)
            }
            fn attend(x[t, d]) -> [t, d] {
                let a = rms_norm[d](x, 1e-5) * norm;
                let q[t, h, c] = sum[d] a * wq;
                let k[t, h, c] = sum[d] a * wk;
                let u[t, h, c] = sum[d] a * wv;
                cache k, u over s within window;
                let e = size(c)^-0.5 * (sum[c] q * k) - rate * (t - s);
                let p = softmax[s](e where s <= t);
                let o[t, h, c] = sum[s] p * u;
                let y[t, d] = x + sum[h, c] o * wo;
                y + feed(y)
            }
            match l % 3 { 2 => attend, _ => fade }
        }
        fn (tokens[t]) -> [t, v] {
            let x = embed[v = tokens];
            let y = layers(x);
            let logits[t, v] = sum[d] rms_norm[d](y, 1e-5) * embed;
            logits
        }
    }
}

/// What a layer's weight is called in the file.
fn name_of(tensor: &Tensor, layer: Option<usize>) -> Option<String> {
    let Kind::Weight(places) = &tensor.kind else { return None };
    Some(places.first()?.name.replace("{l}", &layer.unwrap_or(0).to_string()))
}

/// The numbers of a tensor in the file: any do, as long as they are small.
fn numbers(name: &str, elements: usize) -> Vec<f32> {
    let seed: f32 = name.bytes().enumerate().map(|(at, byte)| (1 + at % 7) as f32 * f32::from(byte)).sum();
    (0..elements).map(|i| ((i as f32 + 1.0) * (12.9 + seed)).sin()).collect()
}

fn shape_of(graph: &Graph, tensor: &Tensor) -> Vec<usize> {
    tensor.axes.iter().filter_map(|&axis| graph.size(axis)).collect()
}

/// `model.safetensors`, with every weight under the name that the declaration gives it.
fn weights(graph: &Graph, layers: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut file = BTreeMap::new();
    for (tensor, layer) in graph.tensors.iter().flat_map(|tensor| (0..layers).map(move |layer| (tensor, layer))) {
        let Some(name) = name_of(tensor, Some(layer)) else { continue };
        let shape = shape_of(graph, tensor);
        let numbers = numbers(&name, shape.iter().product());
        file.insert(name, (shape, numbers.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()));
    }
    let views =
        file.iter().map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    Ok(safetensors::serialize(views.collect::<Result<Vec<_>, SafeTensorError>>()?, None)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = serde_json::json!({
        "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100, "num_hidden_layers": 3,
        "window": 6,
    });
    let graph = Hybrid::graph(&HybridConfig::from_json(&config)?)?;
    println!("{graph}");

    // what a folder on disk would have; a model without a tokenizer reads and writes token ids
    let files = Embedded {
        name: "hybrid",
        config: config.to_string().leak().as_bytes(),
        generation_config: None,
        tokenizer: None,
        weights: weights(&graph, 3)?.leak(),
    };
    let model = Model::load(&Checkpoint::embedded(&files)?, &graph, Settings::default())?;
    for (kernel, times) in model.program().plan(Batch::One).runs() {
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

    let made_up = |tensor: &Tensor, layer| {
        let name = name_of(tensor, layer).ok_or_else(|| format!("`{}` is no weight", tensor.name))?;
        Ok(numbers(&name, shape_of(&graph, tensor).iter().product()))
    };
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
