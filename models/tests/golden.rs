//! What the declarations mean, by the interpreter, against what the reference implementation computes.

use std::path::Path;

use einfuse_graph::{Interpreter, Kind, Output, Tensor};
use einfuse_models::graph_from_config;
use safetensors::{Dtype, SafeTensors};

fn floats(file: &SafeTensors<'_>, name: &str) -> Option<Vec<f32>> {
    let tensor = file.tensor(name).ok()?;
    let bf16 = |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    let f16 = |bytes: &[u8; 2]| {
        let bits = u16::from_le_bytes(*bytes);
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023) / 1024.0);
        let size = if exponent == 0 { fraction * 2f32.powi(-14) } else { (1.0 + fraction) * 2f32.powi(exponent - 15) };
        if bits >> 15 == 1 { -size } else { size }
    };
    Some(match tensor.dtype() {
        Dtype::F16 => tensor.data().as_chunks().0.iter().map(f16).collect(),
        Dtype::BF16 => tensor.data().as_chunks().0.iter().map(bf16).collect(),
        _ => tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
    })
}

/// Asserts that both agree within 1e-5 of the largest magnitude.
fn assert_close(ours: &[f64], golden: &[f32], what: &str) {
    assert_eq!(ours.len(), golden.len(), "{what}");
    let largest = golden.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
    let error = ours.iter().zip(golden).fold(0f64, |m, (a, b)| m.max((a - f64::from(*b)).abs()));
    assert!(error <= 1e-5 * largest, "{what}: {error} of {largest}");
}

#[test]
fn declarations_agree_with_the_reference() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let folders = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path());
    for folder in folders.filter(|folder| folder.join("model.safetensors").exists()) {
        let name = folder.file_name().unwrap().to_string_lossy();
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
        let (model, golden) = (read("model.safetensors"), read("golden.safetensors"));
        let (model, golden) = (SafeTensors::deserialize(&model).unwrap(), SafeTensors::deserialize(&golden).unwrap());
        let config: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
        // What codes mean is not what declarations say.
        if config.get("quantization_config").is_some() {
            continue;
        }
        // The second prompt is longer than the window; where there is none, the first says as much.
        let windows = config.get("sliding_window").is_some_and(|window| !window.is_null());
        for prompt in if windows { &["p0", "p1"][..] } else { &["p0"] } {
            let ids = golden.tensor(&format!("{prompt}.input_ids")).unwrap();
            let ids: Vec<i64> = ids.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect();
            let graph = graph_from_config(&config, Some(ids.len())).unwrap();
            let weights = |tensor: &Tensor, layer: Option<usize>| {
                let Kind::Weight(places) = &tensor.kind else { return Err("not a weight".to_owned()) };
                let coordinates = tensor.axes.first().and_then(|&axis| graph.size(axis)).unwrap_or(1);
                let found = places.iter().find_map(|place| {
                    let parts = place.names(layer, coordinates).into_iter().map(|name| {
                        let all = floats(&model, &name)?;
                        let Some(rows) = &place.rows else { return Some(all) };
                        let stored = model.tensor(&name).ok()?.shape()[0];
                        let (row, stretches) = (all.len() / stored, if place.each { coordinates } else { 1 });
                        let parts = all.chunks(all.len() / stretches);
                        Some(parts.flat_map(|part| &part[rows.start * row..rows.end * row]).copied().collect())
                    });
                    Some(parts.collect::<Option<Vec<_>>>()?.concat())
                });
                found.ok_or_else(|| format!("none of {places:?}"))
            };
            let mut interpreter = Interpreter::new(&graph, &weights).unwrap();
            let (first, second) = ids.split_at(ids.len() / 2);
            let outputs: [Output; 2] = [first, second].map(|ids| interpreter.step(&[("tokens", ids)]).unwrap());
            let logits: Vec<f64> = outputs.iter().flat_map(|o| &o.output).copied().collect();
            let stored = |what: &str| floats(&golden, &format!("{prompt}.{what}")).unwrap();
            assert_close(&logits, &stored("logits"), &format!("{name}: logits of {prompt}"));
            let layers = 0..outputs[0].hidden.len();
            let hidden: Vec<f64> =
                layers.flat_map(|l| outputs.iter().flat_map(move |o| &o.hidden[l])).copied().collect();
            assert_close(&hidden, &stored("hidden"), &format!("{name}: hidden states of {prompt}"));
        }
    }
}
