//! The head of a GGUF file: metadata and the tensors' descriptions, all of it checked before any tensor is touched.
//!
//! The format (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), little endian: `GGUF`, the version, how many
//! tensors and metadata entries there are, the entries (key, type, value), the tensors' descriptions (name, dimensions, type,
//! offset into the data), padding, the data. A string is its length and its UTF-8 bytes; an array is the type and number
//! of its elements and the elements.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::in_place_of;

/// Where tensors begin is a multiple of this, unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;

/// The most dimensions that a tensor may have, which is ggml's limit.
const MOST_DIMENSIONS: u32 = 4;

/// What is wrong with a header.
#[derive(Debug)]
pub(crate) enum Problem {
    /// With the file as a whole.
    Header(String),
    /// With the metadata of a key.
    Key(String, String),
    /// With a tensor's description.
    Tensor(String, String),
}

/// A checked header.
#[derive(Debug)]
pub(crate) struct Header {
    /// The metadata by key.
    pub(crate) entries: HashMap<String, Entry>,
    /// The tensors in the order of the file.
    pub(crate) tensors: Vec<TensorInfo>,
}

/// A metadata entry: its value, and the byte where that begins.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) at: usize,
    pub(crate) value: Value,
}

/// A value of the metadata. Text and arrays stay in the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// The bytes of the text, checked to be UTF-8.
    Text(Range<usize>),
    /// The elements' type, how many there are, and the byte where they begin; all are checked.
    Array(Kind, usize, usize),
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Text = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

/// A tensor's description.
#[derive(Debug)]
pub(crate) struct TensorInfo {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// Its dimensions, the last one being that of neighbours in memory.
    pub(crate) shape: Vec<usize>,
    /// Which of the files has it; the first, but where a model is split.
    pub(crate) file: usize,
    /// Its bytes in the file.
    pub(crate) range: Range<usize>,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::Text,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    /// The bytes of a value, or the least that it can have.
    fn least(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::Text | Kind::U64 | Kind::I64 | Kind::F64 => 8,
            Kind::Array => 12,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::U8 => "u8",
            Kind::I8 => "i8",
            Kind::U16 => "u16",
            Kind::I16 => "i16",
            Kind::U32 => "u32",
            Kind::I32 => "i32",
            Kind::F32 => "f32",
            Kind::Bool => "bool",
            Kind::Text => "string",
            Kind::Array => "array",
            Kind::U64 => "u64",
            Kind::I64 => "i64",
            Kind::F64 => "f64",
        })
    }
}

impl Header {
    /// Reads and checks the header of a file.
    pub(crate) fn read(bytes: &[u8]) -> Result<Header, Problem> {
        let mut cursor = Cursor { bytes, at: 0 };
        let header = Problem::Header;
        match bytes.get(..4) {
            Some(b"GGUF") => {}
            Some(other) => {
                let start = other.escape_ascii();
                let problem = || format!("not a GGUF file: it starts with \"{start}\", not \"GGUF\"");
                return Err(header(in_place_of(bytes).map_or_else(problem, str::to_owned)));
            }
            None => return Err(header(format!("truncated: {} bytes, a GGUF file starts with 24", bytes.len()))),
        }
        cursor.at = 4;
        let version = cursor.u32().map_err(|e| header(e.of("the version")))?;
        if !matches!(version, 2 | 3) {
            let hint = if matches!(version.swap_bytes(), 1..=3) { " (a big endian file?)" } else { "" };
            return Err(header(format!("version {version} at byte 4; 2 and 3 can be read{hint}")));
        }
        let tensors = cursor.u64().map_err(|e| header(e.of("the number of tensors")))?;
        let entries = cursor.u64().map_err(|e| header(e.of("the number of metadata entries")))?;
        // The least that a description or an entry takes: an empty name, no dimension; an empty key, a byte.
        for (what, at, number, least) in [("tensors", 8, tensors, 24), ("metadata entries", 16, entries, 13)] {
            let room = cursor.left() as u64 / least;
            if number > room {
                return Err(header(format!("{number} {what} at byte {at}; the file has room for {room} at most")));
            }
        }
        let entries = read_entries(&mut cursor, entries)?;
        let alignment = alignment(&entries)?;
        let described = read_tensors(&mut cursor, tensors)?;
        let tensors = place(described, alignment, (cursor.at as u64).next_multiple_of(alignment), bytes.len() as u64)?;
        Ok(Header { entries, tensors })
    }
}

