//! The command line: what it prints when all is well, and what it says to whatever is wrong. Every failure is one line
//! that names the thing (causes may follow), with exit code 1, or 2 for a wrong command line; nothing panics.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::process::{Output, Stdio};

use common::{Folder, INDEX, SHARD, einfuse, json, repository, run};
use serde_json::{Value, json};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("standard output is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("standard error is UTF-8")
}

/// What must hold of a failure: the exit code, one line that begins with `error:` and has all of `names`, causes only
/// below it, and no output.
fn check(output: &Output, code: i32, names: &[&str]) -> Result<(), String> {
    let text = stderr(output);
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let message = match () {
        _ if output.status.code() != Some(code) => format!("exit code {:?}, not {code}", output.status.code()),
        _ if text.contains("panicked") => "a panic".to_owned(),
        _ if !first.starts_with("error: ") => "no `error:`".to_owned(),
        _ if !lines.all(|l| l.starts_with("  because: ")) => "more than one line".to_owned(),
        _ => match names.iter().find(|name| !text.contains(**name)) {
            Some(name) => format!("`{name}` is not named"),
            None => return Ok(()),
        },
    };
    Err(format!("{message}:\n{text}"))
}

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

/// Puts NaN in place of all weights.
fn without_numbers(folder: &Folder) {
    let (header, data) = common::split(&fs::read(folder.file("model.safetensors")).unwrap());
    folder.write("model.safetensors", common::safetensors(&header.to_string(), &vec![0xff; data.len()]));
}

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

/// Arguments (where `{out}` is a folder that exists), the exit code, and what the message names.
type Wrong = (&'static [&'static str], i32, &'static [&'static str]);

