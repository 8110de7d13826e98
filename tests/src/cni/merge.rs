//! What a change of an object asks for and does.

use serde_json::{Value, json};

/// Whether an object has the id and the version that somebody expects, where somebody does.
pub(super) fn is_same(object: &Value, expected: &Value) -> bool {
    ["uid", "resourceVersion"]
        .iter()
        .all(|key| expected[key].is_null() || expected[key] == object["metadata"][key])
}

/// Merge a patch into an object (RFC 7386), but that null is written as it is.
pub(super) fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        patch.clone_into(object);
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (name, value) in members {
        merge(&mut object[name], value);
    }
}
