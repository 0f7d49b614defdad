//! What a declared model shares at load time: its errors, reading its keys, arithmetic on its sizes.

use std::fmt::Display;
use std::ops::Range;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::builder::BuildError;
use crate::keyed::from_keys;
use crate::message::one_line;

/// Sizes and counts above this are taken for a broken config: they would ask for more memory than any machine has.
const LARGEST: u64 = 1 << 24;

/// Layers above this are taken for a broken config.
const MOST_LAYERS: usize = 10_000;

/// Why a config makes no graph: one line that names the key, the axis or the tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The config is not a JSON object.
    #[error("the config of {model} is not an object of keys and values")]
    NotAnObject {
        /// The model's name.
        model: &'static str,
    },
    /// A key without a default is missing (or null).
    #[error("the config has no {keys}, which {model} needs")]
    Missing {
        /// The model's name.
        model: &'static str,
        /// The keys of which one is needed, each in backquotes.
        keys: String,
    },
    /// A key's value can't be read.
    #[error("{}", one_line(format!("the config's {keys}: {message}")))]
    Invalid {
        /// The keys in question, each in backquotes.
        keys: String,
        /// What was found and what was expected.
        message: String,
    },
    /// Keys whose values don't make sense; the message names them.
    #[error("{}", one_line(format!("the config: {message}")))]
    Keys {
        /// The keys, each in backquotes, what was found and what was expected.
        message: String,
    },
    /// A key has a value that the model's equations don't describe.
    #[error("the config's `{key}` is {found}, {model} supports only {wanted}")]
    Unsupported {
        /// The model's name.
        model: &'static str,
        /// The key.
        key: String,
        /// Its value, as JSON.
        found: String,
        /// The values that are supported, as JSON.
        wanted: String,
    },
    /// Sizes that don't fit together: a division with a remainder, an overflow.
    #[error("{}", one_line(format!("{of}: {message}")))]
    Size {
        /// The axis or value that was computed, with its formula over the config's keys.
        of: String,
        /// What went wrong, with the numbers.
        message: String,
    },
    /// A constant that the host could not compute.
    #[error("{}", one_line(format!("the constant `{name}`: {message}")))]
    Host {
        /// The constant's name in the model.
        name: &'static str,
        /// What the host says.
        message: String,
    },
    /// The equations don't fit together with this config.
    #[error("{}{}", .0.message, place(.0))]
    Build(#[from] BuildError),
}

fn place(error: &BuildError) -> String {
    match &error.location {
        Some(at) => format!(" ({}:{}:{})", at.file, at.line, at.column),
        None => String::new(),
    }
}

fn quoted(keys: &[&str]) -> String {
    let keys: Vec<String> = keys.iter().map(|k| format!("`{k}`")).collect();
    keys.join(" or ")
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The keys of a config.json, read for one model. A key that is null counts as missing, but for what is read from all keys.
pub struct Source<'a> {
    model: &'static str,
    keys: &'a Map<String, Value>,
}

impl<'a> Source<'a> {
    /// The keys of `config`, which must be an object.
    pub fn new(model: &'static str, config: &'a Value) -> Result<Source<'a>, ModelError> {
        match config.as_object() {
            Some(keys) => Ok(Source { model, keys }),
            None => Err(ModelError::NotAnObject { model }),
        }
    }

    fn first<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, &'a Value)> {
        keys.iter().find_map(|&key| Some((key, self.keys.get(key).filter(|v| !v.is_null())?)))
    }

    /// Whether one of the keys is there, and none with another value than null.
    pub fn is_null(&self, keys: &[&str]) -> bool {
        self.first(keys).is_none() && keys.iter().any(|key| self.keys.contains_key(*key))
    }

    fn read<T>(
        &self,
        keys: &[&str],
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some((key, value)) = self.first(keys) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(ModelError::Invalid {
                keys: quoted(&[key]),
                message: format!("expected {expected}, found {}", shortened(value)),
            }),
        }
    }

    /// An axis size: 1 to 2^24.
    pub fn size(&self, keys: &[&str]) -> Result<Option<usize>, ModelError> {
        self.read(keys, "a size from 1 to 16777216", |value| {
            value.as_u64().filter(|n| (1..=LARGEST).contains(n)).map(|n| n as usize)
        })
    }

    /// A count: 0 to 2^24.
    pub fn count(&self, keys: &[&str]) -> Result<Option<usize>, ModelError> {
        self.read(keys, "a count from 0 to 16777216", |value| {
            value.as_u64().filter(|&n| n <= LARGEST).map(|n| n as usize)
        })
    }

    /// A real number that is finite in `f32`.
    pub fn real(&self, keys: &[&str]) -> Result<Option<f32>, ModelError> {
        self.read(keys, "a number", |value| value.as_f64().map(|x| x as f32).filter(|x| x.is_finite()))
    }

    /// A truth value; a number is true unless it is 0.
    pub fn flag(&self, keys: &[&str]) -> Result<Option<bool>, ModelError> {
        let flag = |value: &Value| value.as_bool().or_else(|| value.as_u64().map(|number| number != 0));
        self.read(keys, "true or false", flag)
    }

    /// A value of any type that serde can read.
    pub fn value<T: DeserializeOwned>(&self, keys: &[&str]) -> Result<Option<T>, ModelError> {
        let Some((key, value)) = self.first(keys) else { return Ok(None) };
        match T::deserialize(value) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(ModelError::Invalid { keys: quoted(&[key]), message: error.to_string() }),
        }
    }

    /// A value read from an object of those of the keys that are there.
    pub fn gathered<T: DeserializeOwned>(&self, keys: &[&str]) -> Result<T, ModelError> {
        let there: Vec<(&str, &Value)> = keys.iter().filter_map(|&key| self.first(&[key])).collect();
        from_keys(there.iter().copied()).map_err(|error| {
            let named: Vec<&str> = if there.is_empty() { keys.to_vec() } else { there.iter().map(|p| p.0).collect() };
            ModelError::Invalid { keys: quoted(&named), message: error.to_string() }
        })
    }

    /// A value read from all keys that are there, those that are null among them. Its own errors say which of them they are about.
    pub fn whole<T: DeserializeOwned>(&self) -> Result<T, ModelError> {
        from_keys(self.keys.iter().map(|(key, value)| (key.as_str(), value)))
            .map_err(|error| ModelError::Keys { message: error.to_string() })
    }

    /// The value, or the error that none of its keys is there.
    pub fn required<T>(&self, value: Option<T>, keys: &[&str]) -> Result<T, ModelError> {
        value.ok_or_else(|| ModelError::Missing { model: self.model, keys: quoted(keys) })
    }

    /// Refuses a key that is there with another value than those allowed.
    pub fn require(&self, key: &str, allowed: &[Value]) -> Result<(), ModelError> {
        let Some((_, found)) = self.first(&[key]) else { return Ok(()) };
        let equal = |a: &Value| a == found || (a.is_number() && a.as_f64() == found.as_f64());
        if allowed.iter().any(equal) {
            return Ok(());
        }
        let wanted: Vec<String> = allowed.iter().map(Value::to_string).collect();
        Err(ModelError::Unsupported {
            model: self.model,
            key: key.to_owned(),
            found: shortened(found),
            wanted: wanted.join(" or "),
        })
    }
}