const WRONG: &[Wrong] = &[
    // the command line itself
    (&[], 2, &["subcommand"]),
    (&["sing"], 2, &["sing"]),
    (&["run"], 2, &["PROMPT"]),
    (&["run", "a", "--ids", "1"], 2, &["--ids"]),
    (&["run", "--ids", "1,x"], 2, &["--ids", "x"]),
    (&["run", "a", "-f", "Cargo.toml"], 2, &["--file"]),
    (&["run", "--chat", "--ids", "1"], 2, &["--chat", "--ids"]),
    (&["run", "--system", "Be brief.", "x"], 2, &["--chat"]),
    (&["run", "--chat", "x"], 1, &["embedded nano", "chat template", "chat_template.jinja"]),
    (&["run", "--ids", "99999999999"], 2, &["--ids", "99999999999"]),
    (&["run", "-n", "few", "a"], 2, &["--tokens", "few"]),
    (&["run", "-t", "0", "a"], 2, &["--threads"]),
    (&["run", "-t", "1025", "a"], 2, &["--threads", "1024"]),
    (&["run", "--seed", "-1", "a"], 2, &["--seed", "-1"]),
    (&["run", "--seed", "18446744073709551616", "a"], 2, &["--seed", "whole number", "too large"]),
    (&["run", "--shout", "a"], 2, &["--shout", "; tip: "]),
    (&["run", "--chunk", "0", "a"], 2, &["--chunk"]),
    (&["run", "--context", "16777217", "a"], 2, &["--context", "from 1 to 16777216"]),
    (&["run", "-c", "257", "a"], 2, &["--context 257", "nano", "256 positions"]),
    (&["run", "--precision", "f8", "a"], 2, &["--precision", "f8", "stored, f32, bf16"]),
    (&["run", "--precision", "f32", "--quant", "q8", "a"], 2, &["--precision", "--quant"]),
    (&["run", "--quant", "q5", "a"], 2, &["--quant", "q5", "q8, q4"]),
    (&["run", "--cache", "q4", "a"], 2, &["--cache", "q4", "f32, bf16, q8"]),
    (&["run", "--without", "magic", "a"], 2, &["--without", "magic", "online-softmax"]),
    (&["run", "--temperature", "-1", "a"], 2, &["--temperature", "-1"]),
    (&["run", "--temperature", "nan", "a"], 2, &["--temperature", "nan"]),
    (&["run", "--top-p", "1.5", "a"], 2, &["--top-p", "1.5"]),
    (&["run", "--min-p", "-0.1", "a"], 2, &["--min-p", "-0.1"]),
    (&["run", "--repeat-penalty", "0", "a"], 2, &["--repeat-penalty", "0"]),
    (&["run", "--stop", "", "a"], 2, &["--stop"]),
    (&["explain", "--dump", "soul"], 2, &["--dump", "soul", "clif"]),
    (&["explain", "--tokens", "0"], 2, &["--tokens"]),
    (&["explain", "--tokens", "257"], 2, &["--tokens 257", "256"]),
    (&["explain", "--past", "256"], 2, &["--past 256", "nano", "256 positions"]),
    (&["explain", "--past", "18446744073709551615", "--json"], 2, &["--past", "256"]),
    (&["explain", "--past", "8", "--context", "8"], 2, &["--past 8", "8 positions"]),
    (&["explain", "--dump", "graph", "--context", "300"], 2, &["--context 300", "256 positions"]),
    (&["explain", "--tokens", "9", "--chunk", "8"], 2, &["--tokens 9", "--chunk 8"]),
    (&["explain", "--dump", "plan", "--json"], 2, &["--dump", "--json"]),
    (&["explain", "--dump", "graph", "--kernel", "x"], 2, &["--kernel", "graph"]),
    (&["bench", "-t", "1,none"], 2, &["--threads", "none"]),
    (&["bench", "-r", "0"], 2, &["--repeat"]),
    (&["bench", "-o", "md", "--json"], 2, &["--output", "--json"]),
    (&["bench", "-p", "0", "-n", "0"], 2, &["-p", "-n"]),
    (&["bench", "-d", "0,deep"], 2, &["--depth", "deep"]),
    (&["bench", "-d", "256"], 2, &["-d 256", "nano", "256 positions"]),
    (&["bench", "-d", "0,9999999999999", "-p", "8"], 2, &["-p 8 after -d 9999999999999", "at most 16777216 positions"]),
    (&["bench", "-d", "16777216"], 2, &["-d 16777216", "at most 16777216 positions"]),
    (&["bench", "-p", "100000000000", "-n", "0"], 2, &["-p 100000000000", "at most 16777216 positions"]),
    (
        &["bench", "-b", "18446744073709551615", "--chunk", "18446744073709551615"],
        2,
        &["-b 18446744073709551615", "at most 16777216 positions"],
    ),
    (&["bench", "-p", "9999", "-n", "0", "-r", "1"], 2, &["-p 9999", "nano", "256 positions"]),
    (&["bench", "-n", "1", "-d", "300"], 2, &["-n 1 after -d 300", "256 positions"]),
    (&["bench", "-n", "1", "-d", "0,16", "--context", "16"], 2, &["-n 1 after -d 16", "16 positions"]),
    (&["bench", "--context", "300"], 2, &["--context 300", "nano", "256 positions"]),
    (&["bench", "-b", "2,0"], 2, &["--rows"]),
    (&["bench", "-b", "2", "-n", "0"], 2, &["-b", "-n"]),
    (&["bench", "-b", "9", "--chunk", "8"], 2, &["-b 9", "--chunk 8"]),
    (&["tune", "--dry-run", "-p", "257"], 2, &["-p 257", "nano", "256 positions"]),
    (&["tune", "--dry-run", "-p", "17", "--context", "16"], 2, &["-p 17", "16 positions"]),
    (&["tune", "--dry-run", "-p", "9", "--chunk", "8"], 2, &["-p 9", "--chunk 8"]),
    (&["tune", "--dry-run", "-d", "225"], 2, &["-d 225 with 32 tokens", "256 positions"]),
    (&["logits", "a"], 2, &["--output"]),
    (&["logits", "a", "-o", "-"], 2, &["-o -", "standard output"]),
    (&["perplexity"], 2, &["FILE"]),
    // what it names
    (&["run", "-m", "{out}/nowhere", "a"], 1, &["nowhere"]),
    (&["run", "-m", "Cargo.toml", "a"], 1, &["Cargo.toml"]),
    (&["run", "-m", "models/nano/model.safetensors", "a"], 1, &["nano/model.safetensors", "give the folder"]),
    (&["run", ""], 1, &["prompt is empty"]),
    (&["run", "-f", "{out}/nowhere.txt"], 1, &["cannot read", "nowhere.txt"]),
    (&["run", "-f", "models/nano/model.safetensors"], 1, &["model.safetensors is not UTF-8"]),
    (&["run", "-f", "{out}/empty.txt"], 1, &["prompt is empty"]),
    (&["run", "-f", "-"], 1, &["prompt is empty"]),
    (&["run", "--ids", "5,1024"], 1, &["1024"]),
    (&["run", "-m", "tests/golden/gpt2", "-n", "1", "--ids", "383,384"], 1, &["384"]),
    (&["logits", "", "-o", "{out}/x.safetensors"], 1, &["prompt is empty"]),
    (&["logits", "a", "-o", "{out}/nowhere/x.safetensors"], 1, &["nowhere/x.safetensors"]),
    (&["logits", "a", "-o", "{out}"], 1, &["{out}"]),
    (&["logits", "--ids", "7777", "-o", "{out}/x.safetensors"], 1, &["7777"]),
    (&["explain", "--dump", "asm", "--kernel", "nothing"], 1, &["nothing"]),
    (&["explain", "--dump", "plan", "--kernel", "nothing"], 1, &["nothing"]),
    (&["perplexity", "{out}/nowhere.txt"], 1, &["nowhere.txt"]),
    (&["perplexity", "{out}"], 1, &["{out}"]),
    (&["perplexity", "models/nano/model.safetensors"], 1, &["model.safetensors", "UTF-8"]),
    (&["perplexity", "{out}/empty.txt"], 1, &["empty.txt has 0 tokens"]),
    (&["perplexity", "{out}/one.txt"], 1, &["one.txt has 1 token:"]),
    (&["perplexity", "-"], 1, &["standard input has 0 tokens"]),
];

#[test]
fn wrong_arguments_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    fs::write(folder.path().join("empty.txt"), "").unwrap();
    fs::write(folder.path().join("one.txt"), "a").unwrap();
    let mut failures = Vec::new();
    for (arguments, code, names) in WRONG {
        let arguments: Vec<String> = arguments.iter().map(|a| a.replace("{out}", out)).collect();
        let names: Vec<String> = names.iter().map(|n| n.replace("{out}", out)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let output = einfuse(&arguments).current_dir(repository(".")).output().unwrap();
        if let Err(failure) = check(&output, *code, &names) {
            failures.push(format!("{arguments:?}: {failure}"));
        }
    }
    assert!(failures.is_empty(), "{} of {} cases\n\n{}", failures.len(), WRONG.len(), failures.join("\n"));
}

