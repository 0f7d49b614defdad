use std::fs;
use std::path::PathBuf;

use einfuse_graph::{Builder, FileTensor, TensorId};
use tempfile::TempDir;

use super::*;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64, "eos_token_id": 2}"#;

/// A header of two tensors: `a` of F32 [2, 3], `b` of BF16 [4].
const HEADER: &str = r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|byte| byte as u8));
    bytes
}

/// A header of the given tensors, all F32, and zeros for their data.
fn f32_file(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut at = 0;
    let entries = tensors.iter().map(|(name, shape)| {
        let start = at;
        at += 4 * shape.iter().product::<usize>();
        format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{at}]}}"#)
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    file(&header, at)
}

/// Names and contents.
type Files<'a> = Vec<(&'a str, &'a [u8])>;

struct Folder(TempDir);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Folder {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        Folder(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(self.0.path()).unwrap()
    }

    /// The error of opening, with the folder's path as `.`.
    fn error(&self) -> String {
        let error = Checkpoint::open(self.0.path()).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error.replace(self.0.path().to_str().unwrap(), ".")
    }
}

#[test]
fn a_folder_is_opened() {
    let generation = br#"{"eos_token_id": [5, 7]}"#;
    let files: &[(&str, &[u8])] = &[
        ("config.json", CONFIG.as_bytes()),
        ("model.safetensors", &file(HEADER, 32)),
        ("generation_config.json", generation),
    ];
    let checkpoint = Folder::new(files).open();
    assert_eq!(checkpoint.end_tokens().unwrap(), [5, 7]);
    assert_eq!(checkpoint.leftovers(&HashSet::from(["a".to_owned()])), ["b"]);
    assert!(checkpoint.tokenizer().unwrap().is_none());
    assert_eq!(Folder::new(&files[..2]).open().end_tokens().unwrap(), [2]);
}

