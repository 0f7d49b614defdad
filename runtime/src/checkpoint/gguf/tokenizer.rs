//! The tokenizer in a GGUF file's metadata, as the `tokenizer.json` that means the same.
//!
//! There are two kinds: byte-level BPE with its merges (`tokenizer.ggml.model` = `gpt2`), where `tokenizer.ggml.pre` names
//! the way in which text is split into words, and SentencePiece's BPE (`llama`), whose scores say what is merged first and
//! which has a token for each byte.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use Split::{Bytes, Digits, Gpt2, Pattern, Punctuation};

use super::Gguf;
use crate::Error;
use crate::tokens::{self, Description};

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
    MESSAGE_END,
    ANSWER_END,
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
];

/// The end of a message, which GPT-OSS's answers have several of, and of an answer.
const MESSAGE_END: &str = "<|end|>";
const ANSWER_END: &str = "<|return|>";

/// An end token where its type says that it is special; elsewhere (Gemma, Qwen) it is the end of text that is struck out.
const END: &str = "</s>";

/// How text becomes words.
struct Words {
    /// The names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    split: &'static [Split],
    /// Whether the text is normalised to Unicode's composed form (NFC) before.
    compose: bool,
    /// Whether a word that is a token needs no merges.
    whole_words: bool,
    /// Whether a begin token is added where the metadata does not say.
    begin: bool,
}

/// A step of splitting text into words, of what the steps before made of it.
enum Split {
    /// What the pattern matches is a word, and what is between matches.
    Pattern(&'static str),
    /// What is in a row of punctuation is a word, and what is between.
    Punctuation,
    /// Each digit is a word, or what is in a row of digits, and what is between.
    Digits { single: bool },
    /// Bytes become characters, of words by GPT-2's pattern.
    Gpt2,
    /// The same, but no word is split.
    Bytes,
}

/// Llama 3's pattern, which is that of OpenAI's cl100k.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The letters of DeepSeek's older pattern: most that have a case.
const CASED: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}",
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}",
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}",
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}",
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}",
    r"\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}",
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}",
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}",
    r"\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}",
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}",
    r"\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}",
    r"\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}",
    r"\x{1E900}-\x{1E943}",
    r"]+",
);

/// Chinese, Japanese and Korean characters, and all that are next to them.
const IDEOGRAPHS: &str = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+";

