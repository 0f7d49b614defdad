//! A mixture whose experts are all equal (sparse upcycling, Komatsuzaki et al., 2022) computes what the dense model does,
//! whatever its router says.

mod common;

use std::fs;

use common::{Folder, json, repository};
use einfuse::{Checkpoint, Generate, Model, Rule, Settings, Wanted};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::json;

const EXPERTS: usize = 5;
const CHOSEN: usize = 3;

/// A Mixtral with the weights of a Llama: in every layer so many copies of the gated network, and a router with some numbers.
fn upcycled(name: &str, copies: usize) -> Folder {
    let source = repository("tests/golden").join(name);
    let mut config = json(&source.join("config.json"));
    let number = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
    let (layers, size) = (number("num_hidden_layers"), number("hidden_size"));
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let dense = SafeTensors::deserialize(&bytes).unwrap();
    let router: Vec<u8> =
        (0..EXPERTS * size).flat_map(|i| ((i * 7919 % 997) as f32 / 997.0 - 0.5).to_le_bytes()).collect();
    let mut tensors: Vec<(String, TensorView<'_>)> = Vec::new();
    for (name, values) in dense.tensors() {
        let Some((layer, part)) = name.split_once(".mlp.") else {
            tensors.push((name, values));
            continue;
        };
        let part = match part {
            "gate_proj.weight" => "w1",
            "up_proj.weight" => "w3",
            _ => "w2",
        };
        let copies = (0..copies).map(|e| format!("{layer}.block_sparse_moe.experts.{e}.{part}.weight"));
        tensors.extend(copies.map(|copy| (copy, values.clone())));
    }
    for layer in 0..layers {
        let view = TensorView::new(Dtype::F32, vec![EXPERTS, size], &router).unwrap();
        tensors.push((format!("model.layers.{layer}.block_sparse_moe.gate.weight"), view));
    }
    config["architectures"] = json!(["MixtralForCausalLM"]);
    config["num_local_experts"] = json!(EXPERTS);
    config["num_experts_per_tok"] = json!(CHOSEN);
    let folder = Folder::copy(name);
    folder.write("config.json", config.to_string());
    folder.write("model.safetensors", serialize(tensors, None).unwrap());
    folder
}

/// The logits of a prompt, given in pieces, and what follows it.
fn computed(model: &Model, prompt: &[u32], piece: usize) -> (Vec<f32>, Vec<u32>) {
    let mut session = model.session();
    let logits = prompt.chunks(piece).flat_map(|ids| session.feed_all(ids).unwrap()).collect();
    session.clear();
    let options = Generate { limit: Some(24), ignore_end: true, ..Generate::default() };
    let tokens = session.generate(prompt, &options).unwrap().map(|token| token.unwrap().id).collect();
    (logits, tokens)
}

#[test]
fn equal_experts_write_the_dense_models_text() {
    let mixture = upcycled("llama3", EXPERTS);
    let [dense, mixture] = [&repository("tests/golden/llama3"), mixture.path()].map(|f| Checkpoint::open(f).unwrap());
    let prompt: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 380).collect();
    for (threads, without) in [(1, &[][..]), (2, &[]), (3, &[]), (2, &[Rule::SelectContract, Rule::Epilogue])] {
        let load = |checkpoint: &Checkpoint| {
            let settings = Settings {
                threads: Some(threads),
                without: without.to_vec(),
                rows: Wanted::All,
                ..Settings::default()
            };
            einfuse::load_checkpoint(checkpoint, settings).unwrap()
        };
        let (dense, mixture) = (load(&dense), load(&mixture));
        for piece in [1, 3, prompt.len()] {
            let (expected, text) = computed(&dense, &prompt, piece);
            let (found, same) = computed(&mixture, &prompt, piece);
            assert_eq!(same, text, "in pieces of {piece}, on {threads} threads");
            let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-4 * largest, "{found}, not {expected}, of {largest}");
            }
        }
        let chosen = mixture.session().choices(&prompt).unwrap();
        if without.is_empty() {
            assert_eq!(chosen.len(), 3, "one choice in each layer");
            for one in chosen {
                assert_eq!((one.counts.len(), one.counts.iter().sum::<usize>()), (EXPERTS, CHOSEN * prompt.len()));
                assert!(one.counts.iter().filter(|count| **count > 0).count() > 1, "{one:?}");
            }
        }
    }
}

/// All experts have to be there.
#[test]
fn a_missing_expert_is_named() {
    let folder = upcycled("llama3", EXPERTS - 1);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = einfuse::load_checkpoint(&checkpoint, Settings::default()).unwrap_err().to_string();
    assert!(error.contains("model.layers.0.block_sparse_moe.experts.4.w"), "{error}");
}
