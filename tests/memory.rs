//! How much memory loading takes: at its peak no more than the packed weights, 15 % of them, and 200 MB. A checkpoint of 300 MB
//! is loaded by a process of its own, this binary again, which says what the system counted.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};

use einfuse::runtime::Quant;
use einfuse::{Precision, Settings};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Map, Value, json};

/// Says to the process that it is the one that loads: the folder.
const FOLDER: &str = "EINFUSE_TEST_FOLDER";
/// And how weights are kept.
const KEPT: &str = "EINFUSE_TEST_KEPT";

const MEGABYTE: f64 = 1e6;

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return load(Path::new(&folder));
    }
    let mut arguments = Arguments::from_args();
    // One at a time: each takes some hundred megabytes.
    arguments.test_threads = Some(1);
    let trials = ["f32", "bf16", "q8"].map(|kept| Trial::test(format!("loading_as_{kept}"), move || check(kept)));
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// Loads a model, and prints the bytes of its packed weights and of this process at its peak.
fn load(folder: &Path) -> ExitCode {
    let settings = Settings { threads: Some(2), ..Settings::default() };
    let settings = match std::env::var(KEPT).as_deref() {
        Ok("bf16") => Settings { precision: Precision::Bf16, ..settings },
        Ok("q8") => Settings { quant: Some(Quant::Q8), ..settings },
        _ => settings,
    };
    match einfuse::load(folder, settings) {
        Ok(model) => {
            println!("{} {}", model.program().weight_bytes(), peak().unwrap_or(0));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The most memory that this process had at once, in bytes, where Linux tells.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn check(kept: &str) -> Result<(), Failed> {
    if peak().is_none() {
        eprintln!("not run: this system does not tell how much memory a process had");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    write(folder.path())?;
    let output = Command::new(std::env::current_exe()?).env(FOLDER, folder.path()).env(KEPT, kept).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let [weights, peak] = numbers[..] else {
        return Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)).into());
    };
    let parameters = 76.5 * MEGABYTE;
    let expected = match kept {
        "f32" => 4.0 * parameters,
        "bf16" => 2.0 * parameters,
        _ => 8.25 / 8.0 * parameters,
    };
    let most = weights * 1.15 + 200.0 * MEGABYTE;
    // The file alone would be too much beside what is packed.
    assert!(most < weights + 4.0 * parameters);
    if (weights / expected - 1.0).abs() > 0.25 {
        return Err(format!("{weights} bytes are packed, some {expected} were expected").into());
    }
    if peak > most || peak < weights {
        return Err(format!("{peak} bytes at the peak, at most {most} were expected for {weights} of weights").into());
    }
    Ok(())
}

/// A tokenizer of all texts of up to three out of 64 letters, each made of shorter ones in every way: 266,304 tokens and 528,384
/// merges.
fn tokenizer() -> Value {
    let letters: Vec<char> = ('\u{0100}'..'\u{0140}').collect();
    let all = || letters.iter().copied();
    let pairs = || all().flat_map(|a| letters.iter().map(move |b| (a, *b)));
    let triples = || pairs().flat_map(|(a, b)| letters.iter().map(move |c| (a, b, *c)));
    let texts = all().map(String::from).chain(pairs().map(|(a, b)| format!("{a}{b}")));
    let texts = texts.chain(triples().map(|(a, b, c)| format!("{a}{b}{c}")));
    let vocabulary: Map<String, Value> = texts.zip(0..).map(|(text, id)| (text, Value::from(id))).collect();
    let two = |(a, b): (char, char)| json!([a, b]);
    let three = |(a, b, c): (char, char, char)| [json!([format!("{a}{b}"), c]), json!([a, format!("{b}{c}")])];
    let merges: Vec<Value> = pairs().map(two).chain(triples().flat_map(three)).collect();
    json!({ "version": "1.0", "model": { "type": "BPE", "vocab": vocabulary, "merges": merges } })
}

/// Writes a Llama of 76 million parameters in f32, all zero, which takes no room on disk, and its tokenizer.
fn write(folder: &Path) -> std::io::Result<()> {
    std::fs::write(folder.join("tokenizer.json"), tokenizer().to_string())?;
    let (d, h, n, f, v, layers) = (1024, 16, 4, 4096, 16_000, 4);
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": d,
        "num_attention_heads": h,
        "num_key_value_heads": n,
        "intermediate_size": f,
        "vocab_size": v,
        "num_hidden_layers": layers,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let kv = d / h * n;
    let mut shapes =
        vec![("model.embed_tokens.weight".to_owned(), vec![v, d]), ("model.norm.weight".to_owned(), vec![d])];
    for layer in 0..layers {
        let of_layer = [
            ("input_layernorm", vec![d]),
            ("self_attn.q_proj", vec![d, d]),
            ("self_attn.k_proj", vec![kv, d]),
            ("self_attn.v_proj", vec![kv, d]),
            ("self_attn.o_proj", vec![d, d]),
            ("post_attention_layernorm", vec![d]),
            ("mlp.gate_proj", vec![f, d]),
            ("mlp.up_proj", vec![f, d]),
            ("mlp.down_proj", vec![d, f]),
        ];
        shapes.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in shapes {
        let start = at;
        at += 4 * shape.iter().product::<usize>();
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, at] }));
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(folder.join("model.safetensors"))?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.set_len((8 + header.len() + at) as u64)
}
