//! Texts that are continued, and chats.

use super::*;

#[test]
fn a_prompt_may_be_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    let text = |arguments: &[&str]| stdout(&run(&[&["run", "-n", "8", "--temperature", "0"], arguments].concat()));
    let expected = text(&["To be,\nor not"]);
    assert!(expected.starts_with("To be,\nor not") && expected.len() > 20, "{expected}");
    for end in ["", "\n", "\r\n"] {
        fs::write(&file, format!("To be,\nor not{end}")).unwrap();
        assert_eq!(text(&["-f", file.to_str().unwrap()]), expected, "{end:?}");
    }
    fs::write(&file, "To be,\nor not\n\n").unwrap();
    assert_eq!(text(&["--file", file.to_str().unwrap()]), text(&["To be,\nor not\n"]));
    let read = run_with(&["run", "-n", "8", "--temperature", "0", "-f", "-"], "To be,\nor not\n");
    assert_eq!(stdout(&read), expected);
}

#[test]
fn a_closed_pipe_ends_quietly() {
    for arguments in
        [["run", "--ignore-eos", "-n", "200", "ROMEO:"].as_slice(), &["explain", "--dump", "loops"], &["--help"]]
    {
        let mut child = einfuse(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{arguments:?}: {text}");
        assert!(!text.contains("error") && !text.contains("panicked"), "{arguments:?}: {text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let output = einfuse(&["run", "-n", "4", "ROMEO:"]).stdout(full()).output().unwrap();
    check(&output, 1, &["standard output"]).unwrap();
    let output = einfuse(&["--help"]).stdout(full()).output().unwrap();
    check(&output, 1, &["standard output"]).unwrap();
    let output = run(&["logits", "ROMEO:", "-o", "/dev/full"]);
    check(&output, 1, &["/dev/full"]).unwrap();
}

#[test]
fn a_standard_error_that_nobody_reads_changes_nothing() {
    for (arguments, code) in
        [(["run", "-n", "3", "ROMEO:"].as_slice(), 0), (&["run", "-m", "nowhere", "a"], 1), (&["sing"], 2)]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = einfuse(arguments).stderr(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let folder = Folder::copy("llama3");
    without_numbers(&folder);
    folder.write("text.txt", "To be, or not to be");
    let (text, written) = (folder.file("text.txt"), folder.file("out.safetensors"));
    for arguments in [
        ["perplexity", text.to_str().unwrap()].as_slice(),
        &["bench", "-p", "0", "-n", "0", "--check"],
        &["logits", "To be", "-o", written.to_str().unwrap()],
    ] {
        let output = run(&[arguments, &["-m", folder.path().to_str().unwrap()]].concat());
        check(&output, 1, &["384 of 384 logits are NaN or infinite"]).unwrap();
        assert!(output.stdout.is_empty(), "{}", stdout(&output));
    }
    assert!(written.exists(), "they are written all the same");
}

#[test]
fn a_model_without_a_tokenizer_answers_in_ids() {
    let folder = Folder::copy("llama3");
    folder.remove("tokenizer.json");
    let arguments = ["run", "-m", folder.path().to_str().unwrap(), "--ids", "1,2", "-n", "3", "--temperature", "0"];
    let object: Value = serde_json::from_str(&stdout(&run(&[&arguments[..], &["--json"]].concat()))).unwrap();
    let ids = object["token_ids"].to_string();
    assert_eq!(stdout(&run(&arguments)), format!("{}\n", ids.trim_matches(['[', ']'])));
    assert!(ids.len() > 4, "{ids}");
}

#[test]
fn biases_that_nothing_adds_are_worth_a_warning() {
    const BIAS: &str = "model.layers.0.self_attn.q_proj.bias";
    for (number, warned) in [(0u8, false), (1, true)] {
        let folder = Folder::copy("llama3");
        let (mut header, mut data) = common::split(&fs::read(folder.file("model.safetensors")).unwrap());
        let start = data.len();
        data.extend([number; 256]);
        header[BIAS] = serde_json::json!({ "dtype": "F32", "shape": [64], "data_offsets": [start, start + 256] });
        folder.write("model.safetensors", common::safetensors(&header.to_string(), &data));
        let output = run(&["run", "-n", "1", "--json", "-m", folder.path().to_str().unwrap(), "To be"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let lines: Vec<String> = stderr(&output).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), usize::from(warned), "{lines:?}");
        assert!(lines.iter().all(|line| line.starts_with("warning: ") && line.contains(BIAS)), "{lines:?}");
    }
}

#[test]
fn run_writes_text_to_stdout_and_the_summary_to_stderr() {
    let output = run(&["run", "-n", "40", "ROMEO:"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with("ROMEO:") && text.ends_with('\n') && text.len() > 60, "{text}");
    let summary = stderr(&output);
    assert_eq!(summary.lines().count(), 1, "{summary}");
    for word in [
        "prompt 5 tokens",
        "generated 40 tokens",
        "tokens/s",
        "first token",
        "compiled in",
        "seed 0",
        "stopped at the token limit",
    ] {
        assert!(summary.contains(word), "no `{word}` in {summary}");
    }
    assert!(!summary.contains('\x1b') && !text.contains('\x1b'), "colour where no terminal is");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let text = |seed: &str| stdout(&run(&["run", "-n", "40", "--seed", seed, "ROMEO:"]));
    assert_eq!(text("0"), stdout(&run(&["run", "-n", "40", "ROMEO:"])));
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn run_prints_one_object_as_json() {
    let output = run(&["run", "-n", "12", "--temperature", "0", "--json", "ROMEO:"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let golden = json(&repository("tests/golden/nano/golden.json"));
    let greedy = golden["prompts"][0]["greedy_ids"].as_array().unwrap();
    assert_eq!(result["token_ids"].as_array().unwrap(), &greedy[..12]);
    assert_eq!(result["prompt_ids"], golden["prompts"][0]["input_ids"]);
    assert_eq!(result["generated_tokens"], 12);
    assert_eq!(result["stopped"], "limit");
    assert!(result["text"].as_str().unwrap().starts_with('\n'));
    for key in ["prompt_tokens_per_second", "tokens_per_second", "time_to_first_token", "compile_time"] {
        assert!(result[key].as_f64().unwrap() > 0.0, "{key}: {result}");
    }
}

#[test]
fn a_chat_goes_by_the_model_s_template() {
    let folder = Folder::copy("llama3");
    let template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ '\n' }}{% endfor %}";
    folder.edit("tokenizer_config.json", |config| config["chat_template"] = template.into());
    let path = folder.path().to_str().unwrap();
    let chat = ["run", "-m", path, "--json", "-n", "2", "--temperature", "0", "--ignore-eos"];
    let object = |output: &Output| -> Value { serde_json::from_str(&stdout(output)).unwrap() };
    let asked = object(&run(&[&chat[..], &["--chat", "--system", "s", "a b"]].concat()));
    let plain = object(&run(&[&chat[..], &["[system] s\n[user] a b\n"]].concat()));
    // The template has no begin token; the tokenizer puts one before a plain text.
    assert_eq!(asked["prompt_ids"].as_array().unwrap()[..], plain["prompt_ids"].as_array().unwrap()[1..]);

    let output = run_with(&[&chat[..], &["--chat", "--system", "s"]].concat(), "a b\n\nc d\n");
    let text = stdout(&output);
    let turns: Vec<Value> = serde_json::Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect();
    assert_eq!(turns.len(), 2, "{text}");
    assert_eq!((&turns[0]["prompt_ids"], &turns[0]["token_ids"]), (&asked["prompt_ids"], &asked["token_ids"]));
    // Nothing of the first turn's prompt is computed again.
    let length = |turn: &Value, ids: &str| turn[ids].as_array().unwrap().len() as u64;
    let new = length(&turns[1], "prompt_ids") - length(&turns[0], "prompt_ids");
    assert!(turns[1]["prompt_tokens"].as_u64().unwrap() <= new, "{text}");

    for (template, name) in [("{% if %}", "line 1"), ("{{ raise_exception('no systems') }}", "no systems")] {
        folder.write("chat_template.jinja", template);
        let output = run(&[&chat[..], &["--chat", "--system", "s", "a b"]].concat());
        check(&output, 1, &["chat_template.jinja", name]).unwrap();
    }
}

#[test]
fn an_answer_goes_as_far_as_the_context() {
    let folder = Folder::copy("llama3");
    folder.write("chat_template.jinja", "{{ messages[0].content }}");
    folder.set("max_position_embeddings", 300);
    let arguments = ["run", "-m", folder.path().to_str().unwrap(), "--ignore-eos", "--chat", "--json"];
    let answer = |limit: &[&str]| -> Value {
        serde_json::from_str(&stdout(&run(&[&arguments[..], limit, &["a b"]].concat()))).unwrap()
    };
    let whole = answer(&[]);
    assert_eq!(whole["stopped"], "context");
    assert!(whole["generated_tokens"].as_u64().unwrap() > 256, "{whole}");
    let cut = answer(&["-n", "2"]);
    assert_eq!((&cut["stopped"], &cut["generated_tokens"]), (&json!("limit"), &json!(2)));
}

/// A template that refuses what has `no` in it.
const REFUSING: &str =
    "{% if 'no' in messages[-1].content %}{{ raise_exception('not that') }}{% endif %}{{ messages[-1].content }}";

#[test]
fn a_chat_on_a_terminal_goes_on_after_an_error() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let folder = Folder::copy("llama3");
    folder.write("chat_template.jinja", REFUSING);
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let mut terminal = fs::File::from(terminal);
    let mut command = einfuse(&["run", "-m", folder.path().to_str().unwrap(), "--chat", "-n", "2"]);
    command.stdin(fs::OpenOptions::new().read(true).write(true).open(name).unwrap());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let too_long = "x ".repeat(300);
    let turns = ["a b", &too_long, "no", "c d"].join("\n");
    let end_of_input = "\u{4}";
    terminal.write_all(format!("{turns}\n{end_of_input}").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).matches("> ").count(), 5, "{}", stdout(&output));
    let told = stderr(&output);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 4, "{told}");
    for (line, word) in
        lines.iter().zip(["generated 2 tokens", "tokens do not fit into the 256", "not that", "generated 2 tokens"])
    {
        assert!(line.contains(word), "no `{word}` in {line}");
    }
    assert!(lines[1].starts_with("error: ") && lines[2].starts_with("error: "), "{told}");
}

#[test]
fn a_chat_that_is_no_terminal_s_ends_with_an_error() {
    let folder = Folder::copy("llama3");
    folder.write("chat_template.jinja", REFUSING);
    let output = run_with(&["run", "-m", folder.path().to_str().unwrap(), "--chat", "-n", "2", "--json"], "no\na b\n");
    check(&output, 1, &["not that"]).unwrap();
    assert!(output.stdout.is_empty(), "{}", stdout(&output));
}

#[test]
fn a_model_may_say_how_tokens_are_chosen() {
    let folder = Folder::copy("llama3");
    let path = folder.path().to_str().unwrap();
    let text = |options: &[&str]| {
        let output = run(&[&["run", "-m", path, "-n", "20", "--ignore-eos", "To be"], options].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let (sampled, greedy) = (text(&[]), text(&["--temperature", "0"]));
    assert_ne!(sampled, greedy);
    folder.edit("generation_config.json", |config| config["top_k"] = 1.into());
    assert_eq!(text(&[]), sampled);
    folder.edit("generation_config.json", |config| config["do_sample"] = true.into());
    assert_eq!(text(&[]), greedy);
    assert_eq!(text(&["--top-k", "40"]), sampled);
    folder.edit("generation_config.json", |config| config["top_k"] = "few".into());
    let output = run(&["run", "-m", path, "To be"]);
    check(&output, 1, &["generation_config.json", "`top_k` wants a whole number", "\"few\""]).unwrap();
}

#[test]
fn a_stop_text_ends_generation_and_is_not_printed() {
    let arguments = |stop: &'static str| ["run", "--temperature", "0", "--json", "--stop", stop, "ROMEO:"];
    let result: Value = serde_json::from_str(&stdout(&run(&arguments("countryman")))).unwrap();
    assert_eq!(result["stopped"], "stop");
    let text = result["text"].as_str().unwrap();
    assert!(!text.contains("countryman"), "{text}");
}