fn read_entries(cursor: &mut Cursor<'_>, number: u64) -> Result<HashMap<String, Entry>, Problem> {
    let mut entries = HashMap::new();
    for index in 0..number {
        let key = cursor.text().map_err(|e| Problem::Header(e.of(&format!("the key of metadata entry {index}"))))?;
        let key = cursor.str(key).to_owned();
        let wrong = |e: Short| Problem::Key(key.clone(), e.within());
        let kind = cursor.kind().map_err(wrong)?;
        let at = cursor.at;
        let value = cursor.value(kind).map_err(wrong)?;
        if entries.contains_key(&key) {
            return Err(Problem::Key(key, format!("at byte {at} is there twice")));
        }
        entries.insert(key, Entry { at, value });
    }
    Ok(entries)
}

fn alignment(entries: &HashMap<String, Entry>) -> Result<u64, Problem> {
    let key = "general.alignment";
    match entries.get(key) {
        None => Ok(ALIGNMENT),
        // It is a u32 by the specification, so that no sum below can overflow.
        Some(Entry { value: Value::Unsigned(n), .. }) if n.is_power_of_two() && *n <= u32::MAX as u64 => Ok(*n),
        Some(entry) => Err(Problem::Key(key.into(), format!("at byte {} wants a power of two (u32)", entry.at))),
    }
}

/// A tensor's description as it is in the file.
struct Described {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
    /// The byte where the description of the offset begins.
    at: usize,
}