/// The splits of the field's byte-level tokenizers, as their `tokenizer.json` has them.
static WORDS: &[Words] = &[
    Words {
        names: &["gpt-2", "default", "phi-2", "mpt"],
        split: &[Gpt2],
        compose: false,
        whole_words: false,
        begin: false,
    },
    Words { names: &["olmo"], split: &[Gpt2], compose: true, whole_words: false, begin: false },
    Words {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        split: &[Digits { single: true }, Gpt2],
        compose: false,
        whole_words: false,
        begin: false,
    },
    Words {
        names: &["command-r"],
        split: &[Digits { single: true }, Gpt2],
        compose: true,
        whole_words: false,
        begin: true,
    },
    Words {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: &[Pattern(LLAMA3), Bytes],
        compose: false,
        whole_words: true,
        begin: true,
    },
    Words {
        names: &["dbrx", "smaug-bpe"],
        split: &[Pattern(LLAMA3), Bytes],
        compose: false,
        whole_words: false,
        begin: false,
    },
    Words {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2"],
        split: &[
            Pattern(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            Bytes,
        ],
        compose: true,
        whole_words: false,
        begin: false,
    },
    Words {
        names: &["tekken"],
        split: &[
            Pattern(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            Bytes,
        ],
        compose: false,
        whole_words: true,
        begin: true,
    },
    Words {
        names: &["gpt-4o", "llama4"],
        split: &[
            Pattern(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            Bytes,
        ],
        compose: false,
        whole_words: true,
        begin: false,
    },
    Words {
        names: &["bloom", "gpt3-finnish", "poro-chat"],
        split: &[Pattern(r" ?[^(\s|.,!?…。，、।۔،)]+"), Bytes],
        compose: false,
        whole_words: false,
        begin: false,
    },
    Words {
        names: &["falcon"],
        // Digits are looked for in what bytes became.
        split: &[Punctuation, Gpt2, Digits { single: false }, Pattern("[0-9][0-9][0-9]")],
        compose: false,
        whole_words: false,
        begin: false,
    },
    Words {
        names: &["deepseek-llm"],
        split: &[
            Pattern(r"[\r\n]"),
            Pattern(CASED),
            Pattern(r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+"),
            Pattern(r"\s+$"),
            Pattern(IDEOGRAPHS),
            Digits { single: true },
            Bytes,
        ],
        compose: false,
        whole_words: false,
        begin: true,
    },
    Words {
        names: &["deepseek-coder"],
        split: &[
            Pattern(r"[\r\n]"),
            Pattern(r"\s?\p{L}+"),
            Pattern(r"\s?\p{P}+"),
            Pattern(IDEOGRAPHS),
            Digits { single: true },
            Bytes,
        ],
        compose: false,
        whole_words: false,
        begin: true,
    },
    Words {
        names: &["deepseek-v3"],
        split: &[
            Pattern(r"\p{N}{1,3}"),
            Pattern(r"[一-龥぀-ゟ゠-ヿ]+"),
            Pattern(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
            ),
            Bytes,
        ],
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
    fn ids(&self) -> tokens::Vocabulary {
        let mut ids = tokens::Vocab::default();
        ids.reserve(self.tokens.len());
        for (id, token) in (0..).zip(&self.tokens) {
            ids.entry((*token).to_owned()).or_insert(id);
        }
        tokens::Vocabulary::Ids(ids)
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
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Option<Description>, Error> {
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
        // Where there is a token for the end of an answer, an answer is of several messages.
        let parts = vocabulary.tokens.contains(&ANSWER_END);
        let named =
            vocabulary.entries().filter(|(_, token, kind)| is_end(token, *kind) && !(parts && *token == MESSAGE_END));
        ids.extend(named.map(|(id, ..)| id as u64));
    }
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

fn byte_level(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Description, Error> {
    let pre = gguf.text(PRE)?.unwrap_or("default");
    let Some(words) = WORDS.iter().find(|words| words.names.contains(&pre)) else {
        let known: Vec<&str> = WORDS.iter().flat_map(|words| words.names).copied().collect();
        return Err(gguf.wrong(PRE, &format!("is `{pre}`; known are {}", known.join(", "))));
    };
    let merges = gguf.texts(MERGES)?.ok_or_else(|| gguf.missing(MERGES))?;
    // A piece may begin with the blank that separates the two.
    let pair = |(at, merge): (usize, &&str)| {
        let blank = merge.char_indices().skip(1).find(|(_, c)| *c == ' ');
        let pair = blank.map(|(at, _)| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
        pair.ok_or_else(|| gguf.wrong(MERGES, &format!("wants pairs; merge {at} is `{merge}`")))
    };
    let merges = merges.iter().enumerate().map(pair).collect::<Result<Vec<(String, String)>, Error>>()?;
    let byte_level = |pattern: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": pattern });
    let split = |split: &Split| match split {
        Pattern(pattern) => {
            json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
        }
        Punctuation => json!({ "type": "Punctuation", "behavior": "Contiguous" }),
        Digits { single } => json!({ "type": "Digits", "individual_digits": single }),
        Gpt2 => byte_level(true),
        Bytes => byte_level(false),
    };
    let splits: Vec<Value> = words.split.iter().map(split).collect();
    let keys = json!({
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
        },
    });
    Ok(described(keys, vocabulary, merges))
}

fn sentence_piece(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Description, Error> {
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
    let keys = json!({
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
        },
    });
    Ok(described(keys, vocabulary, merges(vocabulary, &scores)))
}

/// What a file says with these keys.
fn described(keys: Value, vocabulary: &Vocabulary<'_>, merges: Vec<(String, String)>) -> Description {
    let keys = if let Value::Object(keys) = keys { keys } else { Map::new() };
    Description { keys, vocabulary: Some(vocabulary.ids()), merges: Some(merges) }
}

/// SentencePiece merges the two neighbours whose union has the highest score: every way to make each token out of two
/// others, by the token's score.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<(String, String)> {
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
        merges.extend(cuts.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())));
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
