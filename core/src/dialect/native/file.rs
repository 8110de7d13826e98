//! The configuration file: YAML, and so JSON too.

use std::collections::BTreeMap;

use serde_json::Value;

use super::settings::{SETTINGS, Setting};
use crate::value::yaml;

/// A configuration file that can't be read as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It is neither YAML nor JSON.
    #[error("it is neither YAML nor JSON: {0}")]
    Syntax(String),
    /// Its keys or values are not those of a configuration, all of them.
    #[error("{}", .0.join("\n"))]
    Content(Vec<String>),
}

/// Read the text of a configuration file: the value of each setting as text, lists as comma
/// lists, by the setting's flag.
///
/// # Errors
/// All keys that are not known and all values that have no place.
pub fn read_file(text: &str) -> Result<BTreeMap<&'static str, String>, FileError> {
    // `on`, `off`, `y` and the like are words: only true and false are not (YAML 1.2, 10.2).
    let options = serde_saphyr::options! { strict_booleans: true };
    let value: Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|e| FileError::Syntax(yaml::said(&e)))?;
    let mut values = BTreeMap::new();
    let mut wrong = Vec::new();
    match &value {
        Value::Null => {}
        Value::Object(_) => walk("", &value, &mut values, &mut wrong),
        other => wrong.push(format!("a configuration is a mapping of keys, not {other}")),
    }
    if wrong.is_empty() { Ok(values) } else { Err(FileError::Content(wrong)) }
}

fn walk(
    path: &str,
    value: &Value,
    values: &mut BTreeMap<&'static str, String>,
    wrong: &mut Vec<String>,
) {
    if let Some(setting) = SETTINGS.iter().find(|s| s.key == path) {
        match text(setting, value) {
            Some(text) => {
                values.insert(setting.flag, text);
            }
            None => wrong.push(format!("configuration key {path}: {value} has no place here")),
        }
        return;
    }
    let inner = format!("{path}.");
    let leads = path.is_empty() || SETTINGS.iter().any(|s| s.key.starts_with(&inner));
    match value {
        Value::Object(map) if leads => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&path, value, values, wrong);
            }
        }
        Value::Null if leads => {}
        other if leads => {
            let inside: Vec<&str> =
                SETTINGS.iter().filter_map(|s| s.key.strip_prefix(&inner)).collect();
            wrong.push(format!(
                "configuration key {path}: {other} has no place here: it is a mapping of {}",
                inside.join(", ")
            ));
        }
        _ => {
            let known: Vec<&str> = SETTINGS.iter().map(|s| s.key).collect();
            wrong.push(format!(
                "configuration key {path} is not known; known are {}",
                known.join(", ")
            ));
        }
    }
}

/// A value as the text that its flag would have.
fn text(setting: &Setting, value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(on) => Some(on.to_string()),
        Value::Array(items) if setting.shape.is_list() => {
            let items: Option<Vec<String>> = items
                .iter()
                .map(|item| match item {
                    Value::String(text) if !text.contains(',') => Some(text.clone()),
                    Value::Number(number) => Some(number.to_string()),
                    _ => None,
                })
                .collect();
            items.map(|items| items.join(","))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_yaml_and_json_alike() {
        let yaml = "inbound:\n  port: 16006\n  excludePorts: [22, '8000:8010']\nproxy:\n  uids: [1337]\ndropInvalid: true\n";
        let json = r#"{"inbound":{"port":16006,"excludePorts":[22,"8000:8010"]},"proxy":{"uids":"1337"},"dropInvalid":true}"#;
        let values = read_file(yaml).unwrap();
        assert_eq!(values, read_file(json).unwrap());
        assert_eq!(values["exclude-inbound-ports"], "22,8000:8010");
        assert_eq!(values["drop-invalid"], "true");
        assert_eq!(read_file("").unwrap(), BTreeMap::new());
    }

    #[test]
    fn names_every_key_that_is_not_known_and_every_value_without_place() {
        let error =
            read_file("inbound:\n  prot: 1\n  port: {a: 1}\nx: 2\n").unwrap_err().to_string();
        assert!(error.contains("inbound.prot is not known"), "{error}");
        assert!(error.contains("inbound.port: {\"a\":1} has no place here"), "{error}");
        assert!(error.contains("configuration key x is not known"), "{error}");
        assert!(read_file("[1, 2]").is_err());
        assert!(matches!(read_file("a: [b\n"), Err(FileError::Syntax(_))));
        assert!(read_file("proxy: {uids: ['1,2']}").is_err());
    }
}
