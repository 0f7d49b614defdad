//! The tokenizer in a GGUF file's metadata, as the `tokenizer.json` that means the same.
//!
//! There are two kinds: byte-level BPE with its merges (`tokenizer.ggml.model` = `gpt2`), where `tokenizer.ggml.pre` names
//! the way in which text is split into words, and SentencePiece's BPE (`llama`), whose scores say what is merged first and
//! which has a token for each byte.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::Gguf;
use crate::Error;

/// The keys read here.
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

/// The kinds of a token (`tokenizer.ggml.token_type`) that matter here.
const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const BYTE: u32 = 6;

/// The longest token, in bytes, that is read; those of the field are below a hundred.
const LONGEST_TOKEN: usize = 1024;

/// SentencePiece's blank.
const BLANK: &str = "\u{2581}";

/// Special tokens that end a turn of a chat, or a text, whatever the metadata's end token is, and of whatever type files say
/// that they are: some have them as ordinary ones.
const END_TOKENS: [&str; 8] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
];

/// An end token where its type says that it is special; elsewhere (Gemma, Qwen) it is the end of text that is struck out.
const END: &str = "</s>";

/// How text becomes words.
struct Words {
    /// The names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    split: Split,
    /// Whether the text is normalised to Unicode's composed form (NFC) before.
    compose: bool,
    /// Whether a word that is a token needs no merges.
    whole_words: bool,
    /// Whether a begin token is added where the metadata does not say.
    begin: bool,
}

/// What separates words.
enum Split {
    /// GPT-2's pattern.
    Gpt2,
    /// Each digit is a word; GPT-2's pattern for the rest.
    DigitsAndGpt2,
    /// Each pattern in turn: a match is a word, and what is between matches.
    Patterns(&'static [&'static str]),
}

/// Llama 3's pattern, which is that of OpenAI's cl100k.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The splits of the field's byte-level tokenizers, as their `tokenizer.json` has them.
static WORDS: &[Words] = &[
    Words {
        names: &["gpt-2", "default", "phi-2", "mpt", "gpt3-finnish"],
        split: Split::Gpt2,
        compose: false,
        whole_words: false,
        begin: false,
    },
    Words { names: &["olmo"], split: Split::Gpt2, compose: true, whole_words: false, begin: false },
    Words {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        split: Split::DigitsAndGpt2,
        compose: false,
        whole_words: false,
        begin: false,
    },
    Words { names: &["command-r"], split: Split::DigitsAndGpt2, compose: true, whole_words: false, begin: true },
    Words {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: Split::Patterns(&[LLAMA3]),
        compose: false,
        whole_words: true,
        begin: true,
    },
    Words {
        names: &["dbrx", "smaug-bpe"],
        split: Split::Patterns(&[LLAMA3]),
        compose: false,
        whole_words: false,
        begin: false,
    },
    Words {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2"],
        split: Split::Patterns(&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]),
        compose: true,
        whole_words: false,
        begin: false,
    },
    Words {
        names: &["tekken"],
        split: Split::Patterns(&[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]),
        compose: false,
        whole_words: true,
        begin: true,
    },
    Words {
        names: &["gpt-4o", "llama4"],
        split: Split::Patterns(&[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]),
        compose: false,
        whole_words: true,
        begin: false,
    },
    Words {
        names: &["deepseek-v3"],
        split: Split::Patterns(&[
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ]),
        compose: false,
        whole_words: false,
        begin: true,
    },
];

/// A vocabulary.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<u32>,
}

impl<'a> Vocabulary<'a> {
    fn of(gguf: &'a Gguf) -> Result<Option<Vocabulary<'a>>, Error> {
        let Some(tokens) = gguf.texts(TOKENS)? else { return Ok(None) };
        if let Some(id) = tokens.iter().position(|token| token.len() > LONGEST_TOKEN) {
            let problem = format!("wants tokens of at most {LONGEST_TOKEN} bytes; token {id} has {}", tokens[id].len());
            return Err(gguf.wrong(TOKENS, &problem));
        }
        let mut types: Vec<u32> = match gguf.numbers(TYPES)? {
            Some(types) if types.len() != tokens.len() => {
                return Err(gguf.wrong(TYPES, &format!("has {}, there are {} tokens", types.len(), tokens.len())));
            }
            Some(types) => types.into_iter().map(|kind| kind as u32).collect(),
            None => vec![1; tokens.len()],
        };
        let ends = tokens.iter().zip(&mut types).filter(|(token, _)| END_TOKENS.contains(token));
        ends.for_each(|(_, kind)| *kind = CONTROL);
        Ok(Some(Vocabulary { tokens, types }))
    }

    fn entries(&self) -> impl Iterator<Item = (usize, &'a str, u32)> {
        self.tokens.iter().zip(&self.types).enumerate().map(|(id, (token, kind))| (id, *token, *kind))
    }

    /// The tokens with their numbers; of two that are equal the first.
    fn json(&self) -> Value {
        let mut vocabulary = Map::with_capacity(self.tokens.len());
        for (id, token, _) in self.entries() {
            vocabulary.entry(token).or_insert(json!(id));
        }
        Value::Object(vocabulary)
    }

    /// Tokens that are found in a text before it is split: the special ones, and those that a user defined.
    fn added(&self) -> Vec<Value> {
        let found = self
            .entries()
            .filter(|(_, token, kind)| !token.is_empty() && matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED));
        let added = found.map(|(id, token, kind)| {
            json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": kind != USER_DEFINED,
            })
        });
        added.collect()
    }
}