fn read_tensors(cursor: &mut Cursor<'_>, number: u64) -> Result<Vec<Described>, Problem> {
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for index in 0..number {
        let name = cursor.text().map_err(|e| Problem::Header(e.of(&format!("the name of tensor {index}"))))?;
        let name = cursor.str(name).to_owned();
        let tensor = describe(cursor, &name).map_err(|problem| Problem::Tensor(name.clone(), problem))?;
        if !names.insert(name.clone()) {
            return Err(Problem::Tensor(name, "is there twice".into()));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn describe(cursor: &mut Cursor<'_>, name: &str) -> Result<Described, String> {
    let at = cursor.at;
    let dimensions = cursor.u32().map_err(|e| e.of("the number of dimensions"))?;
    if dimensions > MOST_DIMENSIONS {
        return Err(format!("has {dimensions} dimensions at byte {at}; at most {MOST_DIMENSIONS} were expected"));
    }
    let at = cursor.at;
    let sizes = (0..dimensions).map(|i| cursor.u64().map_err(|e| e.of(&format!("dimension {i}"))));
    let sizes = sizes.collect::<Result<Vec<u64>, String>>()?;
    let type_at = cursor.at;
    let code = cursor.u32().map_err(|e| e.of("the type"))?;
    let Some(dtype) = Dtype::of_code(code) else {
        let known: Vec<String> = Dtype::all_of_gguf().map(|dtype| dtype.name().to_owned()).collect();
        return Err(format!("is of the type {code} at byte {type_at}, which is none of {}", known.join(", ")));
    };
    let (length, size) = (dtype.block_length() as u64, dtype.block_bytes() as u64);
    let row = sizes.first().copied().unwrap_or(1);
    if !row.is_multiple_of(length) {
        let name = dtype.name();
        return Err(format!("of {name} has rows of {row} at byte {at}, which are not whole blocks of {length}"));
    }
    let elements = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size)).filter(|&n| n > 0);
    let bytes = elements.and_then(|elements| (elements / length).checked_mul(size));
    let shape: Option<Vec<usize>> = sizes.iter().rev().map(|&size| usize::try_from(size).ok()).collect();
    let (Some(bytes), Some(shape)) = (bytes, shape) else {
        return Err(format!("has the absurd dimensions {sizes:?} at byte {at}"));
    };
    let at = cursor.at;
    let offset = cursor.u64().map_err(|e| e.of("the offset"))?;
    Ok(Described { name: name.to_owned(), dtype, shape, bytes, offset, at })
}

/// Checks that every tensor has its own place in the data, which begins at byte `start` of a file of `end` bytes.
fn place(tensors: Vec<Described>, alignment: u64, start: u64, end: u64) -> Result<Vec<TensorInfo>, Problem> {
    let wrong = |tensor: &Described, problem| {
        let problem = format!("has the offset {} at byte {}, {problem}", tensor.offset, tensor.at);
        Err(Problem::Tensor(tensor.name.clone(), problem))
    };
    let data = end.saturating_sub(start);
    let mut order: Vec<&Described> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    // Every writer leaves nothing but padding between tensors, and llama.cpp insists on it.
    let mut covered = 0;
    for tensor in order {
        if !tensor.offset.is_multiple_of(alignment) {
            return wrong(tensor, format!("which is not a multiple of the alignment {alignment}"));
        }
        let Some(last) = tensor.offset.checked_add(tensor.bytes).filter(|&last| last <= data) else {
            let bytes = tensor.bytes;
            return wrong(tensor, format!("from where its {bytes} bytes exceed the {data} of the data: truncated?"));
        };
        let next = u64::next_multiple_of(covered, alignment);
        if tensor.offset != next {
            return wrong(tensor, format!("where the tensors before it make it {next}"));
        }
        covered = last;
    }
    let rest = data.saturating_sub(covered.next_multiple_of(alignment));
    if rest > 0 {
        return Err(Problem::Header(format!("the last {rest} bytes belong to no tensor")));
    }
    let placed = tensors.into_iter().map(|Described { name, dtype, shape, bytes, offset, .. }| {
        // Both are at most `end`, the length of a slice.
        let (first, last) = ((start + offset) as usize, (start + offset + bytes) as usize);
        TensorInfo { name, dtype, shape, file: 0, range: first..last }
    });
    Ok(placed.collect())
}

/// What is wrong at a byte: `truncated at byte 9: … wants 8 bytes, 2 are left`.
pub(super) struct Short {
    at: usize,
    problem: String,
}

impl Short {
    /// As a problem of the file, at a field.
    fn of(self, field: &str) -> String {
        format!("{field} at byte {} {}", self.at, self.problem)
    }

    /// As a problem of a key, which is named before it.
    fn within(self) -> String {
        format!("at byte {} {}", self.at, self.problem)
    }
}

/// A place in a file.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn error<T>(&self, problem: impl Into<String>) -> Result<T, Short> {
        Err(Short { at: self.at, problem: problem.into() })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let Some(bytes) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>()) else {
            return self.error(format!("is truncated: it wants {N} bytes, {} are left", self.left()));
        };
        self.at += N;
        Ok(*bytes)
    }

    fn u32(&mut self) -> Result<u32, Short> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Short> {
        self.take().map(u64::from_le_bytes)
    }

    /// A string: where its bytes are.
    fn text(&mut self) -> Result<Range<usize>, Short> {
        let at = self.at;
        let length = self.u64()?;
        let start = self.at;
        if length > self.left() as u64 {
            let problem = format!("is truncated: a string of {length} bytes, {} are left", self.left());
            return Err(Short { at, problem });
        }
        let end = start + length as usize;
        if let Err(error) = std::str::from_utf8(&self.bytes[start..end]) {
            return Err(Short { at: start, problem: format!("is not UTF-8: {error}") });
        }
        self.at = end;
        Ok(start..end)
    }

    /// The text at a place that [`Cursor::text`] gave.
    fn str(&self, range: Range<usize>) -> &'a str {
        text_at(self.bytes, range)
    }

    fn kind(&mut self) -> Result<Kind, Short> {
        let at = self.at;
        let code = self.u32()?;
        let kind = Kind::ALL.into_iter().find(|&kind| kind as u32 == code);
        kind.ok_or_else(|| Short { at, problem: format!("is of the unknown type {code}") })
    }

    /// A value of a kind.
    pub(super) fn value(&mut self, kind: Kind) -> Result<Value, Short> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.take()?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.take()?).into()),
            Kind::U32 => Value::Unsigned(self.u32()?.into()),
            Kind::U64 => Value::Unsigned(self.u64()?),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.take()?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.take()?).into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.take()?).into()),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.take()?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(self.take()?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(self.take()?)),
            Kind::Bool => match self.take()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [byte] => return Err(Short { at: self.at - 1, problem: format!("is the bool {byte}, not 0 or 1") }),
            },
            Kind::Text => Value::Text(self.text()?),
            Kind::Array => self.array()?,
        })
    }

    fn array(&mut self) -> Result<Value, Short> {
        let at = self.at;
        let kind = self.kind()?;
        if kind == Kind::Array {
            return Err(Short { at, problem: "is an array of arrays, which is not read".into() });
        }
        let at = self.at;
        let count = self.u64()?;
        let room = self.left() / kind.least();
        if count > room as u64 {
            let problem = format!("is an array of {count} {kind}; the file has room for {room} at most: truncated?");
            return Err(Short { at, problem });
        }
        let (count, start) = (count as usize, self.at);
        match kind {
            Kind::Text | Kind::Bool => (0..count).try_for_each(|_| self.value(kind).map(drop))?,
            kind => self.at += count * kind.least(),
        }
        Ok(Value::Array(kind, count, start))
    }
}

/// The text at a place of a file that was found to be UTF-8; empty if someone changed it since.
pub(super) fn text_at(bytes: &[u8], range: Range<usize>) -> &str {
    bytes.get(range).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
}
