//! A GGUF file, llama.cpp's format: one file, mapped into memory, with a model's configuration, tokenizer and weights; or
//! several that its `gguf-split` made of one, of which the first has all metadata.
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
use crate::tokens::Description;

/// How many files there are, which of them one is, and how many tensors all have.
const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";

/// Files whose headers have been checked.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// The path of the file that has the metadata, for messages.
    pub(crate) name: String,
    bytes: Bytes,
    /// That file's metadata, and the tensors of all files.
    header: Header,
    /// The paths and the bytes of the others.
    others: Vec<(String, Bytes)>,
    /// Each tensor by the reference implementation's name.
    tensors: HashMap<String, Part>,
}

impl Gguf {
    /// Maps a file, or all files of a model of which it is one, and checks their headers.
    pub(crate) fn open(path: &Path) -> Result<Gguf, Error> {
        let one = Gguf::map(path)?;
        match one.split()? {
            Some(split) => Gguf::join(&one, path, split)?.named(),
            None => one.named(),
        }
    }

    /// Checks the header of a file that is a whole model.
    pub(crate) fn new(name: String, bytes: Bytes) -> Result<Gguf, Error> {
        let gguf = Gguf::read(name, bytes)?;
        match gguf.split()? {
            Some((_, count)) => Err(gguf.wrong(COUNT, &format!("says that this is one of {count} files"))),
            None => gguf.named(),
        }
    }

    fn map(path: &Path) -> Result<Gguf, Error> {
        let bytes = Bytes::map(path, "a GGUF file")?;
        Gguf::read(path.display().to_string(), bytes)
    }

    fn read(name: String, bytes: Bytes) -> Result<Gguf, Error> {
        let header = Header::read(&bytes).map_err(|problem| match problem {
            Problem::Header(problem) => Error::File { file: name.clone(), problem },
            Problem::Key(key, problem) => Error::Key { file: name.clone(), key, problem },
            Problem::Tensor(tensor, problem) => Error::Tensor { file: name.clone(), tensor, problem },
        })?;
        Ok(Gguf { name, bytes, header, others: Vec::new(), tensors: HashMap::new() })
    }

    /// Which file this is, from 0 on, and of how many, if there are several.
    fn split(&self) -> Result<Option<(u64, u64)>, Error> {
        let Some(count) = self.whole(COUNT)?.filter(|&count| count > 1) else { return Ok(None) };
        let number = self.whole(NUMBER)?.ok_or_else(|| self.missing(NUMBER))?;
        if number >= count {
            return Err(self.wrong(NUMBER, &format!("is {number}; there are {count} files, from 0 on")));
        }
        Ok(Some((number, count)))
    }

    /// All files of a model of which one is given, by their names.
    fn join(one: &Gguf, path: &Path, (number, count): (u64, u64)) -> Result<Gguf, Error> {
        let ending = |number: u64| format!("-{:05}-of-{count:05}.gguf", number + 1);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(stem) = name.strip_suffix(&ending(number)) else {
            let problem = format!("is {number} of {count}, so that the file's name should end in `{}`", ending(number));
            return Err(one.wrong(NUMBER, &problem));
        };
        let mut all: Option<Gguf> = None;
        for number in 0..count {
            let path = path.with_file_name(format!("{stem}{}", ending(number)));
            if !path.exists() {
                let problem = format!("says that there are {count} files, but {} is missing", path.display());
                return Err(one.wrong(COUNT, &problem));
            }
            let mut part = Gguf::map(&path)?;
            if part.split()? != Some((number, count)) {
                return Err(
                    part.wrong(NUMBER, &format!("wants to be {number}, and `{COUNT}` {count}, as in {}", one.name))
                );
            }
            match &mut all {
                None => all = Some(part),
                Some(all) => {
                    all.others.push((part.name, part.bytes));
                    part.header.tensors.iter_mut().for_each(|info| info.file = all.others.len());
                    all.header.tensors.append(&mut part.header.tensors);
                }
            }
        }
        let all = all.ok_or_else(|| one.missing(COUNT))?;
        let found = all.header.tensors.len();
        match all.whole(TENSORS)?.filter(|&tensors| tensors != found as u64) {
            Some(tensors) => Err(all.wrong(TENSORS, &format!("is {tensors}; the {count} files have {found}"))),
            None => Ok(all),
        }
    }

    /// Finds the reference implementation's names.
    fn named(mut self) -> Result<Gguf, Error> {
        self.tensors = Architecture::of(&self)?.tensors(&self)?;
        Ok(self)
    }

    /// What `config.json` would say.
    pub(crate) fn config(&self) -> Result<Map<String, Json>, Error> {
        Architecture::of(self)?.config(self)
    }

    /// What `tokenizer.json` would say; `None` if the file has no tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<Option<Description>, Error> {
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
        self.others.iter().for_each(|(_, bytes)| bytes.release());
    }

    /// The path and the bytes of the file that has a tensor.
    fn file(&self, info: &TensorInfo) -> (&str, &Bytes) {
        let other = info.file.checked_sub(1).and_then(|at| self.others.get(at));
        other.map_or((&self.name, &self.bytes), |(name, bytes)| (name, bytes))
    }

    /// A tensor by the reference implementation's name.
    pub(super) fn tensor(&self, name: &str) -> Option<Found<'_>> {
        let Part { at, change, which } = self.tensors.get(name)?;
        let info = self.header.tensors.get(*at)?;
        let (file, _) = self.file(info);
        let blocks = |info: &TensorInfo| {
            let (_, bytes) = self.file(info);
            Some(Blocks { dtype: info.dtype, bytes: bytes.get(info.range.clone())? })
        };
        let all = blocks(info)?;
        let (mut shape, numbers) = match which {
            Which::All => (info.shape.clone(), Numbers::Blocks(all)),
            Which::Nth(nth) => {
                let (count, shape) = info.shape.split_first()?;
                let bytes = all.bytes.chunks_exact(all.bytes.len() / count).nth(*nth)?;
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
        Some(Found { file, shape, numbers, change: *change, beside: Vec::new() })
    }

    /// A tensor by its name in the file.
    fn raw(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.iter().find(|info| info.name == name)
    }

    /// The numbers of a tensor, by its name in the file.
    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let info = self.raw(name)?;
        let mut numbers = vec![0.0; info.shape.iter().product()];
        info.dtype.decode(self.file(info).1.get(info.range.clone())?, &mut numbers);
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
pub(super) mod tests;
