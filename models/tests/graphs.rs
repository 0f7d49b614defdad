//! Graphs from the configs of published models: in both styles, with the tensors that the files have, and what is refused.

#[path = "../../tests/common/changes.rs"]
mod changes;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use changes::{changes, pointers};
use einfuse_graph::{Expr, Extent, Graph, Kind, Node, verify};
use einfuse_models::{ARCHITECTURES, blocks, context_from_config, graph_from_config};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// The folders of golden models.
fn models() -> Vec<String> {
    let golden = std::fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap().path());
    let models = golden.filter(|folder| folder.join("model.safetensors").exists());
    models.map(|folder| folder.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(model)
}

fn config(folder: &Path, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(file)).unwrap()).unwrap()
}

#[test]
fn both_styles_of_config_make_the_same_verified_graph() {
    for model in models() {
        let model = &model;
        let [old, new] = ["config.json", "config_v5.json"].map(|file| config(&folder(model), file));
        let [a, b] = [&old, &new].map(|config| graph_from_config(config, None).unwrap());
        verify(&a).unwrap();
        assert_eq!(a, b, "{model}");
        for config in [&old, &new] {
            let context = context_from_config(config).unwrap();
            let key =
                ["max_position_embeddings", "n_positions", "seq_length"].into_iter().find_map(|key| config.get(key));
            assert_eq!(context, key.and_then(Value::as_u64).map(|n| n as usize), "{model}");
        }
    }
}

/// The names of the tensors that a graph asks for, the first alternatives.
fn asked(graph: &Graph) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut ask = |nodes: &[Node], layer: Option<usize>| {
        let bodies = nodes.iter().filter_map(|node| match node {
            Node::Equation { body, .. } => Some(*body),
            _ => None,
        });
        for expr in bodies.flat_map(|body| graph.reachable(body)) {
            let Expr::Load { tensor, .. } = graph.expr(expr) else { continue };
            let tensor = graph.tensor(*tensor);
            let Kind::Weight(places) = &tensor.kind else { continue };
            let coordinates = tensor.axes.first().and_then(|&axis| graph.size(axis)).unwrap_or(1);
            names.extend(places[0].names(layer, coordinates));
        }
    };
    ask(&graph.nodes, None);
    for node in &graph.nodes {
        let Node::Layers(layers) = node else { continue };
        for (layer, &body) in layers.order.iter().enumerate() {
            ask(&layers.bodies[body].nodes, Some(layer));
        }
    }
    names
}

#[test]
fn every_tensor_of_the_file_is_asked_for() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("nano");
    for folder in models().iter().map(|model| folder(model)).chain([nano]) {
        let graph = graph_from_config(&config(&folder, "config.json"), None).unwrap();
        let file = std::fs::read(folder.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        // Of a weight that is stored as codes, those stand for it.
        let names = file.names().into_iter().filter(|name| !name.ends_with("_scales"));
        let there: BTreeSet<String> = names.map(|name| name.trim_end_matches("_blocks").to_owned()).collect();
        assert_eq!(asked(&graph), there, "{}", folder.display());
    }
}

#[test]
fn numbers_are_truth_values() {
    let with = |tuning: Value| {
        let mut config = config(&folder("llama4"), "config.json");
        config["attn_temperature_tuning"] = tuning;
        graph_from_config(&config, None).unwrap()
    };
    assert_eq!(with(json!(4)), with(json!(true)));
    assert_eq!(with(json!(0)), with(json!(false)));
    assert_ne!(with(json!(4)), with(json!(0)));
}

/// The graph of a golden model with some keys changed, or without them where they are `"absent"`.
fn changed(model: &str, changes: Value) -> Graph {
    let mut config = config(&folder(model), "config.json");
    for (key, value) in changes.as_object().unwrap() {
        match value.as_str() {
            Some("absent") => drop(config.as_object_mut().unwrap().remove(key)),
            _ => config[key] = value.clone(),
        }
    }
    graph_from_config(&config, None).unwrap()
}

