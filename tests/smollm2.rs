//! SmolLM2-135M against the reference implementation. Its weights are not in the repository: `scripts/fetch-smollm2` puts
//! them into the cache folder. Where they are not, the tests are listed as ignored, and a line says why.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use common::{json, models, repository};
use einfuse::{Checkpoint, Conversation, Generate, Model, Precision, Settings, Stop, Template, Wanted};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const NAME: &str = "smollm2-135m";

fn golden() -> Value {
    json(&repository("tests/golden/smollm2-135m/golden.json"))
}

/// The same model as a GGUF file, in 4 and 8 bits, of which the folder has the exact values.
fn gguf() -> Option<PathBuf> {
    models(NAME).map(|folder| folder.with_extension("gguf")).filter(|file| file.is_file())
}

fn load(precision: Precision, rows: Wanted) -> Model {
    load_from(models(NAME), precision, rows)
}

fn load_from(path: Option<PathBuf>, precision: Precision, rows: Wanted) -> Model {
    let path = path.expect("run only where it is");
    einfuse::load(path, Settings { precision, rows, ..Settings::default() }).unwrap()
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

/// A turn of a chat, by the model's own template.
fn chat(path: Option<PathBuf>) -> Result<(), Failed> {
    let golden = &golden()["prompts"]["chat"];
    let question = golden["messages"][0]["content"].as_str().unwrap();
    let template = Template::of(&Checkpoint::open(path.as_ref().expect("run only where it is"))?)?;
    let model = load_from(path, Precision::F32, Wanted::Last);
    let mut conversation = Conversation::new(&model, template, Vec::new())?;
    let mut text = String::new();
    for token in conversation.say(question, &Generate::default())? {
        text += &token?.text;
    }
    let (session, answer) = (conversation.session(), conversation.answer());
    let prompt = serde_json::to_value(&session.tokens()[..answer])?;
    check(prompt == golden["input_ids"], format!("{prompt} is not {}", golden["input_ids"]))?;
    let expected = golden["greedy_text"].as_str().unwrap().split("<|im_end|>").next();
    check(Some(text.as_str()) == expected, format!("{text:?} is not {expected:?}"))?;
    let stop = session.summary().stop.clone();
    check(stop == Some(Stop::EndToken(2)), format!("stopped at {stop:?}"))?;
    // The answer is kept, but for its last token, which was not computed yet.
    conversation.say("Why?", &Generate { limit: Some(1), ..Generate::default() })?.for_each(drop);
    let (new, all) = (conversation.session().summary().prompt_tokens, conversation.answer());
    check(new < 16 && all > answer + 30, format!("{new} of {all} tokens were new"))
}

fn perplexity(path: Option<PathBuf>, precision: Precision, tolerance: f64) -> Result<(), Failed> {
    let golden = &golden()["perplexity"];
    let ids: Vec<u32> = serde_json::from_value(golden["input_ids"].clone())?;
    let measured = load_from(path, precision, Wanted::All).session().perplexity(&ids)?;
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
        Trial::test("chat", || chat(models(NAME))),
        Trial::test("perplexity_f32", || perplexity(models(NAME), Precision::F32, 1e-3)),
        Trial::test("perplexity_bf16", || perplexity(models(NAME), Precision::Bf16, 1e-2)),
    ];
    let of_gguf = [
        Trial::test("gguf_chat", || chat(gguf())),
        // The exact values of its blocks, and as they are kept where nobody says how.
        Trial::test("gguf_perplexity_f32", || perplexity(gguf(), Precision::F32, 1e-3)),
        Trial::test("gguf_perplexity_stored", || perplexity(gguf(), Precision::Stored, 5e-3)),
    ];
    let tests = tests.into_iter().map(|test| test.with_ignored_flag(missing));
    let of_gguf = of_gguf.into_iter().map(|test| test.with_ignored_flag(gguf().is_none()));
    libtest_mimic::run(&arguments, tests.chain(of_gguf).collect()).exit_code()
}
