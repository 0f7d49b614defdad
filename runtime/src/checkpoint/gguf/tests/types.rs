//! Every key that is read, with a value of every type; and every length to which a file may be cut.

use super::architecture::{From, When};
use super::tables::ARCHITECTURES;
use super::*;

/// What is wanted of a key.
#[derive(Clone, Copy, PartialEq)]
enum Wants {
    Whole,
    Number,
    Flag,
    Text,
    Texts,
    Numbers,
}

impl Wants {
    fn words(self) -> &'static str {
        match self {
            Wants::Whole => "a whole number",
            Wants::Number => "a number",
            Wants::Flag => "a bool",
            Wants::Text => "a string",
            Wants::Texts => "an array of strings",
            Wants::Numbers => "an array of numbers",
        }
    }

    /// Whether a value of this type will do, an array by the type of its elements.
    fn takes(self, kind: Kind, element: Option<Kind>) -> bool {
        let whole = |kind| !matches!(kind, Kind::F32 | Kind::F64 | Kind::Bool | Kind::Text);
        let number = |kind| !matches!(kind, Kind::Bool | Kind::Text);
        match (self, element) {
            // One for each layer.
            (Wants::Whole, element) => whole(element.unwrap_or(kind)),
            (Wants::Number, None) => number(kind),
            (Wants::Flag, None) => kind == Kind::Bool,
            (Wants::Text, None) => kind == Kind::Text,
            (Wants::Texts, Some(element)) => element == Kind::Text,
            (Wants::Numbers, Some(element)) => number(element),
            _ => false,
        }
    }
}

/// A value of a type, which is one, true or "1".
fn one(kind: Kind) -> Vec<u8> {
    match kind {
        Kind::U8 | Kind::I8 | Kind::Bool => vec![1],
        Kind::U16 | Kind::I16 => vec![1, 0],
        Kind::U32 | Kind::I32 => vec![1, 0, 0, 0],
        Kind::U64 | Kind::I64 => vec![1, 0, 0, 0, 0, 0, 0, 0],
        Kind::F32 => 1f32.to_le_bytes().to_vec(),
        Kind::F64 => 1f64.to_le_bytes().to_vec(),
        Kind::Text => text("1"),
        Kind::Array => panic!("an array has elements"),
    }
}

const SINGLE: [Kind; 12] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::Text,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

/// Gives a key every type, and sees who is refused.
fn check(base: &Writer, key: &str, wants: Wants) {
    let arrays = SINGLE.map(|element| (Kind::Array, Some(element)));
    for (kind, element) in SINGLE.map(|kind| (kind, None)).into_iter().chain(arrays) {
        let mut writer = base.clone();
        writer.entries.retain(|(other, _)| other != key);
        let writer = match element {
            None => writer.entry(key, kind, &one(kind)),
            Some(element) => writer.array(key, element, &[one(element)]),
        };
        let read = open(writer.file()).and_then(Checkpoint::of_gguf).and_then(|checkpoint| {
            checkpoint.end_tokens()?;
            Tokenizer::of(&checkpoint).map(drop)
        });
        let error = read.err().map(|error| error.to_string()).unwrap_or_default();
        let refused = error.starts_with(&format!("x.gguf: key `{key}` at byte "))
            && error.ends_with(&format!(" wants {}", wants.words()));
        assert_eq!(refused, !wants.takes(kind, element), "{key}: {kind} {element:?}: {error}");
    }
}

#[test]
fn every_key_of_every_architecture_wants_its_type() {
    for architecture in ARCHITECTURES {
        let key = |key: &str| format!("{}.{key}", architecture.name);
        let mut keys = vec![("attention.head_count", Wants::Whole), ("expert_count", Wants::Whole)];
        for (_, from) in architecture.keys {
            keys.extend(match from {
                From::Whole(key) | From::WholeIf(key) | From::Window(key) => Some((*key, Wants::Whole)),
                From::Number(key) | From::NumberIf(key) => Some((*key, Wants::Number)),
                From::FlagIf(key) => Some((*key, Wants::Flag)),
                From::Text(_) | From::Said(_) | From::Count(_) | From::Tensor(_) => None,
            });
        }
        if architecture.rotary {
            keys.extend([
                ("rope.dimension_count", Wants::Whole),
                ("rope.scaling.original_context_length", Wants::Whole),
                ("rope.scaling.type", Wants::Text),
                ("rope.scaling.attn_factor", Wants::Number),
                ("rope.scaling.factor", Wants::Number),
                ("rope.scaling.yarn_beta_fast", Wants::Number),
                ("rope.scaling.yarn_beta_slow", Wants::Number),
                ("rope.scaling.yarn_log_multiplier", Wants::Number),
            ]);
        }
        let experts = architecture.keys.iter().any(|(_, from)| matches!(from, From::Whole("expert_count")));
        let base = Writer::default().text("general.architecture", architecture.name);
        let base = base.tensor("token_embd.weight", &[1, 1], Dtype::F32, vec![0; 4]);
        let base = match architecture.when {
            When::Tensors(tensors) => tensors
                .iter()
                .filter(|(_, wanted)| *wanted)
                .fold(base, |base, (name, _)| base.tensor(name, &[2], Dtype::F32, vec![0; 8])),
            When::Says(name, number) => base.u32(&key(name), number as u32),
            _ => base,
        };
        let mut named = std::collections::HashSet::new();
        keys.retain(|(key, _)| named.insert(*key));
        let base = keys.iter().fold(base, |writer, (name, wants)| match (*name, wants) {
            ("expert_count", _) => writer.u32(&key(name), experts.into()),
            (_, Wants::Whole) => writer.u32(&key(name), 1),
            (_, Wants::Number) => writer.f32(&key(name), 1.0),
            (_, Wants::Flag) => writer.bool(&key(name), true),
            _ => writer.text(&key(name), "linear"),
        });
        open(base.file()).and_then(Checkpoint::of_gguf).unwrap();
        for (name, wants) in keys {
            // Whether there are experts decides which architecture it is.
            if name != "expert_count" || experts {
                check(&base, &key(name), wants);
            }
        }
    }
}