/// What transformers 5.24 makes of keys: `DeepseekV2TopkRouter` and the configs' defaults, `LlamaAttention`, `GPTJAttention`.
#[test]
fn keys_mean_what_they_mean_to_the_reference() {
    let same = |model: &str, a: Value, b: Value| assert_eq!(changed(model, a.clone()), changed(model, b), "{a}");
    let other = |model: &str, a: Value, b: Value| assert_ne!(changed(model, a.clone()), changed(model, b), "{a}");
    let greedy = json!({"topk_method": "greedy"});
    same("deepseek_v2", greedy.clone(), json!({"topk_method": "greedy", "n_group": 1, "topk_group": 1}));
    same("deepseek_v2", greedy.clone(), json!({"topk_method": "absent"}));
    other("deepseek_v2", greedy, json!({}));
    same("llama3", json!({"sliding_window": 16}), json!({}));
    same("mistral", json!({"sliding_window": "absent"}), json!({"sliding_window": 4096}));
    other("mistral", json!({"sliding_window": "absent"}), json!({"sliding_window": null}));
    same("mistral", json!({"num_key_value_heads": null}), json!({"num_key_value_heads": 4}));
    same("gptj", json!({"n_head": 1, "rotary_dim": null}), json!({"n_head": 1, "rotary_dim": 40}));
    let windows = |model, window: Value| -> BTreeSet<usize> {
        let states = changed(model, json!({"sliding_window": window})).tensors;
        let window = |kind| if let Kind::State { window, .. } = kind { window } else { None };
        states.into_iter().filter_map(|tensor| window(tensor.kind)).collect()
    };
    for (model, unsaid) in [("gemma2", 4096), ("gemma3", 4096), ("gpt_oss", 128), ("qwen2", 4096)] {
        assert_eq!(windows(model, json!("absent")), [unsaid].into());
        assert_eq!(windows(model, json!(null)), [].into());
    }
    same("deepseek_v2", json!({"q_lora_rank": "absent"}), json!({"q_lora_rank": 1536}));
    other("deepseek_v2", json!({"q_lora_rank": null}), json!({"q_lora_rank": 1536}));
}

