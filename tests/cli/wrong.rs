//! Wrong arguments, and numbers at the ends of their ranges.

use super::*;

/// Arguments (where `{out}` is a folder that exists), the exit code, and what the message names.
type Wrong = (&'static [&'static str], i32, &'static [&'static str]);

const WRONG: &[Wrong] = &[
    // the command line itself
    (&[], 2, &["subcommand"]),
    (&["sing"], 2, &["sing"]),
    (&["run"], 2, &["PROMPT"]),
    (&["run", "a", "--ids", "1"], 2, &["--ids"]),
    (&["run", "--ids", "1,x"], 2, &["--ids", "x"]),
    (&["run", "a", "-f", "Cargo.toml"], 2, &["--file"]),
    (&["run", "--chat", "--ids", "1"], 2, &["--chat", "--ids"]),
    (&["run", "--system", "Be brief.", "x"], 2, &["--chat"]),
    (&["run", "--chat", "x"], 1, &["embedded nano", "chat template", "chat_template.jinja"]),
    (&["run", "--ids", "99999999999"], 2, &["--ids", "99999999999"]),
    (&["run", "-n", "few", "a"], 2, &["--tokens", "few"]),
    (&["run", "-t", "0", "a"], 2, &["--threads"]),
    (&["run", "-t", "1025", "a"], 2, &["--threads", "1024"]),
    (&["run", "--seed", "-1", "a"], 2, &["--seed", "-1"]),
    (&["run", "--seed", "18446744073709551616", "a"], 2, &["--seed", "whole number", "too large"]),
    (&["run", "--shout", "a"], 2, &["--shout", "; tip: "]),
    (&["run", "--chunk", "0", "a"], 2, &["--chunk"]),
    (&["run", "--context", "16777217", "a"], 2, &["--context", "from 1 to 16777216"]),
    (&["run", "-c", "257", "a"], 2, &["--context 257", "nano", "256 positions"]),
    (&["run", "--precision", "f8", "a"], 2, &["--precision", "f8", "stored, f32, bf16"]),
    (&["run", "--precision", "f32", "--quant", "q8", "a"], 2, &["--precision", "--quant"]),
    (&["run", "--quant", "q5", "a"], 2, &["--quant", "q5", "q8, q4"]),
    (&["run", "--cache", "q4", "a"], 2, &["--cache", "q4", "f32, bf16, q8"]),
    (&["run", "--without", "magic", "a"], 2, &["--without", "magic", "online-softmax"]),
    (&["run", "--temperature", "-1", "a"], 2, &["--temperature", "-1"]),
    (&["run", "--temperature", "nan", "a"], 2, &["--temperature", "nan"]),
    (&["run", "--top-p", "1.5", "a"], 2, &["--top-p", "1.5"]),
    (&["run", "--min-p", "-0.1", "a"], 2, &["--min-p", "-0.1"]),
    (&["run", "--repeat-penalty", "0", "a"], 2, &["--repeat-penalty", "0"]),
    (&["run", "--stop", "", "a"], 2, &["--stop"]),
    (&["explain", "--dump", "soul"], 2, &["--dump", "soul", "clif"]),
    (&["explain", "--tokens", "0"], 2, &["--tokens"]),
    (&["explain", "--tokens", "257"], 2, &["--tokens 257", "256"]),
    (&["explain", "--past", "256"], 2, &["--past 256", "nano", "256 positions"]),
    (&["explain", "--past", "18446744073709551615", "--json"], 2, &["--past", "256"]),
    (&["explain", "--past", "8", "--context", "8"], 2, &["--past 8", "8 positions"]),
    (&["explain", "--dump", "graph", "--context", "300"], 2, &["--context 300", "256 positions"]),
    (&["explain", "--tokens", "9", "--chunk", "8"], 2, &["--tokens 9", "--chunk 8"]),
    (&["explain", "--dump", "plan", "--json"], 2, &["--dump", "--json"]),
    (&["explain", "--dump", "graph", "--kernel", "x"], 2, &["--kernel", "graph"]),
    (&["bench", "-t", "1,none"], 2, &["--threads", "none"]),
    (&["bench", "-r", "0"], 2, &["--repeat"]),
    (&["bench", "-o", "md", "--json"], 2, &["--output", "--json"]),
    (&["bench", "-p", "0", "-n", "0"], 2, &["-p", "-n"]),
    (&["bench", "-d", "0,deep"], 2, &["--depth", "deep"]),
    (&["bench", "-d", "256"], 2, &["-d 256", "nano", "256 positions"]),
    (&["bench", "-d", "0,9999999999999", "-p", "8"], 2, &["-p 8 after -d 9999999999999", "at most 16777216 positions"]),
    (&["bench", "-d", "16777216"], 2, &["-d 16777216", "at most 16777216 positions"]),
    (&["bench", "-p", "100000000000", "-n", "0"], 2, &["-p 100000000000", "at most 16777216 positions"]),
    (
        &["bench", "-b", "18446744073709551615", "--chunk", "18446744073709551615"],
        2,
        &["-b 18446744073709551615", "at most 16777216 positions"],
    ),
    (&["bench", "-p", "9999", "-n", "0", "-r", "1"], 2, &["-p 9999", "nano", "256 positions"]),
    (&["bench", "-n", "1", "-d", "300"], 2, &["-n 1 after -d 300", "256 positions"]),
    (&["bench", "-n", "1", "-d", "0,16", "--context", "16"], 2, &["-n 1 after -d 16", "16 positions"]),
    (&["bench", "--context", "300"], 2, &["--context 300", "nano", "256 positions"]),
    (&["bench", "-b", "2,0"], 2, &["--rows"]),
    (&["bench", "-b", "2", "-n", "0"], 2, &["-b", "-n"]),
    (&["bench", "-b", "9", "--chunk", "8"], 2, &["-b 9", "--chunk 8"]),
    (&["tune", "--dry-run", "-p", "257"], 2, &["-p 257", "nano", "256 positions"]),
    (&["tune", "--dry-run", "-p", "17", "--context", "16"], 2, &["-p 17", "16 positions"]),
    (&["tune", "--dry-run", "-p", "9", "--chunk", "8"], 2, &["-p 9", "--chunk 8"]),
    (&["tune", "--dry-run", "-d", "225"], 2, &["-d 225 with 32 tokens", "256 positions"]),
    (&["logits", "a"], 2, &["--output"]),
    (&["logits", "a", "-o", "-"], 2, &["-o -", "standard output"]),
    (&["perplexity"], 2, &["FILE"]),
    // what it names
    (&["run", "-m", "{out}/nowhere", "a"], 1, &["nowhere"]),
    (&["run", "-m", "Cargo.toml", "a"], 1, &["Cargo.toml"]),
    (&["run", "-m", "models/nano/model.safetensors", "a"], 1, &["nano/model.safetensors", "give the folder"]),
    (&["run", ""], 1, &["prompt is empty"]),
    (&["run", "-f", "{out}/nowhere.txt"], 1, &["cannot read", "nowhere.txt"]),
    (&["run", "-f", "models/nano/model.safetensors"], 1, &["model.safetensors is not UTF-8"]),
    (&["run", "-f", "{out}/empty.txt"], 1, &["prompt is empty"]),
    (&["run", "-f", "-"], 1, &["prompt is empty"]),
    (&["run", "--ids", "5,1024"], 1, &["1024"]),
    (&["run", "-m", "tests/golden/gpt2", "-n", "1", "--ids", "383,384"], 1, &["384"]),
    (&["logits", "", "-o", "{out}/x.safetensors"], 1, &["prompt is empty"]),
    (&["logits", "a", "-o", "{out}/nowhere/x.safetensors"], 1, &["nowhere/x.safetensors"]),
    (&["logits", "a", "-o", "{out}"], 1, &["{out}"]),
    (&["logits", "--ids", "7777", "-o", "{out}/x.safetensors"], 1, &["7777"]),
    (&["explain", "--dump", "asm", "--kernel", "nothing"], 1, &["nothing"]),
    (&["explain", "--dump", "plan", "--kernel", "nothing"], 1, &["nothing"]),
    (&["perplexity", "{out}/nowhere.txt"], 1, &["nowhere.txt"]),
    (&["perplexity", "{out}"], 1, &["{out}"]),
    (&["perplexity", "models/nano/model.safetensors"], 1, &["model.safetensors", "UTF-8"]),
    (&["perplexity", "{out}/empty.txt"], 1, &["empty.txt has 0 tokens"]),
    (&["perplexity", "{out}/one.txt"], 1, &["one.txt has 1 token:"]),
    (&["perplexity", "-"], 1, &["standard input has 0 tokens"]),
];

