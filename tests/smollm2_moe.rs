//! SmolLM2-135M, upcycled to a mixture of four experts that differ, against the reference implementation.
//! `scripts/upcycle-smollm2` puts its weights into the cache folder. Where they are not, the tests are listed as ignored, and a
//! line says why.

mod common;

use std::process::ExitCode;

use common::{json, models, repository};
use einfuse::{Generate, Model, Precision, Settings, Wanted};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const NAME: &str = "smollm2-moe4";

fn golden() -> Value {
    json(&repository("tests/golden").join(NAME).join("golden.json"))
}

fn load(rows: Wanted) -> Model {
    let folder = models(NAME).expect("run only where the folder is");
    einfuse::load(folder, Settings { precision: Precision::F32, rows, ..Settings::default() }).unwrap()
}

fn check(holds: bool, message: String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(message.into()) }
}

/// The likeliest successors, and the greedy text.
fn prompts() -> Result<(), Failed> {
    let model = load(Wanted::Last);
    for (name, prompt) in golden()["prompts"].as_object().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(prompt["input_ids"].clone())?;
        let likeliest: Vec<(usize, f32)> = serde_json::from_value(prompt["last_top20"].clone())?;
        let mut session = model.session();
        let logits = session.feed(&ids)?;
        for (token, expected) in likeliest {
            let found = logits[token];
            check((found - expected).abs() < 2e-3, format!("prompt {name}, token {token}: {found}, not {expected}"))?;
        }
        let expected: Vec<u32> = serde_json::from_value(prompt["greedy_ids"].clone())?;
        let options = Generate { limit: Some(expected.len()), ignore_end: true, ..Generate::default() };
        session.clear();
        let tokens = session.generate(&ids, &options)?.map(|token| token.map(|token| token.id));
        let tokens = tokens.collect::<Result<Vec<u32>, _>>()?;
        check(tokens == expected, format!("prompt {name}: {tokens:?} is not {expected:?}"))?;
    }
    Ok(())
}

/// Of the text by which the dense model is measured. A choice that is close may be another in another order of summation.
fn perplexity() -> Result<(), Failed> {
    let text = &json(&repository("tests/golden/smollm2-135m/golden.json"))["perplexity"];
    let ids: Vec<u32> = serde_json::from_value(text["input_ids"].clone())?;
    let measured = load(Wanted::All).session().perplexity(&ids)?;
    let (value, expected) = (measured.value(), golden()["perplexity"]["perplexity"].as_f64().unwrap());
    check((value / expected - 1.0).abs() < 2e-3, format!("perplexity {value}, not {expected}"))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = models(NAME).is_none();
    if missing {
        eprintln!("smollm2_moe: not run, for want of the weights: scripts/upcycle-smollm2 makes them");
    }
    let tests = [Trial::test("prompts_f32", prompts), Trial::test("perplexity_f32", perplexity)];
    let tests = tests.into_iter().map(|test| test.with_ignored_flag(missing)).collect();
    libtest_mimic::run(&arguments, tests).exit_code()
}
