//! A GGUF file, llama.cpp's format: one file, mapped into memory, with a model's configuration, tokenizer and weights.
//!
//! It becomes what a Hugging Face folder would be: its metadata a `config.json` and a `tokenizer.json`, its tensors those of
//! the reference implementation, by `tables.rs`.

mod architecture;
mod header;
mod tables;
mod tokenizer;

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value as Json};

use architecture::{Architecture, Part, Which};
use header::{Cursor, Entry, Header, Kind, Problem, TensorInfo, Value, text_at};

use super::mapped::Bytes;
use super::numbers::{Blocks, Numbers, Strand, Woven};
use super::{Change, Chat, Found};
use crate::Error;

/// A file whose header has been checked.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// The path, for messages.
    pub(crate) name: String,
    bytes: Bytes,
    header: Header,
    /// Each tensor by the reference implementation's name.
    tensors: HashMap<String, Part>,
}

impl Gguf {
    /// Maps a file and checks its header.
    pub(crate) fn open(path: &Path) -> Result<Gguf, Error> {
        let bytes = Bytes::map(path, "a GGUF file")?;
        Gguf::new(path.display().to_string(), bytes)
    }

    /// Checks the header of a file.
    pub(crate) fn new(name: String, bytes: Bytes) -> Result<Gguf, Error> {
        let header = Header::read(&bytes).map_err(|problem| match problem {
            Problem::Header(problem) => Error::File { file: name.clone(), problem },
            Problem::Key(key, problem) => Error::Key { file: name.clone(), key, problem },
            Problem::Tensor(tensor, problem) => Error::Tensor { file: name.clone(), tensor, problem },
        })?;
        let mut gguf = Gguf { name, bytes, header, tensors: HashMap::new() };
        if let Some(parts) = gguf.whole("split.count")?.filter(|&parts| parts > 1) {
            return Err(gguf.wrong("split.count", &format!("says that this is one of {parts} files; merge them first")));
        }
        let architecture = Architecture::of(&gguf)?;
        gguf.tensors = architecture.tensors(&gguf)?;
        Ok(gguf)
    }

    /// What `config.json` would say.
    pub(crate) fn config(&self) -> Result<Map<String, Json>, Error> {
        Architecture::of(self)?.config(self)
    }

