//! Whatever a value in a JSON file is replaced by, the file serves its purpose, or there is an error of one line that names the
//! file and the value: tokenizers, chats, ends of texts, indices, settings of quantisation, schedules. No library panics on it,
//! caught or not.

#[path = "../../tests/common/changes.rs"]
mod changes;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::{fs, panic};

use changes::{changes, pointers};
use einfuse_codegen::Tiling;
use einfuse_graph::{Builder, FileTensor};
use einfuse_runtime::{Chat, Checkpoint, Error, Message, Role, Template, Tokenizer, Tuned, Winner};
use serde_json::{Value, json};
use tempfile::TempDir;

thread_local! {
    static TRYING: Cell<bool> = const { Cell::new(false) };
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Does something that shall not panic, and yields the panics that there were, whoever caught them.
fn watched<T>(work: impl FnOnce() -> T) -> (Option<T>, Vec<String>) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| match TRYING.get() {
            true => PANICS.with_borrow_mut(|all| all.push(info.to_string())),
            false => usual(info),
        }));
    });
    TRYING.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    TRYING.set(false);
    (result.ok(), PANICS.take())
}

/// Uses a document and all changes of it; of so many at least the use must succeed, and fail.
fn sweep(file: &str, document: &Value, at_least: [usize; 2], mut serve: impl FnMut(&Value) -> Result<(), Error>) {
    serve(document).unwrap();
    let (mut served, mut refused, mut wrong) = (0, 0, Vec::new());
    for at in pointers(document, 6) {
        for (by, changed) in changes(document, &at) {
            let (result, panics) = watched(|| serve(&changed));
            wrong.extend(panics.iter().map(|panic| format!("{at} = {by}: {panic}")));
            match result {
                None => {}
                Some(Ok(())) => served += 1,
                Some(Err(error)) => {
                    refused += 1;
                    let error = error.to_string();
                    let key = |key: &str| key.parse::<usize>().is_err() && error.contains(key);
                    let named = at.split('/').skip(1).any(key)
                        || ["tensor `", "`w` wants ", " line "].iter().any(|place| error.contains(place));
                    if !named || !error.contains(file) || error.contains('\n') || error.chars().count() > 400 {
                        wrong.push(format!("{at} = {by}: {error}"));
                    }
                }
            }
        }
    }
    let count = wrong.len();
    assert!(wrong.is_empty(), "{file}: {count} of {}\n{}", served + refused, wrong[..count.min(50)].join("\n"));
    assert!(served >= at_least[0] && refused >= at_least[1], "{file}: {served} served, {refused} refused");
}

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(model)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A copy of a golden model.
fn copy(model: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(golden(model)).unwrap() {
        let file = file.unwrap();
        if !file.file_name().to_string_lossy().starts_with("golden") {
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
    }
    folder
}

fn use_tokenizer(tokenizer: &Value) -> Result<(), Error> {
    let tokenizer = Tokenizer::parse("a/tokenizer.json", tokenizer.to_string().as_bytes())?;
    for text in ["To be, or not\n to be", "é 日本 👩\u{200d}🚀\0 ", "", "<s>a</s>", " 12345 abcdefgh"] {
        for special in [false, true] {
            // What the vocabulary has no words for is an error of the text, and a token that it does not have, of the token.
            let Ok(tokens) = tokenizer.encode(text, special) else { continue };
            let _ = tokenizer.decode(&tokens);
            let mut stream = tokenizer.stream_after(&tokens);
            for &token in &tokens {
                let _ = stream.push(token);
            }
            let _ = stream.finish();
        }
    }
    Ok(())
}

#[test]
fn tokenizers() {
    for model in ["gpt2", "mistral"] {
        let tokenizer = json(&golden(model).join("tokenizer.json"));
        sweep("a/tokenizer.json", &tokenizer, [100, 800], use_tokenizer);
    }
}

/// A tokenizer of these parts.
fn tokenizer(
    model: &Value,
    normalizers: &Value,
    pretokenizers: &Value,
    post_processor: &Value,
    decoders: &Value,
) -> Value {
    json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0 },
        "padding": {
            "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "?"
        },
        "added_tokens": [
            { "id": 0, "content": "?", "single_word": true, "lstrip": true, "rstrip": true, "normalized": true, "special": true }
        ],
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": pretokenizers },
        "post_processor": post_processor,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": model,
    })
}

