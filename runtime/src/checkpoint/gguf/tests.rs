//! Malformed files, and what a small one says.

pub(in crate::checkpoint) mod blocks;
mod split;
mod tokenizer;
mod types;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::checkpoint::fuzz::tests::hold_seed;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::tokens::Tokenizer;

/// Writes a GGUF file.
#[derive(Clone, Default)]
struct Writer {
    entries: Vec<(String, Vec<u8>)>,
    /// Name, dimensions with that of neighbours first, type, data.
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    fn entry(mut self, key: &str, kind: Kind, value: &[u8]) -> Writer {
        self.entries.push((key.into(), [&(kind as u32).to_le_bytes(), value].concat()));
        self
    }

    fn u32(self, key: &str, value: u32) -> Writer {
        self.entry(key, Kind::U32, &value.to_le_bytes())
    }

    fn f32(self, key: &str, value: f32) -> Writer {
        self.entry(key, Kind::F32, &value.to_le_bytes())
    }

    fn bool(self, key: &str, value: bool) -> Writer {
        self.entry(key, Kind::Bool, &[value.into()])
    }

    fn text(self, key: &str, value: &str) -> Writer {
        self.entry(key, Kind::Text, &text(value))
    }

    fn array(self, key: &str, kind: Kind, elements: &[Vec<u8>]) -> Writer {
        let count = elements.len() as u64;
        self.entry(
            key,
            Kind::Array,
            &[&(kind as u32).to_le_bytes(), &count.to_le_bytes()[..], &elements.concat()].concat(),
        )
    }

    fn texts(self, key: &str, texts: &[&str]) -> Writer {
        self.array(key, Kind::Text, &texts.iter().map(|each| text(each)).collect::<Vec<_>>())
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], dtype: Dtype, data: Vec<u8>) -> Writer {
        let code = (0..64).find(|&code| Dtype::of_code(code) == Some(dtype)).unwrap();
        self.tensors.push((name.into(), dimensions.to_vec(), code, data));
        self
    }

    /// The file, without padding behind the last tensor.
    fn file(&self) -> Vec<u8> {
        let (tensors, entries) = (self.tensors.len() as u64, self.entries.len() as u64);
        let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()].concat();
        for (key, value) in &self.entries {
            file.extend([text(key), value.clone()].concat());
        }
        let mut data = Vec::new();
        for (name, dimensions, code, bytes) in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            file.extend(text(name));
            file.extend((dimensions.len() as u32).to_le_bytes());
            file.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
            file.extend(code.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        if !data.is_empty() {
            file.resize(file.len().next_multiple_of(32), 0);
        }
        file.extend(data);
        file
    }
}

fn open(bytes: Vec<u8>) -> Result<Gguf, Error> {
    Gguf::new("x.gguf".into(), Bytes::Held(bytes.into()))
}

fn error(bytes: Vec<u8>) -> String {
    let error = open(bytes).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error.strip_prefix("x.gguf: ").expect("the file's name").to_owned()
}