    /// What `tokenizer.json` would say; `None` if the file has no tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<Option<Json>, Error> {
        tokenizer::tokenizer(self)
    }

    /// The tokens that end a text.
    pub(crate) fn end_tokens(&self) -> Result<Vec<u64>, Error> {
        tokenizer::end_tokens(self)
    }

    /// How chats become text.
    pub(crate) fn chat(&self) -> Result<Option<Chat>, Error> {
        let Some(template) = self.text("tokenizer.chat_template")? else { return Ok(None) };
        let (begin, end) = (self.token("tokenizer.ggml.bos_token_id")?, self.token("tokenizer.ggml.eos_token_id")?);
        Ok(Some(Chat { file: self.name.clone(), template: template.to_owned(), begin, end }))
    }

    /// The token whose number a key has.
    fn token(&self, key: &str) -> Result<Option<String>, Error> {
        let (id, tokens) = (self.whole(key)?, self.texts("tokenizer.ggml.tokens")?.unwrap_or_default());
        let token = |id: u64| usize::try_from(id).ok().and_then(|id| tokens.get(id).map(|token| token.to_string()));
        match id {
            Some(id) => token(id)
                .map(Some)
                .ok_or_else(|| self.wrong(key, &format!("is {id}; there are {} tokens", tokens.len()))),
            None => Ok(None),
        }
    }

    /// The names of the tensors, those of the reference implementation where they are known.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// Gives back the memory of what was read.
    pub(crate) fn release(&self) {
        self.bytes.release();
    }

    /// A tensor by the reference implementation's name.
    pub(super) fn tensor(&self, name: &str) -> Option<Found<'_>> {
        let Part { at, change, which } = self.tensors.get(name)?;
        let info = self.header.tensors.get(*at)?;
        let blocks = |info: &TensorInfo| Some(Blocks { dtype: info.dtype, bytes: self.bytes.get(info.range.clone())? });
        let all = blocks(info)?;
        let (mut shape, numbers) = match which {
            Which::All => (info.shape.clone(), Numbers::Blocks(all)),
            Which::Expert(expert) => {
                let (count, shape) = info.shape.split_first()?;
                let bytes = all.bytes.chunks_exact(all.bytes.len() / count).nth(*expert)?;
                (shape.to_vec(), Numbers::Blocks(Blocks { bytes, ..all }))
            }
            Which::With { other, rows: [one, two], turned, shape, columns } => {
                let other = blocks(self.header.tensors.get(*other)?)?;
                let strands = [
                    Strand { blocks: all, rows: *one, turned: *turned },
                    Strand { blocks: other, rows: *two, turned: false },
                ];
                let rows = Woven { strands, columns: *columns };
                (shape.clone(), Numbers::Woven { rows, first: 0, len: rows.len() })
            }
        };
        if let (Change::Transposed, [.., down, across]) = (change, &mut shape[..]) {
            std::mem::swap(down, across);
        }
        Some(Found { file: &self.name, shape, numbers, change: *change, beside: Vec::new() })
    }

    /// A tensor by its name in the file.
    fn raw(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.iter().find(|info| info.name == name)
    }

    /// The numbers of a tensor, by its name in the file.
    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let info = self.raw(name)?;
        let mut numbers = vec![0.0; info.shape.iter().product()];
        info.dtype.decode(self.bytes.get(info.range.clone())?, &mut numbers);
        Some(numbers)
    }

    /// An error about a key.
    fn wrong(&self, key: &str, problem: &str) -> Error {
        let at = self.header.entries.get(key).map(|entry| format!("at byte {} ", entry.at)).unwrap_or_default();
        Error::Key { file: self.name.clone(), key: key.into(), problem: format!("{at}{problem}") }
    }

    fn missing(&self, key: &str) -> Error {
        self.wrong(key, "is missing")
    }

    /// A value by what is wanted of it.
    fn value<T>(&self, key: &str, wants: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, Error> {
        match self.header.entries.get(key) {
            None => Ok(None),
            Some(Entry { value, .. }) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.wrong(key, &format!("wants {wants}"))),
            },
        }
    }

    /// A whole number that is not negative. Where a file gives one per layer, they have to be equal.
    fn whole(&self, key: &str) -> Result<Option<u64>, Error> {
        self.value(key, "a whole number", |value| {
            let mut all = self.elements(value).map(|value| match value {
                Value::Unsigned(n) => Some(n),
                Value::Signed(n) => u64::try_from(n).ok(),
                _ => None,
            });
            let first = all.next()??;
            all.all(|other| other == Some(first)).then_some(first)
        })
    }

    /// A number.
    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.value(key, "a number", number)
    }

    /// A truth value.
    fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.value(key, "a bool", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A text.
    fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        self.value(key, "a string", |value| match value {
            Value::Text(range) => Some(text_at(&self.bytes, range.clone())),
            _ => None,
        })
    }

    /// An array of texts.
    fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        self.value(key, "an array of strings", |value| match value {
            Value::Array(Kind::Text, ..) => {
                let text = |value| match value {
                    Value::Text(range) => Some(text_at(&self.bytes, range)),
                    _ => None,
                };
                self.elements(value).map(text).collect()
            }
            _ => None,
        })
    }

    /// An array of numbers.
    fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, Error> {
        self.value(key, "an array of numbers", |value| match value {
            Value::Array(..) => self.elements(value).map(|value| number(&value)).collect(),
            _ => None,
        })
    }

    /// The elements of an array; a single value is itself.
    fn elements(&self, value: &Value) -> impl Iterator<Item = Value> {
        let (kind, count, at) = match value {
            Value::Array(kind, count, at) => (Some(*kind), *count, *at),
            _ => (None, 1, 0),
        };
        let mut cursor = Cursor { bytes: &self.bytes, at };
        let single = value.clone();
        (0..count).map_while(move |_| match kind {
            Some(kind) => cursor.value(kind).ok(),
            None => Some(single.clone()),
        })
    }
}

/// The shortest decimal that means a single: 0.00001, and not 0.000009999999747.
fn shortest(x: f32) -> Option<f64> {
    x.to_string().parse().ok()
}

/// A number of any type.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Unsigned(n) => Some(*n as f64),
        Value::Signed(n) => Some(*n as f64),
        Value::F32(x) => shortest(*x),
        Value::F64(x) => Some(*x),
        Value::Bool(_) | Value::Text(_) | Value::Array(..) => None,
    }
}

#[cfg(test)]
mod tests;
