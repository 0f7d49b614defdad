//! Hugging Face folders, converted to GGUF as llama.cpp does it, mean what they meant.

use std::collections::BTreeMap;

use einfuse_graph::{Builder, Graph, TensorId};

use super::*;
use crate::checkpoint::TensorFile;

/// Dimensions, and the data of each expert.
type Stack = (Vec<u64>, BTreeMap<usize, Vec<u8>>);

/// A Hugging Face folder as a GGUF file, as llama.cpp's conversion makes it: everything in F32.
fn converted(folder: &str) -> Writer {
    let read =
        |name: &str| -> Json { serde_json::from_slice(&std::fs::read(format!("{folder}/{name}")).unwrap()).unwrap() };
    let (config, generation, tokenizer) = (read("config.json"), read("generation_config.json"), read("tokenizer.json"));
    let class = config["architectures"][0].as_str().unwrap();
    let name = match class {
        "GPT2LMHeadModel" => "gpt2",
        "LlamaForCausalLM" | "MistralForCausalLM" | "MixtralForCausalLM" => "llama",
        "Qwen3ForCausalLM" => "qwen3",
        "Phi3ForCausalLM" => "phi3",
        "Gemma3ForCausalLM" => "gemma3",
        "GPTNeoXForCausalLM" => "gptneox",
        other => panic!("{other}"),
    };
    let mut writer = Writer::default().text("general.architecture", name);
    let keys = [
        ("embedding_length", ["hidden_size", "n_embd"]),
        ("feed_forward_length", ["intermediate_size", "n_inner"]),
        ("block_count", ["num_hidden_layers", "n_layer"]),
        ("attention.head_count", ["num_attention_heads", "n_head"]),
        ("attention.head_count_kv", ["num_key_value_heads", ""]),
        ("attention.key_length", ["head_dim", ""]),
        ("attention.sliding_window", ["sliding_window", ""]),
        ("context_length", ["max_position_embeddings", "n_positions"]),
        ("attention.layer_norm_rms_epsilon", ["rms_norm_eps", ""]),
        ("attention.layer_norm_epsilon", ["layer_norm_epsilon", "layer_norm_eps"]),
        ("rope.freq_base", ["rope_theta", "rotary_emb_base"]),
        ("rope.scaling.original_context_length", ["original_max_position_embeddings", ""]),
        ("expert_count", ["num_local_experts", ""]),
        ("expert_used_count", ["num_experts_per_tok", ""]),
    ];
    for (key, names) in keys {
        let value = names.iter().find_map(|name| config.get(*name));
        let key = format!("{name}.{key}");
        writer = match value {
            Some(Json::Number(number)) if number.is_u64() => writer.u32(&key, number.as_u64().unwrap() as u32),
            Some(Json::Number(number)) => writer.f32(&key, number.as_f64().unwrap() as f32),
            _ if key == "gpt2.feed_forward_length" => writer.u32(&key, 4 * config["n_embd"].as_u64().unwrap() as u32),
            _ => writer,
        };
    }
    if let Some(share) = config.get("partial_rotary_factor").or(config.get("rotary_pct")).and_then(Json::as_f64) {
        let head = config["hidden_size"].as_f64().unwrap() / config["num_attention_heads"].as_f64().unwrap();
        writer = writer.u32(&format!("{name}.rope.dimension_count"), (share * head) as u32);
    }
    if let Some(parallel) = config.get("use_parallel_residual").and_then(Json::as_bool) {
        writer = writer.bool(&format!("{name}.use_parallel_residual"), parallel);
    }
    writer = with_tokenizer(writer, &tokenizer);
    for kind in ["bos", "eos"] {
        if let Some(id) = generation[format!("{kind}_token_id")].as_u64() {
            writer = writer.u32(&format!("tokenizer.ggml.{kind}_token_id"), id as u32);
        }
    }

    let file = TensorFile::open(format!("{folder}/model.safetensors").as_ref()).unwrap();
    let heads = |kind: &str| config[kind].as_u64().unwrap() as usize;
    let mut stacks: BTreeMap<String, Stack> = BTreeMap::new();
    for name in file.names() {
        let (graph, weight) = graph_of(name, file.tensor(name).unwrap().shape);
        let numbers = Checkpoint::open(folder).unwrap().weight(&graph, weight, None).unwrap().to_f32();
        let shape = file.tensor(name).unwrap().shape.to_vec();
        let columns = *shape.last().unwrap();
        let rows = numbers.len() / columns;
        let at = |row: usize, column: usize| numbers[row * columns + column];
        let pairs = |heads: usize| -> Vec<f32> {
            let size = rows / heads;
            let from = |row: usize| row / size * size + row % 2 * (size / 2) + row % size / 2;
            (0..rows * columns).map(|i| at(from(i / columns), i % columns)).collect()
        };
        let (mut dimensions, mut values) = (shape.clone(), numbers.clone());
        let llama = writer.entries[0].1.ends_with(b"llama");
        if llama && name.contains("q_proj") {
            values = pairs(heads("num_attention_heads"));
        } else if llama && name.contains("k_proj") {
            values = pairs(heads("num_key_value_heads"));
        } else if class == "Gemma3ForCausalLM" && name.contains("norm") {
            values.iter_mut().for_each(|value| *value += 1.0);
        } else if name.contains("query_key_value") {
            // Of a bias, each number is a row.
            let (rows, columns) = if shape.len() == 1 { (columns, 1) } else { (rows, columns) };
            let size = rows / heads("num_attention_heads") / 3;
            let from = |row: usize| {
                let (part, rest) = (row / (rows / 3), row % (rows / 3));
                (rest / size * 3 + part) * size + rest % size
            };
            values = (0..rows * columns).map(|i| numbers[from(i / columns) * columns + i % columns]).collect();
        } else if name.contains(".c_") && name.ends_with(".weight") {
            dimensions.reverse();
            values = (0..columns).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| at(r, c)).collect();
        }
        let dimensions: Vec<u64> = dimensions.iter().rev().map(|&size| size as u64).collect();
        if let Some((before, (expert, part))) =
            name.split_once("experts.").and_then(|(before, rest)| Some((before, rest.split_once('.')?)))
        {
            // Experts are stacked.
            let key = ggml_name(class, &format!("{before}experts.{part}"));
            let count = heads("num_local_experts") as u64;
            let stack = stacks.entry(key).or_insert((vec![dimensions[0], dimensions[1], count], BTreeMap::new()));
            stack.1.insert(expert.parse().unwrap(), floats(&values));
            continue;
        }
        writer = writer.tensor(&ggml_name(class, name), &dimensions, Dtype::F32, floats(&values));
    }
    for (name, (dimensions, experts)) in stacks {
        let data: Vec<Vec<u8>> = experts.into_values().collect();
        writer = writer.tensor(&name, &dimensions, Dtype::F32, data.concat());
    }
    let Some(scaling) = config.get("rope_scaling").filter(|scaling| scaling.is_object()) else { return writer };
    if scaling["rope_type"] == "linear" {
        let writer = writer.text(&format!("{name}.rope.scaling.type"), "linear");
        return writer.f32(&format!("{name}.rope.scaling.factor"), scaling["factor"].as_f64().unwrap() as f32);
    }
    if scaling["type"] == "longrope" {
        for kind in ["short", "long"] {
            let factors = scaling[format!("{kind}_factor")].as_array().unwrap().iter();
            let factors: Vec<f32> = factors.map(|factor| factor.as_f64().unwrap() as f32).collect();
            let (name, length) = (format!("rope_factors_{kind}.weight"), factors.len() as u64);
            writer = writer.tensor(&name, &[length], Dtype::F32, floats(&factors));
        }
    }
    if scaling["rope_type"] == "llama3" {
        let number = |key: &str| scaling[key].as_f64().unwrap();
        let (factor, original) = (number("factor"), number("original_max_position_embeddings"));
        let head = config["head_dim"].as_u64().unwrap();
        let divisors: Vec<f32> = (0..head / 2)
            .map(|i| {
                let frequency = config["rope_theta"].as_f64().unwrap().powf(-2.0 * i as f64 / head as f64);
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < original / number("high_freq_factor") {
                    1.0
                } else if wavelength > original / number("low_freq_factor") {
                    factor as f32
                } else {
                    let range = number("high_freq_factor") - number("low_freq_factor");
                    let smooth = (original / wavelength - number("low_freq_factor")) / range;
                    (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
                }
            })
            .collect();
        writer = writer.tensor("rope_freqs.weight", &[head / 2], Dtype::F32, floats(&divisors));
    }
    writer
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The name that llama.cpp gives a tensor of the reference implementation.
fn ggml_name(class: &str, name: &str) -> String {
    let (stem, suffix) = name.rsplit_once('.').unwrap();
    let stem =
        ["transformer.", "model.", "gpt_neox."].iter().fold(stem, |stem, prefix| stem.trim_start_matches(prefix));
    let gemma = [
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ];
    let parts = [
        ("embed_tokens", "token_embd"),
        ("wte", "token_embd"),
        ("wpe", "position_embd"),
        ("ln_f", "output_norm"),
        ("lm_head", "output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("ln_1", "attn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("attn.c_proj", "attn_output"),
        ("ln_2", "ffn_norm"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_proj", "ffn_down"),
        ("norm", "output_norm"),
        ("embed_in", "token_embd"),
        ("embed_out", "output"),
        ("final_layer_norm", "output_norm"),
        ("attention.query_key_value", "attn_qkv"),
        ("attention.dense", "attn_output"),
        ("mlp.dense_h_to_4h", "ffn_up"),
        ("mlp.dense_4h_to_h", "ffn_down"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("block_sparse_moe.gate", "ffn_gate_inp"),
        ("block_sparse_moe.experts.w1", "ffn_gate_exps"),
        ("block_sparse_moe.experts.w2", "ffn_down_exps"),
        ("block_sparse_moe.experts.w3", "ffn_up_exps"),
    ];
    let first: &[(&str, &str)] = if class == "Gemma3ForCausalLM" { &gemma } else { &[] };
    let translate = |part: &str| first.iter().chain(&parts).find(|(reference, _)| *reference == part).unwrap().1;
    match stem.strip_prefix("layers.").or_else(|| stem.strip_prefix("h.")).and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => format!("blk.{layer}.{}.{suffix}", translate(part)),
        None => format!("{}.{suffix}", translate(stem)),
    }
}

/// The metadata of a `tokenizer.json`.
fn with_tokenizer(writer: Writer, tokenizer: &Json) -> Writer {
    let mut tokens: BTreeMap<u64, (&str, i32)> = BTreeMap::new();
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        let kind = if token.starts_with("<0x") { 6 } else { 1 };
        tokens.insert(id.as_u64().unwrap(), (token, kind));
    }
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let token = added["content"].as_str().unwrap();
        tokens.insert(added["id"].as_u64().unwrap(), (token, if token == "<unk>" { 2 } else { 3 }));
    }
    let texts: Vec<&str> = tokens.values().map(|(token, _)| *token).collect();
    let kinds: Vec<Vec<u8>> = tokens.values().map(|(_, kind)| kind.to_le_bytes().to_vec()).collect();
    let writer = writer.texts("tokenizer.ggml.tokens", &texts).array("tokenizer.ggml.token_type", Kind::I32, &kinds);
    if tokenizer["model"]["byte_fallback"] == true {
        let prefix = tokenizer["normalizer"]["type"] == "Sequence";
        let writer = if prefix { writer } else { writer.bool("tokenizer.ggml.add_space_prefix", false) };
        // SentencePiece numbers its merges downwards.
        let score = |id: usize| -(id.saturating_sub(259) as f32);
        let scores: Vec<Vec<u8>> = (0..texts.len()).map(|id| score(id).to_le_bytes().to_vec()).collect();
        return writer.text("tokenizer.ggml.model", "llama").array("tokenizer.ggml.scores", Kind::F32, &scores);
    }
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    let merges: Vec<String> =
        merges.iter().map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect();
    let pre = match tokenizer.pointer("/pre_tokenizer/pretokenizers/0/pattern/Regex").and_then(Json::as_str) {
        None => "gpt-2",
        Some(pattern) if pattern.contains(r"\p{N}{1,3}") => "llama-bpe",
        Some(_) => "qwen2",
    };
    let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
    writer.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", pre).texts("tokenizer.ggml.merges", &merges)
}

/// A graph with one weight.
fn graph_of(name: &str, shape: &[usize]) -> (Graph, TensorId) {
    let mut b = Builder::new("test");
    let axes: Vec<_> = shape.iter().enumerate().map(|(i, &size)| b.axis(&format!("a{i}"), size)).collect();
    let weight = b.weight("w", &axes, name);
    let value = b.load(weight);
    let out = b.define("out", None, value);
    (b.finish(out).unwrap(), weight)
}

const GOLDEN: [&str; 4] = ["gpt2", "llama3", "mistral", "qwen3"];

fn golden(model: &str) -> String {
    format!("{}/../tests/golden/{model}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_converted_folder_is_the_folder_again() {
    for model in GOLDEN {
        let folder = golden(model);
        let reference = Checkpoint::open(&folder).unwrap();
        let checkpoint = Checkpoint::of_gguf(open(converted(&folder).file()).unwrap()).unwrap();

        let file = TensorFile::open(format!("{folder}/model.safetensors").as_ref()).unwrap();
        let mut used = std::collections::HashSet::new();
        for name in file.names() {
            let known = if model == "gpt2" && !name.starts_with("transformer.") {
                format!("transformer.{name}")
            } else {
                name.clone()
            };
            let (graph, weight) = graph_of(&known, file.tensor(name).unwrap().shape);
            let found = checkpoint.weight(&graph, weight, None).unwrap().to_f32();
            let (graph, weight) = graph_of(name, file.tensor(name).unwrap().shape);
            let wanted = reference.weight(&graph, weight, None).unwrap().to_f32();
            // One more, rounded, and one less again.
            let bound = if model == "gemma3" && name.contains("norm") { f32::EPSILON } else { 0.0 };
            assert_eq!(found.len(), wanted.len(), "{model}: {name}");
            assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() <= bound), "{model}: {name}");
            used.insert(known);
        }
        let rest: &[&str] = match model {
            "llama3" => &["rope_freqs.weight"],
            "phi3" => &["rope_factors_long.weight", "rope_factors_short.weight"],
            _ => &[],
        };
        assert_eq!(checkpoint.leftovers(&used), rest);

        // What the file says is what config.json says, except for names.
        let mut wanted = reference.config().clone();
        for (key, value) in checkpoint.config().as_object().unwrap() {
            let said = wanted.get_mut(key).map(Json::take).unwrap_or_default();
            match key.as_str() {
                "architectures" | "eos_token_id" | "n_inner" => {}
                // What no file says, and is so in the models that there are.
                "layer_types" | "query_pre_attn_scalar" if model == "gemma3" => {}
                "rope_scaling" if model == "phi3" => {
                    assert_eq!(said["short_factor"], value["short_factor"]);
                    assert_eq!(said["long_factor"], value["long_factor"]);
                    assert_eq!(said["type"], value["rope_type"]);
                }
                "tie_word_embeddings" | "activation_function" if said.is_null() => {}
                _ if said.is_number() => assert_eq!(said.as_f64(), value.as_f64(), "{model}: {key}"),
                _ => assert_eq!(&said, value, "{model}: {key}"),
            }
        }
        assert!(checkpoint.end_tokens().unwrap().contains(&reference.end_tokens().unwrap()[0]));
    }
}

#[test]
fn a_converted_tokenizer_is_the_tokenizer_again() {
    for model in GOLDEN {
        let folder = golden(model);
        let golden: Json = serde_json::from_slice(&std::fs::read(format!("{folder}/golden.json")).unwrap()).unwrap();
        let checkpoint = Checkpoint::of_gguf(open(converted(&folder).file()).unwrap()).unwrap();
        let tokenizer = Tokenizer::of(&checkpoint).unwrap().unwrap();
        let ids = |value: &Json| -> Vec<u32> {
            value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        for example in golden["tokenizer_examples"].as_array().unwrap() {
            let text = example["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&example["ids"]), "{model}: {text}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&example["ids_no_special"]), "{model}: {text}");
            assert_eq!(tokenizer.decode(&ids(&example["ids"])).unwrap(), example["decoded"], "{model}");
        }
    }
}
