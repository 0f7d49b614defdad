//! What a `tokenizer.json` says, and the tokenizer that it describes.
//!
//! Left to itself the `tokenizers` crate would find out which model there is by trying, through several copies of a vocabulary
//! that can be most of what loading takes, and its errors would not say where a mistake is.

use std::fmt;

use einfuse_graph::from_keys;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use crate::Error;

/// A description: what is most of it as it is to be, all else as the file has it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Description {
    /// The file's keys, but for those of the model that follow.
    pub(crate) keys: Map<String, Value>,
    pub(crate) vocabulary: Option<Vocabulary>,
    pub(crate) merges: Option<Merges>,
}

/// The tokens of a model.
#[derive(Debug, PartialEq)]
pub(crate) enum Vocabulary {
    /// With their numbers.
    Ids(Vocab),
    /// In order, with their scores.
    Scores(Vec<(String, f64)>),
}

/// The keys of a model but for its vocabulary, whichever it is.
#[derive(Deserialize)]
struct Options {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    unk_id: Option<usize>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<usize>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
}

/// What is around a model. What a training script left there of truncation and padding is not meant for texts to be continued.
#[derive(Deserialize)]
struct Around {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
}

impl Description {
    /// Reads the content of a `tokenizer.json`; `file` is its path, for messages.
    pub(crate) fn parse(file: &str, json: &[u8]) -> Result<Description, Error> {
        serde_json::from_slice(json).map_err(|error| {
            let is = if error.is_data() { "not a tokenizer" } else { "not JSON" };
            Error::File { file: file.to_owned(), problem: format!("{is}: {error}") }
        })
    }

    /// The tokenizer.
    pub(crate) fn tokenizer(self) -> Result<tokenizers::Tokenizer, String> {
        let Description { keys, vocabulary, merges } = self;
        for part in ["pre_tokenizer", "post_processor", "decoder"] {
            let checked = keys.get(part).map_or(Ok(()), check_part);
            checked.map_err(|problem| format!("`{part}`: {problem}"))?;
        }
        let model = keys.get("model").and_then(Value::as_object).ok_or("`model` is missing")?;
        let options = from_keys(model.iter().map(|(key, value)| (key.as_str(), value)));
        let options = options.map_err(|error| error.to_string());
        let model = options.and_then(|options| model_of(options, vocabulary, merges));
        let model = model.map_err(|problem| format!("`model`: {problem}"))?;
        let around = keys.iter().map(|(key, value)| (key.as_str(), value));
        let around: Around = from_keys(around).map_err(|error| error.to_string())?;
        if let Some(version) = around.version.filter(|version| version != "1.0") {
            return Err(format!("`version` is {version}; 1.0 can be read"));
        }
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        tokenizer
            .with_normalizer(around.normalizer)
            .with_pre_tokenizer(around.pre_tokenizer)
            .with_post_processor(around.post_processor)
            .with_decoder(around.decoder);
        tokenizer.add_tokens(&around.added_tokens);
        Ok(tokenizer)
    }
}

/// The model. Older files, GPT-2's among them, don't say which it is: then it shows in what it has.
fn model_of(options: Options, vocabulary: Option<Vocabulary>, merges: Option<Merges>) -> Result<ModelWrapper, String> {
    let kind = match &options.kind {
        Some(kind) => kind.as_str(),
        None if merges.is_some() => "BPE",
        None if options.max_input_chars_per_word.is_some() => "WordPiece",
        None => match vocabulary {
            Some(Vocabulary::Ids(_)) => "WordLevel",
            Some(Vocabulary::Scores(_)) => "Unigram",
            None => "",
        },
    };
    fn wanted<T>(value: Option<T>, key: &str) -> Result<T, String> {
        value.ok_or_else(|| format!("`{key}` is missing"))
    }
    let ids = |vocabulary| match wanted(vocabulary, "vocab")? {
        Vocabulary::Ids(ids) => Ok(ids),
        Vocabulary::Scores(_) => Err("`vocab` wants the number of each token".to_owned()),
    };
    let made = match kind {
        "BPE" => bpe(options, ids(vocabulary)?, wanted(merges, "merges")?)?.build().map(Into::into),
        "Unigram" => match wanted(vocabulary, "vocab")? {
            Vocabulary::Scores(scores) => {
                Unigram::from(scores, options.unk_id, options.byte_fallback.unwrap_or(false)).map(Into::into)
            }
            Vocabulary::Ids(_) => return Err("`vocab` wants a list of tokens with their scores".to_owned()),
        },
        "WordPiece" => {
            let unknown = wanted(options.unk_token, "unk_token")?;
            let prefix = wanted(options.continuing_subword_prefix, "continuing_subword_prefix")?;
            let most = wanted(options.max_input_chars_per_word, "max_input_chars_per_word")?;
            let builder = WordPiece::builder().vocab(ids(vocabulary)?).unk_token(unknown);
            builder.continuing_subword_prefix(prefix).max_input_chars_per_word(most).build().map(Into::into)
        }
        "WordLevel" => {
            let unknown = wanted(options.unk_token, "unk_token")?;
            WordLevel::builder().vocab(ids(vocabulary)?).unk_token(unknown).build().map(Into::into)
        }
        _ => return Err("wants a `type`: BPE, Unigram, WordPiece or WordLevel".to_owned()),
    };
    made.map_err(|error| error.to_string())
}