#[test]
fn wrong_arguments_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    fs::write(folder.path().join("empty.txt"), "").unwrap();
    fs::write(folder.path().join("one.txt"), "a").unwrap();
    let mut failures = Vec::new();
    for (arguments, code, names) in WRONG {
        let arguments: Vec<String> = arguments.iter().map(|a| a.replace("{out}", out)).collect();
        let names: Vec<String> = names.iter().map(|n| n.replace("{out}", out)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let output = einfuse(&arguments).current_dir(repository(".")).output().unwrap();
        if let Err(failure) = check(&output, *code, &names) {
            failures.push(format!("{arguments:?}: {failure}"));
        }
    }
    assert!(failures.is_empty(), "{} of {} cases\n\n{}", failures.len(), WRONG.len(), failures.join("\n"));
}

/// The options of a command that take numbers, by its help: their names, short and long.
fn numeric_options(command: &str) -> Vec<Vec<String>> {
    let help = stdout(&run(&[command, "--help"]));
    let options = help.lines().filter_map(|line| {
        let (names, value) = line.split_once(" <")?;
        let is_number = ["N", "T", "K", "P", "R", "TOKENS", "IDS"].contains(&value.split('>').next()?);
        (is_number && names.contains("--")).then(|| names.trim().split(", ").map(str::to_owned).collect())
    });
    options.collect()
}

