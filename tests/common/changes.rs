//! Changes of a JSON document: each of its values in turn is replaced by others, or is gone.
#![allow(unreachable_pub)]

use serde_json::{Value, json};

/// What values are replaced by.
fn others() -> Vec<Value> {
    let large =
        [json!(1u64 << 24), json!(u32::MAX), json!(1_000_000_000_000_000_000u64), json!(u64::MAX), json!(1e300)];
    let small = [json!(0), json!(-1), json!(i64::MIN), json!(1), json!(3), json!(0.5), json!(-0.5), json!(1e-300)];
    let texts =
        [json!(""), json!("NaN"), json!("Infinity"), json!("é 日本 👩\u{200d}🚀\0\n"), json!("x ".repeat(1000))];
    let nested = |wrap: fn(Value) -> Value| (0..100).fold(json!(null), |inner, _| wrap(inner));
    let rest = [
        json!(null),
        json!(true),
        json!([]),
        json!([null]),
        json!({}),
        nested(|x| json!([x])),
        nested(|x| json!({"a": x})),
    ];
    [&large[..], &small, &texts, &rest].concat()
}

/// Pointers to all values of a document, those within objects and lists too: of many side by side to so many first and last ones.
pub fn pointers(document: &Value, some: usize) -> Vec<String> {
    let mut all = Vec::new();
    point(document, "", some, &mut all);
    all
}

fn point(value: &Value, at: &str, some: usize, all: &mut Vec<String>) {
    let mut inner: Vec<(String, &Value)> = match value {
        Value::Object(object) => {
            object.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(list) => list.iter().enumerate().map(|(nth, value)| (nth.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    if inner.len() > 2 * some {
        inner.drain(some..inner.len() - some);
    }
    for (key, value) in inner {
        let at = format!("{at}/{key}");
        point(value, &at, some, all);
        all.push(at);
    }
}

/// All changes of the value at a pointer: what it is replaced by, in short, and the document.
pub fn changes(document: &Value, at: &str) -> impl Iterator<Item = (String, Value)> {
    let replaced = others().into_iter().map(|other| {
        let by = other.to_string().chars().take(60).collect();
        let mut document = document.clone();
        *document.pointer_mut(at).unwrap() = other;
        (by, document)
    });
    replaced.chain([("nothing".to_owned(), without(document.clone(), at))])
}

/// A document without one of its values.
fn without(mut document: Value, at: &str) -> Value {
    let (parent, key) = at.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Object(object) => drop(object.remove(&key.replace("~1", "/").replace("~0", "~")).unwrap()),
        Value::Array(list) => drop(list.remove(key.parse().unwrap())),
        other => panic!("{other}"),
    }
    document
}
