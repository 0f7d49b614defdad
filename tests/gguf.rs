//! Golden models as llama.cpp's conversion lays them out in GGUF files: the same logits. `scripts/gguf-layouts` noted what each
//! file has, and where in the model each of its numbers is from.

mod common;

use std::fs;
use std::path::Path;

use common::{json, repository};
use einfuse::runtime::Precision;
use einfuse::{Checkpoint, Settings, Wanted};
use safetensors::SafeTensors;
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

/// The GGUF file of a golden model.
fn file(folder: &Path, about: &Value) -> Vec<u8> {
    let model = fs::read(folder.join("model.safetensors")).unwrap();
    let model = SafeTensors::deserialize(&model).unwrap();
    let sources = about["sources"].as_array().unwrap().iter().map(|name| model.tensor(name.as_str().unwrap()).unwrap());
    let sources: Vec<_> = sources.collect();
    let (entries, tensors) = (about["metadata"].as_object().unwrap(), about["tensors"].as_object().unwrap());
    let (count, keys) = (tensors.len() as u64, entries.len() as u64);
    let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &count.to_le_bytes(), &keys.to_le_bytes()].concat();
    for (key, value) in entries {
        file.extend([text(key), metadata(value)].concat());
    }
    let mut data: Vec<u8> = Vec::new();
    for (name, tensor) in tensors {
        data.resize(data.len().next_multiple_of(32), 0);
        let dimensions = tensor["dimensions"].as_array().unwrap();
        file.extend(text(name));
        file.extend((dimensions.len() as u32).to_le_bytes());
        file.extend(dimensions.iter().flat_map(|size| size.as_u64().unwrap().to_le_bytes()));
        file.extend(0u32.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        for run in tensor["runs"].as_array().unwrap() {
            let numbers = sources[whole(&run[0])].data().as_chunks::<4>().0;
            let [first, length, count] = [1, 2, 3].map(|at| whole(&run[at]));
            let stride = run[4].as_i64().unwrap() as isize;
            for first in (0..count).map(|nth| first.checked_add_signed(nth as isize * stride).unwrap()) {
                let more = tensor["more"].as_u64().unwrap() as f32;
                let numbers = numbers[first..first + length].iter().map(|bytes| f32::from_le_bytes(*bytes) + more);
                data.extend(numbers.flat_map(f32::to_le_bytes));
            }
        }
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
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
            assert_eq!(model.leftovers(), [""; 0], "{name}");
            model.session().trace(&ids).unwrap().logits
        };
        let logits = compute(&path);
        // What files do not say is another number in the golden model.
        let fixed = about["fixed"].as_object().filter(|fixed| !fixed.is_empty());
        let expected = fixed.map_or(expected, |fixed| {
            let mut config = json(&folder.join("config.json"));
            config.as_object_mut().unwrap().extend(fixed.clone());
            fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
            fs::copy(folder.join("model.safetensors"), scratch.path().join("model.safetensors")).unwrap();
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
    assert!(models >= 15, "{models}");
}