fn sized(of: &str, result: Option<usize>, message: impl FnOnce() -> String) -> Result<usize, ModelError> {
    result
        .filter(|&n| n as u64 <= LARGEST * LARGEST)
        .ok_or_else(|| ModelError::Size { of: of.to_owned(), message: message() })
}

/// `a + b`; `of` says what is computed.
pub fn add(of: &str, a: usize, b: usize) -> Result<usize, ModelError> {
    sized(of, a.checked_add(b), || format!("{a} + {b} is too large"))
}

/// `a - b`, not negative.
pub fn sub(of: &str, a: usize, b: usize) -> Result<usize, ModelError> {
    sized(of, a.checked_sub(b), || format!("{a} - {b} is negative"))
}

/// `a * b`.
pub fn mul(of: &str, a: usize, b: usize) -> Result<usize, ModelError> {
    sized(of, a.checked_mul(b), || format!("{a} * {b} is too large"))
}

/// `a / b` without a remainder.
pub fn div(of: &str, a: usize, b: usize) -> Result<usize, ModelError> {
    let exact = (b != 0 && a.is_multiple_of(b)).then(|| a / b);
    sized(of, exact, || format!("{a} / {b} is not a whole number"))
}

/// `a % b`.
pub fn rem(of: &str, a: usize, b: usize) -> Result<usize, ModelError> {
    sized(of, a.checked_rem(b), || format!("{a} % {b} has no value"))
}

/// The part `from..to` of a tensor's first dimension.
pub fn rows(of: &str, from: usize, to: usize) -> Result<Range<usize>, ModelError> {
    sized(of, (from < to).then_some(to), || format!("the part {from} .. {to} of a tensor is empty"))?;
    Ok(from..to)
}

/// A size that an axis can have.
pub fn extent(of: &str, size: usize) -> Result<usize, ModelError> {
    let fits = (1..=LARGEST as usize).contains(&size).then_some(size);
    sized(of, fits, || format!("{size} is no size from 1 to {LARGEST}"))
}

/// For each layer what makes its body, turned into the bodies that occur (`.0`, in order of first use) and for each
/// layer a position among them (`.1`).
pub fn stack<B: PartialEq>(
    key: &str,
    layers: usize,
    choose: impl FnMut(usize) -> Result<B, ModelError>,
) -> Result<(Vec<B>, Vec<usize>), ModelError> {
    if !(1..=MOST_LAYERS).contains(&layers) {
        let message = format!("expected 1 to {MOST_LAYERS} layers, found {layers}");
        return Err(ModelError::Invalid { keys: quoted(&[key]), message });
    }
    let mut bodies = Vec::new();
    let mut order = Vec::with_capacity(layers);
    for body in (0..layers).map(choose) {
        let body = body?;
        let at = bodies.iter().position(|b| *b == body).unwrap_or_else(|| {
            bodies.push(body);
            bodies.len() - 1
        });
        order.push(at);
    }
    Ok((bodies, order))
}

/// What a `host` expression may yield: finite values, or an error in words.
pub trait HostValues {
    /// The values, in the order of the constant's axes.
    fn values(self, name: &'static str) -> Result<Vec<f32>, ModelError>;
}

impl HostValues for Vec<f32> {
    fn values(self, name: &'static str) -> Result<Vec<f32>, ModelError> {
        match self.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(ModelError::Host { name, message: format!("element {at} is {}", self[at]) }),
            None => Ok(self),
        }
    }
}

impl HostValues for f32 {
    fn values(self, name: &'static str) -> Result<Vec<f32>, ModelError> {
        vec![self].values(name)
    }
}

impl<E: Display> HostValues for Result<Vec<f32>, E> {
    fn values(self, name: &'static str) -> Result<Vec<f32>, ModelError> {
        self.map_err(|error| ModelError::Host { name, message: error.to_string() })?.values(name)
    }
}