/// The options of a command that take numbers, by its help: their names, short and long.
fn numeric_options(command: &str) -> Vec<Vec<String>> {
    let help = stdout(&run(&[command, "--help"]));
    let options = help.lines().filter_map(|line| {
        let (names, value) = line.split_once(" <")?;
        let is_number = ["N", "T", "K", "P", "R", "TOKENS", "IDS"].contains(&value.split('>').next()?);
        (is_number && names.contains("--")).then(|| names.trim().split(", ").map(str::to_owned).collect())
    });
    options.collect()
}

/// Each option that takes a number says of whatever is none that it is none, before anything is done: what it takes, is no mistake
/// before the model is missed.
#[test]
fn numbers_are_checked_before_anything_is_done() {
    const LARGEST: [&str; 2] = ["18446744073709551615", "18446744073709551616"];
    const OTHERS: [&str; 18] = [
        "0", "-0", "1", "-1", "-0.5", "1.5", "1e3", "1e400", "-1e400", "nan", "inf", "", " 1", "1 ", "0x10", "١",
        "one", "1,-1",
    ];
    let (mut failures, mut taken, mut refused) = (Vec::new(), 0, 0);
    for (command, options) in [("run", 11), ("explain", 5), ("bench", 8), ("logits", 4), ("perplexity", 3), ("tune", 6)]
    {
        let found = numeric_options(command);
        assert_eq!(found.len(), options, "{command}: {found:?}");
        for (names, value) in
            found.iter().flat_map(|names| LARGEST.iter().chain(&OTHERS).map(move |value| (names, *value)))
        {
            let option = names.last().unwrap();
            let mut arguments = vec![command, "-m", "nowhere", option, value];
            if ["run", "logits", "perplexity"].contains(&command) && option != "--ids" {
                arguments.push("Cargo.toml");
            }
            if command == "logits" {
                arguments.extend(["-o", "nowhere"]);
            }
            let output = run(&arguments);
            let checked = match output.status.code() {
                Some(1) => {
                    taken += 1;
                    check(&output, 1, &["nowhere"])
                }
                _ => {
                    refused += 1;
                    let checks = names.iter().map(|name| check(&output, 2, &[name]));
                    checks.reduce(Result::or).unwrap()
                }
            };
            failures.extend(checked.err().map(|failure| format!("{arguments:?}: {failure}")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(taken > 50 && refused > 300, "{taken} taken, {refused} refused");
}

/// The largest numbers that options take do no harm, nor do zeros.
#[test]
fn extreme_numbers_do_no_harm() {
    const LARGEST: &str = "18446744073709551615";
    for (option, value) in [
        ("--tokens", LARGEST),
        ("--tokens", "0"),
        ("--top-k", LARGEST),
        ("--top-k", "0"),
        ("--chunk", LARGEST),
        ("--context", "1"),
        ("--seed", LARGEST),
        ("--temperature", "1e-38"),
        ("--temperature", "3e38"),
        ("--top-p", "1e-38"),
        ("--min-p", "1"),
        ("--repeat-penalty", "1e-38"),
        ("--repeat-penalty", "3e38"),
    ] {
        let few = if option == "--tokens" { "--ignore-eos" } else { "-n=3" };
        let output = run(&["run", "a", few, option, value]);
        assert!(output.status.success(), "{option} {value}: {}", stderr(&output));
    }
    for (command, option) in [
        ("explain", "--tokens"),
        ("explain", "--past"),
        ("bench", "--prompt"),
        ("bench", "--depth"),
        ("bench", "--rows"),
    ] {
        let output = run(&[command, option, LARGEST]);
        let code = output.status.code().filter(|code| [1, 2].contains(code));
        check(&output, code.expect("it is refused"), &[LARGEST]).unwrap();
    }
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let ids = vec!["5"; 257].join(",");
    let expected = "257 tokens do not fit into the 256 positions that the model has places for\n";
    for arguments in [["run", "--ids", &ids].as_slice(), &["logits", "--ids", &ids, "-o", "/dev/null"]] {
        check(&run(arguments), 1, &[expected]).unwrap();
    }
}

#[test]
fn the_context_s_end_stops_generation() {
    let ids = vec!["5"; 250].join(",");
    let output = run(&["run", "--ids", &ids, "-n", "50", "--ignore-eos", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    // the last token that fits is read no more, so that one more than the room is generated
    assert_eq!(result["token_ids"].as_array().unwrap().len(), 7);
    assert_eq!(result["stopped"], "context");
}

#[test]
fn a_context_may_be_shorter_than_the_model_s() {
    let output = run(&["run", "--ids", "5,5,5", "--context", "8", "--ignore-eos", "--json"]);
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((result["token_ids"].as_array().unwrap().len(), &result["stopped"]), (6, &json!("context")));
    let rows = bench(&["-n", "2", "--context", "12"]);
    let tests: Vec<&Value> = rows.iter().map(|row| &row["test"]).collect();
    assert_eq!(tests, ["pp12", "tg2"]);
    let output = run(&["run", "--ids", "5,5,5,5", "--context", "3"]);
    check(&output, 1, &["4 tokens do not fit into the 3 positions of the model's context"]).unwrap();
}

/// What the binary does with these arguments and this text on standard input.
fn run_with(arguments: &[&str], input: &str) -> Output {
    let mut command = einfuse(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_prompt_may_be_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    let text = |arguments: &[&str]| stdout(&run(&[&["run", "-n", "8", "--temperature", "0"], arguments].concat()));
    let expected = text(&["To be,\nor not"]);
    assert!(expected.starts_with("To be,\nor not") && expected.len() > 20, "{expected}");
    for end in ["", "\n", "\r\n"] {
        fs::write(&file, format!("To be,\nor not{end}")).unwrap();
        assert_eq!(text(&["-f", file.to_str().unwrap()]), expected, "{end:?}");
    }
    fs::write(&file, "To be,\nor not\n\n").unwrap();
    assert_eq!(text(&["--file", file.to_str().unwrap()]), text(&["To be,\nor not\n"]));
    let read = run_with(&["run", "-n", "8", "--temperature", "0", "-f", "-"], "To be,\nor not\n");
    assert_eq!(stdout(&read), expected);
}

#[test]
fn a_closed_pipe_ends_quietly() {
    for arguments in
        [["run", "--ignore-eos", "-n", "200", "ROMEO:"].as_slice(), &["explain", "--dump", "loops"], &["--help"]]
    {
        let mut child = einfuse(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{arguments:?}: {text}");
        assert!(!text.contains("error") && !text.contains("panicked"), "{arguments:?}: {text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let output = einfuse(&["run", "-n", "4", "ROMEO:"]).stdout(full()).output().unwrap();
    check(&output, 1, &["standard output"]).unwrap();
    let output = einfuse(&["--help"]).stdout(full()).output().unwrap();
    check(&output, 1, &["standard output"]).unwrap();
    let output = run(&["logits", "ROMEO:", "-o", "/dev/full"]);
    check(&output, 1, &["/dev/full"]).unwrap();
}

#[test]
fn a_standard_error_that_nobody_reads_changes_nothing() {
    for (arguments, code) in
        [(["run", "-n", "3", "ROMEO:"].as_slice(), 0), (&["run", "-m", "nowhere", "a"], 1), (&["sing"], 2)]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = einfuse(arguments).stderr(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let folder = Folder::copy("llama3");
    without_numbers(&folder);
    folder.write("text.txt", "To be, or not to be");
    let (text, written) = (folder.file("text.txt"), folder.file("out.safetensors"));
    for arguments in [
        ["perplexity", text.to_str().unwrap()].as_slice(),
        &["bench", "-p", "0", "-n", "0", "--check"],
        &["logits", "To be", "-o", written.to_str().unwrap()],
    ] {
        let output = run(&[arguments, &["-m", folder.path().to_str().unwrap()]].concat());
        check(&output, 1, &["384 of 384 logits are NaN or infinite"]).unwrap();
        assert!(output.stdout.is_empty(), "{}", stdout(&output));
    }
    assert!(written.exists(), "they are written all the same");
}

#[test]
fn a_model_without_a_tokenizer_answers_in_ids() {
    let folder = Folder::copy("llama3");
    folder.remove("tokenizer.json");
    let arguments = ["run", "-m", folder.path().to_str().unwrap(), "--ids", "1,2", "-n", "3", "--temperature", "0"];
    let object: Value = serde_json::from_str(&stdout(&run(&[&arguments[..], &["--json"]].concat()))).unwrap();
    let ids = object["token_ids"].to_string();
    assert_eq!(stdout(&run(&arguments)), format!("{}\n", ids.trim_matches(['[', ']'])));
    assert!(ids.len() > 4, "{ids}");
}

#[test]
fn biases_that_nothing_adds_are_worth_a_warning() {
    const BIAS: &str = "model.layers.0.self_attn.q_proj.bias";
    for (number, warned) in [(0u8, false), (1, true)] {
        let folder = Folder::copy("llama3");
        let (mut header, mut data) = common::split(&fs::read(folder.file("model.safetensors")).unwrap());
        let start = data.len();
        data.extend([number; 256]);
        header[BIAS] = serde_json::json!({ "dtype": "F32", "shape": [64], "data_offsets": [start, start + 256] });
        folder.write("model.safetensors", common::safetensors(&header.to_string(), &data));
        let output = run(&["run", "-n", "1", "--json", "-m", folder.path().to_str().unwrap(), "To be"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let lines: Vec<String> = stderr(&output).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), usize::from(warned), "{lines:?}");
        assert!(lines.iter().all(|line| line.starts_with("warning: ") && line.contains(BIAS)), "{lines:?}");
    }
}

#[test]
fn run_writes_text_to_stdout_and_the_summary_to_stderr() {
    let output = run(&["run", "-n", "40", "ROMEO:"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with("ROMEO:") && text.ends_with('\n') && text.len() > 60, "{text}");
    let summary = stderr(&output);
    assert_eq!(summary.lines().count(), 1, "{summary}");
    for word in [
        "prompt 5 tokens",
        "generated 40 tokens",
        "tokens/s",
        "first token",
        "compiled in",
        "seed 0",
        "stopped at the token limit",
    ] {
        assert!(summary.contains(word), "no `{word}` in {summary}");
    }
    assert!(!summary.contains('\x1b') && !text.contains('\x1b'), "colour where no terminal is");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let text = |seed: &str| stdout(&run(&["run", "-n", "40", "--seed", seed, "ROMEO:"]));
    assert_eq!(text("0"), stdout(&run(&["run", "-n", "40", "ROMEO:"])));
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn run_prints_one_object_as_json() {
    let output = run(&["run", "-n", "12", "--temperature", "0", "--json", "ROMEO:"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let golden = json(&repository("tests/golden/nano/golden.json"));
    let greedy = golden["prompts"][0]["greedy_ids"].as_array().unwrap();
    assert_eq!(result["token_ids"].as_array().unwrap(), &greedy[..12]);
    assert_eq!(result["prompt_ids"], golden["prompts"][0]["input_ids"]);
    assert_eq!(result["generated_tokens"], 12);
    assert_eq!(result["stopped"], "limit");
    assert!(result["text"].as_str().unwrap().starts_with('\n'));
    for key in ["prompt_tokens_per_second", "tokens_per_second", "time_to_first_token", "compile_time"] {
        assert!(result[key].as_f64().unwrap() > 0.0, "{key}: {result}");
    }
}

#[test]
fn a_chat_goes_by_the_model_s_template() {
    let folder = Folder::copy("llama3");
    let template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ '\n' }}{% endfor %}";
    folder.edit("tokenizer_config.json", |config| config["chat_template"] = template.into());
    let path = folder.path().to_str().unwrap();
    let chat = ["run", "-m", path, "--json", "-n", "2", "--temperature", "0", "--ignore-eos"];
    let object = |output: &Output| -> Value { serde_json::from_str(&stdout(output)).unwrap() };
    let asked = object(&run(&[&chat[..], &["--chat", "--system", "s", "a b"]].concat()));
    let plain = object(&run(&[&chat[..], &["[system] s\n[user] a b\n"]].concat()));
    // The template has no begin token; the tokenizer puts one before a plain text.
    assert_eq!(asked["prompt_ids"].as_array().unwrap()[..], plain["prompt_ids"].as_array().unwrap()[1..]);

    let output = run_with(&[&chat[..], &["--chat", "--system", "s"]].concat(), "a b\n\nc d\n");
    let text = stdout(&output);
    let turns: Vec<Value> = serde_json::Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect();
    assert_eq!(turns.len(), 2, "{text}");
    assert_eq!((&turns[0]["prompt_ids"], &turns[0]["token_ids"]), (&asked["prompt_ids"], &asked["token_ids"]));
    // Nothing of the first turn's prompt is computed again.
    let length = |turn: &Value, ids: &str| turn[ids].as_array().unwrap().len() as u64;
    let new = length(&turns[1], "prompt_ids") - length(&turns[0], "prompt_ids");
    assert!(turns[1]["prompt_tokens"].as_u64().unwrap() <= new, "{text}");

    for (template, name) in [("{% if %}", "line 1"), ("{{ raise_exception('no systems') }}", "no systems")] {
        folder.write("chat_template.jinja", template);
        let output = run(&[&chat[..], &["--chat", "--system", "s", "a b"]].concat());
        check(&output, 1, &["chat_template.jinja", name]).unwrap();
    }
}

#[test]
fn an_answer_goes_as_far_as_the_context() {
    let folder = Folder::copy("llama3");
    folder.write("chat_template.jinja", "{{ messages[0].content }}");
    folder.set("max_position_embeddings", 300);
    let arguments = ["run", "-m", folder.path().to_str().unwrap(), "--ignore-eos", "--chat", "--json"];
    let answer = |limit: &[&str]| -> Value {
        serde_json::from_str(&stdout(&run(&[&arguments[..], limit, &["a b"]].concat()))).unwrap()
    };
    let whole = answer(&[]);
    assert_eq!(whole["stopped"], "context");
    assert!(whole["generated_tokens"].as_u64().unwrap() > 256, "{whole}");
    let cut = answer(&["-n", "2"]);
    assert_eq!((&cut["stopped"], &cut["generated_tokens"]), (&json!("limit"), &json!(2)));
}

/// A template that refuses what has `no` in it.
const REFUSING: &str =
    "{% if 'no' in messages[-1].content %}{{ raise_exception('not that') }}{% endif %}{{ messages[-1].content }}";

#[test]
fn a_chat_on_a_terminal_goes_on_after_an_error() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let folder = Folder::copy("llama3");
    folder.write("chat_template.jinja", REFUSING);
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let mut terminal = fs::File::from(terminal);
    let mut command = einfuse(&["run", "-m", folder.path().to_str().unwrap(), "--chat", "-n", "2"]);
    command.stdin(fs::OpenOptions::new().read(true).write(true).open(name).unwrap());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let too_long = "x ".repeat(300);
    let turns = ["a b", &too_long, "no", "c d"].join("\n");
    let end_of_input = "\u{4}";
    terminal.write_all(format!("{turns}\n{end_of_input}").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).matches("> ").count(), 5, "{}", stdout(&output));
    let told = stderr(&output);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 4, "{told}");
    for (line, word) in
        lines.iter().zip(["generated 2 tokens", "tokens do not fit into the 256", "not that", "generated 2 tokens"])
    {
        assert!(line.contains(word), "no `{word}` in {line}");
    }
    assert!(lines[1].starts_with("error: ") && lines[2].starts_with("error: "), "{told}");
}

#[test]
fn a_chat_that_is_no_terminal_s_ends_with_an_error() {
    let folder = Folder::copy("llama3");
    folder.write("chat_template.jinja", REFUSING);
    let output = run_with(&["run", "-m", folder.path().to_str().unwrap(), "--chat", "-n", "2", "--json"], "no\na b\n");
    check(&output, 1, &["not that"]).unwrap();
    assert!(output.stdout.is_empty(), "{}", stdout(&output));
}

#[test]
fn a_model_may_say_how_tokens_are_chosen() {
    let folder = Folder::copy("llama3");
    let path = folder.path().to_str().unwrap();
    let text = |options: &[&str]| {
        let output = run(&[&["run", "-m", path, "-n", "20", "--ignore-eos", "To be"], options].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let (sampled, greedy) = (text(&[]), text(&["--temperature", "0"]));
    assert_ne!(sampled, greedy);
    folder.edit("generation_config.json", |config| config["top_k"] = 1.into());
    assert_eq!(text(&[]), sampled);
    folder.edit("generation_config.json", |config| config["do_sample"] = true.into());
    assert_eq!(text(&[]), greedy);
    assert_eq!(text(&["--top-k", "40"]), sampled);
    folder.edit("generation_config.json", |config| config["top_k"] = "few".into());
    let output = run(&["run", "-m", path, "To be"]);
    check(&output, 1, &["generation_config.json", "`top_k` wants a whole number", "\"few\""]).unwrap();
}

#[test]
fn a_stop_text_ends_generation_and_is_not_printed() {
    let arguments = |stop: &'static str| ["run", "--temperature", "0", "--json", "--stop", stop, "ROMEO:"];
    let result: Value = serde_json::from_str(&stdout(&run(&arguments("countryman")))).unwrap();
    assert_eq!(result["stopped"], "stop");
    let text = result["text"].as_str().unwrap();
    assert!(!text.contains("countryman"), "{text}");
}

#[test]
fn explain_shows_kernels_rules_and_costs() {
    let output = run(&["explain"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = stdout(&output);
    for word in ["kernel", "online-softmax", "siblings", "flops", "bytes", "bound", "memory"] {
        assert!(table.contains(word), "no `{word}` in\n{table}");
    }
    let without = stdout(&run(&["explain", "--without", "online-softmax"]));
    assert!(without.lines().count() > table.lines().count(), "fewer rules, more kernels:\n{without}");
}

#[test]
fn explain_dumps_every_stage() {
    for (stage, word) in [("graph", "sum["), ("plan", "rows"), ("loops", "for "), ("clif", "function"), ("asm", "ret")]
    {
        let output = run(&["explain", "--dump", stage]);
        assert!(output.status.success(), "{stage}: {}", stderr(&output));
        assert!(stdout(&output).contains(word), "{stage}: no `{word}`");
    }
}

#[test]
fn explain_shows_the_chosen_kernels_alone() {
    for stage in [&[][..], &["--dump", "plan"], &["--dump", "loops"], &["--dump", "clif"], &["--dump", "asm"]] {
        let output = run(&[&["explain", "--kernel", "logits"], stage].concat());
        assert!(output.status.success(), "{stage:?}: {}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains("logits") && !text.contains("q+k+u"), "{stage:?}:\n{text}");
    }
}

#[test]
fn logits_writes_a_safetensors_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.safetensors");
    let arguments = ["logits", "--ids", "576,45,37,47,26", "--hidden", "-o", file.to_str().unwrap()];
    let output = run(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stdout.is_empty(), "{}", stdout(&output));
    let (header, data) = common::split(&fs::read(&file).unwrap());
    assert_eq!(header["logits"]["shape"], json!([5, 1024]));
    assert_eq!(header["hidden"]["shape"], json!([7, 5, 128]));
    assert_eq!(data.len(), 4 * (5 * 1024 + 7 * 5 * 128));

    let output = run(&[&arguments[..], &["--json"]].concat());
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(result["file"], file.to_str().unwrap());
    assert_eq!(result["token_ids"], json!([576, 45, 37, 47, 26]));
    let names = |tensors: &Value| tensors.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let (mut told, mut stored) = (names(&result["tensors"]), names(&header));
    told.sort();
    stored.sort();
    assert_eq!(told, stored);
    for name in stored {
        for key in ["dtype", "shape"] {
            assert_eq!(result["tensors"][&name][key], header[&name][key], "{key} of {name}");
        }
    }

    let without: Vec<&str> = arguments.into_iter().filter(|argument| *argument != "--hidden").collect();
    let output = run(&without);
    assert!(output.status.success(), "{}", stderr(&output));
    let (alone, same) = common::split(&fs::read(&file).unwrap());
    assert_eq!(names(&alone), ["logits"]);
    let range: [usize; 2] = serde_json::from_value(header["logits"]["data_offsets"].clone()).unwrap();
    assert_eq!(same, data[range[0]..range[1]]);
}

#[test]
fn perplexity_scores_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    fs::write(&file, "ROMEO:\nWhat light through yonder window breaks?\n").unwrap();
    let output = run(&["perplexity", "--json", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let (nll, perplexity) = (result["mean_nll"].as_f64().unwrap(), result["perplexity"].as_f64().unwrap());
    assert!((nll.exp() - perplexity).abs() < 1e-6 * perplexity);
    // an untrained model of 1,024 tokens would have 6.93
    assert!(nll > 1.0 && nll < 6.0, "{nll}");
    assert!(result["tokens_scored"].as_u64().unwrap() > 10);
}

#[test]
fn perplexity_wants_room_for_two_tokens() {
    let folder = Folder::copy("llama3");
    folder.set("max_position_embeddings", 1);
    folder.write("text.txt", "To be, or not to be");
    let output = run(&["perplexity", "-m", folder.path().to_str().unwrap(), folder.file("text.txt").to_str().unwrap()]);
    check(&output, 1, &["at least 2 positions are wanted", "not the 1 of the model's context"]).unwrap();
}

#[test]
fn bench_prints_a_row_per_test_with_the_machine_s_peak() {
    let output = run(&["bench", "-p", "16", "-n", "8", "-t", "1,2", "-r", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = stdout(&output);
    let rows: Vec<&str> = table.lines().filter(|l| l.starts_with('|')).collect();
    assert_eq!(rows.len(), 2 + 4, "{table}");
    for word in ["pp16", "tg8", "t/s", "GB/s", "GFLOP/s", "%"] {
        assert!(table.contains(word), "no `{word}` in\n{table}");
    }
}

#[test]
fn bench_prints_a_list_as_json() {
    for form in [&["-o", "json"][..], &["--json"]] {
        let output = run(&[&["bench", "-p", "8", "-n", "4", "-t", "1", "-r", "1"], form].concat());
        let rows: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let tests: Vec<&Value> = rows.as_array().unwrap().iter().map(|row| &row["test"]).collect();
        assert_eq!(tests, ["pp8", "tg4"], "{form:?}");
        assert_eq!((&rows[0]["unit"], &rows[1]["unit"]), (&json!("FLOP/s"), &json!("B/s")));
    }
}

/// The rows that `einfuse bench` prints as JSON, with few repetitions.
fn bench(arguments: &[&str]) -> Vec<Value> {
    let output = run(&[&["bench", "-t", "1", "-r", "1", "--json"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn bench_repeats_its_tests_after_each_depth() {
    // this model was made for 256 positions
    let rows = bench(&["-m", "tests/golden/llama3", "-p", "20", "-n", "4", "-d", "0,16,300", "--chunk", "8"]);
    let tests: Vec<&Value> = rows.iter().map(|row| &row["test"]).collect();
    assert_eq!(tests, ["pp20", "tg4", "pp20 @ d16", "tg4 @ d16", "pp20 @ d300", "tg4 @ d300"]);
    let depths: Vec<&Value> = rows.iter().map(|row| &row["depth"]).collect();
    assert_eq!(depths, [0, 0, 16, 16, 300, 300]);
    let per_token = |row: &Value| row["achieved"].as_f64().unwrap() / row["tokens_per_second"].as_f64().unwrap();
    for kind in [0, 1] {
        let costs: Vec<f64> = rows.iter().skip(kind).step_by(2).map(per_token).collect();
        assert!(costs.is_sorted_by(|a, b| a < b), "more positions are to be read at more depth: {costs:?}");
    }
}

#[test]
fn bench_relates_steps_of_several_tokens_to_steps_of_one() {
    let arguments = ["-p", "0", "-n", "8", "-b", "1,2,5,9"];
    let rows = bench(&arguments);
    let tests: Vec<&Value> = rows.iter().map(|row| &row["test"]).collect();
    assert_eq!(tests, ["tg8", "tg 1×", "tg 2×", "tg 5×", "tg 9×"]);
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
    assert!(rows[0]["cost"].is_null());
    for (row, tokens) in rows.iter().zip([1.0, 1.0, 2.0, 5.0, 9.0]).skip(1) {
        assert_eq!(row["unit"], "B/s");
        // one repetition: the rate is that of a step, which is told in steps of a token
        let steps = number(row, "tokens_per_second") / tokens;
        let cost = number(&rows[0], "tokens_per_second") / steps;
        assert!((number(row, "cost") / cost - 1.0).abs() < 1e-9, "{row}");
        // the weights are read once for all tokens of a step, but of the table of tokens a row for each
        let bytes = |row| number(row, "achieved") / number(row, "tokens_per_second");
        let shared = bytes(row) * tokens / bytes(&rows[0]);
        assert!((0.99..1.1).contains(&shared), "{shared}: {row}");
    }
    let output = run(&[&["bench", "-t", "1", "-r", "1"], &arguments[..]].concat());
    assert!(output.status.success(), "{}: {}", output.status, stderr(&output));
    let table = stdout(&output);
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split('|').map(str::trim).collect();
    assert!(head.ends_with(&["cost", ""]), "{table}");
}

#[test]
fn bench_and_explain_name_the_multiplier() {
    for (storage, names) in [
        (["--precision", "f32"], &["f32 at "][..]),
        (["--precision", "bf16"], &["f32 at ", "pairs of bf16 at ", "pairs of bf16 in tiles"]),
        (["--quant", "q8"], &["f32 at ", "fours of bytes at ", "pairs of words at ", "pairs of bf16 in tiles"]),
        (
            ["--quant", "q4"],
            &[
                "f32 at ",
                "pairs of bytes at ",
                "fours of bytes at ",
                "fours of bytes in tiles",
                "pairs of bf16 in tiles",
            ],
        ),
    ] {
        let rows = bench(&[&["-p", "8", "-n", "2"], &storage[..]].concat());
        let multiplier = rows[0]["multiplier"].as_str().unwrap();
        assert!(names.iter().any(|name| multiplier.starts_with(name)), "{storage:?}: {multiplier}");
        assert!(multiplier.ends_with(" bits") || multiplier.ends_with(" tiles"));
        assert!(rows[1]["multiplier"].is_null(), "{rows:?}");
        let explained = run(&[&["explain", "--json", "--kernel", "logits"], &storage[..]].concat());
        let explained: Value = serde_json::from_str(&stdout(&explained)).unwrap();
        assert_eq!(explained["multiplier"], multiplier);
    }
}

#[test]
fn bench_holds_a_model_against_f32() {
    let number = |check: &Value, key: &str| check[key].as_f64().unwrap_or_else(|| panic!("{key}: {check}"));
    let check = |storage: &[&str]| {
        let mut items = bench(&[&["-p", "0", "-n", "0", "--check"], storage].concat());
        assert_eq!(items.len(), 1, "{items:?}");
        let check = items.remove(0);
        assert_eq!((&check["test"], &check["holds"]), (&json!("check"), &json!(true)));
        assert!(number(&check, "positions") >= 1000.0);
        let ratio = number(&check, "perplexity") / number(&check, "perplexity_f32");
        assert!((ratio / number(&check, "perplexity_ratio") - 1.0).abs() < 1e-9, "{check}");
        // what an untrained model of 1,024 tokens would have
        assert!(number(&check, "perplexity_f32") < 100.0, "{check}");
        check
    };
    let plain = check(&["--precision", "f32", "--cache", "f32"]);
    assert_eq!((&plain["weights"], &plain["cache"]), (&json!("f32"), &json!("f32")));
    assert_eq!((number(&plain, "perplexity_ratio"), number(&plain, "top1_agreement")), (1.0, 1.0));
    assert_eq!((number(&plain, "largest_divergence"), number(&plain, "largest_logit_difference")), (0.0, 0.0));
    let coded = check(&["--precision", "f32", "--cache", "q8"]);
    assert_eq!((&coded["weights"], &coded["cache"]), (&json!("f32"), &json!("q8")));
    assert!(number(&coded, "largest_divergence") > 0.0, "{coded}");
    let kept: Vec<Value> = [&["--precision", "bf16"][..], &["--quant", "q8"], &["--quant", "q4"]].map(check).into();
    for (check, weights) in kept.iter().zip(["bf16", "q8", "q4"]) {
        // of codes in steps the length of the blocks behind it
        assert!(check["weights"].as_str().is_some_and(|stored| stored.starts_with(weights)), "{check}");
        assert_eq!(check["cache"], "bf16");
        assert!(number(check, "largest_divergence") > number(check, "mean_divergence"), "{check}");
    }
    assert!(kept.is_sorted_by(|a, b| number(a, "mean_divergence") < number(b, "mean_divergence")), "{kept:?}");

    // what a table has too; behind the rows
    let output = run(&["bench", "-p", "4", "-n", "0", "-r", "1", "-t", "1", "--check"]);
    let text = stdout(&output);
    assert!(output.status.success() && text.contains("| pp4 "), "{}", stderr(&output));
    for word in ["weights of bf16", "perplexity ", "likeliest token", "divergence ", "logits differ"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

#[test]
fn bench_fails_where_a_model_is_too_far_from_f32() {
    // random weights, to which a few bits more or less are another model
    let output =
        run(&["bench", "-m", "tests/golden/llama3", "--quant", "q4", "-p", "0", "-n", "0", "--check", "--json"]);
    check(&output, 1, &["--check", "q4", "perplexity", "likeliest token", "60.0 %"]).unwrap();
    let items: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(items[0]["holds"], false);
}

#[test]
fn bench_profiles_every_kernel_call() {
    let arguments = ["bench", "-p", "8", "-n", "4", "-t", "1", "-r", "1", "--chunk", "7", "--profile"];
    let rows: Value = serde_json::from_str(&stdout(&run(&[&arguments[..], &["--json"]].concat()))).unwrap();
    let calls = |tokens: &str| -> Vec<(Value, u64)> {
        let plan: Value = serde_json::from_str(&stdout(&run(&["explain", "--json", "--tokens", tokens]))).unwrap();
        let count = |k: &Value| k["runs"].as_u64().unwrap() * k["calls"].as_u64().unwrap();
        plan["kernels"].as_array().unwrap().iter().map(|k| (k["name"].clone(), count(k))).collect()
    };
    // the prompt is read in a step of seven tokens and one of a single token
    let one = calls("1");
    let prompt = calls("7").into_iter().zip(&one).map(|((name, many), (_, one))| (name, many + one)).collect();
    for (row, expected) in rows.as_array().unwrap().iter().zip([prompt, one]) {
        let profile = &row["profile"];
        let kernels = profile["kernels"].as_array().unwrap();
        let counted: Vec<_> = kernels.iter().map(|k| (k["name"].clone(), k["calls"].as_u64().unwrap())).collect();
        assert_eq!(counted, expected);
        assert_eq!(profile["calls"], expected.iter().map(|(_, calls)| calls).sum::<u64>());
        let mut sum = profile["time_outside_kernels"].as_f64().unwrap();
        for kernel in kernels {
            assert!(kernel["achieved"].as_f64().unwrap() > 0.0, "{kernel}");
            sum += kernel["time"].as_f64().unwrap();
        }
        let time = profile["time"].as_f64().unwrap();
        assert!((sum - time).abs() < 1e-9 * time, "{sum} {time}");
    }
    let text = stdout(&run(&arguments));
    for word in ["pp8, -t 1: ", "tg4, -t 1: ", "| logits ", "| outside kernels ", " ns a call "] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

#[test]
fn help_has_examples() {
    for command in ["", "run", "explain", "bench", "logits", "perplexity"] {
        let arguments: Vec<&str> = [command, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        let output = run(&arguments);
        assert!(output.status.success());
        assert!(stdout(&output).contains("Examples:"), "{arguments:?}");
        assert_eq!(stdout(&output).contains("--json"), !command.is_empty(), "{arguments:?}");
    }
}

#[test]
fn explain_prints_one_object() {
    let output = run(&["explain", "--json", "--kernel", "logits"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["declaration"], "Gpt2");
    assert_eq!(object["kernels"].as_array().unwrap().len(), 1);
    let kernel = &object["kernels"][0];
    assert!(kernel["equations"].as_array().unwrap().iter().any(|e| e.as_str().unwrap().starts_with("logits[t, v] = ")));
    assert!(kernel["applied"].as_array().unwrap().iter().any(|r| r["rule"] == "tail"));
    // 2 operations for each element of the embedding, 1024 x 128, and little else.
    assert!((0.26e6..0.3e6).contains(&kernel["flops"].as_f64().unwrap()), "{}", kernel["flops"]);
    assert_eq!(object["unread"], serde_json::json!([]));
}