#[test]
fn every_other_key_wants_its_type() {
    let small = small().bool("tokenizer.ggml.add_eos_token", true).bool("tokenizer.ggml.add_space_prefix", true);
    let keys = [
        ("general.architecture", Wants::Text),
        ("split.count", Wants::Whole),
        ("tokenizer.chat_template", Wants::Text),
        ("tokenizer.ggml.add_bos_token", Wants::Flag),
        ("tokenizer.ggml.add_eos_token", Wants::Flag),
        ("tokenizer.ggml.add_space_prefix", Wants::Flag),
        ("tokenizer.ggml.bos_token_id", Wants::Whole),
        ("tokenizer.ggml.eos_token_id", Wants::Whole),
        ("tokenizer.ggml.eot_token_id", Wants::Whole),
        ("tokenizer.ggml.eom_token_id", Wants::Whole),
        ("tokenizer.ggml.unknown_token_id", Wants::Whole),
        ("tokenizer.ggml.model", Wants::Text),
        ("tokenizer.ggml.scores", Wants::Numbers),
        ("tokenizer.ggml.token_type", Wants::Numbers),
        ("tokenizer.ggml.tokens", Wants::Texts),
    ];
    for (key, wants) in keys {
        check(&small, key, wants);
    }
    for (key, wants) in [("tokenizer.ggml.pre", Wants::Text), ("tokenizer.ggml.merges", Wants::Texts)] {
        check(&blocks(), key, wants);
    }
    let linear = super::small().f32("llama.rope.scale_linear", 2.0);
    check(&linear, "llama.rope.scale_linear", Wants::Number);
}

#[test]
fn a_file_cut_within_a_field_names_it() {
    let writer = small();
    let file = writer.file();
    // Where each field ends, and how it is called.
    let mut fields = vec![
        (4, "a GGUF file".to_owned()),
        (8, "the version".into()),
        (16, "the number of tensors".into()),
        (24, "the number of metadata entries".into()),
    ];
    let mut at = 24;
    for (index, (key, value)) in writer.entries.iter().enumerate() {
        at += 8 + key.len();
        fields.push((at, format!("the key of metadata entry {index}")));
        at += value.len();
        fields.push((at, format!("key `{key}`")));
    }
    for (index, (name, dimensions, ..)) in writer.tensors.iter().enumerate() {
        at += 8 + name.len();
        fields.push((at, format!("the name of tensor {index}")));
        for part in std::iter::once((4, "the number of dimensions".to_owned()))
            .chain((0..dimensions.len()).map(|i| (8, format!("dimension {i}"))))
            .chain([(4, "the type".into()), (8, "the offset".into())])
        {
            at += part.0;
            fields.push((at, format!("tensor `{name}` {}", part.1)));
        }
    }
    let mut by_count = 0;
    for length in 0..file.len() {
        let error = error(file[..length].to_vec());
        let field = fields.iter().find(|(end, _)| length < *end);
        // Counts for which there is no room are refused before.
        if error.contains("; the file has room for") && !error.starts_with("key") {
            assert!(error.contains("metadata entries at byte 16") || error.contains("tensors at byte 8"), "{error}");
            by_count += 1;
            continue;
        }
        let expected = field.map_or("tensor `", |(_, name)| name);
        assert!(error.contains(expected), "{length}: {error} does not name {expected}");
        assert!(error.contains("truncated") || error.contains("room for"), "{length}: {error}");
    }
    assert!(by_count < 300, "{by_count}");
}