/// Parts that the golden models don't have.
#[test]
fn tokenizers_of_other_parts() {
    let pieces = tokenizer(
        &json!({
            "type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": { "?": 0, "to": 1, "be": 2, "##e": 3, "b": 4, ",": 5 }
        }),
        &json!([
            { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true }
        ]),
        &json!([{ "type": "BertPreTokenizer" }]),
        &json!({ "type": "BertProcessing", "sep": ["?", 0], "cls": ["to", 1] }),
        &json!([{ "type": "WordPiece", "prefix": "##", "cleanup": true }]),
    );
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "?", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "?": { "id": "?", "ids": [0], "tokens": ["?"] } }
    });
    let words = tokenizer(
        &json!({ "type": "WordLevel", "vocab": { "?": 0, "To": 1, "be": 2, ",": 3 }, "unk_token": "?" }),
        &json!([
            { "type": "NFKC" },
            { "type": "Strip", "strip_left": true, "strip_right": true },
            { "type": "StripAccents" },
            { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
            { "type": "Prepend", "prepend": " " }
        ]),
        &json!([
            { "type": "Whitespace" },
            { "type": "Digits", "individual_digits": true },
            { "type": "Punctuation", "behavior": "Isolated" },
            { "type": "Split", "pattern": { "Regex": "b|[^b]+" }, "behavior": "Removed", "invert": true },
            { "type": "CharDelimiterSplit", "delimiter": "o" },
            { "type": "FixedLength", "length": 5 },
            { "type": "UnicodeScripts" }
        ]),
        &template,
        &json!([
            { "type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true },
            { "type": "Strip", "content": "o", "start": 1, "stop": 0 },
            { "type": "Fuse" }
        ]),
    );
    let scores = tokenizer(
        &json!({
            "type": "Unigram", "unk_id": 0, "byte_fallback": true,
            "vocab": [["?", 0.0], ["▁", -2.5], ["▁To", -3.0], ["e", -4], ["b", -4.5], ["<0x41>", -9.0]]
        }),
        &json!([{ "type": "Nmt" }, { "type": "Lowercase" }, { "type": "NFD" }]),
        &json!([
            { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true }, { "type": "WhitespaceSplit" }
        ]),
        &template,
        &json!([
            { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true }, { "type": "ByteFallback" }
        ]),
    );
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    let suffixes = tokenizer(
        &json!({
            "type": "BPE", "dropout": 0.5, "unk_token": "?", "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": true,
            "vocab": { "?": 0, "t": 1, "o</w>": 2, "to</w>": 3 }, "merges": ["t o</w>"]
        }),
        &json!([{ "type": "ByteLevel" }]),
        &json!([bytes]),
        &json!({
            "type": "Sequence",
            "processors": [
                { "type": "RobertaProcessing", "sep": ["to</w>", 3], "cls": ["t", 1], "trim_offsets": true, "add_prefix_space": true },
                bytes
            ]
        }),
        &json!([{ "type": "BPEDecoder", "suffix": "</w>" }, bytes]),
    );
    for tokenizer in [pieces, words, scores, suffixes] {
        sweep("a/tokenizer.json", &tokenizer, [400, 500], use_tokenizer);
    }
}

#[test]
fn chats() {
    let folder = copy("mistral");
    let file = folder.path().join("tokenizer_config.json");
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}";
    let token = json!({ "__type": "AddedToken", "content": "</s>", "lstrip": false });
    let several = json!([{ "name": "tools", "template": "x" }, { "name": "default", "template": template }]);
    for template in [json!(template), several] {
        let config =
            json!({ "bos_token": "<s>", "eos_token": token, "add_bos_token": true, "chat_template": template });
        sweep("tokenizer_config.json", &config, [100, 10], |config| {
            fs::write(&file, config.to_string()).unwrap();
            match Checkpoint::open(folder.path())?.chat() {
                Some(chat) => {
                    let message = Message { role: Role::User, content: "a".into() };
                    Template::new(chat.clone())?.render(&[message]).map(drop)
                }
                None => Ok(()),
            }
        });
    }
}

