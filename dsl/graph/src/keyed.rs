//! Values of any serde type out of an object of JSON, so that an error names the key.

use serde::de::value::MapDeserializer;
use serde::de::{Error as _, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::{Error, Value};

/// Reads a value from an object of these keys and their values. An error about one of the values has its key before it.
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
        visitor.visit_map(MapDeserializer::new(self.0.map(|(key, value)| (key, Keyed { key, value }))))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq
        tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The value of a key.
struct Keyed<'a> {
    key: &'a str,
    value: &'a Value,
}

impl Keyed<'_> {
    fn named(key: &str, error: &Error) -> Error {
        Error::custom(format!("`{key}`: {error}"))
    }
}

impl<'a> IntoDeserializer<'a, Error> for Keyed<'a> {
    type Deserializer = Keyed<'a>;

    fn into_deserializer(self) -> Keyed<'a> {
        self
    }
}

impl<'de> Deserializer<'de> for Keyed<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.value.deserialize_any(visitor).map_err(|error| Keyed::named(self.key, &error))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.value.deserialize_option(visitor).map_err(|error| Keyed::named(self.key, &error))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.value.deserialize_newtype_struct(name, visitor).map_err(|error| Keyed::named(self.key, &error))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.value.deserialize_enum(name, variants, visitor).map_err(|error| Keyed::named(self.key, &error))
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
    }

    #[derive(Debug, Deserialize)]
    struct All(Map<String, Value>);

    fn read<'a, T: Deserialize<'a>>(object: &'a Value) -> Result<T, String> {
        let keys = object.as_object().unwrap().iter().map(|(key, value)| (key.as_str(), value));
        from_keys(keys).map_err(|error| error.to_string())
    }

    #[test]
    fn errors_name_the_key() {
        let sizes: Sizes = read(&json!({"size": 3, "parts": [1, 0.5], "other": {"a": null}})).unwrap();
        assert_eq!((sizes.size, sizes.parts), (Some(3), Some(vec![1.0, 0.5])));
        let error = |object: Value| read::<Sizes>(&object).unwrap_err();
        assert_eq!(error(json!({"size": -1})), "`size`: invalid value: integer `-1`, expected u32");
        assert_eq!(error(json!({"size": 1, "parts": [true]})), "`parts`: invalid type: boolean `true`, expected f32");
    }

    #[test]
    fn a_type_can_take_all_keys() {
        let object = json!({"a": 1, "b": [null, {"c": "d"}]});
        assert_eq!(Value::Object(read::<All>(&object).unwrap().0), object);
    }
}
