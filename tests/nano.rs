//! The embedded model against what the reference implementation computed with it.

mod common;

use common::{json, repository};
use einfuse::{Generate, Precision, Settings};

#[test]
fn continues_as_the_reference_does() {
    let golden = json(&repository("tests/golden/nano/golden.json"));
    for precision in [Precision::Stored, Precision::F32] {
        let model = einfuse::load_embedded(Settings { precision, ..Settings::default() }).unwrap();
        for prompt in golden["prompts"].as_array().unwrap() {
            let text = prompt["text"].as_str().unwrap();
            let greedy = prompt["greedy_ids"].as_array().unwrap();
            let options = Generate { limit: Some(greedy.len()), ignore_end: true, ..Generate::default() };
            let mut session = model.session();
            let tokens = session.generate(text, &options).unwrap();
            let tokens: Vec<u32> = tokens.map(|token| token.unwrap().id).collect();
            let given = session.tokens().len() - tokens.len();
            assert_eq!(serde_json::to_value(&session.tokens()[..given]).unwrap(), prompt["input_ids"], "{text:?}");
            assert_eq!(&serde_json::to_value(tokens).unwrap(), &prompt["greedy_ids"], "{text:?} {precision:?}");
        }
    }
}

#[test]
fn ranks_the_next_token_as_the_reference_does() {
    let golden = json(&repository("tests/golden/nano/golden.json"));
    let model = einfuse::load_embedded(Settings { precision: Precision::F32, ..Settings::default() }).unwrap();
    for prompt in golden["prompts"].as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(prompt["input_ids"].clone()).unwrap();
        let logits = model.session().feed(&ids).unwrap();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let expected: Vec<(usize, f32)> = serde_json::from_value(prompt["last_top10"].clone()).unwrap();
        for (rank, (id, logit)) in expected.into_iter().enumerate() {
            assert!(
                (logits[id] - logit).abs() < 1e-3,
                "{}: token {id} has {}, not {logit}",
                prompt["text"],
                logits[id]
            );
            assert_eq!(order[rank], id, "{}: rank {rank}", prompt["text"]);
        }
    }
}