/// A small file with a value of every type: a llama of two heads.
fn small() -> Writer {
    let numbers = |count: u32| (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<u8>>();
    Writer::default()
        .text("general.architecture", "llama")
        .u32("general.alignment", 32)
        .entry("llama.embedding_length", Kind::U64, &32u64.to_le_bytes())
        .entry("llama.feed_forward_length", Kind::I32, &48i32.to_le_bytes())
        .entry("llama.block_count", Kind::U8, &[1])
        .entry("llama.attention.head_count", Kind::U16, &2u16.to_le_bytes())
        .array("llama.attention.head_count_kv", Kind::I8, &[vec![2], vec![2]])
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .entry("llama.rope.freq_base", Kind::F64, &1e6f64.to_le_bytes())
        .entry("general.file_type", Kind::I16, &3i16.to_le_bytes())
        .entry("general.size", Kind::I64, &(-1i64).to_le_bytes())
        .bool("tokenizer.ggml.add_bos_token", true)
        .array("general.flags", Kind::Bool, &[vec![0], vec![1]])
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{2581}", "é"])
        .array("tokenizer.ggml.scores", Kind::F32, &[0.0f32; 8].map(|score| score.to_le_bytes().to_vec()))
        .array(
            "tokenizer.ggml.token_type",
            Kind::I32,
            &[2, 3, 3, 1, 1, 1, 1, 1].map(|kind: i32| kind.to_le_bytes().to_vec()),
        )
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .tensor("token_embd.weight", &[32, 8], Dtype::Q8_0, (0..8 * 34).map(|i| i as u8 & 0x3f).collect())
        .tensor("output_norm.weight", &[32], Dtype::F32, numbers(32))
        .tensor("blk.0.attn_q.weight", &[2, 32], Dtype::F32, numbers(64))
        .tensor("other", &[], Dtype::F32, numbers(1))
}

/// A file with merges, a chat template, scaled rotary positions, and a tensor of each type.
fn blocks() -> Writer {
    let bytes = |dtype: Dtype| (0..dtype.block_bytes()).map(|i| i as u8 & 0x3f).collect::<Vec<u8>>();
    let factors = [1.0f32, 2.0].map(f32::to_le_bytes).concat();
    let writer = Writer::default()
        .text("general.architecture", "qwen2")
        .u32("qwen2.embedding_length", 8)
        .u32("qwen2.feed_forward_length", 8)
        .u32("qwen2.block_count", 0)
        .u32("qwen2.attention.head_count", 2)
        .f32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
        .text("qwen2.rope.scaling.type", "yarn")
        .f32("qwen2.rope.scaling.factor", 4.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "<|im_end|>"])
        .array("tokenizer.ggml.token_type", Kind::U8, &[1, 1, 1, 3].map(|kind| vec![kind]))
        .texts("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.eos_token_id", 3)
        .text("tokenizer.chat_template", "{{ messages[0].content }}")
        .tensor("token_embd.weight", &[1, 4], Dtype::F16, vec![1; 8])
        .tensor("rope_freqs.weight", &[2], Dtype::F32, factors);
    Dtype::all_of_gguf()
        .fold(writer, |writer, dtype| writer.tensor(dtype.name(), &[dtype.block_length() as u64], dtype, bytes(dtype)))
}

/// A file with experts, which are stacked.
fn experts() -> Writer {
    Writer::default()
        .text("general.architecture", "llama")
        .u32("llama.embedding_length", 2)
        .u32("llama.feed_forward_length", 2)
        .u32("llama.block_count", 1)
        .u32("llama.attention.head_count", 1)
        .u32("llama.expert_count", 2)
        .u32("llama.expert_used_count", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-6)
        .text("tokenizer.ggml.model", "none")
        .tensor("token_embd.weight", &[2, 2], Dtype::Bf16, vec![0; 8])
        .tensor("blk.0.attn_k.weight", &[2, 2], Dtype::F32, vec![0; 16])
        .tensor("blk.0.ffn_gate_exps.weight", &[2, 2, 2], Dtype::F32, vec![0; 32])
}

#[test]
fn seeds_are_files_of_each_kind() {
    for (name, writer) in [("small", small()), ("blocks", blocks()), ("experts", experts())] {
        hold_seed("gguf", name, &writer.file());
    }
}

#[test]
fn a_small_file_is_read() {
    let gguf = open(small().file()).unwrap();
    let config = gguf.config().unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "vocab_size": 8,
        "tie_word_embeddings": true,
        "bos_token_id": 1,
        "eos_token_id": [2],
    });
    assert_eq!(Json::Object(config), expected);
    let mut names: Vec<&String> = gguf.names().collect();
    names.sort();
    assert_eq!(
        names,
        ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "other"]
    );
    let query = gguf.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!((&query.shape[..], query.numbers.len(), query.change), (&[32, 2][..], 64, Change::Pairs { heads: 2 }));
    let embedding = gguf.tensor("model.embed_tokens.weight").unwrap();
    let blocks = embedding.numbers.blocks().unwrap();
    assert_eq!((blocks.dtype, &embedding.shape[..], blocks.bytes.len()), (Dtype::Q8_0, &[8, 32][..], 272));
    let template = small().text("tokenizer.chat_template", "x").file();
    let chat =
        Chat { file: "x.gguf".into(), template: "x".into(), begin: Some("<s>".into()), end: Some("</s>".into()) };
    assert_eq!(open(template).unwrap().chat().unwrap(), Some(chat));
    let mut version_2 = small().file();
    version_2[4] = 2;
    assert!(open(version_2).is_ok());
}

