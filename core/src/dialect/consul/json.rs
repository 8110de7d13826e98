//! The settings as JSON: what Consul on Kubernetes puts into a pod's environment and annotations.

use std::collections::BTreeMap;

use serde_json::Value;

use super::flags::{KEYS, Key, Shape};
use crate::dialect::ValueReader;
use crate::source::{Source, Sourced};

/// Settings by their flags, each with the key that it came from. Lists are comma lists.
pub(super) type Settings = BTreeMap<&'static str, Sourced<String>>;

/// Read settings; what is wrong is noted. A value that is empty sets nothing, as in Go.
pub(super) fn read(reader: &mut ValueReader, text: &Sourced<String>) -> Settings {
    let mut settings = Settings::new();
    if text.value.trim().is_empty() {
        return settings;
    }
    let map = match serde_json::from_str::<Value>(&text.value) {
        Ok(Value::Object(map)) => map,
        Ok(_) => {
            reader.wrong(&text.source, &text.value, "settings are an object of JSON");
            return settings;
        }
        Err(error) => {
            reader.wrong(&text.source, &text.value, format!("this is no JSON: {error}"));
            return settings;
        }
    };
    for (name, value) in map {
        // Go takes a key in any case.
        let key = KEYS.iter().find(|key| key.name.eq_ignore_ascii_case(&name));
        let source = Source::File(format!("{name} of {}", text.source));
        match (key, value) {
            (_, value) if is_empty(&value) => {}
            (Some(key), value) => match spelled(key, &value) {
                Ok(text) => {
                    settings.insert(key.flag, Sourced::new(text, source));
                }
                Err(expected) => reader.wrong(&source, &value.to_string(), expected),
            },
            (None, value) => {
                let known = KEYS.map(|key| key.name).join(", ");
                let expected = format!("there is no such setting, but for {known}");
                reader.wrong(&source, &value.to_string(), expected);
            }
        }
    }
    settings
}

/// Whether a value is that of a setting which nobody has set.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// A value as its flag would have it.
fn spelled(key: &Key, value: &Value) -> Result<String, &'static str> {
    match (key.shape, value) {
        (Shape::Text, Value::String(text)) => Ok(text.clone()),
        (Shape::Text, _) => Err("this setting is a text"),
        (Shape::Number, Value::Number(number)) => Ok(number.to_string()),
        (Shape::Number, _) => Err("this setting is a whole number"),
        (Shape::Texts, Value::Array(list)) => {
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            texts.map(|texts| texts.join(",")).ok_or("this setting is a list of texts")
        }
        (Shape::Texts, _) => Err("this setting is a list of texts"),
    }
}
