//! The interpreter against the reference implementation: a Llama written out in the text form, with the weights, hidden
//! states and logits of a golden model.

use std::path::Path;

use einfuse_graph::{Interpreter, Kind, Output, Tensor, parse};
use safetensors::SafeTensors;

fn floats(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, String> {
    let tensor = file.tensor(name).map_err(|e| format!("`{name}`: {e}"))?;
    Ok(tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

fn ids(file: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
}

/// How far apart, relative to the largest magnitude.
fn distance(ours: &[f64], golden: &[f32]) -> f64 {
    assert_eq!(ours.len(), golden.len());
    let largest = golden.iter().fold(0f64, |m, v| m.max(v.abs() as f64));
    let error = ours.iter().zip(golden).fold(0f64, |m, (a, b)| m.max((a - *b as f64).abs()));
    error / largest
}

#[test]
fn a_llama_agrees_with_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama3");
    let (model, golden) = (folder.join("model.safetensors"), folder.join("golden.safetensors"));
    let (model, golden) = (std::fs::read(model).unwrap(), std::fs::read(golden).unwrap());
    let (model, golden) = (SafeTensors::deserialize(&model).unwrap(), SafeTensors::deserialize(&golden).unwrap());
    let weights = |tensor: &Tensor, layer: Option<usize>| {
        let Kind::Weight(places) = &tensor.kind else { return Err("no weight".to_owned()) };
        let layer = layer.map_or(String::new(), |l| l.to_string());
        floats(&model, &places[0].name.replace("{l}", &layer))
    };
    let graph = parse(include_str!("llama3.graph")).unwrap();

    let mut steps: Vec<(&str, Vec<usize>)> = vec![("p0", vec![8]), ("p0", vec![3, 1, 4]), ("p0", vec![1; 8])];
    steps.push(("p1", vec![74]));
    for (prompt, chunks) in steps {
        let tokens = ids(&golden, &format!("{prompt}.input_ids"));
        let mut interpreter = Interpreter::new(&graph, &weights).unwrap();
        let mut outputs: Vec<Output> = Vec::new();
        for chunk in chunks {
            let past = interpreter.past();
            outputs.push(interpreter.step(&[("tokens", &tokens[past..past + chunk])]).unwrap());
        }
        assert_eq!(interpreter.past(), tokens.len());
        let logits: Vec<f64> = outputs.iter().flat_map(|o| &o.output).copied().collect();
        assert!(distance(&logits, &floats(&golden, &format!("{prompt}.logits")).unwrap()) < 1e-5);
        let hidden: Vec<f64> = (0..4).flat_map(|l| outputs.iter().flat_map(move |o| &o.hidden[l])).copied().collect();
        assert!(distance(&hidden, &floats(&golden, &format!("{prompt}.hidden")).unwrap()) < 1e-5);
    }
}