#[test]
fn biases_are_said_where_they_are() {
    let config = |writer: Writer| open(writer.file()).unwrap().config().unwrap();
    let said = |config: &Map<String, Json>| ["attention_bias", "mlp_bias"].map(|key| config[key] == true);
    let bias = |writer: Writer, name: &str| writer.tensor(name, &[4], Dtype::F32, vec![0; 16]);
    for (writer, name, wanted) in [
        (small(), "other.bias", [false, false]),
        (small().tensor("blk.0.attn_output.bias", &[1], Dtype::F32, vec![0; 4]), "blk.0.attn_q.bias", [true, false]),
        (small(), "blk.0.ffn_up.bias", [false, true]),
        (experts(), "blk.0.attn_q.bias", [true, false]),
    ] {
        assert_eq!(said(&config(bias(writer, name))), wanted, "{name}");
    }
    // What has none for the output is another architecture.
    let qwen = config(bias(small(), "blk.0.attn_q.bias"));
    assert_eq!(qwen["architectures"], json!(["Qwen2ForCausalLM"]));
    let mut phi = small();
    phi.entries.iter_mut().for_each(|(key, _)| *key = key.replace("llama.", "phi3."));
    phi.entries.retain(|(key, _)| key != "general.architecture");
    let phi = phi.text("general.architecture", "phi3");
    assert_eq!(said(&config(bias(phi, "blk.0.attn_qkv.bias"))), [true, false]);
}

/// Phi-4's files say so, whose layers all see all positions.
#[test]
fn a_window_of_0_is_none() {
    for (window, wanted) in [(0, Json::Null), (7, json!(7))] {
        let config = open(experts().u32("llama.attention.sliding_window", window).file()).unwrap().config().unwrap();
        assert_eq!(config["sliding_window"], wanted);
    }
}

#[test]
fn what_frequencies_are_divided_by_becomes_the_scaling_that_does_it() {
    let scaling = |divisors: &[f32]| {
        let data = divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
        let writer = small().tensor("rope_freqs.weight", &[divisors.len() as u64], Dtype::F32, data);
        open(writer.file()).unwrap().config().unwrap()["rope_scaling"].clone()
    };
    // Llama 3.1's heads, of which the pairs turn 1.3 * 10^3 to 0.0026 times in 8192 positions; and Llama 4 Scout's.
    let turns = |pair: i32| 8192.0 / std::f64::consts::TAU * 1e6f64.powf(-f64::from(pair) / 64.0);
    let smooth = |turns: f64| ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
    let divisors: Vec<f32> = (0..64).map(turns).map(|n| (1.0 / ((1.0 - smooth(n)) / 8.0 + smooth(n))) as f32).collect();
    let llama3 = |factor: f64, high: f64, original: u64| {
        json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
            "original_max_position_embeddings": original})
    };
    assert_eq!(scaling(&divisors), llama3(8.0, 4.0, 8192));
    let divisors: Vec<f32> = (0..64).map(turns).map(|n| if n > 1.0 { 1.0 } else { 16.0 }).collect();
    assert_eq!(scaling(&divisors), llama3(16.0, 1.0, 8192));
    // Any others are taken as they are, whatever the length of the text.
    let others = json!({"rope_type": "longrope", "short_factor": [1.0, 3.0, 2.0], "long_factor": [1.0, 3.0, 2.0],
        "factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": 2});
    assert_eq!(scaling(&[1.0, 3.0, 2.0]), others);
}

