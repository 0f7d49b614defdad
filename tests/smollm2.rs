//! SmolLM2-135M against the reference implementation. Its weights are not in the repository: `scripts/fetch-smollm2` puts
//! them into the cache folder. Where they are not, the tests are listed as ignored, and a line says why.

mod common;

use std::process::ExitCode;

use common::{json, models, repository};
use einfuse::{Generate, Model, Precision, Settings, Wanted};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const NAME: &str = "smollm2-135m";

fn golden() -> Value {
    json(&repository("tests/golden/smollm2-135m/golden.json"))
}

fn load(precision: Precision, rows: Wanted) -> Model {
    let folder = models(NAME).expect("run only where the folder is");
    einfuse::load(folder, Settings { precision, rows, ..Settings::default() }).unwrap()
}

fn check(holds: bool, message: String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(message.into()) }
}

fn greedy() -> Result<(), Failed> {
    let model = load(Precision::F32, Wanted::Last);
    for (name, prompt) in golden()["prompts"].as_object().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(prompt["input_ids"].clone())?;
        let expected: Vec<u32> = serde_json::from_value(prompt["greedy_ids"].clone())?;
        let options = Generate { limit: Some(expected.len()), ignore_end: true, ..Generate::default() };
        let mut session = model.session();
        let tokens = session.generate(&ids, &options)?.map(|token| token.map(|token| token.id));
        let tokens = tokens.collect::<Result<Vec<u32>, _>>()?;
        check(tokens == expected, format!("prompt {name}: {tokens:?} is not {expected:?}"))?;
        let options = Generate { limit: Some(expected.len()), ..Generate::default() };
        session.clear();
        let count = session.generate(&ids, &options)?.count();
        let end = prompt["greedy_stops_at"].as_u64().map(|at| at as usize + 1);
        check(Some(count) == end, format!("prompt {name}: stops after {count} tokens, not {end:?}"))?;
    }
    Ok(())
}

fn tokenizer() -> Result<(), Failed> {
    let model = load(Precision::Bf16, Wanted::Last);
    let golden = golden();
    for (text, ids) in [
        (&golden["prompts"]["short"]["text"], &golden["prompts"]["short"]["input_ids"]),
        (&golden["prompts"]["chat"]["rendered"], &golden["prompts"]["chat"]["input_ids"]),
        (&golden["perplexity"]["text"], &golden["perplexity"]["input_ids"]),
    ] {
        let text = text.as_str().unwrap();
        let tokens = serde_json::to_value(model.tokenizer()?.encode(text, true)?)?;
        check(&tokens == ids, format!("{text:?}: {tokens} is not {ids}"))?;
    }
    Ok(())
}

fn perplexity(precision: Precision, tolerance: f64) -> Result<(), Failed> {
    let golden = &golden()["perplexity"];
    let ids: Vec<u32> = serde_json::from_value(golden["input_ids"].clone())?;
    let measured = load(precision, Wanted::All).session().perplexity(&ids)?;
    let (value, expected) = (measured.value(), golden["perplexity"].as_f64().unwrap());
    let message = format!("perplexity {value} of {} tokens, not {expected}", measured.scored);
    check((value / expected - 1.0).abs() < tolerance && measured.scored + 1 == ids.len(), message)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = models(NAME).is_none();
    if missing {
        eprintln!("smollm2: not run, for want of the weights: scripts/fetch-smollm2 gets them");
    }
    let tests = [
        Trial::test("tokenizer", tokenizer),
        Trial::test("greedy_f32", greedy),
        Trial::test("perplexity_f32", || perplexity(Precision::F32, 1e-3)),
        Trial::test("perplexity_bf16", || perplexity(Precision::Bf16, 1e-2)),
    ];
    let tests = tests.into_iter().map(|test| test.with_ignored_flag(missing)).collect();
    libtest_mimic::run(&arguments, tests).exit_code()
}