/// What `tokenizer.json` would say; `None` if the file has no tokenizer.
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Option<Value>, Error> {
    let Some(model) = gguf.text(MODEL)? else { return Ok(None) };
    let vocabulary = || Vocabulary::of(gguf)?.ok_or_else(|| gguf.missing(TOKENS));
    match model {
        "no_vocab" | "none" => Ok(None),
        "gpt2" => byte_level(gguf, &vocabulary()?).map(Some),
        "llama" => sentence_piece(gguf, &vocabulary()?).map(Some),
        other => Err(gguf.wrong(MODEL, &format!("is `{other}`; gpt2 and llama can be read"))),
    }
}

/// The tokens that end a text: those that the metadata names, and those with a name that says so.
pub(super) fn end_tokens(gguf: &Gguf) -> Result<Vec<u64>, Error> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(gguf.whole(&format!("tokenizer.ggml.{name}_token_id"))?);
    }
    if let Some(vocabulary) = Vocabulary::of(gguf)? {
        let is_end = |token: &str, kind| END_TOKENS.contains(&token) || (token == END && kind == CONTROL);
        let named = vocabulary.entries().filter(|(_, token, kind)| is_end(token, *kind));
        ids.extend(named.map(|(id, ..)| id as u64));
    }
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

fn byte_level(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value, Error> {
    let pre = gguf.text(PRE)?.unwrap_or("default");
    let Some(words) = WORDS.iter().find(|words| words.names.contains(&pre)) else {
        let known: Vec<&str> = WORDS.iter().flat_map(|words| words.names).copied().collect();
        return Err(gguf.wrong(PRE, &format!("is `{pre}`; known are {}", known.join(", "))));
    };
    let merges = gguf.texts(MERGES)?.ok_or_else(|| gguf.missing(MERGES))?;
    // A piece may begin with the blank that separates the two.
    let pair = |(at, merge): (usize, &&str)| {
        let blank = merge.char_indices().skip(1).find(|(_, c)| *c == ' ');
        let pair = blank.map(|(at, _)| json!([merge[..at], merge[at + 1..]]));
        pair.ok_or_else(|| gguf.wrong(MERGES, &format!("wants pairs; merge {at} is `{merge}`")))
    };
    let merges = merges.iter().enumerate().map(pair).collect::<Result<Vec<Value>, Error>>()?;
    let byte_level = |pattern: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": pattern });
    let splits = match words.split {
        Split::Gpt2 => vec![byte_level(true)],
        Split::DigitsAndGpt2 => vec![json!({ "type": "Digits", "individual_digits": true }), byte_level(true)],
        Split::Patterns(patterns) => {
            let split = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
            patterns.iter().map(split).chain([byte_level(false)]).collect()
        }
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocabulary.added(),
        "normalizer": words.compose.then(|| json!({ "type": "NFC" })),
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": splits },
        "post_processor": around(gguf, words.begin)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": words.whole_words,
            "vocab": vocabulary.json(),
            "merges": merges,
        },
    }))
}

fn sentence_piece(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value, Error> {
    let scores = gguf.numbers(SCORES)?.ok_or_else(|| gguf.missing(SCORES))?;
    let tokens = vocabulary.tokens.len();
    if scores.len() != tokens {
        return Err(gguf.wrong(SCORES, &format!("has {}, there are {tokens} tokens", scores.len())));
    }
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let named = gguf.token("tokenizer.ggml.unknown_token_id")?;
    let unknown = named.or_else(|| {
        let mut entries = vocabulary.entries();
        entries.find(|(.., kind)| *kind == UNKNOWN).map(|(_, token, _)| token.to_owned())
    });
    let blanks = json!({ "type": "Replace", "pattern": { "String": " " }, "content": BLANK });
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": BLANK }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    let normalizer = match prefix {
        true => {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
            json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": BLANK }, blanks] })
        }
        false => blanks,
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": around(gguf, true)?,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.json(),
            "merges": merges(vocabulary, &scores),
        },
    }))
}

/// SentencePiece merges the two neighbours whose union has the highest score: every way to make each token out of two
/// others, by the token's score.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = vocabulary.entries().map(|(id, token, _)| (token, id)).collect();
    let mut made: Vec<usize> = vocabulary
        .entries()
        .filter(|(_, _, kind)| !matches!(*kind, CONTROL | BYTE | UNKNOWN))
        .map(|(id, ..)| id)
        .collect();
    // A stable sort: of equal scores, the token that comes first.
    made.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let mut merges = Vec::new();
    for id in made {
        let token = vocabulary.tokens[id];
        let cuts = token.char_indices().skip(1).filter_map(|(at, _)| {
            let (left, right) = token.split_at(at);
            Some((ids.get(left)?, ids.get(right)?, left, right))
        });
        let mut cuts: Vec<_> = cuts.collect();
        cuts.sort();
        merges.extend(cuts.into_iter().map(|(.., left, right)| json!([left, right])));
    }
    merges
}

/// The tokens that are put around a text.
fn around(gguf: &Gguf, begin: bool) -> Result<Value, Error> {
    let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    let mut special = Map::new();
    for (name, default) in [("bos", begin), ("eos", false)] {
        let flag = gguf.flag(&format!("tokenizer.ggml.add_{name}_token"))?;
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = gguf.whole(&key)?;
        if !flag.unwrap_or(default && id.is_some()) {
            continue;
        }
        let token = gguf.token(&key)?.ok_or_else(|| gguf.missing(&key))?;
        let piece = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        single.insert(if name == "bos" { 0 } else { single.len() }, piece);
        let entry = json!({ "id": token, "ids": [id], "tokens": [token] });
        special.insert(token, entry);
    }
    if special.is_empty() {
        return Ok(Value::Null);
    }
    Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special }))
}