#[test]
fn values_of_another_type_are_named() {
    let with = |key: &str, kind: Kind, value: &[u8]| {
        let mut writer = small();
        writer.entries.retain(|(other, _)| other != key);
        writer.entry(key, kind, value).file()
    };
    let error = |file: Vec<u8>| {
        let checkpoint = open(file).and_then(Checkpoint::of_gguf);
        let error = checkpoint.and_then(|checkpoint| Tokenizer::of(&checkpoint).map(drop)).unwrap_err().to_string();
        let start = error.find(" at byte ").map(|at| at + 9);
        let end = start.map(|start| start + error[start..].find(|c: char| !c.is_ascii_digit()).unwrap());
        match start.zip(end) {
            Some((start, end)) => format!("{}#{}", &error[..start], &error[end..]),
            None => error,
        }
    };
    let cases: &[(&str, Kind, &[u8], &str)] = &[
        ("general.architecture", Kind::U8, &[1], "at byte # wants a string"),
        (
            "general.architecture",
            Kind::Text,
            &text("mamba"),
            "at byte # is `mamba`; known are llama, qwen2, qwen3, qwen2moe, qwen3moe, olmoe, phi3, gemma, gemma2, gemma3, gpt2, gptneox, bloom, olmo2, stablelm, starcoder2, command-r, granite, falcon, granitemoe, gpt-oss, llama4, deepseek2",
        ),
        ("llama.embedding_length", Kind::F32, &[0; 4], "at byte # wants a whole number"),
        ("llama.embedding_length", Kind::I8, &[255], "at byte # wants a whole number"),
        (
            "llama.attention.head_count_kv",
            Kind::Array,
            &[0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2],
            "at byte # wants a whole number",
        ),
        ("llama.attention.head_count_kv", Kind::Array, &[0; 12], "at byte # wants a whole number"),
        ("llama.attention.layer_norm_rms_epsilon", Kind::Text, &text("x"), "at byte # wants a number"),
        ("split.count", Kind::U16, &[3, 0], "split.no` is missing"),
        ("tokenizer.ggml.model", Kind::Text, &text("bert"), "at byte # is `bert`; gpt2 and llama can be read"),
        ("tokenizer.ggml.model", Kind::Text, &text("gpt2"), "tokenizer.ggml.merges` is missing"),
        ("tokenizer.ggml.tokens", Kind::Bool, &[1], "at byte # wants an array of strings"),
        ("tokenizer.ggml.tokens", Kind::Array, &[0; 12], "at byte # wants an array of strings"),
        ("tokenizer.ggml.scores", Kind::Array, &[0; 12], "at byte # has 0, there are 8 tokens"),
        ("tokenizer.ggml.token_type", Kind::Array, &[0; 12], "at byte # has 0, there are 8 tokens"),
        ("tokenizer.ggml.add_bos_token", Kind::U8, &[1], "at byte # wants a bool"),
        ("tokenizer.ggml.bos_token_id", Kind::U8, &[8], "at byte # is 8; there are 8 tokens"),
        ("tokenizer.chat_template", Kind::U8, &[8], "at byte # wants a string"),
    ];
    for (key, kind, value, expected) in cases {
        let error = error(with(key, *kind, value));
        assert!(error.starts_with("x.gguf: key `") && error.ends_with(expected), "{key}: {error}\n is not\n{expected}");
    }
    for key in ["general.architecture", "llama.embedding_length", "llama.attention.head_count"] {
        let mut writer = small();
        writer.entries.retain(|(other, _)| other != key);
        assert_eq!(error(writer.file()), format!("x.gguf: key `{key}` is missing"));
    }
    let mut writer = small();
    writer.tensors.remove(0);
    assert_eq!(error(writer.file()), "x.gguf: tensor `token_embd.weight` is missing");
}

