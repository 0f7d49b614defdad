//! Golden models as llama.cpp's conversion lays them out in GGUF files: the same logits. `scripts/gguf-layouts` noted what each
//! file has, and where in the model each of its numbers is from.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::{json, repository};
use einfuse::codegen::Batch;
use einfuse::runtime::Precision;
use einfuse::{Checkpoint, Settings, Wanted};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The largest difference allowed, relative to the largest magnitude.
const TOLERANCE: f64 = 1e-4;

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn whole(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// A value of the metadata: its type, and its bytes.
fn metadata(value: &Value) -> Vec<u8> {
    let (kind, bytes): (u32, Vec<u8>) = match value {
        Value::Bool(flag) => (7, vec![u8::from(*flag)]),
        Value::String(string) => (8, text(string)),
        Value::Number(number) if number.is_u64() => (4, u32::try_from(whole(value)).unwrap().to_le_bytes().to_vec()),
        Value::Number(number) => (6, (number.as_f64().unwrap() as f32).to_le_bytes().to_vec()),
        other => panic!("{other}"),
    };
    [&kind.to_le_bytes()[..], &bytes].concat()
}

/// A GGUF file with this metadata, and tensors by name, dimensions, number of the type and data.
fn written<'a>(
    entries: &serde_json::Map<String, Value>,
    tensors: impl ExactSizeIterator<Item = (&'a str, Vec<usize>, u32, Vec<u8>)>,
) -> Vec<u8> {
    let (count, keys) = (tensors.len() as u64, entries.len() as u64);
    let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &count.to_le_bytes(), &keys.to_le_bytes()].concat();
    for (key, value) in entries {
        file.extend([text(key), metadata(value)].concat());
    }
    let mut all: Vec<u8> = Vec::new();
    for (name, dimensions, kind, data) in tensors {
        all.resize(all.len().next_multiple_of(32), 0);
        file.extend(text(name));
        file.extend((dimensions.len() as u32).to_le_bytes());
        file.extend(dimensions.iter().flat_map(|&size| (size as u64).to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend((all.len() as u64).to_le_bytes());
        all.extend(data);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(all);
    file
}

/// The dimensions of a tensor.
fn dimensions(tensor: &Value) -> Vec<usize> {
    tensor["dimensions"].as_array().unwrap().iter().map(whole).collect()
}

/// The files that have a golden model's weights.
fn weights(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_one = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("model");
    files.filter(|path| is_one(path) && path.extension().is_some_and(|end| end == "safetensors")).collect()
}

/// The numbers of a tensor.
fn numbers(tensor: &TensorView<'_>) -> Vec<f32> {
    let halves = || tensor.data().as_chunks::<2>().0.iter();
    match tensor.dtype() {
        Dtype::F16 => halves().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => halves().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect(),
        _ => tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
    }
}

/// The GGUF file of a golden model.
fn file(folder: &Path, about: &Value) -> Vec<u8> {
    let parts: Vec<Vec<u8>> = weights(folder).iter().map(|path| fs::read(path).unwrap()).collect();
    let parts: Vec<SafeTensors> = parts.iter().map(|part| SafeTensors::deserialize(part).unwrap()).collect();
    let source =
        |name: &Value| numbers(&parts.iter().find_map(|part| part.tensor(name.as_str().unwrap()).ok()).unwrap());
    let sources: Vec<Vec<f32>> = about["sources"].as_array().unwrap().iter().map(source).collect();
    let (entries, tensors) = (about["metadata"].as_object().unwrap(), about["tensors"].as_object().unwrap());
    let tensors = tensors.iter().map(|(name, tensor)| {
        let values = tensor["values"].as_array().into_iter().flatten();
        let mut data: Vec<u8> = values.flat_map(|value| (value.as_f64().unwrap() as f32).to_le_bytes()).collect();
        for run in tensor["runs"].as_array().into_iter().flatten() {
            let numbers = &sources[whole(&run[0])];
            let [first, length, count] = [1, 2, 3].map(|at| whole(&run[at]));
            let stride = run[4].as_i64().unwrap() as isize;
            for first in (0..count).map(|nth| first.checked_add_signed(nth as isize * stride).unwrap()) {
                let more = tensor["more"].as_u64().unwrap() as f32;
                data.extend(numbers[first..first + length].iter().flat_map(|number| (number + more).to_le_bytes()));
            }
        }
        (name.as_str(), dimensions(tensor), 0, data)
    });
    written(entries, tensors)
}

#[test]
fn converted_models_have_the_same_logits() {
    let mut models = 0;
    for folder in fs::read_dir(repository("tests/golden")).unwrap().map(|entry| entry.unwrap().path()) {
        if !folder.join("gguf.json").exists() {
            continue;
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("model.gguf");
        fs::write(&path, file(&folder, &json(&folder.join("gguf.json")))).unwrap();
        let about = json(&folder.join("gguf.json"));
        let golden = fs::read(folder.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let ids = golden.tensor("p0.input_ids").unwrap();
        let ids = ids.data().as_chunks::<8>().0.iter().map(|bytes| u32::try_from(i64::from_le_bytes(*bytes)).unwrap());
        let ids: Vec<u32> = ids.collect();
        let expected = golden.tensor("p0.logits").unwrap();
        let expected = expected.data().as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
        let expected: Vec<f64> = expected.collect();

        let compute = |path: &Path| {
            let settings = Settings {
                context: Some(16),
                precision: Precision::F32,
                rows: Wanted::All,
                threads: Some(2),
                ..Settings::default()
            };
            let checkpoint = Checkpoint::open(path).unwrap();
            let model =
                einfuse::load_checkpoint(&checkpoint, settings).unwrap_or_else(|error| panic!("{name}: {error}"));
            // What frequencies are divided by is in the config.
            let is_read = |left: &String| left.starts_with("rope_");
            assert!(model.leftovers().iter().all(is_read), "{name}: {:?}", model.leftovers());
            model.session().trace(&ids).unwrap().logits
        };
        let logits = compute(&path);
        // What files do not say is another number in the golden model.
        let fixed = about["fixed"].as_object().filter(|fixed| !fixed.is_empty());
        let expected = fixed.map_or(expected, |fixed| {
            let mut config = json(&folder.join("config.json"));
            config.as_object_mut().unwrap().extend(fixed.clone());
            fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
            for path in weights(&folder) {
                fs::copy(&path, scratch.path().join(path.file_name().unwrap())).unwrap();
            }
            compute(scratch.path()).into_iter().map(f64::from).collect()
        });
        let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        assert_eq!(logits.len(), expected.len(), "{name}");
        for (at, (found, wanted)) in logits.iter().zip(&expected).enumerate() {
            let close = (f64::from(*found) - wanted).abs() <= TOLERANCE * largest;
            assert!(close, "{name}: logit {at} is {found}, not {wanted}");
        }
        models += 1;
    }
    assert!(models >= 30, "{models}");
}

/// What frequencies are divided by means the scaling that a config would name: Llama 4's, in which nothing is between, and one
/// of any other numbers.
#[test]
fn frequencies_are_divided_as_files_say() {
    let folder = repository("tests/golden/llama3");
    let mut about = json(&folder.join("gguf.json"));
    let llama4 = serde_json::json!({ "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
        "original_max_position_embeddings": 128 });
    let others = serde_json::json!([1.0, 1.5, 2.0, 1.0, 7.0, 3.0, 5.0, 4.0]);
    let longrope = serde_json::json!({ "rope_type": "longrope", "short_factor": others, "long_factor": others, "factor": 1.0,
        "attention_factor": 1.0, "original_max_position_embeddings": 128 });
    // 128 positions are 20.4 turns of the first pair, 3.95 of the second, 0.8 of the third.
    for (divisors, scaling) in [(serde_json::json!([1, 1, 16, 16, 16, 16, 16, 16]), llama4), (others, longrope)] {
        about["tensors"]["rope_freqs.weight"]["values"] = divisors;
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("model.gguf");
        fs::write(&path, file(&folder, &about)).unwrap();
        let mut config = json(&folder.join("config.json"));
        config["rope_scaling"] = scaling;
        fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
        fs::copy(folder.join("model.safetensors"), scratch.path().join("model.safetensors")).unwrap();
        let distance = distance(&load(&path, Precision::F32), &load(scratch.path(), Precision::F32));
        assert!(distance < 1e-5, "{distance}");
    }
}

/// A Llama that has biases of queries, keys and values, but none of attention's output, is computed as one where that is 0.
#[test]
fn an_output_need_not_have_a_bias() {
    let folder = repository("tests/golden/llama3");
    let (mut about, mut config) = (json(&folder.join("gguf.json")), json(&folder.join("config.json")));
    config["attention_bias"] = true.into();
    let [heads, groups, layers] = ["num_attention_heads", "num_key_value_heads", "num_hidden_layers"];
    let [heads, groups, layers] = [heads, groups, layers].map(|key| whole(&config[key]));
    let width = whole(&config["hidden_size"]);
    let head = width / heads;
    let mut added: Vec<(String, Vec<f32>)> = Vec::new();
    for layer in 0..layers {
        let name = |part| format!("model.layers.{layer}.self_attn.{part}_proj.bias");
        for (part, heads, is_rotated) in [("q", heads, true), ("k", groups, true), ("v", groups, false)] {
            let bias: Vec<f32> = (0..heads * head).map(|i| ((i * 37 + layer) % 19) as f32 / 19.0 - 0.5).collect();
            // Files have the two of a rotary pair next to each other.
            let place = |i: usize| i / head * head + i % 2 * head / 2 + i % head / 2;
            let values = (0..bias.len()).map(|i| bias[if is_rotated { place(i) } else { i }]);
            about["tensors"][format!("blk.{layer}.attn_{part}.bias")] =
                serde_json::json!({ "dimensions": [bias.len()], "values": values.collect::<Vec<f32>>() });
            added.push((name(part), bias));
        }
        added.push((name("o"), vec![0.0; width]));
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("model.gguf");
    fs::write(&path, file(&folder, &about)).unwrap();
    fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
    let weights = fs::read(folder.join("model.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&weights).unwrap();
    let added: Vec<(String, Vec<u8>)> =
        added.into_iter().map(|(name, bias)| (name, bias.into_iter().flat_map(f32::to_le_bytes).collect())).collect();
    let of_added = |bytes| TensorView::new(Dtype::F32, vec![<[u8]>::len(bytes) / 4], bytes).unwrap();
    let all = added.iter().map(|(name, bytes)| (name.clone(), of_added(bytes))).chain(weights.tensors());
    fs::write(scratch.path().join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();
    let distance = distance(&load(&path, Precision::F32), &load(scratch.path(), Precision::F32));
    assert!(distance < 1e-5, "{distance}");
}

/// A type of blocks: its number in files, the numbers of a block, and what its codes are kept as.
struct Kind {
    code: u32,
    length: usize,
    kept: &'static str,
}

const MXFP4: Kind = Kind { code: 39, length: 32, kept: "mxfp4" };
const Q8_0: Kind = Kind { code: 8, length: 32, kept: "q8_32" };
const Q4_K: Kind = Kind { code: 12, length: 256, kept: "q4_min" };

impl Kind {
    /// A block of ordinary weights, some 0.06 in size.
    fn block(&self, next: &mut impl FnMut() -> f32) -> Vec<u8> {
        // A half precision number from a power of two on, to the next.
        let mut half = |power: i32| ((power + 15) << 10 | (next() * 1024.0) as i32).to_le_bytes()[..2].to_vec();
        let (mut block, codes) = match self.code {
            39 => (vec![122], 16),
            8 => (half(-11), 32),
            _ => ([half(-12), half(-9)].concat(), 140),
        };
        block.extend((0..codes).map(|_| (next() * 256.0) as u8));
        block
    }
}

/// A file with the tensors of a golden model, but larger, as `sizes` says: those of such names in such blocks, all else as it is.
fn enlarged(about: &Value, sizes: &[(usize, usize)], kind: &Kind, in_blocks: &[&str]) -> Vec<u8> {
    let size = |size: usize| sizes.iter().find(|(small, _)| *small == size).map_or(size, |(_, large)| *large);
    let mut entries = about["metadata"].as_object().unwrap().clone();
    let experts = entries.iter().find(|(key, _)| key.ends_with("expert_count")).map(|(_, count)| count.clone());
    for (key, value) in &mut entries {
        let is_size = ["_length", "_length_mla", "_lora_rank", "dimension_count"].iter().any(|end| key.ends_with(end));
        if is_size && !key.ends_with("context_length") {
            *value = size(whole(value)).into();
        }
        // All are chosen, so that rounding chooses no other.
        if key.ends_with("expert_used_count") {
            *value = experts.clone().unwrap();
        }
    }
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    let tensors = about["tensors"].as_object().unwrap().iter().map(|(name, tensor)| {
        let dimensions: Vec<usize> = dimensions(tensor).into_iter().map(size).collect();
        let count: usize = dimensions.iter().product();
        if in_blocks.iter().any(|end| name.ends_with(end)) {
            let data = (0..count / kind.length).flat_map(|_| kind.block(&mut next)).collect();
            return (name.as_str(), dimensions, kind.code, data);
        }
        let (less, more) = if name.ends_with("norm.weight") { (0.2, 1.0) } else { (0.2, 0.0) };
        let data = (0..count).flat_map(|_| (more + less * (next() - 0.5)).to_le_bytes()).collect();
        (name.as_str(), dimensions, 0, data)
    });
    written(&entries, tensors)
}

/// Experts that the reference implementation has transposed, and gate and up in one tensor, are computed on in the file's blocks.
#[test]
fn experts_keep_their_blocks() {
    for (name, weights) in [("gpt_oss", ["input", "down"]), ("llama4", ["input", "output"])] {
        let about = json(&repository("tests/golden").join(name).join("gguf.json"));
        for kind in [MXFP4, Q8_0, Q4_K] {
            let scratch = tempfile::tempdir().unwrap();
            let path = scratch.path().join("model.gguf");
            let sizes = [(10, 64), (20, 128), (22, 512), (40, 256), (52, 256)];
            fs::write(&path, enlarged(&about, &sizes, &kind, &["_exps.weight"])).unwrap();
            let model = load(&path, Precision::Stored);
            let graph = &model.program().plan(Batch::Many).graph;
            // Layers that are declared alike and differ otherwise have names with numbers.
            let name_of = |tensor| graph.tensor(tensor).name.split('.').next().unwrap_or_default();
            let is_expert = |tensor| weights.contains(&name_of(tensor));
            let packed = model.program().weights().iter().filter(|packed| is_expert(packed.tensors[0]));
            let kept: Vec<(String, usize)> = packed.map(|packed| (packed.storage.to_string(), packed.bytes)).collect();
            assert!(kept.iter().all(|(format, _)| format == kind.kept), "{name} {}: {kept:?}", kind.kept);
            let layers = about["tensors"].as_object().unwrap().keys().filter(|name| name.contains("down_exps.weight"));
            let numbers = layers.count() * 5 * 3 * 256 * 512;
            let bytes: usize = kept.iter().map(|(_, bytes)| bytes).sum();
            let bits = 8.0 * bytes as f64 / numbers as f64;
            assert!((4.25..9.0).contains(&bits), "{name} {}: {bits} bits", kind.kept);

            let distance = distance(&model, &load(&path, Precision::F32));
            assert!(distance < 0.03, "{name} {}: {distance}", kind.kept);
        }
    }
}

fn load(path: &Path, precision: Precision) -> einfuse::Model {
    let settings = Settings {
        context: Some(32),
        chunk: 16,
        precision,
        rows: Wanted::All,
        threads: Some(2),
        ..Settings::default()
    };
    einfuse::load(path, settings).unwrap_or_else(|error| panic!("{error}"))
}

/// How far the logits of a model are from those of another, in shares of the latter: of many rows, of a few, of one.
fn distance(model: &einfuse::Model, exact: &einfuse::Model) -> f32 {
    let ids: Vec<u32> = (0..20).map(|at| at * 7 % 90).collect();
    let compute = |model: &einfuse::Model| {
        let mut session = model.session();
        let pieces = [&ids[..16], &ids[16..19], &ids[19..]];
        pieces.map(|ids| session.feed_all(ids).unwrap()).concat()
    };
    let (found, wanted) = (compute(model), compute(exact));
    let squares = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| x * x).sum::<f32>();
    let difference = squares(&mut found.iter().zip(&wanted).map(|(a, b)| a - b));
    (difference / squares(&mut wanted.iter().copied())).sqrt()
}

/// A file has the outputs of all heads in one row, whose blocks reach over the ends of heads of 40, and of groups of two.
#[test]
fn blocks_reach_over_heads() {
    for (name, sizes) in [
        ("granite", [(10, 40), (20, 80), (40, 160), (52, 192)]),
        ("deepseek_v2_lite", [(12, 40), (48, 160), (40, 64), (52, 64)]),
    ] {
        let about = json(&repository("tests/golden").join(name).join("gguf.json"));
        for kind in [MXFP4, Q8_0] {
            let scratch = tempfile::tempdir().unwrap();
            let path = scratch.path().join("model.gguf");
            fs::write(&path, enlarged(&about, &sizes, &kind, &["attn_output.weight"])).unwrap();
            let model = load(&path, Precision::Stored);
            let graph = &model.program().plan(Batch::One).graph;
            let is_output = |tensor| graph.tensor(tensor).name.split('.').any(|part| part == "wo");
            let packed = model.program().weights().iter().filter(|packed| is_output(packed.tensors[0]));
            let kept: BTreeSet<String> = packed.map(|packed| packed.storage.to_string()).collect();
            assert_eq!(kept, [kind.kept.to_owned()].into(), "{name}");
            let distance = distance(&model, &load(&path, Precision::F32));
            assert!(distance < 0.03, "{name} {}: {distance}", kind.kept);
        }
    }
}

/// Keys that a file has the other way round, with blocks along what queries are multiplied by, are computed on in these blocks
/// for a token; the values that are in one tensor with them for the reference implementation, for a prompt too.
#[test]
fn latent_keys_and_values_keep_their_blocks() {
    let about = json(&repository("tests/golden/deepseek_v2_lite/gguf.json"));
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("model.gguf");
    let sizes = [(10, 32), (16, 38), (20, 64), (26, 70), (64, 152)];
    fs::write(&path, enlarged(&about, &sizes, &Q8_0, &["attn_k_b.weight", "attn_v_b.weight"])).unwrap();
    let model = load(&path, Precision::Stored);
    let graph = &model.program().plan(Batch::One).graph;
    let kept = |weight: &str| -> BTreeSet<String> {
        let packed = model.program().weights().iter();
        let is_it = |tensor| graph.tensor(tensor).name.split('.').any(|part| part == weight);
        packed.filter(|packed| is_it(packed.tensors[0])).map(|packed| packed.storage.to_string()).collect()
    };
    assert!(kept("key_out").contains(Q8_0.kept), "{:?}", kept("key_out"));
    assert_eq!(kept("value_out"), [Q8_0.kept.to_owned()].into());
    let distance = distance(&model, &load(&path, Precision::F32));
    assert!(distance < 0.03, "{distance}");
}
