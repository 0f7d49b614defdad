//! Broken checkpoints, and what is said of each.

use super::*;

/// A broken checkpoint: how it is made out of `tests/golden/llama3`, and what the message names.
struct Broken {
    what: &'static str,
    make: fn(&Folder),
    names: &'static [&'static str],
}

const LAYER_NORM: &str = "model.layers.1.input_layernorm.weight";
const QUERY: &str = "model.layers.1.self_attn.q_proj.weight";

const BROKEN: &[Broken] = &[
    // config.json
    Broken { what: "no config", make: |f| f.remove("config.json"), names: &["config.json"] },
    Broken { what: "empty config", make: |f| f.write("config.json", ""), names: &["config.json"] },
    Broken { what: "config cut off", make: |f| f.truncate("config.json", 200), names: &["config.json"] },
    Broken { what: "config is a list", make: |f| f.write("config.json", "[]"), names: &["config.json"] },
    Broken { what: "config is not UTF-8", make: |f| f.write("config.json", b"{\"\xff\":1}"), names: &["config.json"] },
    Broken { what: "no architectures", make: |f| f.unset("architectures"), names: &["config.json", "architectures"] },
    Broken {
        what: "empty architectures",
        make: |f| f.set("architectures", json!([])),
        names: &["`architectures`: expected a list", "found []"],
    },
    Broken {
        what: "architecture outside of a list",
        make: |f| f.set("architectures", "LlamaForCausalLM"),
        names: &["`architectures`: expected a list", "found \"LlamaForCausalLM\""],
    },
    Broken {
        what: "unknown architecture",
        make: |f| f.set("architectures", json!(["MambaForCausalLM"])),
        names: &[
            "MambaForCausalLM",
            "GPT2LMHeadModel",
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "OPTForCausalLM",
            "Qwen3ForCausalLM",
        ],
    },
    Broken { what: "missing key", make: |f| f.unset("hidden_size"), names: &["hidden_size"] },
    Broken { what: "key of another type", make: |f| f.set("hidden_size", "64"), names: &["hidden_size"] },
    Broken { what: "negative size", make: |f| f.set("intermediate_size", -112), names: &["intermediate_size"] },
    Broken { what: "size zero", make: |f| f.set("vocab_size", 0), names: &["vocab_size"] },
    Broken { what: "absurd size", make: |f| f.set("intermediate_size", 1u64 << 60), names: &["intermediate_size"] },
    Broken { what: "absurd layers", make: |f| f.set("num_hidden_layers", 1u64 << 40), names: &["num_hidden_layers"] },
    Broken {
        what: "base of another type",
        make: |f| f.set("rope_theta", "x"),
        names: &["`rope_theta`: expected a number, found \"x\""],
    },
    Broken {
        what: "negative epsilon",
        make: |f| f.set("rms_norm_eps", -1),
        names: &["`rms_norm_eps`: expected a number of at least 0", "found -1"],
    },
    Broken {
        what: "absurd epsilon",
        make: |f| f.set("rms_norm_eps", 1e300),
        names: &["`rms_norm_eps`: expected a number of at least 0 and below 1", "found 1e+300"],
    },
    Broken {
        what: "heads that do not divide",
        make: |f| f.set("num_key_value_heads", 3),
        names: &["num_key_value_heads"],
    },
    Broken { what: "fractional count", make: |f| f.set("num_hidden_layers", 2.5), names: &["num_hidden_layers"] },
    Broken {
        what: "unknown rope scaling",
        make: |f| f.set("rope_scaling", json!({"rope_type": "spiral", "factor": 2.0})),
        names: &["rope_scaling", "spiral"],
    },
    Broken {
        what: "rope scaling without its factor",
        make: |f| f.set("rope_scaling", json!({"rope_type": "llama3"})),
        names: &["rope_scaling", "factor"],
    },
    // what the config and the tensors disagree about
    Broken { what: "more layers than tensors", make: |f| f.set("num_hidden_layers", 4), names: &["model.layers.3."] },
    Broken {
        what: "another width",
        make: |f| f.set("intermediate_size", 96),
        names: &["mlp.gate_proj.weight", "96", "112"],
    },
    Broken {
        what: "another vocabulary",
        make: |f| f.set("vocab_size", 512),
        names: &["embed_tokens.weight", "512", "384"],
    },
    Broken {
        what: "missing tensor",
        make: |f| {
            f.header(|h| {
                let tensor = h.as_object_mut().unwrap().remove(QUERY).unwrap();
                h["model.layers.1.self_attn.qq_proj.weight"] = tensor;
            });
        },
        names: &[QUERY],
    },
    Broken {
        what: "transposed tensor",
        make: |f| f.tensor("model.layers.1.mlp.up_proj.weight", |t| t["shape"] = json!([64, 112])),
        names: &["model.layers.1.mlp.up_proj.weight", "[64, 112]"],
    },
    Broken {
        what: "tensor of integers",
        make: |f| f.tensor(LAYER_NORM, |t| t["dtype"] = "I32".into()),
        names: &[LAYER_NORM, "I32"],
    },
    // model.safetensors
    Broken { what: "no weights", make: |f| f.remove("model.safetensors"), names: &["safetensors"] },
    Broken { what: "empty weights", make: |f| f.write("model.safetensors", ""), names: &["model.safetensors"] },
    Broken { what: "cut in the length", make: |f| f.truncate("model.safetensors", 5), names: &["model.safetensors"] },
    Broken { what: "cut in the header", make: |f| f.truncate("model.safetensors", 300), names: &["model.safetensors"] },
    Broken {
        what: "cut in the data",
        make: |f| f.truncate("model.safetensors", 300_000),
        names: &["model.safetensors"],
    },
    Broken {
        what: "header longer than the file",
        make: |f| f.write("model.safetensors", [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat()),
        names: &["model.safetensors"],
    },
    Broken {
        what: "header is not JSON",
        make: |f| f.write("model.safetensors", common::safetensors("{\"a\": ", &[])),
        names: &["model.safetensors"],
    },
    Broken {
        what: "header is a list",
        make: |f| f.write("model.safetensors", common::safetensors("[1, 2]", &[])),
        names: &["model.safetensors"],
    },
    Broken {
        what: "data beyond the end",
        make: |f| {
            let bytes = fs::read(f.file("model.safetensors")).unwrap();
            f.write("model.safetensors", [bytes.as_slice(), &[0; 64]].concat());
        },
        names: &["model.safetensors"],
    },
    Broken {
        what: "unknown dtype",
        make: |f| f.tensor(LAYER_NORM, |t| t["dtype"] = "F7".into()),
        names: &["model.safetensors", "F7"],
    },
    Broken {
        what: "tensors that overlap",
        make: |f| {
            f.header(|h| {
                let offsets = h[LAYER_NORM]["data_offsets"].clone();
                h["model.layers.0.input_layernorm.weight"]["data_offsets"] = offsets;
            });
        },
        names: &["model.safetensors", "model.layers.0.mlp.down_proj.weight"],
    },
    Broken {
        what: "data past the end",
        make: |f| {
            f.tensor("model.norm.weight", |t| {
                let start = t["data_offsets"][0].as_u64().unwrap();
                t["shape"] = json!([1_000_000]);
                t["data_offsets"] = json!([start, start + 4_000_000]);
            });
        },
        names: &["model.safetensors", "model.norm.weight"],
    },
    Broken {
        what: "offsets backwards",
        make: |f| f.tensor(LAYER_NORM, |t| t["data_offsets"] = json!([512, 256])),
        names: &["model.safetensors", LAYER_NORM],
    },
    Broken {
        what: "shape and offsets disagree",
        make: |f| f.tensor(LAYER_NORM, |t| t["shape"] = json!([65])),
        names: &["model.safetensors", LAYER_NORM],
    },
    Broken {
        what: "shape that overflows",
        make: |f| f.tensor(LAYER_NORM, |t| t["shape"] = json!([u64::MAX, u64::MAX])),
        names: &["model.safetensors", LAYER_NORM],
    },
    Broken {
        what: "weights are a folder",
        make: |f| {
            f.remove("model.safetensors");
            fs::create_dir(f.file("model.safetensors")).unwrap();
        },
        names: &["model.safetensors"],
    },
    Broken {
        what: "weights are a pointer",
        make: |f| f.write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        names: &["model.safetensors", "a pointer of Git LFS"],
    },
    Broken {
        what: "weights are a page",
        make: |f| f.write("model.safetensors", "<!DOCTYPE html>\n<html></html>\n"),
        names: &["model.safetensors", "a page of HTML"],
    },
    Broken { what: "weights are not numbers", make: without_numbers, names: &["384 of 384 logits are NaN"] },
    // shards
    Broken {
        what: "shard is missing",
        make: |f| {
            f.shard();
            f.remove(SHARD);
        },
        names: &[SHARD],
    },
    Broken {
        what: "index is cut off",
        make: |f| {
            f.shard();
            f.truncate(INDEX, 100);
        },
        names: &[INDEX],
    },
    Broken {
        what: "index without its map",
        make: |f| {
            f.shard();
            f.write(INDEX, "{}");
        },
        names: &[INDEX, "weight_map"],
    },
    Broken {
        what: "index leads out of the folder",
        make: |f| {
            f.shard();
            f.edit(INDEX, |index| index["weight_map"][QUERY] = "../elsewhere.safetensors".into());
        },
        names: &[INDEX, QUERY],
    },
    Broken {
        what: "index promises what the shard lacks",
        make: |f| {
            f.shard();
            f.edit(INDEX, |index| index["weight_map"]["model.layers.9.w"] = SHARD.into());
        },
        names: &["model.layers.9.w", SHARD],
    },
    Broken {
        what: "a GGUF file beside nothing",
        make: |f| {
            f.remove("config.json");
            f.write("some.gguf", "");
        },
        names: &["config.json is missing", "give the file: ", "/some.gguf"],
    },
    // the other files
    Broken { what: "no tokenizer", make: |f| f.remove("tokenizer.json"), names: &["tokenizer.json"] },
    Broken { what: "tokenizer cut off", make: |f| f.truncate("tokenizer.json", 1000), names: &["tokenizer.json"] },
    Broken {
        what: "tokenizer is a pointer",
        make: |f| f.write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n"),
        names: &["tokenizer.json", "a pointer of Git LFS"],
    },
    Broken {
        what: "tokenizer is another thing",
        make: |f| f.write("tokenizer.json", "{}"),
        names: &["tokenizer.json"],
    },
    Broken {
        what: "generation config is broken",
        make: |f| f.write("generation_config.json", "{"),
        names: &["generation_config.json"],
    },
    Broken {
        what: "end token is a text",
        make: |f| f.edit("generation_config.json", |g| g["eos_token_id"] = "</s>".into()),
        names: &["generation_config.json", "eos_token_id"],
    },
];

#[test]
fn broken_checkpoints_are_named() {
    let mut failures = Vec::new();
    for case in BROKEN {
        let folder = Folder::copy("llama3");
        (case.make)(&folder);
        let output = run(&["run", "-n", "2", "-m", folder.path().to_str().unwrap(), "To be"]);
        if let Err(failure) = check(&output, 1, case.names) {
            failures.push(format!("{}: {failure}", case.what));
        }
    }
    assert!(failures.is_empty(), "{} of {} cases\n\n{}", failures.len(), BROKEN.len(), failures.join("\n"));
}
