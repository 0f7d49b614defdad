//! One safetensors file: mapped into memory, its header checked before any tensor is touched.
//!
//! The format: eight bytes with the length of the header (little endian), the header (a JSON object: tensor name to
//! dtype, shape and offsets into the data; `__metadata__` to strings), the data, covered by the tensors without a hole.
//! The `safetensors` crate reads it; what is checked here before is what its errors do not name, and duplicate names.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::mapped::Bytes;
use super::quantised::READ;
use crate::Error;

/// The bytes before the header.
const LENGTH: usize = 8;

/// The longest header that is read, in bytes; the `safetensors` crate has the same limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// A file whose header has been checked.
#[derive(Debug)]
pub(crate) struct TensorFile {
    /// The path, for messages.
    pub(crate) name: String,
    bytes: Bytes,
    data: usize,
    metadata: Metadata,
    names: Vec<String>,
}

impl TensorFile {
    /// Maps a file and checks its header.
    pub(crate) fn open(path: &Path) -> Result<TensorFile, Error> {
        let bytes = Bytes::map(path, "a safetensors file")?;
        TensorFile::new(path.display().to_string(), bytes)
    }

    /// Checks the header of a file.
    pub(crate) fn new(name: String, bytes: Bytes) -> Result<TensorFile, Error> {
        let wrong = |problem: Problem| match problem {
            Problem::Header(problem) => Error::File { file: name.clone(), problem },
            Problem::Tensor(tensor, problem) => Error::Tensor { file: name.clone(), tensor, problem },
        };
        let names = check(&bytes).map_err(wrong)?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| Error::File { file: name.clone(), problem: error.to_string() })?;
        Ok(TensorFile { name, bytes, data: LENGTH + header, metadata, names })
    }

    /// The names of the tensors, in the order of the header.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Gives back the memory of what was read.
    pub(crate) fn release(&self) {
        self.bytes.release();
    }

    /// A tensor.
    pub(crate) fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let TensorInfo { dtype, shape, data_offsets: (start, end) } = self.metadata.info(name)?;
        let bytes = self.bytes.get(self.data + start..self.data + end)?;
        Some(Tensor { file: &self.name, dtype: *dtype, shape, bytes })
    }
}

/// A tensor of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor<'a> {
    /// The file, for messages.
    pub(crate) file: &'a str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

/// What is wrong with a file: with its header as a whole, or with a tensor's entry.
enum Problem {
    Header(String),
    Tensor(String, String),
}

/// Checks a whole file; yields the tensors' names in the order of the header.
fn check(bytes: &[u8]) -> Result<Vec<String>, Problem> {
    let header = |problem: String| Err(Problem::Header(problem));
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return header(format!("truncated: {} bytes, a safetensors file starts with {LENGTH}", bytes.len()));
    };
    if let Some(problem) = super::in_place_of(bytes) {
        return header(problem.into());
    }
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER {
        return header(format!(
            "not a safetensors file: a header of {length} bytes (at most {LONGEST_HEADER} are read)"
        ));
    }
    let Some((text, data)) = rest.split_at_checked(length as usize) else {
        return header(format!("truncated: a header of {length} bytes was expected, {} are there", rest.len()));
    };
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => return header(format!("the header is not UTF-8: {error}")),
    };
    let entries: Entries = match serde_json::from_str(text) {
        Ok(entries) => entries,
        Err(error) => return header(format!("the header is not a JSON object: {error}")),
    };

    let mut names = Vec::new();
    let mut tensors = Vec::new();
    for (name, value) in entries.0 {
        if name == "__metadata__" {
            let strings = value.as_object().is_some_and(|object| object.values().all(Value::is_string));
            if !strings {
                return header("`__metadata__` wants an object of strings".into());
            }
            continue;
        }
        match entry(&value) {
            Ok((start, end)) => tensors.push((start, end, name.clone())),
            Err(problem) => return Err(Problem::Tensor(name, problem)),
        }
        names.push(name);
    }
    cover(tensors, data.len())?;
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Problem::Tensor(pair[0].clone(), "is there twice".into())),
        None => Ok(names),
    }
}

/// Checks one tensor's entry by itself; yields its offsets.
fn entry(value: &Value) -> Result<(usize, usize), String> {
    let field = |key: &str| value.get(key).ok_or(format!("has no `{key}`"));
    let dtype = field("dtype")?;
    let Some(bits) = serde_json::from_value::<Dtype>(dtype.clone()).ok().map(|dtype| dtype.bitsize()) else {
        return Err(format!("has the unknown dtype {dtype}; {READ} can be used"));
    };
    let shape = numbers(field("shape")?).ok_or("wants a `shape` of whole numbers")?;
    let offsets = numbers(field("data_offsets")?);
    let Some(&[start, end]) = offsets.as_deref() else {
        return Err("wants `data_offsets` of two whole numbers".into());
    };
    if end < start {
        return Err(format!("ends before it starts, with offsets {start} and {end}"));
    }
    let bits = shape.iter().try_fold(bits, |bits, &size| bits.checked_mul(size));
    let Some(bits) = bits else {
        return Err(format!("has the absurd shape {shape:?}"));
    };
    if !bits.is_multiple_of(8) || bits / 8 != end - start {
        let dtype = dtype.as_str().unwrap_or_default();
        let wants = bits.div_ceil(8);
        return Err(format!("of {dtype} {shape:?} wants {wants} bytes, its offsets hold {}", end - start));
    }
    Ok((start, end))
}

fn numbers(value: &Value) -> Option<Vec<usize>> {
    let each = value.as_array()?.iter().map(|number| usize::try_from(number.as_u64()?).ok());
    each.collect()
}

/// Checks that the tensors (start, end, name) cover the data, without hole or overlap.
fn cover(mut tensors: Vec<(usize, usize, String)>, data: usize) -> Result<(), Problem> {
    tensors.sort();
    let mut covered = 0;
    let mut before: Option<String> = None;
    for (start, end, name) in tensors {
        let problem = if end > data {
            Some(format!("ends at byte {end} of the data, the file has {data}: truncated?"))
        } else if start < covered {
            let before = before.unwrap_or_default();
            Some(format!("starts at byte {start} of the data, within `{before}`, which ends at {covered}"))
        } else if start > covered {
            Some(format!("starts at byte {start} of the data, the tensors before it end at {covered}"))
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(Problem::Tensor(name, problem));
        }
        covered = end;
        before = Some(name);
    }
    if covered != data {
        return Err(Problem::Header(format!("the last {} bytes belong to no tensor", data - covered)));
    }
    Ok(())
}

/// The header's entries in their order, duplicates included.
struct Entries(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with an entry for each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some((name, value)) = map.next_entry::<Cow<'de, str>, Value>()? {
                    entries.push((name.into_owned(), value));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}
