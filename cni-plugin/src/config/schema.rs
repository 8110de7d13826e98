//! The JSON schema of the plugin's entry, made from the table of keys.

use serde_json::{Map, Value, json};

use super::keys::{KEYS, Key, Shape};

/// The schema (JSON Schema 2020-12).
pub fn schema() -> Value {
    let properties = properties(KEYS);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Millrace in a list of CNI plugins",
        "description": "The entry of type millrace-cni in the plugins of a CNI network.",
        "type": "object",
        "properties": properties,
        "patternProperties": { "^cni\\.dev/": {} },
        "additionalProperties": false,
        "required": ["type"],
    })
}

fn properties(keys: &[Key]) -> Map<String, Value> {
    keys.iter().map(|key| (key.name.to_owned(), property(key))).collect()
}

fn property(key: &Key) -> Value {
    let mut property = match key.shape {
        Shape::Text => json!({ "type": "string" }),
        Shape::Choice(words) => json!({ "enum": words }),
        Shape::Switch => json!({ "type": "boolean" }),
        Shape::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Shape::TextMap => {
            json!({ "type": "object", "additionalProperties": { "type": "string" } })
        }
        Shape::Id => json!({ "type": "integer", "minimum": 1, "maximum": u32::MAX - 1 }),
        Shape::Number(least) => json!({ "type": "integer", "minimum": least }),
        Shape::Port => port(),
        Shape::Ports => json!({ "type": "array", "items": port() }),
        Shape::IdOrNone => json!({ "type": "integer", "minimum": -1, "maximum": u32::MAX - 1 }),
        Shape::Object(keys) => json!({
            "type": "object",
            "properties": properties(keys),
            "additionalProperties": false,
        }),
        Shape::Duration => {
            json!({ "type": "string", "pattern": "^([0-9.]+(ns|us|\u{b5}s|ms|s|m|h))+$" })
        }
        Shape::Path => json!({ "type": "string", "pattern": "^/" }),
        Shape::PathOrName => json!({ "type": "string", "pattern": "^(/|[^/]+$)" }),
        Shape::Any => json!({}),
    };
    if let Some(map) = property.as_object_mut() {
        map.insert("description".to_owned(), json!(key.help));
        if let Some(default) = default(key) {
            map.insert("default".to_owned(), default);
        }
    }
    property
}

fn port() -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": u16::MAX })
}

/// The default as a value of the key's shape.
fn default(key: &Key) -> Option<Value> {
    let text = Some(key.default).filter(|text| !text.is_empty())?;
    match key.shape {
        Shape::Switch | Shape::Id | Shape::Number(_) | Shape::Port | Shape::IdOrNone => {
            serde_json::from_str(text).ok()
        }
        _ => Some(json!(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, object};

    #[test]
    fn every_default_is_what_holds_without_the_key() {
        let mut text = json!({"cniVersion": "1.0.0", "name": "net", "type": "millrace-cni"});
        let bare = Config::parse(&object(&text.to_string()).unwrap()).unwrap();
        for key in KEYS {
            if let Some(default) = default(key) {
                text[key.name] = default;
            }
        }
        let said = Config::parse(&object(&text.to_string()).unwrap()).unwrap();
        assert!(said.expected.is_empty() && bare.expected.is_empty());
        assert_eq!(said.log, bare.log);
        assert_eq!(said.backend, bare.backend);
        assert_eq!(said.deadline, bare.deadline);
        assert_eq!(said.state_dir, bare.state_dir);
        assert_eq!(said.proxy_identity, bare.proxy_identity);
        assert_eq!(said.ambient, bare.ambient);
        assert!(said.warnings.is_empty(), "{:?}", said.warnings);
    }

    #[test]
    fn every_key_has_a_description() {
        let schema = schema();
        for (of, keys) in [("linkerd", super::super::LINKERD), ("consul", super::super::CONSUL)] {
            for key in keys {
                let key = &schema["properties"][of]["properties"][key.name];
                assert!(key["description"].is_string(), "{key}");
            }
        }
        for key in KEYS {
            assert!(schema["properties"][key.name]["description"].is_string(), "{}", key.name);
        }
    }
}