#[test]
fn templates_that_nest_deeply_or_make_much() {
    let many = |piece: &str| piece.repeat(50_000);
    let templates = [
        format!("{{{{ {}1{} }}}}", many("("), many(")")),
        format!("{{{{ {}1{} }}}}", many("["), many("]")),
        format!("{{{{ {}1 }}}}", many("not ")),
        format!("{{{{ {}1 }}}}", many("-")),
        format!("{{{{ 1{} }}}}", many("+1")),
        format!("{{{{ 1{} }}}}", many("**1")),
        format!("{{{{ 1{} }}}}", many("|int")),
        format!("{{{{ a{} }}}}", many(".b")),
        format!("{{{{ a{} }}}}", "a if a else ".repeat(20_000)),
        format!("{}{}", "{% if 1 %}".repeat(10_000), "{% endif %}".repeat(10_000)),
        many("{{ a }}"),
        "{{ 'a' * 4000000000 }}".to_owned(),
        "{{ [1] * 4000000000 }}".to_owned(),
        "{{ range(4000000000) | list }}".to_owned(),
        "{{ [1] | batch(4000000000, 0) | list }}".to_owned(),
        "{{ '%4000000000d' | format(1) }}".to_owned(),
        "{{ 1 % 0 }}{{ 1 // 0 }}".to_owned(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
    ];
    for template in templates {
        let chat = Chat { file: "a/chat_template.jinja".into(), template, begin: None, end: None };
        let (result, panics) = watched(|| Template::new(chat).and_then(|template| template.render(&[])));
        assert!(panics.is_empty(), "{panics:?}");
        if let Some(Err(error)) = result {
            let error = error.to_string();
            assert!(
                error.starts_with("a/chat_template.jinja: the chat template ") && error.chars().count() < 400,
                "{error}"
            );
        }
    }
}

#[test]
fn ends_of_texts() {
    let folder = copy("mistral");
    let file = folder.path().join("generation_config.json");
    for ends in [json!(2), json!([2, 3])] {
        sweep("generation_config.json", &json!({ "eos_token_id": ends, "bos_token_id": 1 }), [10, 10], |config| {
            fs::write(&file, config.to_string()).unwrap();
            Checkpoint::open(folder.path())?.end_tokens().map(drop)
        });
    }
}

#[test]
fn indices() {
    let folder = copy("qwen3_moe_shards");
    let file = folder.path().join("model.safetensors.index.json");
    sweep("model.safetensors.index.json", &json(&file), [50, 100], |index| {
        fs::write(&file, index.to_string()).unwrap();
        Checkpoint::open(folder.path()).map(drop)
    });
}

#[test]
fn settings_of_quantisation() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/safetensors");
    let matrix = ["l.weight", "16", "24"];
    let cases = [
        ("fp8", &["l.weight", "5", "6"][..]),
        ("gptq", &matrix),
        ("awq", &matrix),
        ("gemv", &matrix),
        ("gemv_fast", &["l.weight", "16", "64"]),
        ("fp4", &["l.weight", "3", "32"]),
        ("packed", &matrix),
        ("mxfp4", &["l.weight", "2", "32", "3"]),
    ];
    for (seed, weight) in cases {
        let seed = fs::read(seeds.join(seed)).unwrap();
        let line = seed.iter().position(|&byte| byte == b'\n').unwrap();
        let config: Value = serde_json::from_slice(&seed[..line]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), &seed[line + 1..]).unwrap();
        let mut b = Builder::new("test");
        let axes = weight[1..].iter().map(|size| b.axis(&format!("a{size}"), size.parse().unwrap()));
        let axes: Vec<_> = axes.collect();
        let w = b.weight("w", &axes, vec![FileTensor { name: weight[0].into(), rows: None, each: false }]);
        let value = b.load(w);
        let out = b.define("out", None, value);
        let graph = b.finish(out).unwrap();
        sweep(&folder.path().display().to_string(), &config, [20, 20], |config| {
            fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let checkpoint = Checkpoint::open(folder.path())?;
            checkpoint.weight(&graph, w, None)?.to_f32();
            Ok(())
        });
    }
}

#[test]
fn schedules() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = Tuned::at(folder.path().join("schedules.json"));
    let tiling = Tiling { block: 128, core: 8, prepared: 4, tile: 48, parts: 2 };
    tuned.keep(1, &[], &[Winner { kernel: "a".into(), tiling, gain: 0.5 }]).unwrap();
    sweep("schedules.json", &json(tuned.path()), [20, 200], |schedules| {
        fs::write(tuned.path(), schedules.to_string()).unwrap();
        tuned.schedules(1)?;
        tuned.keep(1, &[], &[])
    });
}
