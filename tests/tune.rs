//! `einfuse tune`, and what the other commands make of what it has found.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::einfuse;
use einfuse::codegen::Tiling;
use einfuse::runtime::{Tuned, Winner};
use serde_json::Value;
use tempfile::TempDir;

/// What the binary does with a cache folder of its own.
fn run(cache: &TempDir, arguments: &[&str]) -> Output {
    einfuse(arguments).env("XDG_CACHE_HOME", cache.path()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn file(cache: &TempDir) -> PathBuf {
    cache.path().join("einfuse/schedules.json")
}

/// The kernels that can be tuned, as `tune` prints them.
fn kernels(cache: &TempDir) -> Vec<Value> {
    let output = run(cache, &["tune", "-t", "1", "-r", "1", "-p", "40", "-d", "70", "--dry-run", "--json"]);
    let object: Value = serde_json::from_str(&succeeds(&output)).unwrap();
    assert_eq!(object["kept"], Value::Null);
    object["kernels"].as_array().unwrap().clone()
}

#[test]
fn tries_each_kernel_that_has_a_choice() {
    let cache = tempfile::tempdir().unwrap();
    let kernels = kernels(&cache);
    for batch in ["many", "one", "few"] {
        assert!(kernels.iter().any(|kernel| kernel["tokens"] == batch), "no kernel for {batch}");
    }
    for kernel in &kernels {
        assert!(kernel["time"].as_f64().unwrap() > 0.0 && kernel["noise"].as_f64().unwrap() > 0.0, "{kernel}");
        assert_ne!(kernel["best"], kernel["default"], "{kernel}");
    }
    assert!(!file(&cache).exists(), "a dry run keeps nothing");
}

#[test]
fn what_was_found_is_used_and_leaves_the_answer() {
    let cache = tempfile::tempdir().unwrap();
    let kernels = kernels(&cache);
    let stream = kernels.iter().find(|kernel| kernel["tokens"] == "one").unwrap();
    let default: Tiling = serde_json::from_value(stream["default"].clone()).unwrap();
    let kernel = stream["kernel"].as_str().unwrap().to_owned();
    let winner = Winner { kernel, tiling: Tiling { parts: 3, ..default }, gain: 0.5 };
    Tuned::at(file(&cache)).keep(1, &[], std::slice::from_ref(&winner)).unwrap();

    let name = stream["name"].as_str().unwrap();
    let told = succeeds(&run(&cache, &["explain", "--kernel", name, "-t", "1"]));
    assert!(told.contains("tuned: parts 3 in place of parts"), "{told}");
    for others in [&["-t", "2"][..], &["-t", "1", "--untuned"]] {
        let told = succeeds(&run(&cache, &[&["explain", "--kernel", name], others].concat()));
        assert!(!told.contains("tuned"), "{told}");
    }

    let continued = |more: &[&str]| {
        let base = ["run", "-t", "1", "-n", "12", "--temperature", "0", "ROMEO:"];
        let output = run(&cache, &[&base[..], more].concat());
        assert!(!text(&output.stderr).contains("warning"));
        succeeds(&output)
    };
    assert_eq!(continued(&[]), continued(&["--untuned"]));
}

#[test]
fn keeps_a_file_that_all_commands_read() {
    let cache = tempfile::tempdir().unwrap();
    let told = succeeds(&run(&cache, &["tune", "-t", "1", "-r", "1", "-p", "40", "-d", "70"]));
    assert!(told.contains("kept in") && told.contains("| kernel"), "{told}");
    let found = Tuned::at(file(&cache)).schedules(1).unwrap();
    assert!(found.is_empty(), "nothing wins in one round");
    let left: Vec<_> = fs::read_dir(cache.path().join("einfuse")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_file_that_is_none_is_a_warning_or_an_error() {
    let cache = tempfile::tempdir().unwrap();
    fs::create_dir(cache.path().join("einfuse")).unwrap();
    for broken in ["", "{", "[1]", "{\"format\": \"einfuse schedules 0\", \"found\": []}", "\u{0}\u{1}"] {
        fs::write(file(&cache), broken).unwrap();
        let output = run(&cache, &["run", "-t", "1", "-n", "2", "ROMEO:"]);
        succeeds(&output);
        let told = text(&output.stderr);
        let warnings: Vec<&str> = told.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert!(matches!(warnings[..], [one] if one.contains("schedules.json")), "{told}");
        let output = run(&cache, &["run", "-t", "1", "-n", "2", "--untuned", "ROMEO:"]);
        assert!(!text(&output.stderr).contains("warning"), "--untuned does not look");

        let output = run(&cache, &["tune", "-t", "1", "-r", "1"]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.starts_with("error: ") && told.contains("schedules.json"), "{told}");
        assert!(told.contains("remove the file"), "{told}");
        assert_eq!(fs::read_to_string(file(&cache)).unwrap(), broken, "it is not written over");
    }
}

#[test]
fn measurements_are_added_to_a_table() {
    let cache = tempfile::tempdir().unwrap();
    let table = cache.path().join("measured.csv");
    let measure = |table: &Path| {
        let table = table.to_str().unwrap();
        run(&cache, &["tune", "-t", "1", "-r", "1", "-p", "40", "-d", "70", "--dry-run", "--data", table])
    };
    succeeds(&measure(&table));
    let once = fs::read_to_string(&table).unwrap();
    let columns = once.lines().next().unwrap().split(',').count();
    assert!(once.lines().count() > 10 && once.lines().all(|line| line.split(',').count() == columns), "{once}");
    succeeds(&measure(&table));
    let twice = fs::read_to_string(&table).unwrap();
    assert_eq!((twice.starts_with(&once), twice.lines().count()), (true, 2 * once.lines().count() - 1));

    fs::write(&table, "my own\n").unwrap();
    let output = measure(&table);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is not a table of measurements"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(&table).unwrap(), "my own\n");
}
