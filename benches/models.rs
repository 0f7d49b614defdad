//! Tokens per second of the embedded model, and of SmolLM2-135M where `scripts/fetch-smollm2` has put it: first the answer is
//! checked, then `einfuse bench` measures it beside the machine's peaks. `cargo bench --bench models`.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::{env, fs};

use einfuse::{Generate, Settings};
use serde_json::Value;

/// A model's name in `tests/golden/`, its folder (`None`: embedded), and one of its prompts in golden.json.
fn bench(name: &str, folder: Option<PathBuf>, prompt: &str) -> Result<(), Box<dyn Error>> {
    let golden = format!("{}/tests/golden/{name}/golden.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&fs::read_to_string(golden)?)?;
    let prompt = golden.pointer(prompt).ok_or("no such prompt")?;
    let ids: Vec<u32> = serde_json::from_value(prompt["input_ids"].clone())?;
    let expected: Vec<u32> = serde_json::from_value(prompt["greedy_ids"].clone())?;
    let model = match &folder {
        Some(folder) => einfuse::load(folder, Settings::default())?,
        None => einfuse::load_embedded(Settings::default())?,
    };
    let options = Generate { limit: Some(expected.len()), ignore_end: true, ..Generate::default() };
    let mut session = model.session();
    let tokens = session.generate(&ids, &options)?.map(|token| token.map(|token| token.id));
    if tokens.collect::<Result<Vec<u32>, _>>()? != expected {
        return Err(format!("{name}: another continuation than the reference's").into());
    }
    drop(session);
    drop(model);

    let mut command = Command::new(env!("CARGO_BIN_EXE_einfuse"));
    command.args(["bench", "--threads", "1,2"]);
    if let Some(folder) = folder {
        command.arg("--model").arg(folder);
    }
    if command.status()?.success() { Ok(()) } else { Err(format!("{name}: einfuse bench failed").into()) }
}

fn run() -> Result<(), Box<dyn Error>> {
    bench("nano", None, "/prompts/0")?;
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let models = variable("EINFUSE_MODELS").or_else(|| Some(cache?.join("einfuse")));
    match models.map(|models| models.join("smollm2-135m")).filter(|folder| folder.is_dir()) {
        Some(folder) => bench("smollm2-135m", Some(folder), "/prompts/short"),
        None => {
            println!("smollm2-135m: not measured, for want of the weights: scripts/fetch-smollm2 gets them");
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