fn bpe(options: Options, vocabulary: Vocab, merges: Merges) -> Result<tokenizers::models::bpe::BpeBuilder, String> {
    // Of a piece without it the crate would take off more than there is.
    if let Some(prefix) = options.continuing_subword_prefix.as_deref().filter(|prefix| !prefix.is_empty())
        && let Some((first, second)) = merges.iter().find(|(_, second)| !second.starts_with(prefix))
    {
        let problem = format!("does not have the prefix `{prefix}` of pieces within words");
        return Err(format!("the merge of `{first}` and `{second}` {problem}"));
    }
    let mut builder = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .fuse_unk(options.fuse_unk.unwrap_or(false))
        .byte_fallback(options.byte_fallback.unwrap_or(false))
        .ignore_merges(options.ignore_merges.unwrap_or(false));
    if let Some(dropout) = options.dropout {
        builder = builder.dropout(dropout);
    }
    if let Some(token) = options.unk_token {
        builder = builder.unk_token(token);
    }
    if let Some(prefix) = options.continuing_subword_prefix {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = options.end_of_word_suffix {
        builder = builder.end_of_word_suffix(suffix);
    }
    Ok(builder)
}

/// Checks a part of a tokenizer, and the parts that it is a sequence of, for what the `tokenizers` crate is known to panic on.
fn check_part(part: &Value) -> Result<(), String> {
    match part.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            ["pretokenizers", "processors", "decoders"].iter().flat_map(|key| list(part, key)).try_for_each(check_part)
        }
        Some("TemplateProcessing") => list(part, "single").iter().try_for_each(|piece| {
            if piece.pointer("/Sequence/id").is_some_and(|id| id != "A") {
                return Err("the template of a single text wants a second one".into());
            }
            let known = |token: &str| part.get("special_tokens").is_some_and(|tokens| tokens.get(token).is_some());
            match piece.pointer("/SpecialToken/id").and_then(Value::as_str) {
                Some(token) if !known(token) => {
                    Err(format!("the template has `{token}`, which is not among its special tokens"))
                }
                _ => Ok(()),
            }
        }),
        Some("FixedLength") if part.get("length").and_then(Value::as_u64) == Some(0) => {
            Err("pieces of a fixed `length` have at least one character".into())
        }
        Some("Strip") if part.get("stop").and_then(Value::as_u64).is_some_and(|stop| stop > 0) => {
            Err("a decoder that strips the end of a text cannot give it out as it comes".into())
        }
        _ => Ok(()),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl<'de> Deserialize<'de> for Description {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Description, D::Error> {
        struct File;

        impl<'de> Visitor<'de> for File {
            type Value = Description;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that describes a tokenizer")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Description, A::Error> {
                let mut description = Description::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "model" {
                        map.next_value_seed(Model(&mut description))?;
                    } else {
                        description.keys.insert(key, map.next_value()?);
                    }
                }
                Ok(description)
            }
        }

        deserializer.deserialize_map(File)
    }
}

/// Reads what a model says.
struct Model<'a>(&'a mut Description);

impl<'de> DeserializeSeed<'de> for Model<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Model<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the `model` of a tokenizer, an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Model(Description { keys, vocabulary, merges }) = self;
        let mut options = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "vocab" => *vocabulary = map.next_value()?,
                "merges" => *merges = map.next_value::<Option<AllMerges>>()?.map(|AllMerges(merges)| merges),
                _ => drop(options.insert(key, map.next_value()?)),
            }
        }
        keys.insert("model".to_owned(), Value::Object(options));
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocabulary, D::Error> {
        struct Tokens;

        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`vocab`, an object of tokens with their numbers or a list of tokens with their scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut ids = Vocab::default();
                while let Some((token, id)) = map.next_entry()? {
                    ids.insert(token, id);
                }
                Ok(Vocabulary::Ids(ids))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
                let mut scores = Vec::new();
                while let Some(scored) = list.next_element()? {
                    scores.push(scored);
                }
                Ok(Vocabulary::Scores(scores))
            }
        }

        deserializer.deserialize_any(Tokens)
    }
}

/// Merges, each a pair of pieces or, as older files have them, a line with a blank between the two.
struct AllMerges(Merges);

/// One of them; none of a line that only says which version the file has.
struct Merge(Option<(String, String)>);

impl<'de> Deserialize<'de> for AllMerges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AllMerges, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = AllMerges;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`merges`, a list of pairs of pieces")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<AllMerges, A::Error> {
                let mut merges = Vec::new();
                while let Some(Merge(merge)) = list.next_element()? {
                    merges.extend(merge);
                }
                Ok(AllMerges(merges))
            }
        }

        deserializer.deserialize_seq(List)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merge, D::Error> {
        struct Pair;

        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of pieces that are merged")
            }

            fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Merge, E> {
                if line.starts_with("#version") {
                    return Ok(Merge(None));
                }
                match line.split_once(' ') {
                    Some((first, second)) if !second.contains(' ') => Ok(Merge(Some((first.into(), second.into())))),
                    _ => Err(E::custom(format!("`{line}` is no pair of pieces with a blank between them"))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let pair = list.next_element()?.zip(list.next_element()?);
                match (pair, list.next_element::<serde::de::IgnoredAny>()?) {
                    (Some(pair), None) => Ok(Merge(Some(pair))),
                    _ => Err(A::Error::custom("a merge wants two pieces")),
                }
            }
        }

        deserializer.deserialize_any(Pair)
    }
}
