//! The JSON schema of the configuration file, made from the table of settings.

use serde_json::{Value, json};

use super::settings::{SETTINGS, Setting, Shape};

/// The schema (JSON Schema 2020-12).
pub fn schema() -> Value {
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Millrace configuration",
        "description": "What `millrace apply --config` reads, as YAML or JSON. Flags beat it.",
        "type": "object",
        "additionalProperties": false,
        "properties": {},
    });
    for setting in SETTINGS {
        insert(&mut root, setting.key, setting);
    }
    root
}

fn insert(object: &mut Value, path: &str, setting: &Setting) {
    let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    match path.split_once('.') {
        None => {
            properties.insert(path.to_owned(), property(setting));
        }
        Some((head, rest)) => {
            let group = properties.entry(head.to_owned()).or_insert_with(
                || json!({ "type": "object", "additionalProperties": false, "properties": {} }),
            );
            insert(group, rest, setting);
        }
    }
}

fn property(setting: &Setting) -> Value {
    let mut property = match setting.shape {
        Shape::ListenPort => json!({ "type": "integer", "minimum": 1, "maximum": 65_535 }),
        Shape::Mark | Shape::Table => {
            json!({ "type": "integer", "minimum": 1, "maximum": u32::MAX })
        }
        Shape::Switch => json!({ "type": "boolean" }),
        Shape::Choice(words) => json!({ "enum": words }),
        Shape::Network => text(NETWORK),
        Shape::Ports { all } => list(&ports(), all),
        Shape::Networks { all } => list(&text(NETWORK), all),
        Shape::Uids | Shape::Gids => list(&id(), false),
        Shape::Groups { all } => {
            list(&json!({ "anyOf": [id(), text("^[A-Za-z_][A-Za-z0-9_.$-]{0,31}$")] }), all)
        }
        Shape::Interfaces => list(&text("^[!-~]{1,15}$"), false),
        Shape::Addresses => list(&text("^[0-9a-fA-F.:]+$"), false),
    };
    if let Some(map) = property.as_object_mut() {
        map.insert("description".to_owned(), json!(setting.help));
        map.insert("default".to_owned(), default(setting));
    }
    property
}

const NETWORK: &str = "^[0-9a-fA-F.:]+/[0-9]{1,3}$";

fn text(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": pattern })
}

fn id() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX - 1 })
}

fn ports() -> Value {
    json!({ "anyOf": [
        { "type": "integer", "minimum": 0, "maximum": 65_535 },
        { "type": "string", "pattern": "^[0-9]{1,5}(:[0-9]{1,5})?$" },
    ] })
}

fn list(items: &Value, all: bool) -> Value {
    let array = json!({ "type": "array", "items": items });
    if all { json!({ "anyOf": [{ "const": "*" }, array] }) } else { array }
}

fn default(setting: &Setting) -> Value {
    let number =
        || setting.default.parse::<u64>().map_or_else(|_| json!(setting.default), Value::from);
    match setting.shape {
        Shape::Switch => json!(setting.default == "true"),
        Shape::Choice(_) | Shape::Network => json!(setting.default),
        _ if setting.default == "*" => json!("*"),
        _ if setting.shape.is_list() => {
            let items = setting.default.split(',').filter(|i| !i.is_empty());
            items.map(|i| i.parse::<u64>().map_or_else(|_| json!(i), Value::from)).collect()
        }
        _ => number(),
    }
}

/// Names of all keys that lead to settings, for tests of the documentation.
#[cfg(test)]
fn keys(schema: &Value, prefix: &str, found: &mut Vec<String>) {
    let empty = serde_json::Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    for (name, value) in properties {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if value.get("properties").is_some() {
            keys(value, &path, found);
        } else {
            found.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_in_the_schema_with_its_default() {
        let schema = schema();
        let mut found = Vec::new();
        keys(&schema, "", &mut found);
        found.sort();
        let mut wanted: Vec<String> = SETTINGS.iter().map(|s| s.key.to_owned()).collect();
        wanted.sort();
        assert_eq!(found, wanted);
        assert_eq!(
            schema.pointer("/properties/outbound/properties/port/default"),
            Some(&json!(15001))
        );
        assert_eq!(
            schema.pointer("/properties/proxy/properties/uids/default"),
            Some(&json!([1337]))
        );
    }
}