#[test]
fn generation_config_says_how_to_choose_where_it_samples() {
    let otherwise = || Sampling { temperature: 0.8, top_k: 40, seed: 7, ..Sampling::default() };
    let sampling = |generation: &str| {
        let weights = file(HEADER, 32);
        let files: [(&str, &[u8]); 3] = [
            ("config.json", CONFIG.as_bytes()),
            ("model.safetensors", &weights),
            ("generation_config.json", generation.as_bytes()),
        ];
        let sampling = Folder::new(&files).open().sampling(otherwise());
        sampling.map_err(|error| error.to_string().split('/').next_back().unwrap().to_owned())
    };
    let keys = r#""temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": null, "repetition_penalty": 1.05}"#;
    let wanted = Sampling { temperature: 0.6, top_k: 20, top_p: 0.95, repeat_penalty: 1.05, ..otherwise() };
    assert_eq!(sampling(&format!("{{\"do_sample\": true, {keys}")), Ok(wanted));
    for other in ["{", "{\"do_sample\": false, ", "{\"do_sample\": null, "] {
        assert_eq!(sampling(&format!("{other}{keys}")), Ok(otherwise()));
    }
    assert_eq!(sampling(r#"{"do_sample": true, "top_p": 1}"#), Ok(otherwise()));
    for (wrong, message) in [
        (r#""do_sample": 1"#, "key `do_sample` wants true or false, not 1"),
        (r#""do_sample": true, "temperature": "hot""#, "key `temperature` wants a number, not \"hot\""),
        (r#""do_sample": true, "top_k": -1"#, "key `top_k` wants a whole number of at least 0, not -1"),
        (r#""do_sample": true, "top_p": 1.5"#, "key `top_p` wants a number above 0 and at most 1, not 1.5"),
        (r#""do_sample": true, "repetition_penalty": 0"#, "key `repetition_penalty` wants a number above 0, not 0"),
    ] {
        assert_eq!(sampling(&format!("{{{wrong}}}")), Err(format!("generation_config.json: {message}")));
    }
}

#[test]
fn the_chat_template_is_kept() {
    let weights = file(HEADER, 32);
    let open = |files: &[(&str, &str)]| {
        let mut all: Files<'_> = vec![("config.json", CONFIG.as_bytes()), ("model.safetensors", &weights)];
        all.extend(files.iter().map(|(name, content)| (*name, content.as_bytes())));
        Folder::new(&all)
    };
    let chat = |file: &str, template: &str, begin: Option<&str>, end: Option<&str>| Chat {
        file: file.into(),
        template: template.into(),
        begin: begin.map(str::to_owned),
        end: end.map(str::to_owned),
    };
    let config = |json| ("tokenizer_config.json", json);
    type Texts<'a> = Vec<(&'a str, &'a str)>;
    let cases: Vec<(Texts<'_>, Option<Chat>)> = vec![
        (vec![], None),
        (vec![config(r#"{"bos_token": "<s>"}"#)], None),
        (vec![config(r#"{"chat_template": null}"#)], None),
        (
            vec![config(r#"{"chat_template": "x", "bos_token": "<s>", "eos_token": {"content": "</s>"}}"#)],
            Some(chat("tokenizer_config.json", "x", Some("<s>"), Some("</s>"))),
        ),
        (
            vec![config(
                r#"{"chat_template": [{"name": "tools", "template": "y"}, {"name": "default", "template": "z"}]}"#,
            )],
            Some(chat("tokenizer_config.json", "z", None, None)),
        ),
        (
            vec![config(r#"{"chat_template": "x"}"#), ("chat_template.jinja", "w")],
            Some(chat("chat_template.jinja", "w", None, None)),
        ),
        (vec![("chat_template.jinja", "w")], Some(chat("chat_template.jinja", "w", None, None))),
    ];
    for (files, expected) in cases {
        let folder = open(&files);
        let path = |chat: Chat| Chat { file: folder.path(&chat.file).display().to_string(), ..chat };
        assert_eq!(folder.open().chat(), expected.map(path).as_ref(), "{files:?}");
    }
    assert_eq!(
        open(&[config(r#"{"chat_template": 3}"#)]).error(),
        "./tokenizer_config.json: key `chat_template` wants a template or a list of templates"
    );
}

#[test]
fn keys_of_the_config_are_checked() {
    let weights = file(HEADER, 32);
    let cases = [
        (
            r#"{"architectures": ["X"], "eos_token_id": "</s>"}"#,
            "key `eos_token_id` wants a token or a list of tokens, not \"</s>\"",
        ),
        (
            r#"{"architectures": ["X"], "eos_token_id": [1, -1]}"#,
            "key `eos_token_id` wants a token or a list of tokens, not [1,-1]",
        ),
    ];
    for (config, expected) in cases {
        let folder = Folder::new(&[("config.json", config.as_bytes()), ("model.safetensors", &weights)]);
        let checkpoint = folder.open();
        let error = checkpoint.end_tokens().unwrap_err().to_string();
        assert_eq!(error, format!("{}: {expected}", folder.path("config.json").display()));
    }
}

#[test]
fn a_corrupt_header_is_refused() {
    let edit = |from: &str, to: &str| {
        assert!(HEADER.contains(from), "{from}");
        file(&HEADER.replace(from, to), 32)
    };
    let with_length = |length: u64| {
        let mut bytes = file(HEADER, 32);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        bytes
    };
    let whole = file(HEADER, 32);
    let mut not_utf8 = whole.clone();
    not_utf8[10] = 0xff;
    let b_in_bits = r#""dtype":"F4","shape":[17],"data_offsets":[24,32]"#;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), ": truncated: 0 bytes, a safetensors file starts with 8"),
        (whole[..7].into(), ": truncated: 7 bytes, a safetensors file starts with 8"),
        (whole[..50].into(), ": truncated: a header of 113 bytes was expected, 42 are there"),
        (whole[..8].into(), ": truncated: a header of 113 bytes was expected, 0 are there"),
        (whole[..whole.len() - 1].into(), ": tensor `b` ends at byte 32 of the data, the file has 31: truncated?"),
        (whole[..whole.len() - 20].into(), ": tensor `a` ends at byte 24 of the data, the file has 12: truncated?"),
        (file(HEADER, 33), ": the last 1 bytes belong to no tensor"),
        (file("{}", 5), ": the last 5 bytes belong to no tensor"),
        (
            with_length(u64::MAX),
            ": not a safetensors file: a header of 18446744073709551615 bytes (at most 100000000 are read)",
        ),
        (
            with_length(100_000_001),
            ": not a safetensors file: a header of 100000001 bytes (at most 100000000 are read)",
        ),
        (with_length(0), ": the header is not a JSON object: EOF"),
        (with_length(112), ": the header is not a JSON object: EOF"),
        (with_length(114), ": the header is not a JSON object: "),
        (not_utf8, ": the header is not UTF-8: "),
        (file("[1, 2]", 0), ": the header is not a JSON object: invalid type: sequence, expected an object"),
        (file("\"x\"", 0), ": the header is not a JSON object: invalid type: string"),
        (file(r#"{"__metadata__":{"format":1}}"#, 0), ": `__metadata__` wants an object of strings"),
        (file(r#"{"__metadata__":"pt"}"#, 0), ": `__metadata__` wants an object of strings"),
        (edit(r#""dtype":"F32","#, ""), ": tensor `a` has no `dtype`"),
        (edit(r#""shape":[4],"#, ""), ": tensor `b` has no `shape`"),
        (edit(r#","data_offsets":[24,32]"#, ""), ": tensor `b` has no `data_offsets`"),
        (edit(r#"{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}"#, "7"), ": tensor `a` has no `dtype`"),
        (
            edit("F32", "Q4_K"),
            ": tensor `a` has the unknown dtype \"Q4_K\"; F32, BF16, F16, F8_E4M3 and F8_E5M2 can be used",
        ),
        (
            edit(r#""F32""#, "32"),
            ": tensor `a` has the unknown dtype 32; F32, BF16, F16, F8_E4M3 and F8_E5M2 can be used",
        ),
        (edit("F32", "F16"), ": tensor `a` of F16 [2, 3] wants 12 bytes, its offsets hold 24"),
        (edit("[2,3]", "[2,4]"), ": tensor `a` of F32 [2, 4] wants 32 bytes, its offsets hold 24"),
        (edit("[2,3]", "[]"), ": tensor `a` of F32 [] wants 4 bytes, its offsets hold 24"),
        (edit("[2,3]", "[-2,3]"), ": tensor `a` wants a `shape` of whole numbers"),
        (edit("[2,3]", "[2.5,3]"), ": tensor `a` wants a `shape` of whole numbers"),
        (edit("[2,3]", "6"), ": tensor `a` wants a `shape` of whole numbers"),
        (edit("[2,3]", "[4294967296,4294967296]"), ": tensor `a` has the absurd shape [4294967296, 4294967296]"),
        (edit("[2,3]", "[18446744073709551616]"), ": tensor `a` wants a `shape` of whole numbers"),
        (edit("[0,24]", "[0]"), ": tensor `a` wants `data_offsets` of two whole numbers"),
        (edit("[0,24]", "[0,24,24]"), ": tensor `a` wants `data_offsets` of two whole numbers"),
        (edit("[0,24]", "[-1,23]"), ": tensor `a` wants `data_offsets` of two whole numbers"),
        (edit("[0,24]", "[24,0]"), ": tensor `a` ends before it starts, with offsets 24 and 0"),
        (edit("[24,32]", "[25,33]"), ": tensor `b` ends at byte 33 of the data, the file has 32: truncated?"),
        (
            edit("[24,32]", "[18446744073709551608,18446744073709551615]"),
            ": tensor `b` of BF16 [4] wants 8 bytes, its offsets hold 7",
        ),
        (
            edit("[24,32]", "[18446744073709551607,18446744073709551615]"),
            ": tensor `b` ends at byte 18446744073709551615 of the data",
        ),
        (edit("[24,32]", "[20,28]"), ": tensor `b` starts at byte 20 of the data, within `a`, which ends at 24"),
        (edit("[0,24]", "[8,32]"), ": tensor `a` starts at byte 8 of the data, the tensors before it end at 0"),
        (
            file(&HEADER.replace("[24,32]", "[28,36]"), 36),
            ": tensor `b` starts at byte 28 of the data, the tensors before it end at 24",
        ),
        (edit(r#""b""#, r#""a""#), ": tensor `a` is there twice"),
        (
            edit(r#""dtype":"BF16","shape":[4],"data_offsets":[24,32]"#, b_in_bits),
            ": tensor `b` of F4 [17] wants 9 bytes, its offsets hold 8",
        ),
    ];
    for (bytes, expected) in cases {
        let folder = Folder::new(&[("config.json", CONFIG.as_bytes()), ("model.safetensors", &bytes)]);
        let error = folder.error();
        assert!(error.starts_with(&format!("./model.safetensors{expected}")), "{error}\n is not\n{expected}");
        let embedded: &'static [u8] = bytes.leak();
        let model = Embedded {
            name: "x",
            config: CONFIG.as_bytes(),
            generation_config: None,
            tokenizer: None,
            weights: embedded,
        };
        let error = Checkpoint::embedded(&model).unwrap_err().to_string();
        assert!(error.starts_with(&format!("embedded x/model.safetensors{expected}")), "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_says_where() {
    let whole = file(HEADER, 32);
    let header = 8 + HEADER.len();
    for length in 0..whole.len() {
        let folder = Folder::new(&[("config.json", CONFIG.as_bytes()), ("model.safetensors", &whole[..length])]);
        let expected = match length {
            0..8 => format!("truncated: {length} bytes, a safetensors file starts with 8"),
            _ if length < header => {
                format!("truncated: a header of {} bytes was expected, {} are there", HEADER.len(), length - 8)
            }
            _ => {
                let data = length - header;
                let (tensor, end) = if data < 24 { ("a", 24) } else { ("b", 32) };
                format!("tensor `{tensor}` ends at byte {end} of the data, the file has {data}: truncated?")
            }
        };
        assert_eq!(folder.error(), format!("./model.safetensors: {expected}"));
    }
}

#[test]
fn any_changed_byte_is_an_error_or_other_numbers() {
    let (graph, weights) = graph();
    let tensors: [(&str, &[usize]); 4] =
        [("layers.7.q.weight", &[24, 5]), ("old.weight", &[5]), ("qkv", &[6, 5]), ("scale", &[])];
    let whole = f32_file(&tensors);
    let header = whole.len() - 4 * (120 + 5 + 30 + 1);
    let (mut opened, mut refused) = (0, 0);
    for at in 0..header {
        for byte in [0, b'0', b'9', b'"', b',', b'{', b']', b'-', b'e', 0xff, whole[at] ^ 1, whole[at] ^ 0x20] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            let weights_file: &'static [u8] = bytes.leak();
            let model = Embedded {
                name: "x",
                config: CONFIG.as_bytes(),
                generation_config: None,
                tokenizer: None,
                weights: weights_file,
            };
            match Checkpoint::embedded(&model) {
                Ok(checkpoint) => {
                    opened += 1;
                    for &weight in &weights {
                        if let Ok(stored) = checkpoint.weight(&graph, weight, Some(7)) {
                            assert_eq!(stored.to_f32().len(), stored.len());
                        }
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().starts_with("embedded x/model.safetensors: "), "{error}");
                }
            }
        }
    }
    assert!(opened > 100 && refused > 2000, "{opened} opened, {refused} refused");
}

#[test]
fn what_is_not_a_checkpoint_is_refused() {
    let weights = file(HEADER, 32);
    let config = ("config.json", CONFIG.as_bytes());
    let model = ("model.safetensors", &weights[..]);
    let cases: Vec<(Files<'_>, &str)> = vec![
        (vec![], ".: config.json is missing; a Hugging Face folder was expected"),
        (vec![model], ".: config.json is missing; a Hugging Face folder was expected (but model.safetensors)"),
        (vec![config], ".: neither model.safetensors nor model.safetensors.index.json is there"),
        (
            vec![config, ("pytorch_model.bin", b""), ("notes.txt", b"")],
            ".: neither model.safetensors nor model.safetensors.index.json is there (but pytorch_model.bin)",
        ),
        (
            vec![config, ("a.gguf", b"")],
            ".: neither model.safetensors nor model.safetensors.index.json is there (but a.gguf); \
             of a GGUF model, give the file: ./a.gguf",
        ),
        (
            vec![("b.gguf", b""), ("a.gguf", b""), ("a.md", b"")],
            ".: config.json is missing; a Hugging Face folder was expected (but a.gguf, b.gguf); \
             of a GGUF model, give the file: ./a.gguf",
        ),
        (vec![("config.json", b"{"), model], "./config.json: not JSON: EOF while parsing an object at line 1 column 1"),
        (vec![("config.json", b""), model], "./config.json: not JSON: EOF while parsing a value at line 1 column 0"),
        (vec![("config.json", b"[]"), model], "./config.json: not a JSON object"),
        (vec![("config.json", b"\xff"), model], "./config.json: not JSON: expected value at line 1 column 1"),
        (vec![config, model, ("generation_config.json", b"3")], "./generation_config.json: not a JSON object"),
    ];
    for (files, expected) in cases {
        assert_eq!(Folder::new(&files).error(), expected);
    }

    let folder = Folder::new(&[config]);
    for name in ["model.safetensors", "tokenizer.json"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    assert_eq!(folder.error(), "./tokenizer.json: a folder; a file was expected");
    fs::remove_dir(folder.path("tokenizer.json")).unwrap();
    assert_eq!(folder.error(), "./model.safetensors: not a file; a safetensors file was expected");
    fs::remove_file(folder.path("config.json")).unwrap();
    fs::create_dir(folder.path("config.json")).unwrap();
    assert_eq!(folder.error(), "./config.json: a folder; a file was expected");
    // Nor is what others are to write into while it is read.
    #[cfg(unix)]
    {
        fs::remove_dir(folder.path("config.json")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path("config.json")).unwrap();
        assert_eq!(folder.error(), "./config.json: not a file; a file was expected");
    }

    let folder = Folder::new(&[config]);
    for name in ["config.json", "model.safetensors"] {
        fs::write(folder.path(name), "{}").unwrap();
        let error = Checkpoint::open(folder.path(name)).unwrap_err().to_string();
        let problem = "not a GGUF file; of a Hugging Face model, give the folder that this file is in";
        assert!(error.ends_with(&format!("{name}: {problem}")), "{error}");
    }
    let error = Checkpoint::open(folder.path("none")).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "none: there is no such folder or file; a folder with config.json and *.safetensors, or a GGUF file, was expected"
        ),
        "{error}"
    );
}

#[test]
fn shards_are_one_checkpoint() {
    let (one, two) = (f32_file(&[("a", &[2, 3]), ("x", &[1])]), f32_file(&[("b", &[4])]));
    let open = |index: &str, one: &[u8], two: &[u8]| {
        let config = ("config.json", CONFIG.as_bytes());
        let index = ("model.safetensors.index.json", index.as_bytes());
        Folder::new(&[config, index, ("1.safetensors", one), ("2.safetensors", two)])
    };
    let good = r#"{"metadata": {"total_size": 40}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
    assert_eq!(open(good, &one, &two).open().leftovers(&HashSet::new()), ["a", "b", "x"]);

    let index = "./model.safetensors.index.json: ";
    let elsewhere = "tensor `b` wants the name of a file in the same folder";
    let edits = [
        ("{\"metadata", "{{\"metadata", "not JSON: key must be a string at line 1 column 2"),
        ("weight_map", "map", "key `weight_map` wants an object that names the file of each tensor"),
        (
            r#"{"a": "1.safetensors", "b": "2.safetensors"}"#,
            "{}",
            "key `weight_map` wants an object that names the file of each tensor",
        ),
        ("\"2.safetensors\"", "2", elsewhere),
        ("2.safetensors", "", elsewhere),
        ("2.safetensors", "..", elsewhere),
        ("2.safetensors", "../2.safetensors", elsewhere),
        ("2.safetensors", "/etc/passwd", elsewhere),
        ("2.safetensors", "3.safetensors", "tensor `b` is said to be in 3.safetensors, which is missing"),
        ("\"b\"", "\"c\"", "tensor `c` is said to be in ./2.safetensors, which does not have it"),
        ("\"b\"", "\"x\"", "tensor `x` is said to be in ./2.safetensors, which does not have it"),
    ];
    for (from, to, expected) in edits {
        assert!(good.contains(from));
        assert_eq!(open(&good.replace(from, to), &one, &two).error(), format!("{index}{expected}"));
    }
    let twice = f32_file(&[("b", &[4]), ("x", &[1])]);
    assert_eq!(open(good, &one, &twice).error(), "./2.safetensors: tensor `x` is in ./1.safetensors too");
    assert_eq!(
        open(good, &one, &two[..two.len() - 1]).error(),
        "./2.safetensors: tensor `b` ends at byte 16 of the data, the file has 15: truncated?"
    );
}

/// A graph with the weights of the tests below: `wq[n, g, c, d]`, by layer; `w[d]` with alternatives; `kv[c, d]`, rows
/// 2 to 6 of `qkv`; `s[]`.
fn graph() -> (Graph, [TensorId; 4]) {
    let mut b = Builder::new("test");
    let [n, g, c, d] = [("n", 2), ("g", 3), ("c", 4), ("d", 5)].map(|(name, size)| b.axis(name, size));
    b.at("src/llama.rs", 24, 9);
    let wq = b.weight("wq", &[n, g, c, d], "layers.{l}.q.weight");
    let w = b.weight("w", &[d], vec![FileTensor::from("new.weight"), FileTensor::from("old.weight")]);
    let kv = b.weight("kv", &[c, d], vec![FileTensor { name: "qkv".into(), rows: Some(2..6), each: false }]);
    let s = b.weight("s", &[], "scale");
    let value = b.load(w);
    let out = b.define("out", None, value);
    (b.finish(out).unwrap(), [wq, w, kv, s])
}

use einfuse_graph::Graph;

fn folder(tensors: &[(&str, &[usize])]) -> Folder {
    Folder::new(&[("config.json", CONFIG.as_bytes()), ("model.safetensors", &f32_file(tensors))])
}

#[test]
fn a_weight_is_found_by_layer_alternative_and_rows() {
    let (graph, [wq, w, kv, s]) = graph();
    let checkpoint =
        folder(&[("layers.7.q.weight", &[24, 5]), ("old.weight", &[5]), ("qkv", &[6, 5]), ("scale", &[])]).open();
    let found = checkpoint.weight(&graph, wq, Some(7)).unwrap();
    assert_eq!(
        (found.names[0].as_str(), found.parts[0].blocks().unwrap().dtype, found.rank, found.len()),
        ("layers.7.q.weight", Dtype::F32, 2, 120)
    );
    assert_eq!(checkpoint.weight(&graph, w, None).unwrap().names, ["old.weight"]);
    let rows = checkpoint.weight(&graph, kv, None).unwrap();
    let mut numbers = [0.0; 20];
    checkpoint.find("qkv").unwrap().unwrap().numbers.read(10, &mut numbers);
    assert_eq!(rows.to_f32(), numbers);
    assert_eq!(checkpoint.weight(&graph, s, None).unwrap().len(), 1);

    let both = folder(&[("old.weight", &[5]), ("new.weight", &[5])]).open();
    assert_eq!(both.weight(&graph, w, None).unwrap().names, ["new.weight"]);
    let error = both.weight(&graph, wq, Some(3)).unwrap_err().to_string();
    let place = both.place();
    assert_eq!(error, format!("`wq` (src/llama.rs:24) wants layers.3.q.weight, which {place} does not have"));
    let error = folder(&[]).open().weight(&graph, w, None).unwrap_err().to_string();
    assert!(error.starts_with("`w` (src/llama.rs:24) wants new.weight or old.weight, which "), "{error}");
}

#[test]
fn neighbouring_axes_may_be_merged_and_nothing_else() {
    let (graph, [wq, w, kv, s]) = graph();
    for shape in [&[2, 3, 4, 5][..], &[6, 4, 5], &[2, 12, 5], &[2, 3, 20], &[24, 5], &[6, 20], &[2, 60], &[120]] {
        assert!(folder(&[("layers.0.q.weight", shape)]).open().weight(&graph, wq, Some(0)).is_ok(), "{shape:?}");
    }
    let q = "layers.0.q.weight";
    let cases: [(TensorId, &str, &[usize], &str); 9] = [
        (wq, q, &[24, 4], "wants [n·g·c = 24, d = 5], the file # has [24, 4] for"),
        (wq, q, &[5, 24], "wants [n = 2, g·c·d = 60], the file # has [5, 24] for"),
        (wq, q, &[7, 20], "wants [n·g = 6, c·d = 20], the file # has [7, 20] for"),
        (wq, q, &[3, 2, 4, 5], "wants [n = 2, g = 3, c = 4, d = 5], the file # has [3, 2, 4, 5] for"),
        (wq, q, &[1, 2, 3, 4, 5], "wants [n = 2, g = 3, c = 4, d = 5], the file # has [1, 2, 3, 4, 5] for"),
        (wq, q, &[], "wants [n = 2, g = 3, c = 4, d = 5], the file # has [] for"),
        (w, "old.weight", &[6], "wants [d = 5], the file # has [6] for"),
        (kv, "qkv", &[6, 6], "wants [c = 4, d = 5], the file # has [4, 6] for"),
        (s, "scale", &[1], "wants [], the file # has [1] for"),
    ];
    for (tensor, name, shape, expected) in cases {
        let folder = folder(&[(name, shape)]);
        let error = folder.open().weight(&graph, tensor, Some(0)).unwrap_err().to_string();
        let expected = expected.replace('#', folder.path("model.safetensors").to_str().unwrap());
        let weight = &graph.tensor(tensor).name;
        assert_eq!(error, format!("`{weight}` (src/llama.rs:24) {expected} {name}"));
    }
    for (shape, has) in [(&[5, 5][..], 5), (&[], 0), (&[0, 5], 0)] {
        let error = folder(&[("qkv", shape)]).open().weight(&graph, kv, None).unwrap_err().to_string();
        let expected = format!("tensor `qkv` has {has} rows, `kv` (src/llama.rs:24) wants rows 2 to 6");
        assert!(error.ends_with(&expected), "{error}");
    }
}

#[test]
fn numbers_are_read_as_they_are_stored() {
    let (graph, [_, w, _, _]) = graph();
    let numbers = [1.0f32, -2.5, 0.0, 65504.0, 6.0e-8];
    let open = |dtype: &str, data: Vec<u8>| {
        let header = format!(r#"{{"old.weight":{{"dtype":"{dtype}","shape":[5],"data_offsets":[0,{}]}}}}"#, data.len());
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.into_bytes());
        bytes.extend(data);
        let folder = Folder::new(&[("config.json", CONFIG.as_bytes()), ("model.safetensors", &bytes)]);
        folder.open()
    };
    let f32s = open("F32", numbers.iter().flat_map(|x| x.to_le_bytes()).collect());
    assert_eq!(f32s.weight(&graph, w, None).unwrap().to_f32(), numbers);
    let f16s = open("F16", numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect());
    assert_eq!(f16s.weight(&graph, w, None).unwrap().to_f32(), numbers.map(|x| half::f16::from_f32(x).to_f32()));
    let bf16s = open("BF16", numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect());
    let found = bf16s.weight(&graph, w, None).unwrap();
    assert_eq!(found.parts[0].blocks().unwrap().dtype, Dtype::Bf16);
    assert_eq!(found.to_f32(), numbers.map(|x| half::bf16::from_f32(x).to_f32()));
    for dtype in ["F64", "I64"] {
        let error = open(dtype, vec![0; 40]).weight(&graph, w, None).unwrap_err().to_string();
        let expected =
            format!("tensor `old.weight` is of dtype {dtype}; F32, BF16, F16, F8_E4M3 and F8_E5M2 can be used");
        assert!(error.ends_with(&expected), "{error}");
    }
}

#[test]
fn the_golden_models_open() {
    for (model, end) in [("gpt2", 0), ("opt", 0), ("llama3", 382), ("mistral", 2), ("qwen3", 383)] {
        let folder = format!("{}/../tests/golden/{model}", env!("CARGO_MANIFEST_DIR"));
        let checkpoint = Checkpoint::open(folder).unwrap();
        assert_eq!(checkpoint.end_tokens().unwrap(), [end]);
    }
}