#[test]
fn the_output_is_over_the_vocabulary() {
    for model in models() {
        let config = config(&folder(&model), "config.json");
        let graph = graph_from_config(&config, None).unwrap();
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
        ("llama3", json!({"mlp_bias": true}), "`mlp_bias` is true, Llama supports only false"),
        ("llama3", json!({"num_key_value_heads": 3}), "axis `g` = num_attention_heads / num_key_value_heads: 4 / 3"),
        ("llama3", json!({"head_dim": 1}), "axis `r` = rope.pairs(head_dim): 0 is no size from 1"),
        ("llama3", json!({"hidden_size": "64"}), "the config's `hidden_size`: expected a size from 1 to 16777216"),
        (
            "llama3",
            json!({"hidden_size": 1u64 << 60}),
            "the config's `hidden_size`: expected a size from 1 to 16777216",
        ),
        (
            "llama3",
            json!({"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}),
            "the config: `rope_scaling`: `rope_type` is \"mrope\", supported are",
        ),
        ("llama3", json!({"rope_scaling": 3}), "the config: `rope_scaling`: expected an object, found 3"),
        (
            "llama3",
            json!({"partial_rotary_factor": 1.5}),
            "the config: `partial_rotary_factor` is 1.5, expected a share",
        ),
        (
            "phi3",
            json!({"head_dim": 32}),
            "constant `freq`: `long_factor` has 6 factors, the head has 12 rotated pairs",
        ),
        ("gemma3", json!({"layer_types": ["linear"]}), "the config: `layer_types` has \"linear\", supported are"),
        (
            "gemma3",
            json!({"layer_types": ["full_attention"]}),
            "the config: `layer_types` is a list of 1, `num_hidden_layers` is ",
        ),
        (
            "llama4",
            json!({"no_rope_layers": [0]}),
            "the config: `no_rope_layers` is a list of 1, `num_hidden_layers` is ",
        ),
        (
            "gemma3",
            json!({"attn_logit_softcapping": 50.0}),
            "`attn_logit_softcapping` is 50.0, Gemma3 supports only false",
        ),
        ("gpt_neox", json!({"hidden_act": "relu"}), "`hidden_act` is \"relu\", GptNeoX supports only \"gelu\""),
        ("mistral", json!({"sliding_window": 0}), "the config's `sliding_window`: expected a size from 1"),
        ("qwen3", json!({"use_sliding_window": true}), "`use_sliding_window` is true, Qwen3 supports only false"),
        ("qwen3", json!({"attention_bias": true}), "`attention_bias` is true, Qwen3 supports only false"),
        ("deepseek_v2", json!({"mlp_bias": true}), "`mlp_bias` is true, DeepseekV2 supports only false"),
        ("deepseek_v2", json!({"scoring_func": "sigmoid"}), "`scoring_func` is \"sigmoid\""),
        ("deepseek_v2", json!({"topk_method": "noaux_tc"}), "the config: `topk_method` is \"noaux_tc\", supported are"),
        ("deepseek_v2", json!({"topk_group": null}), "the config: `topk_group` is missing"),
        (
            "gptj",
            json!({"rotary_dim": null}),
            "constant `freq`: 40 elements are rotated (`rotary_dim`, `n_embd` where that is null), a head has 10",
        ),
        ("deepseek_v3", json!({"scoring_func": "softmax"}), "`scoring_func` is \"softmax\""),
        ("deepseek_v3", json!({"topk_method": "greedy"}), "`topk_method` is \"greedy\", DeepseekV3 supports only"),
        ("deepseek_v3", json!({"moe_layer_freq": 2}), "`moe_layer_freq` is 2, DeepseekV3 supports only 1"),
    ];
    for (model, changes, expected) in cases {
        let mut config = config(&folder(model), "config.json");
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let error = graph_from_config(&config, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\n{expected}");
        assert!(!error.contains('\n'));
    }
}

/// Whatever a value of a config is replaced by, there is a graph, or an error that names the key, another that it does not fit, an
/// axis or a constant.
#[test]
fn no_value_of_a_config_breaks_more_than_its_key() {
    let (mut made, mut refused, mut unnamed) = (0, 0, Vec::new());
    for model in models() {
        let [old, new] = ["config.json", "config_v5.json"].map(|file| config(&folder(&model), file));
        for (config, other) in [(&old, None), (&new, Some(&old))] {
            let mut all = pointers(config, 100);
            // What both have is changed once, and of architectures is the next test.
            let both = |at: &str| other.is_some_and(|other| other.pointer(at) == config.pointer(at));
            all.retain(|at| !both(at) && !at.starts_with("/architectures"));
            for at in &all {
                for (value, config) in changes(config, at) {
                    let graph = context_from_config(&config).and_then(|context| graph_from_config(&config, context));
                    let Err(error) = graph else {
                        made += 1;
                        continue;
                    };
                    let error = error.to_string();
                    let names = |key: &str| key.parse::<usize>().is_err() && error.contains(key);
                    let named = at.split('/').skip(1).any(names)
                        || ["axis `", "constant `", "`top[", "models/src/", "supports only"]
                            .iter()
                            .any(|word| error.contains(word));
                    if !named || error.contains('\n') || error.chars().count() > 400 {
                        unnamed.push(format!("{model}: {at} = {value}: {error}"));
                    }
                    refused += 1;
                }
            }
        }
    }
    assert!(unnamed.is_empty(), "{}", unnamed.join("\n"));
    assert!(made > 5000 && refused > 5000, "{made} made, {refused} refused");
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let error = graph_from_config(&json!({"architectures": ["BertModel"]}), None).unwrap_err().to_string();
    assert!(error.contains("`BertModel`"));
    for name in ARCHITECTURES.iter().flat_map(|a| a.names) {
        assert!(error.contains(name), "{error}");
    }
    let long = json!({"architectures": ["a\n".repeat(1000)]});
    let error = graph_from_config(&long, None).unwrap_err().to_string();
    assert!(error.starts_with("unknown architecture `a\\na\\n") && !error.contains('\n'), "{error}");
    for config in [json!({}), json!([]), json!({"architectures": []}), json!({"architectures": [1]}), json!(null)] {
        assert!(graph_from_config(&config, None).unwrap_err().to_string().contains("`architectures`"));
    }
}

einfuse_macros::model! {
    /// A model of another crate than the blocks that it uses.
    Another for "AnotherForCausalLM" {
        config { d: size = "d"; f: size = "f"; n: size = "n"; c: size = "c"; v: size = "v"; layers: count = "layers"; }
        axis g = alias n;
        axis r = c / 2;
        host freq[r] = vec![1.0; r];
        weights { embed[v, d] = "embed"; }
        layer l in layers {
            weights "{l}." {
                block attend[d, n, g, c, r] -> [t, d] = blocks::Attention { biased: l == 1 } in "attend.";
                block feed[d, f] -> [t, d] = einfuse_models::blocks::SwiGlu in "feed.";
            }
            fn (x[t, d]) -> [t, d] { x + feed(x + attend(x, freq, 1, 0.5)) }
        }
        fn (tokens[t]) -> [t, v] {
            let x = layers(embed[v = tokens]);
            sum[d] x * embed
        }
    }
}

#[test]
fn blocks_are_for_other_crates_too() {
    let config = AnotherConfig::from_json(&json!({"d": 6, "f": 5, "n": 2, "c": 4, "v": 7, "layers": 2})).unwrap();
    let asked = asked(&Another::graph(&config).unwrap());
    let all = [
        "attend.q_proj",
        "attend.k_proj",
        "attend.v_proj",
        "attend.o_proj",
        "feed.gate_proj",
        "feed.up_proj",
        "feed.down_proj",
    ];
    let mut wanted: BTreeSet<String> =
        all.iter().flat_map(|name| (0..2).map(move |l| format!("{l}.{name}.weight"))).collect();
    wanted.extend(["q", "k", "v"].map(|name| format!("1.attend.{name}_proj.bias")));
    wanted.insert("embed".to_owned());
    assert_eq!(asked, wanted);
}

/// A model is read from top to bottom, like the paper.
#[test]
fn declarations_are_short() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = std::fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path());
    let mut declared = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        if text.contains("einfuse_macros::model!") {
            assert!(text.lines().count() <= 80, "{}: {} lines", file.display(), text.lines().count());
            declared += 1;
        }
    }
    assert_eq!(declared, ARCHITECTURES.len());
}
