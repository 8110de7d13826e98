//! The plugin's entry, and the settings in it: what the operator says, over what was taken over from
//! another plugin, over nothing. The plugin's own reading says what is right.

use millrace_cni::config::{Config, KEYS, Owner, object};
use millrace_core::visible::visible;
use serde_json::{Map, Value, json};

use crate::list::{BadList, Entry};

/// The capability that has a runtime tell a pod's annotations.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// The setting with which the plugin has the node agent enrol pods of ambient mode.
const AMBIENT: &str = "ambient_enabled";

/// Settings of the plugin, each of which the plugin takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings(Map<String, Value>);

/// Why settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// They are no JSON object.
    #[error("they are no JSON object: {0}")]
    Json(serde_json::Error),
    /// The runtime's or the list's.
    #[error("{0:?} is no setting: it is the runtime's, or the agent writes it")]
    NotASetting(String),
    /// The plugin does not take them.
    #[error("{0}")]
    Refused(String),
}

impl Settings {
    /// Read what an operator wrote.
    ///
    /// # Errors
    /// When the plugin would not take it as it is: a key that nobody knows is an error here, where
    /// somebody waits for an answer.
    pub fn parse(text: &str) -> Result<Self, BadSettings> {
        Self::new(serde_json::from_str(text).map_err(BadSettings::Json)?)
    }

    /// From members of the entry; keys of the CNI specification are refused.
    ///
    /// # Errors
    /// When the plugin would not take them.
    pub fn new(members: Map<String, Value>) -> Result<Self, BadSettings> {
        let of_cni = |name: &&String| {
            KEYS.iter().any(|key| key.owner == Owner::Cni && key.name.eq_ignore_ascii_case(name))
                || name.starts_with("cni.dev/")
        };
        if let Some(name) = members.keys().find(of_cni) {
            return Err(BadSettings::NotASetting(name.clone()));
        }
        let own = Self(members);
        let config = own.read().map_err(BadSettings::Refused)?;
        if !config.warnings.is_empty() {
            return Err(BadSettings::Refused(config.warnings.join("; ")));
        }
        Ok(own)
    }

    /// What the plugin makes of them.
    fn read(&self) -> Result<Config, String> {
        let object = object(&self.request()).map_err(|error| error.msg)?;
        Config::parse(&object).map_err(|error| visible(&error.msg).into_owned())
    }

    /// An entry with them as a runtime passes it, of some network.
    pub fn request(&self) -> String {
        let mut members = self.0.clone();
        members.insert("cniVersion".to_owned(), json!("1.0.0"));
        members.insert("name".to_owned(), json!("any"));
        Value::Object(members).to_string()
    }

    /// These, and of those that are named here by none.
    #[must_use]
    pub fn over(mut self, below: &Self) -> Self {
        for (name, value) in &below.0 {
            if !self.has(name) {
                self.0.insert(name.clone(), value.clone());
            }
        }
        self
    }

    /// Whether a key of this name is set, whatever its case.
    pub fn has(&self, name: &str) -> bool {
        self.0.keys().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Set a key of the entry; a value that it has is replaced. Nothing is checked.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// Whether the plugin has the node agent enrol pods of ambient mode.
    pub fn enrols(&self) -> bool {
        self.0.get(AMBIENT) == Some(&Value::Bool(true))
    }

    /// The same, where it does.
    #[must_use]
    pub fn enrolling(self) -> Self {
        self.with(AMBIENT, Value::Bool(true))
    }

    /// Keys and values as they stand in the plugin's entry, without `type`.
    pub const fn members(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The entry of a plugin whose file has this name.
    ///
    /// # Errors
    /// When the name is empty.
    pub fn entry(&self, kind: &str) -> Result<Entry, BadList> {
        let mut members = Map::new();
        members.insert("type".to_owned(), json!(kind));
        members.insert("capabilities".to_owned(), json!({ POD_ANNOTATIONS: true }));
        members.extend(self.0.clone());
        Entry::parse(&Value::Object(members).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_plugin_takes_is_taken() {
        let settings = Settings::parse(r#"{"deadline":"3s","exclude_namespaces":["a"]}"#).unwrap();
        let entry = settings.entry("millrace-cni").unwrap();
        let value: Value = serde_json::from_str(entry.text()).unwrap();
        assert_eq!(value["type"], "millrace-cni");
        assert_eq!(value["capabilities"][POD_ANNOTATIONS], true);
        assert_eq!(value["deadline"], "3s");
    }

    #[test]
    fn what_it_does_not_take_is_refused_by_name() {
        for (text, part) in [
            (r#"{"deadlin":"3s"}"#, "deadlin"),
            (r#"{"deadline":"soon"}"#, "deadline"),
            (r#"{"backend":"ipvs"}"#, "backend"),
            (r#"{"type":"x"}"#, "type"),
            (r#"{"PrevResult":{}}"#, "PrevResult"),
            (r#"{"cni.dev/x":{}}"#, "cni.dev/x"),
            (r#"{"plugin_log_level":"loud"}"#, "loud"),
            ("[]", "object"),
            ("{", "object"),
        ] {
            let error = Settings::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_operator_has_the_last_word() {
        let own = Settings::parse(r#"{"Deadline":"3s"}"#).unwrap();
        let below = Settings::parse(r#"{"deadline":"9s","pod_namespace":"n"}"#).unwrap();
        let both = own.over(&below);
        assert_eq!(
            Value::Object(both.members().clone()),
            json!({"Deadline":"3s","pod_namespace":"n"})
        );
    }
}