/// Each option that takes a number says of whatever is none that it is none, before anything is done: what it takes, is no mistake
/// before the model is missed.
#[test]
fn numbers_are_checked_before_anything_is_done() {
    const LARGEST: [&str; 2] = ["18446744073709551615", "18446744073709551616"];
    const OTHERS: [&str; 18] = [
        "0", "-0", "1", "-1", "-0.5", "1.5", "1e3", "1e400", "-1e400", "nan", "inf", "", " 1", "1 ", "0x10", "١",
        "one", "1,-1",
    ];
    let (mut failures, mut taken, mut refused) = (Vec::new(), 0, 0);
    for (command, options) in [("run", 11), ("explain", 5), ("bench", 8), ("logits", 4), ("perplexity", 3), ("tune", 6)]
    {
        let found = numeric_options(command);
        assert_eq!(found.len(), options, "{command}: {found:?}");
        for (names, value) in
            found.iter().flat_map(|names| LARGEST.iter().chain(&OTHERS).map(move |value| (names, *value)))
        {
            let option = names.last().unwrap();
            let mut arguments = vec![command, "-m", "nowhere", option, value];
            if ["run", "logits", "perplexity"].contains(&command) && option != "--ids" {
                arguments.push("Cargo.toml");
            }
            if command == "logits" {
                arguments.extend(["-o", "nowhere"]);
            }
            let output = run(&arguments);
            let checked = match output.status.code() {
                Some(1) => {
                    taken += 1;
                    check(&output, 1, &["nowhere"])
                }
                _ => {
                    refused += 1;
                    let checks = names.iter().map(|name| check(&output, 2, &[name]));
                    checks.reduce(Result::or).unwrap()
                }
            };
            failures.extend(checked.err().map(|failure| format!("{arguments:?}: {failure}")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(taken > 50 && refused > 300, "{taken} taken, {refused} refused");
}

/// The largest numbers that options take do no harm, nor do zeros.
#[test]
fn extreme_numbers_do_no_harm() {
    const LARGEST: &str = "18446744073709551615";
    for (option, value) in [
        ("--tokens", LARGEST),
        ("--tokens", "0"),
        ("--top-k", LARGEST),
        ("--top-k", "0"),
        ("--chunk", LARGEST),
        ("--context", "1"),
        ("--seed", LARGEST),
        ("--temperature", "1e-38"),
        ("--temperature", "3e38"),
        ("--top-p", "1e-38"),
        ("--min-p", "1"),
        ("--repeat-penalty", "1e-38"),
        ("--repeat-penalty", "3e38"),
    ] {
        let few = if option == "--tokens" { "--ignore-eos" } else { "-n=3" };
        let output = run(&["run", "a", few, option, value]);
        assert!(output.status.success(), "{option} {value}: {}", stderr(&output));
    }
    for (command, option) in [
        ("explain", "--tokens"),
        ("explain", "--past"),
        ("bench", "--prompt"),
        ("bench", "--depth"),
        ("bench", "--rows"),
    ] {
        let output = run(&[command, option, LARGEST]);
        let code = output.status.code().filter(|code| [1, 2].contains(code));
        check(&output, code.expect("it is refused"), &[LARGEST]).unwrap();
    }
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let ids = vec!["5"; 257].join(",");
    let expected = "257 tokens do not fit into the 256 positions that the model has places for\n";
    for arguments in [["run", "--ids", &ids].as_slice(), &["logits", "--ids", &ids, "-o", "/dev/null"]] {
        check(&run(arguments), 1, &[expected]).unwrap();
    }
}

#[test]
fn the_context_s_end_stops_generation() {
    let ids = vec!["5"; 250].join(",");
    let output = run(&["run", "--ids", &ids, "-n", "50", "--ignore-eos", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    // the last token that fits is read no more, so that one more than the room is generated
    assert_eq!(result["token_ids"].as_array().unwrap().len(), 7);
    assert_eq!(result["stopped"], "context");
}

#[test]
fn a_context_may_be_shorter_than_the_model_s() {
    let output = run(&["run", "--ids", "5,5,5", "--context", "8", "--ignore-eos", "--json"]);
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((result["token_ids"].as_array().unwrap().len(), &result["stopped"]), (6, &json!("context")));
    let rows = bench(&["-n", "2", "--context", "12"]);
    let tests: Vec<&Value> = rows.iter().map(|row| &row["test"]).collect();
    assert_eq!(tests, ["pp12", "tg2"]);
    let output = run(&["run", "--ids", "5,5,5,5", "--context", "3"]);
    check(&output, 1, &["4 tokens do not fit into the 3 positions of the model's context"]).unwrap();
}
