//! The configuration file of `kumactl install transparent-proxy`: YAML, and so JSON too.

use serde_json::Value;

use super::flags::Kuma;
use crate::dialect::flags::{BETWEEN, FlagDef, Kind, Words as _};
use crate::dialect::raw::FileValues;
use crate::source::{Source, Sourced};
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

/// The programs that a file can name, by keys below this one.
const EXECUTABLES: &str = "iptablesExecutables";

/// Read the text of a configuration file: what it says of each setting, by the setting's flag.
///
/// # Errors
/// All keys that are not known and all values that have no place.
pub fn read_file(text: &str) -> Result<FileValues, FileError> {
    // `on`, `off`, `y` and the like are words: only true and false are not (YAML 1.2, 10.2).
    let options = serde_saphyr::options! { strict_booleans: true };
    let value: Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|e| FileError::Syntax(yaml::said(&e)))?;
    let mut reader = FileReader::default();
    match &value {
        Value::Null => {}
        Value::Object(_) => reader.walk("", &value),
        other => reader.wrong.push(format!("a configuration is a mapping of keys, not {other}")),
    }
    if reader.wrong.is_empty() { Ok(reader.values) } else { Err(FileError::Content(reader.wrong)) }
}

#[derive(Default)]
struct FileReader {
    values: FileValues,
    wrong: Vec<String>,
}

impl FileReader {
    fn walk(&mut self, path: &str, value: &Value) {
        if let (Value::Object(programs), EXECUTABLES) = (value, path) {
            return self.executables(programs);
        }
        if let Some(flag) = Kuma::FLAGS.iter().find(|flag| flag.key == Some(path)) {
            match text(flag, value) {
                Some(text) => self.put(flag.long, path, text),
                None => {
                    self.wrong.push(format!("configuration key {path}: {value} has no place here"));
                }
            }
            return;
        }
        match value {
            // What else is said of eBPF means nothing while it is off.
            _ if path.starts_with("ebpf.") => {}
            Value::Object(map) if leads(path) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    self.walk(&path, value);
                }
            }
            Value::Null if leads(path) => {}
            other if leads(path) => {
                let inside: Vec<&str> = below(path).collect();
                self.wrong.push(format!(
                    "configuration key {path}: {other} has no place here: it is a mapping of {}",
                    inside.join(", ")
                ));
            }
            _ => {
                let known: Vec<&str> = Kuma::FLAGS.iter().filter_map(|flag| flag.key).collect();
                self.wrong.push(format!(
                    "configuration key {path} is not known; known are {}",
                    known.join(", ")
                ));
            }
        }
    }

    fn executables(&mut self, programs: &serde_json::Map<String, Value>) {
        let mut list = Vec::new();
        for (name, path) in programs {
            match path {
                Value::String(path) if path.is_empty() => {}
                Value::String(path) => list.push(format!("{name}:{path}")),
                other => self
                    .wrong
                    .push(format!("configuration key {EXECUTABLES}.{name}: {other} is no path")),
            }
        }
        if !list.is_empty() {
            self.put("iptables-executables", EXECUTABLES, list.join(","));
        }
    }

    fn put(&mut self, flag: &'static str, key: &str, text: String) {
        self.values.insert(flag, Sourced::new(text, Source::File(key.to_owned())));
    }
}

/// Whether a key is a mapping of others.
fn leads(path: &str) -> bool {
    path.is_empty() || below(path).next().is_some()
}

fn below(path: &str) -> impl Iterator<Item = &'static str> {
    let inner = format!("{path}.");
    Kuma::FLAGS.iter().filter_map(move |flag| flag.key?.strip_prefix(&inner))
}

/// A value as the text that its flag would have.
fn text(flag: &FlagDef, value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(on) if flag.kind == Kind::Bool => Some(on.to_string()),
        Value::Array(items) if is_list(flag) => {
            let items: Option<Vec<String>> = items
                .iter()
                .map(|item| match item {
                    Value::String(text) => Some(text.clone()),
                    Value::Number(number) => Some(number.to_string()),
                    _ => None,
                })
                .collect();
            let between = if flag.kind == Kind::Texts { BETWEEN } else { ',' };
            items.map(|items| items.join(between.encode_utf8(&mut [0; 4])))
        }
        // A list that nobody filled in.
        Value::Null if is_list(flag) => Some(String::new()),
        _ => None,
    }
}

/// Whether a setting can be a list: ports are one text, of which the last one counts.
fn is_list(flag: &FlagDef) -> bool {
    matches!(flag.kind, Kind::List | Kind::Texts) || flag.long.ends_with("-ports")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_yaml_and_json_alike() {
        let yaml = "redirect:\n  inbound: {port: 16006, excludePorts: [22, '80']}\n  outbound:\n    \
                    excludePortsForUIDs: ['tcp:22,80:1', 5]\n  dns: {enabled: true}\nebpf:\n  bpffsPath: /x\n";
        let json = r#"{"redirect":{"inbound":{"port":"16006","excludePorts":"22,80"},
            "outbound":{"excludePortsForUIDs":["tcp:22,80:1","5"]},"dns":{"enabled":true}}}"#;
        let values = read_file(yaml).unwrap();
        assert_eq!(values, read_file(json).unwrap());
        assert_eq!(values["exclude-inbound-ports"].value, "22,80");
        assert_eq!(values["exclude-outbound-ports-for-uids"].value, "tcp:22,80:1;5");
        assert_eq!(
            values["redirect-dns"].source.to_string(),
            "configuration key redirect.dns.enabled"
        );
        assert_eq!(read_file("").unwrap(), FileValues::new());
    }

    #[test]
    fn programs_are_one_list() {
        let values = read_file("iptablesExecutables: {iptables: /a, ip6tables-save: /b}").unwrap();
        assert_eq!(values["iptables-executables"].value, "iptables:/a,ip6tables-save:/b");
    }

    #[test]
    fn names_every_key_that_is_not_known_and_every_value_without_place() {
        let text = "redirect: {inbound: {prot: 1, port: {a: 1}}, dns: 5}\nx: 2\nverbose: 1\n";
        let error = read_file(text).unwrap_err().to_string();
        assert!(error.contains("redirect.inbound.prot is not known"), "{error}");
        assert!(error.contains("redirect.inbound.port: {\"a\":1} has no place here"), "{error}");
        assert!(error.contains("redirect.dns: 5 has no place here: it is a mapping"), "{error}");
        assert!(error.contains("configuration key x is not known"), "{error}");
        assert!(read_file("[1, 2]").is_err());
        assert!(matches!(read_file("a: [b\n"), Err(FileError::Syntax(_))));
    }
}
