//! The command line: what it prints when all is well, and what it says to whatever is wrong. Every failure is one line
//! that names the thing (causes may follow), with exit code 1, or 2 for a wrong command line; nothing panics.

mod broken;
#[path = "../common/mod.rs"]
mod common;
mod reports;
mod text;
mod wrong;

use std::fs;
use std::io::{Read, Write};
use std::process::{Output, Stdio};

use common::{Folder, INDEX, SHARD, einfuse, json, repository, run};
use serde_json::{Value, json};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("standard output is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("standard error is UTF-8")
}

/// What must hold of a failure: the exit code, one line that begins with `error:` and has all of `names`, causes only
/// below it, and no output.
fn check(output: &Output, code: i32, names: &[&str]) -> Result<(), String> {
    let text = stderr(output);
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let message = match () {
        _ if output.status.code() != Some(code) => format!("exit code {:?}, not {code}", output.status.code()),
        _ if text.contains("panicked") => "a panic".to_owned(),
        _ if !first.starts_with("error: ") => "no `error:`".to_owned(),
        _ if !lines.all(|l| l.starts_with("  because: ")) => "more than one line".to_owned(),
        _ => match names.iter().find(|name| !text.contains(**name)) {
            Some(name) => format!("`{name}` is not named"),
            None => return Ok(()),
        },
    };
    Err(format!("{message}:\n{text}"))
}

/// What the binary does with these arguments and this text on standard input.
fn run_with(arguments: &[&str], input: &str) -> Output {
    let mut command = einfuse(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The rows that `einfuse bench` prints as JSON, with few repetitions.
fn bench(arguments: &[&str]) -> Vec<Value> {
    let output = run(&[&["bench", "-t", "1", "-r", "1", "--json"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// Puts NaN in place of all weights.
fn without_numbers(folder: &Folder) {
    let (header, data) = common::split(&fs::read(folder.file("model.safetensors")).unwrap());
    folder.write("model.safetensors", common::safetensors(&header.to_string(), &vec![0xff; data.len()]));
}
