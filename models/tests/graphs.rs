//! Graphs from the configs of published models: in both styles, with the tensors that the files have, and what is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use einfuse_graph::{Extent, Graph, Kind, verify};
use einfuse_models::{ARCHITECTURES, context_from_config, graph_from_config};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const MODELS: [&str; 5] = ["gpt2", "llama3", "mistral", "opt", "qwen3"];

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(model)
}

fn config(folder: &Path, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(file)).unwrap()).unwrap()
}

#[test]
fn both_styles_of_config_make_the_same_verified_graph() {
    for model in MODELS {
        let [old, new] = ["config.json", "config_v5.json"].map(|file| config(&folder(model), file));
        let (a, b) = (graph_from_config(&old).unwrap(), graph_from_config(&new).unwrap());
        verify(&a).unwrap();
        assert_eq!(a, b, "{model}");
        for config in [&old, &new] {
            let context = context_from_config(config).unwrap();
            assert_eq!(context, Some(if model == "gpt2" || model == "opt" { 128 } else { 256 }), "{model}");
        }
    }
}

/// The names of the tensors that a graph asks for, the first alternatives.
fn asked(graph: &Graph) -> BTreeSet<String> {
    let layers = graph.nodes.iter().find_map(|n| match n {
        einfuse_graph::Node::Layers(layers) => Some(layers.order.len()),
        _ => None,
    });
    let mut names = BTreeSet::new();
    for tensor in &graph.tensors {
        let Kind::Weight(places) = &tensor.kind else { continue };
        for layer in 0..layers.unwrap_or(0) {
            names.insert(places[0].name.replace("{l}", &layer.to_string()));
        }
    }
    names
}

#[test]
fn every_tensor_of_the_file_is_asked_for() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("nano");
    for folder in MODELS.map(folder).into_iter().chain([nano]) {
        let graph = graph_from_config(&config(&folder, "config.json")).unwrap();
        let file = std::fs::read(folder.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let there: BTreeSet<String> = file.names().into_iter().map(ToString::to_string).collect();
        assert_eq!(asked(&graph), there, "{}", folder.display());
    }
}

#[test]
fn the_output_is_over_the_vocabulary() {
    for model in MODELS {
        let config = config(&folder(model), "config.json");
        let graph = graph_from_config(&config).unwrap();
        let [t, v] = graph.tensor(graph.output).axes[..] else { panic!("two axes") };
        assert_eq!(graph.axis(t).extent, Extent::Tokens);
        assert_eq!(graph.size(v), config["vocab_size"].as_u64().map(|n| n as usize));
    }
}

#[test]
fn what_an_architecture_does_not_describe_is_refused() {
    let cases = [
        (
            "gpt2",
            json!({"activation_function": "relu"}),
            "the config's `activation_function` is \"relu\", Gpt2 supports",
        ),
        ("gpt2", json!({"scale_attn_weights": false}), "`scale_attn_weights` is false"),
        ("gpt2", json!({"scale_attn_by_inverse_layer_idx": true}), "`scale_attn_by_inverse_layer_idx` is true"),
        ("gpt2", json!({"add_cross_attention": true}), "`add_cross_attention` is true"),
        ("gpt2", json!({"n_head": 5}), "axis `c` = n_embd / n_head: 48 / 5 is not a whole number"),
        ("gpt2", json!({"n_embd": null}), "the config has no `n_embd`, which Gpt2 needs"),
        ("gpt2", json!({"n_layer": 0}), "the config's `n_layer`: expected 1 to 10000 layers, found 0"),
        (
            "opt",
            json!({"activation_function": "gelu"}),
            "`activation_function` is \"gelu\", Opt supports only \"relu\"",
        ),
        ("opt", json!({"do_layer_norm_before": false}), "`do_layer_norm_before` is false, Opt supports only true"),
        ("opt", json!({"_remove_final_layer_norm": true}), "`_remove_final_layer_norm` is true"),
        ("opt", json!({"enable_bias": false}), "`enable_bias` is false"),
        ("opt", json!({"layer_norm_elementwise_affine": false}), "`layer_norm_elementwise_affine` is false"),
        ("opt", json!({"word_embed_proj_dim": 24}), "`word_embed_proj_dim` is 24, Opt supports only 48"),
        ("llama3", json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\", Llama supports only \"silu\""),
        ("llama3", json!({"attention_bias": true}), "`attention_bias` is true, Llama supports only false"),
        ("llama3", json!({"mlp_bias": true}), "`mlp_bias` is true, Llama supports only false"),
        ("llama3", json!({"num_key_value_heads": 3}), "axis `g` = num_attention_heads / num_key_value_heads: 4 / 3"),
        ("llama3", json!({"head_dim": 15}), "axis `r` = head_dim / 2: 15 / 2 is not a whole number"),
        ("llama3", json!({"hidden_size": "64"}), "the config's `hidden_size`: expected a size from 1 to 16777216"),
        (
            "llama3",
            json!({"hidden_size": 1u64 << 60}),
            "the config's `hidden_size`: expected a size from 1 to 16777216",
        ),
        (
            "llama3",
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
            "`rope_type` is \"yarn\", supported are",
        ),
        (
            "llama3",
            json!({"rope_scaling": 3}),
            "the config's `rope_theta` or `rope_scaling`: invalid type: integer `3`",
        ),
        ("llama3", json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5, Llama supports only 1"),
        ("mistral", json!({"sliding_window": 0}), "the config's `sliding_window`: expected a size from 1"),
        ("qwen3", json!({"use_sliding_window": true}), "`use_sliding_window` is true, Qwen3 supports only false"),
        ("qwen3", json!({"attention_bias": true}), "`attention_bias` is true, Qwen3 supports only false"),
    ];
    for (model, changes, expected) in cases {
        let mut config = config(&folder(model), "config.json");
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let error = graph_from_config(&config).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\n{expected}");
        assert!(!error.contains('\n'));
    }
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let error = graph_from_config(&json!({"architectures": ["BertModel"]})).unwrap_err().to_string();
    assert!(error.contains("`BertModel`"));
    for name in ARCHITECTURES.iter().flat_map(|a| a.names) {
        assert!(error.contains(name), "{error}");
    }
    for config in [json!({}), json!([]), json!({"architectures": []}), json!({"architectures": [1]}), json!(null)] {
        assert!(graph_from_config(&config).unwrap_err().to_string().contains("`architectures`"));
    }
}
