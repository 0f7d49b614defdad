//! What is explained and measured, as tables and as JSON.

use super::*;

#[test]
fn explain_shows_kernels_rules_and_costs() {
    let output = run(&["explain"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = stdout(&output);
    for word in ["kernel", "online-softmax", "siblings", "flops", "bytes", "bound", "memory"] {
        assert!(table.contains(word), "no `{word}` in\n{table}");
    }
    let without = stdout(&run(&["explain", "--without", "online-softmax"]));
    assert!(without.lines().count() > table.lines().count(), "fewer rules, more kernels:\n{without}");
}

#[test]
fn explain_dumps_every_stage() {
    for (stage, word) in [("graph", "sum["), ("plan", "rows"), ("loops", "for "), ("clif", "function"), ("asm", "ret")]
    {
        let output = run(&["explain", "--dump", stage]);
        assert!(output.status.success(), "{stage}: {}", stderr(&output));
        assert!(stdout(&output).contains(word), "{stage}: no `{word}`");
    }
}

#[test]
fn explain_shows_the_chosen_kernels_alone() {
    for stage in [&[][..], &["--dump", "plan"], &["--dump", "loops"], &["--dump", "clif"], &["--dump", "asm"]] {
        let output = run(&[&["explain", "--kernel", "logits"], stage].concat());
        assert!(output.status.success(), "{stage:?}: {}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains("logits") && !text.contains("q+k+u"), "{stage:?}:\n{text}");
    }
}

#[test]
fn logits_writes_a_safetensors_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.safetensors");
    let arguments = ["logits", "--ids", "576,45,37,47,26", "--hidden", "-o", file.to_str().unwrap()];
    let output = run(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stdout.is_empty(), "{}", stdout(&output));
    let (header, data) = common::split(&fs::read(&file).unwrap());
    assert_eq!(header["logits"]["shape"], json!([5, 1024]));
    assert_eq!(header["hidden"]["shape"], json!([7, 5, 128]));
    assert_eq!(data.len(), 4 * (5 * 1024 + 7 * 5 * 128));

    let output = run(&[&arguments[..], &["--json"]].concat());
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(result["file"], file.to_str().unwrap());
    assert_eq!(result["token_ids"], json!([576, 45, 37, 47, 26]));
    let names = |tensors: &Value| tensors.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let (mut told, mut stored) = (names(&result["tensors"]), names(&header));
    told.sort();
    stored.sort();
    assert_eq!(told, stored);
    for name in stored {
        for key in ["dtype", "shape"] {
            assert_eq!(result["tensors"][&name][key], header[&name][key], "{key} of {name}");
        }
    }

    let without: Vec<&str> = arguments.into_iter().filter(|argument| *argument != "--hidden").collect();
    let output = run(&without);
    assert!(output.status.success(), "{}", stderr(&output));
    let (alone, same) = common::split(&fs::read(&file).unwrap());
    assert_eq!(names(&alone), ["logits"]);
    let range: [usize; 2] = serde_json::from_value(header["logits"]["data_offsets"].clone()).unwrap();
    assert_eq!(same, data[range[0]..range[1]]);
}

#[test]
fn perplexity_scores_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    fs::write(&file, "ROMEO:\nWhat light through yonder window breaks?\n").unwrap();
    let output = run(&["perplexity", "--json", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let (nll, perplexity) = (result["mean_nll"].as_f64().unwrap(), result["perplexity"].as_f64().unwrap());
    assert!((nll.exp() - perplexity).abs() < 1e-6 * perplexity);
    // an untrained model of 1,024 tokens would have 6.93
    assert!(nll > 1.0 && nll < 6.0, "{nll}");
    assert!(result["tokens_scored"].as_u64().unwrap() > 10);
}

#[test]
fn perplexity_wants_room_for_two_tokens() {
    let folder = Folder::copy("llama3");
    folder.set("max_position_embeddings", 1);
    folder.write("text.txt", "To be, or not to be");
    let output = run(&["perplexity", "-m", folder.path().to_str().unwrap(), folder.file("text.txt").to_str().unwrap()]);
    check(&output, 1, &["at least 2 positions are wanted", "not the 1 of the model's context"]).unwrap();
}

#[test]
fn bench_prints_a_row_per_test_with_the_machine_s_peak() {
    let output = run(&["bench", "-p", "16", "-n", "8", "-t", "1,2", "-r", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = stdout(&output);
    let rows: Vec<&str> = table.lines().filter(|l| l.starts_with('|')).collect();
    assert_eq!(rows.len(), 2 + 4, "{table}");
    for word in ["pp16", "tg8", "t/s", "GB/s", "GFLOP/s", "%"] {
        assert!(table.contains(word), "no `{word}` in\n{table}");
    }
}

#[test]
fn bench_prints_a_list_as_json() {
    for form in [&["-o", "json"][..], &["--json"]] {
        let output = run(&[&["bench", "-p", "8", "-n", "4", "-t", "1", "-r", "1"], form].concat());
        let rows: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let tests: Vec<&Value> = rows.as_array().unwrap().iter().map(|row| &row["test"]).collect();
        assert_eq!(tests, ["pp8", "tg4"], "{form:?}");
        assert_eq!((&rows[0]["unit"], &rows[1]["unit"]), (&json!("FLOP/s"), &json!("B/s")));
    }
}

#[test]
fn bench_repeats_its_tests_after_each_depth() {
    // this model was made for 256 positions
    let rows = bench(&["-m", "tests/golden/llama3", "-p", "20", "-n", "4", "-d", "0,16,300", "--chunk", "8"]);
    let tests: Vec<&Value> = rows.iter().map(|row| &row["test"]).collect();
    assert_eq!(tests, ["pp20", "tg4", "pp20 @ d16", "tg4 @ d16", "pp20 @ d300", "tg4 @ d300"]);
    let depths: Vec<&Value> = rows.iter().map(|row| &row["depth"]).collect();
    assert_eq!(depths, [0, 0, 16, 16, 300, 300]);
    let per_token = |row: &Value| row["achieved"].as_f64().unwrap() / row["tokens_per_second"].as_f64().unwrap();
    for kind in [0, 1] {
        let costs: Vec<f64> = rows.iter().skip(kind).step_by(2).map(per_token).collect();
        assert!(costs.is_sorted_by(|a, b| a < b), "more positions are to be read at more depth: {costs:?}");
    }
}

#[test]
fn bench_relates_steps_of_several_tokens_to_steps_of_one() {
    let arguments = ["-p", "0", "-n", "8", "-b", "1,2,5,9"];
    let rows = bench(&arguments);
    let tests: Vec<&Value> = rows.iter().map(|row| &row["test"]).collect();
    assert_eq!(tests, ["tg8", "tg 1×", "tg 2×", "tg 5×", "tg 9×"]);
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
    assert!(rows[0]["cost"].is_null());
    for (row, tokens) in rows.iter().zip([1.0, 1.0, 2.0, 5.0, 9.0]).skip(1) {
        assert_eq!(row["unit"], "B/s");
        // one repetition: the rate is that of a step, which is told in steps of a token
        let steps = number(row, "tokens_per_second") / tokens;
        let cost = number(&rows[0], "tokens_per_second") / steps;
        assert!((number(row, "cost") / cost - 1.0).abs() < 1e-9, "{row}");
        // the weights are read once for all tokens of a step, but of the table of tokens a row for each
        let bytes = |row| number(row, "achieved") / number(row, "tokens_per_second");
        let shared = bytes(row) * tokens / bytes(&rows[0]);
        assert!((0.99..1.1).contains(&shared), "{shared}: {row}");
    }
    let output = run(&[&["bench", "-t", "1", "-r", "1"], &arguments[..]].concat());
    assert!(output.status.success(), "{}: {}", output.status, stderr(&output));
    let table = stdout(&output);
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split('|').map(str::trim).collect();
    assert!(head.ends_with(&["cost", ""]), "{table}");
}

#[test]
fn bench_and_explain_name_the_multiplier() {
    for (storage, names) in [
        (["--precision", "f32"], &["f32 at "][..]),
        (["--precision", "bf16"], &["f32 at ", "pairs of words at ", "pairs of bf16 at ", "pairs of bf16 in tiles"]),
        (["--quant", "q8"], &["f32 at ", "fours of bytes at ", "pairs of words at ", "pairs of bf16 in tiles"]),
        (
            ["--quant", "q4"],
            &[
                "f32 at ",
                "pairs of bytes at ",
                "fours of bytes at ",
                "fours of bytes in tiles",
                "pairs of bf16 in tiles",
            ],
        ),
    ] {
        let rows = bench(&[&["-p", "8", "-n", "2"], &storage[..]].concat());
        let multiplier = rows[0]["multiplier"].as_str().unwrap();
        assert!(names.iter().any(|name| multiplier.starts_with(name)), "{storage:?}: {multiplier}");
        assert!(multiplier.ends_with(" bits") || multiplier.ends_with(" tiles"));
        assert!(rows[1]["multiplier"].is_null(), "{rows:?}");
        let explained = run(&[&["explain", "--json", "--kernel", "logits"], &storage[..]].concat());
        let explained: Value = serde_json::from_str(&stdout(&explained)).unwrap();
        assert_eq!(explained["multiplier"], multiplier);
    }
}

#[test]
fn bench_holds_a_model_against_f32() {
    let number = |check: &Value, key: &str| check[key].as_f64().unwrap_or_else(|| panic!("{key}: {check}"));
    let check = |storage: &[&str]| {
        let mut items = bench(&[&["-p", "0", "-n", "0", "--check"], storage].concat());
        assert_eq!(items.len(), 1, "{items:?}");
        let check = items.remove(0);
        assert_eq!((&check["test"], &check["holds"]), (&json!("check"), &json!(true)));
        assert!(number(&check, "positions") >= 1000.0);
        let ratio = number(&check, "perplexity") / number(&check, "perplexity_f32");
        assert!((ratio / number(&check, "perplexity_ratio") - 1.0).abs() < 1e-9, "{check}");
        // what an untrained model of 1,024 tokens would have
        assert!(number(&check, "perplexity_f32") < 100.0, "{check}");
        check
    };
    let plain = check(&["--precision", "f32", "--cache", "f32"]);
    assert_eq!((&plain["weights"], &plain["cache"]), (&json!("f32"), &json!("f32")));
    assert_eq!((number(&plain, "perplexity_ratio"), number(&plain, "top1_agreement")), (1.0, 1.0));
    assert_eq!((number(&plain, "largest_divergence"), number(&plain, "largest_logit_difference")), (0.0, 0.0));
    let coded = check(&["--precision", "f32", "--cache", "q8"]);
    assert_eq!((&coded["weights"], &coded["cache"]), (&json!("f32"), &json!("q8")));
    assert!(number(&coded, "largest_divergence") > 0.0, "{coded}");
    let kept: Vec<Value> = [&["--precision", "bf16"][..], &["--quant", "q8"], &["--quant", "q4"]].map(check).into();
    for (check, weights) in kept.iter().zip(["bf16", "q8", "q4"]) {
        // of codes in steps the length of the blocks behind it
        assert!(check["weights"].as_str().is_some_and(|stored| stored.starts_with(weights)), "{check}");
        assert_eq!(check["cache"], "bf16");
        assert!(number(check, "largest_divergence") > number(check, "mean_divergence"), "{check}");
    }
    assert!(kept.is_sorted_by(|a, b| number(a, "mean_divergence") < number(b, "mean_divergence")), "{kept:?}");

    // what a table has too; behind the rows
    let output = run(&["bench", "-p", "4", "-n", "0", "-r", "1", "-t", "1", "--check"]);
    let text = stdout(&output);
    assert!(output.status.success() && text.contains("| pp4 "), "{}", stderr(&output));
    for word in ["weights of bf16", "perplexity ", "likeliest token", "divergence ", "logits differ"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

#[test]
fn bench_fails_where_a_model_is_too_far_from_f32() {
    // random weights, to which a few bits more or less are another model
    let output =
        run(&["bench", "-m", "tests/golden/llama3", "--quant", "q4", "-p", "0", "-n", "0", "--check", "--json"]);
    check(&output, 1, &["--check", "q4", "perplexity", "likeliest token", "60.0 %"]).unwrap();
    let items: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(items[0]["holds"], false);
}

#[test]
fn bench_profiles_every_kernel_call() {
    let arguments = ["bench", "-p", "8", "-n", "4", "-t", "1", "-r", "1", "--chunk", "7", "--profile"];
    let rows: Value = serde_json::from_str(&stdout(&run(&[&arguments[..], &["--json"]].concat()))).unwrap();
    let calls = |tokens: &str| -> Vec<(Value, u64)> {
        let plan: Value = serde_json::from_str(&stdout(&run(&["explain", "--json", "--tokens", tokens]))).unwrap();
        let count = |k: &Value| k["runs"].as_u64().unwrap() * k["calls"].as_u64().unwrap();
        plan["kernels"].as_array().unwrap().iter().map(|k| (k["name"].clone(), count(k))).collect()
    };
    // the prompt is read in a step of seven tokens and one of a single token
    let one = calls("1");
    let prompt = calls("7").into_iter().zip(&one).map(|((name, many), (_, one))| (name, many + one)).collect();
    for (row, expected) in rows.as_array().unwrap().iter().zip([prompt, one]) {
        let profile = &row["profile"];
        let kernels = profile["kernels"].as_array().unwrap();
        let counted: Vec<_> = kernels.iter().map(|k| (k["name"].clone(), k["calls"].as_u64().unwrap())).collect();
        assert_eq!(counted, expected);
        assert_eq!(profile["calls"], expected.iter().map(|(_, calls)| calls).sum::<u64>());
        let mut sum = profile["time_outside_kernels"].as_f64().unwrap();
        for kernel in kernels {
            assert!(kernel["achieved"].as_f64().unwrap() > 0.0, "{kernel}");
            sum += kernel["time"].as_f64().unwrap();
        }
        let time = profile["time"].as_f64().unwrap();
        assert!((sum - time).abs() < 1e-9 * time, "{sum} {time}");
    }
    let text = stdout(&run(&arguments));
    for word in ["pp8, -t 1: ", "tg4, -t 1: ", "| logits ", "| outside kernels ", " ns a call "] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

#[test]
fn help_has_examples() {
    for command in ["", "run", "explain", "bench", "logits", "perplexity"] {
        let arguments: Vec<&str> = [command, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        let output = run(&arguments);
        assert!(output.status.success());
        assert!(stdout(&output).contains("Examples:"), "{arguments:?}");
        assert_eq!(stdout(&output).contains("--json"), !command.is_empty(), "{arguments:?}");
    }
}

#[test]
fn explain_prints_one_object() {
    let output = run(&["explain", "--json", "--kernel", "logits"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["declaration"], "Gpt2");
    assert_eq!(object["kernels"].as_array().unwrap().len(), 1);
    let kernel = &object["kernels"][0];
    assert!(kernel["equations"].as_array().unwrap().iter().any(|e| e.as_str().unwrap().starts_with("logits[t, v] = ")));
    assert!(kernel["applied"].as_array().unwrap().iter().any(|r| r["rule"] == "tail"));
    // 2 operations for each element of the embedding, 1024 x 128, and little else.
    assert!((0.26e6..0.3e6).contains(&kernel["flops"].as_f64().unwrap()), "{}", kernel["flops"]);
    assert_eq!(object["unread"], serde_json::json!([]));
    assert_eq!(object["without"], serde_json::json!([]));
}

#[test]
fn explain_says_what_is_switched_off() {
    let output = run(&["explain", "--json", "--without", "siblings", "--without", "rows"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["without"], serde_json::json!(["siblings", "rows"]));
    let text = String::from_utf8(run(&["explain", "--without", "siblings"]).stdout).unwrap();
    assert!(text.lines().next().unwrap().ends_with(", without siblings"), "{text}");
    assert!(text.contains("k[t, h, c] = k.sum + b[j = 1], appended to k.cache\n"), "{text}");
}