/// A file with some bytes put in place of others, which follow a text (at a distance).
fn patched(after: &str, distance: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = small().file();
    let found = file.windows(after.len()).position(|window| window == after.as_bytes()).unwrap();
    let at = found + after.len() + distance;
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn every_malformed_field_is_named() {
    let twice = small().u32("llama.block_count", 1).file();
    let again = small().tensor("output_norm.weight", &[1], Dtype::F32, vec![0; 4]).file();
    let also = small().tensor("model.norm.weight", &[1], Dtype::F32, vec![0; 4]).file();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (patched("GG", 0, b"ML"), "not a GGUF file: it starts with \"GGML\", not \"GGUF\""),
        (b"<html><body>".to_vec(), "a page of HTML, in place of the file: download that anew"),
        (patched("GGUF", 0, &[1, 0]), "version 1 at byte 4; 2 and 3 can be read"),
        (patched("GGUF", 0, &[4, 0]), "version 4 at byte 4; 2 and 3 can be read"),
        (patched("GGUF", 0, &[0, 0, 0, 3]), "version 50331648 at byte 4; 2 and 3 can be read (a big endian file?)"),
        (patched("GGUF", 4, &[255; 8]), "18446744073709551615 tensors at byte 8; the file has room for 76 at most"),
        (patched("GGUF", 4, &[3]), "the last 36 bytes belong to no tensor"),
        (patched("GGUF", 4, &[5]), "tensor `` has the offset 0 at byte 1177, where the tensors before it make it 288"),
        (
            patched("GGUF", 12, &[255; 8]),
            "18446744073709551615 metadata entries at byte 16; the file has room for 141 at most",
        ),
        (
            patched("GGUF", 12, &[20]),
            "the name of tensor 0 at byte 997 is truncated: a string of 2251799813685248 bytes, 855 are left",
        ),
        (
            patched("GGUF", 20, &[255; 8]),
            "the key of metadata entry 0 at byte 24 is truncated: a string of 18446744073709551615 bytes, 1828 are left",
        ),
        (
            patched("GGUF", 28, &[0xff]),
            "the key of metadata entry 0 at byte 32 is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0",
        ),
        (patched("general.architecture", 0, &[13]), "key `general.architecture` at byte 52 is of the unknown type 13"),
        (
            patched("general.architecture", 4, &[255; 8]),
            "key `general.architecture` at byte 56 is truncated: a string of 18446744073709551615 bytes, 1796 are left",
        ),
        (
            patched("general.architecture", 12, &[0xff]),
            "key `general.architecture` at byte 64 is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0",
        ),
        (
            patched("general.alignment", 0, &[0]),
            "the key of metadata entry 2 at byte 99 is truncated: a string of 369098752 bytes, 1753 are left",
        ),
        (patched("general.alignment", 4, &[33]), "key `general.alignment` at byte 98 wants a power of two (u32)"),
        (patched("general.alignment", 4, &[0]), "key `general.alignment` at byte 98 wants a power of two (u32)"),
        (
            patched("general.alignment", 4, &[64]),
            "tensor `output_norm.weight` has the offset 288 at byte 1065, which is not a multiple of the alignment 64",
        ),
        (patched("general.alignmen", 1, &[6]), "key `general.alignment` at byte 98 wants a power of two (u32)"),
        (
            patched("tokenizer.ggml.add_bos_token", 4, &[2]),
            "key `tokenizer.ggml.add_bos_token` at byte 507 is the bool 2, not 0 or 1",
        ),
        (patched("general.flags", 4, &[9]), "key `general.flags` at byte 533 is an array of arrays, which is not read"),
        (patched("general.flags", 4, &[13]), "key `general.flags` at byte 533 is of the unknown type 13"),
        (
            patched("general.flags", 8, &[255; 8]),
            "key `general.flags` at byte 537 is an array of 18446744073709551615 bool; the file has room for 1315 at most: truncated?",
        ),
        (patched("general.flags", 16, &[7]), "key `general.flags` at byte 545 is the bool 7, not 0 or 1"),
        (
            patched("tokenizer.ggml.tokens", 8, &[255; 8]),
            "key `tokenizer.ggml.tokens` at byte 629 is an array of 18446744073709551615 string; the file has room for 152 at most: truncated?",
        ),
        (
            patched("tokenizer.ggml.tokens", 16, &[255; 8]),
            "key `tokenizer.ggml.tokens` at byte 637 is truncated: a string of 18446744073709551615 bytes, 1215 are left",
        ),
        (
            patched("tokenizer.ggml.tokens", 24, &[0xff]),
            "key `tokenizer.ggml.tokens` at byte 645 is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0",
        ),
        (
            patched("tokenizer.ggml.scores", 8, &[255; 4]),
            "key `tokenizer.ggml.scores` at byte 759 is an array of 4294967295 f32; the file has room for 273 at most: truncated?",
        ),
        (patched("llama.attention.head_coun", 0, b"x"), "key `llama.attention.head_count` is missing"),
        (
            patched("token_embd.weight", 0, &[5]),
            "tensor `token_embd.weight` has 5 dimensions at byte 991; at most 4 were expected",
        ),
        (
            patched("token_embd.weight", 4, &[33]),
            "tensor `token_embd.weight` of Q8_0 has rows of 33 at byte 995, which are not whole blocks of 32",
        ),
        (
            patched("token_embd.weight", 12, &[0]),
            "tensor `token_embd.weight` has the absurd dimensions [32, 0] at byte 995",
        ),
        (
            patched("token_embd.weight", 12, &[255; 8]),
            "tensor `token_embd.weight` has the absurd dimensions [32, 18446744073709551615] at byte 995",
        ),
        (
            patched("token_embd.weight", 20, &[16]),
            "tensor `token_embd.weight` is of the type 16 at byte 1011, which is none of F32, BF16, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4",
        ),
        (
            patched("token_embd.weight", 24, &[1]),
            "tensor `token_embd.weight` has the offset 1 at byte 1015, which is not a multiple of the alignment 32",
        ),
        (
            patched("token_embd.weight", 24, &[32]),
            "tensor `token_embd.weight` has the offset 32 at byte 1015, where the tensors before it make it 0",
        ),
        (
            patched("token_embd.weight", 24, &[255; 8]),
            "tensor `output_norm.weight` has the offset 288 at byte 1065, where the tensors before it make it 0",
        ),
        (
            patched("output_norm.weight", 16, &[0, 0, 1]),
            "tensor `blk.0.attn_q.weight` has the offset 416 at byte 1124, where the tensors before it make it 288",
        ),
        (
            patched("blk.0.attn_q.weight", 12, &[31]),
            "tensor `blk.0.attn_q.weight` has 31 rows, which are not 2 equal parts of 2 heads",
        ),
        (
            patched("output_norm.weight", 16, &[64, 1]),
            "tensor `output_norm.weight` has the offset 320 at byte 1065, where the tensors before it make it 288",
        ),
        (twice, "key `llama.block_count` at byte 995 is there twice"),
        (again, "tensor `output_norm.weight` is there twice"),
        (also, "tensor `model.norm.weight` is there twice, as model.norm.weight"),
        ([small().file(), vec![0; 33]].concat(), "the last 5 bytes belong to no tensor"),
    ];
    for (file, expected) in cases {
        assert_eq!(error(file), expected);
    }
}

