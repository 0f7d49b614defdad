//! Values of any serde type out of an object of JSON, so that an error names the key.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Error as _, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::{Error, Value};

/// Reads a value from an object of these keys and their values. An error about one of the values, or a
/// part of one, has the keys before it that lead there.
///
/// # Errors
/// As the type has it: a key is missing, or a value is of another type or not allowed.
pub fn from_keys<'a, T: Deserialize<'a>>(keys: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Result<T, Error> {
    T::deserialize(Object(keys.into_iter()))
}

/// An object.
struct Object<I>(I);

impl<'de, I: Iterator<Item = (&'de str, &'de Value)>> Deserializer<'de> for Object<I> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(MapDeserializer::new(self.0.map(|(key, value)| (key, Part { key: Key::Name(key), value }))))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq
        tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// A value, whose own parts are named in errors.
struct Parts<'a>(&'a Value);

impl<'de> Deserializer<'de> for Parts<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(object) => {
                Object(object.iter().map(|(key, value)| (key.as_str(), value))).deserialize_any(visitor)
            }
            Value::Array(list) => {
                let parts = list.iter().enumerate().map(|(nth, value)| Part { key: Key::Nth(nth), value });
                let mut parts = SeqDeserializer::new(parts);
                let read = visitor.visit_seq(&mut parts)?;
                parts.end()?;
                Ok(read)
            }
            value => value.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// A part of an object or a list.
struct Part<'a> {
    key: Key<'a>,
    value: &'a Value,
}

#[derive(Clone, Copy)]
enum Key<'a> {
    Name(&'a str),
    Nth(usize),
}

impl<'a> Part<'a> {
    /// Does something with the value; an error has the key before it.
    fn named<T>(self, read: impl FnOnce(Parts<'a>) -> Result<T, Error>) -> Result<T, Error> {
        read(Parts(self.value)).map_err(|error| match self.key {
            Key::Name(name) => Error::custom(format!("`{name}`: {error}")),
            Key::Nth(nth) => Error::custom(format!("element {nth}: {error}")),
        })
    }
}

impl<'a> IntoDeserializer<'a, Error> for Part<'a> {
    type Deserializer = Part<'a>;

    fn into_deserializer(self) -> Part<'a> {
        self
    }
}

impl<'de> Deserializer<'de> for Part<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.named(|parts| parts.deserialize_any(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.named(|parts| parts.deserialize_option(visitor))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.named(|parts| parts.deserialize_newtype_struct(name, visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.named(|parts| parts.deserialize_enum(name, variants, visitor))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sizes {
        size: Option<u32>,
        parts: Option<Vec<f32>>,
        pair: Option<(u32, u32)>,
        inner: Option<Box<Sizes>>,
    }

    #[derive(Debug, Deserialize)]
    struct All(Map<String, Value>);

    fn read<'a, T: Deserialize<'a>>(object: &'a Value) -> Result<T, String> {
        let keys = object.as_object().unwrap().iter().map(|(key, value)| (key.as_str(), value));
        from_keys(keys).map_err(|error| error.to_string())
    }

    #[test]
    fn errors_name_the_key() {
        let sizes: Sizes = read(&json!({"parts": [1, 0.5], "inner": {"pair": [1, 2]}, "other": {"a": null}})).unwrap();
        assert_eq!((sizes.size, sizes.parts), (None, Some(vec![1.0, 0.5])));
        assert_eq!(sizes.inner.unwrap().pair, Some((1, 2)));
        let error = |object: Value| read::<Sizes>(&object).unwrap_err();
        assert_eq!(error(json!({"size": -1})), "`size`: invalid value: integer `-1`, expected u32");
        assert_eq!(
            error(json!({"size": 1, "parts": [true]})),
            "`parts`: element 0: invalid type: boolean `true`, expected f32"
        );
        assert_eq!(error(json!({"pair": [1, 2, 3]})), "`pair`: invalid length 3, expected 2 elements in sequence");
        assert_eq!(error(json!({"inner": {"size": {}}})), "`inner`: `size`: invalid type: map, expected u32");
    }

    #[test]
    fn a_type_can_take_all_keys() {
        let object = json!({"a": 1, "b": [null, {"c": "d"}]});
        assert_eq!(Value::Object(read::<All>(&object).unwrap().0), object);
    }
}