/// Reads everything that a file has.
fn exhaust(gguf: Gguf) -> Result<(), Error> {
    for name in gguf.names() {
        let found = gguf.tensor(name).expect("a tensor that is named");
        assert_eq!(found.shape.iter().product::<usize>(), found.numbers.len());
        found.numbers.read(0, &mut vec![0.0; found.numbers.len()]);
    }
    for info in &gguf.header.tensors {
        assert!(gguf.floats(&info.name).is_some());
    }
    let checkpoint = Checkpoint::of_gguf(gguf)?;
    checkpoint.end_tokens()?;
    if let Some(tokenizer) = Tokenizer::of(&checkpoint)? {
        tokenizer.encode("ab é", true)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_file_is_another_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        kept in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut file = small().file();
        // Most of what can go wrong is in the first part.
        let header = file.len() - 272 - 128 - 256 - 4;
        for (at, byte) in changes {
            let at = at.index(header);
            file[at] = byte;
        }
        if let Some(kept) = kept {
            file.truncate(kept.index(file.len()));
        }
        if let Err(error) = open(file).and_then(exhaust) {
            let error = error.to_string();
            prop_assert!(error.starts_with("x.gguf: ") || error.starts_with("the tokenizer failed"), "{}", error);
        }
    }
}

#[test]
fn every_architecture_has_a_layout_that_llama_cpp_made() {
    let golden = std::fs::read_dir(format!("{}/../tests/golden", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let read = |path: std::path::PathBuf| serde_json::from_slice::<Json>(&std::fs::read(path).ok()?).ok();
    let layouts = golden.filter_map(|folder| {
        let folder = folder.unwrap().path();
        let (layout, config) = (read(folder.join("gguf.json"))?, read(folder.join("config.json"))?);
        Some((layout["metadata"]["general.architecture"].clone(), config["architectures"][0].clone()))
    });
    let layouts: Vec<(Json, Json)> = layouts.collect();
    // What no conversion of its own makes, but others' do.
    let is_made =
        |architecture: &&Architecture| architecture.class != "Qwen2ForCausalLM" || architecture.name != "llama";
    for architecture in tables::ARCHITECTURES.iter().filter(is_made) {
        let is_it = |(name, class): &(Json, Json)| *name == architecture.name && *class == architecture.class;
        assert!(layouts.iter().any(is_it), "{} as {}", architecture.name, architecture.class);
    }
}
