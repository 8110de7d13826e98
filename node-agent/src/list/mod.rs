//! The text of a network's configuration: a list of plugins (CNI specification 1.1.0, section 1),
//! changed in its `plugins` alone. All else keeps its text byte for byte: members that nobody knows,
//! numbers of any size, and the blanks between.

mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use millrace_cni::protocol::Object;
use serde_json::Value;
use serde_json::value::RawValue;

use source::Source;

/// The plugins of a list.
const PLUGINS: &str = "plugins";

/// Why a text is no configuration that a runtime can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadList {
    /// It is no JSON, or no object; what the parser says.
    #[error("it is no JSON object: {0}")]
    Json(String),
    /// Its `name` is missing, empty or no string.
    #[error("it has no name, which has to be a text that is not empty")]
    Name,
    /// Its `plugins` is missing, empty or no array.
    #[error("it has no plugins, which have to be a list that is not empty")]
    Plugins,
    /// A plugin has no type.
    #[error("its plugin number {0} is no object with a type")]
    Plugin(usize),
    /// A list of plugins has to have a name that ends so.
    #[error("it is a list of plugins, which runtimes read from files that end in .conflist alone")]
    Ending,
}

/// Whether it is the name of a file in a folder, and no way out of it.
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && ![".", ".."].contains(&name)
}

/// A plugin's entry, as it was written.
#[derive(Clone, Debug)]
pub struct Entry {
    raw: Box<RawValue>,
    kind: String,
    /// Its number among those in the source of the list that it was read with.
    number: Option<usize>,
}

/// A network configuration of several plugins (CNI specification, section 1).
#[derive(Clone, Debug)]
pub struct List {
    /// Every member; the text of `plugins` among them is the one that was read.
    members: Object,
    /// The name of the network.
    pub name: String,
    /// Its plugins, in the order in which they are called.
    pub plugins: Vec<Entry>,
    /// Where it was read, if its places there are known.
    source: Option<Source>,
}

impl Entry {
    /// Read the JSON of one entry, as it stands in `plugins`.
    ///
    /// # Errors
    /// When it is no object with a type.
    pub fn parse(text: &str) -> Result<Self, BadList> {
        let raw: Box<RawValue> =
            serde_json::from_str(text).map_err(|error| BadList::Json(error.to_string()))?;
        Self::new(raw, 1)
    }

    fn new(raw: Box<RawValue>, number: usize) -> Result<Self, BadList> {
        let kind = kind(raw.get()).ok_or(BadList::Plugin(number))?;
        Ok(Self { raw, kind, number: None })
    }

    /// The name of the program's file.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Its JSON as it was read, blanks and unknown members included.
    pub fn text(&self) -> &str {
        self.raw.get()
    }

    /// Whether both say the same, whatever the order of their members and the blanks between.
    pub fn says(&self, other: &Self) -> bool {
        let value = |entry: &Self| serde_json::from_str::<Value>(entry.text()).ok();
        self.text() == other.text() || value(self).is_some_and(|own| Some(own) == value(other))
    }
}

impl List {
    /// Read a list of plugins.
    ///
    /// # Errors
    /// When it is none that runtimes can use.
    pub fn parse(text: &str) -> Result<Self, BadList> {
        let members = object(text)?;
        let name = name(&members)?;
        let raw: Vec<Box<RawValue>> = member(&members, PLUGINS)
            .and_then(|raw| serde_json::from_str(raw.get()).ok())
            .filter(|plugins: &Vec<_>| !plugins.is_empty())
            .ok_or(BadList::Plugins)?;
        let plugins = (1..).zip(raw).map(|(number, raw)| Entry::new(raw, number));
        let mut plugins: Vec<Entry> = plugins.collect::<Result<_, _>>()?;
        let source = Source::of(text).filter(|source| source.plugins.len() == plugins.len());
        for (number, entry) in plugins.iter_mut().enumerate() {
            entry.number = source.is_some().then_some(number);
        }
        Ok(Self { members, name, plugins, source })
    }

    /// The list that a runtime makes of a file with a single plugin: its version and name, and the
    /// plugin as it is.
    ///
    /// # Errors
    /// When it is no plugin with a name and a type.
    pub fn of_single(text: &str) -> Result<Self, BadList> {
        let members = object(text)?;
        if member(&members, "type").is_none() && member(&members, PLUGINS).is_some() {
            return Err(BadList::Ending);
        }
        let name = name(&members)?;
        let entry = Entry::parse(text)?;
        let version = member(&members, "cniVersion").map(RawValue::get);
        let version = version.map(|text| format!("\"cniVersion\":{text},")).unwrap_or_default();
        let quoted = Value::String(name.clone());
        let list = format!("{{{version}\"name\":{quoted},\"plugins\":[]}}");
        Ok(Self { members: object(&list)?, name, plugins: vec![entry], source: None })
    }

    /// Whether the runtime is told to look into no drop-in directory. The library of runtimes takes
    /// texts for it as well.
    pub fn refuses_drop_ins(&self) -> bool {
        let said = member(&self.members, "loadOnlyInlinedPlugins").map(RawValue::get);
        said.is_some_and(|text| ["true", "\"true\""].contains(&text))
    }

    /// The numbers of the plugins of these types.
    pub fn places(&self, is: impl Fn(&str) -> bool) -> Vec<usize> {
        let numbered = self.plugins.iter().enumerate();
        numbered.filter(|(_, entry)| is(entry.kind())).map(|(number, _)| number).collect()
    }

    /// Take every plugin of these types away.
    #[must_use]
    pub fn without(mut self, is: impl Fn(&str) -> bool) -> Self {
        self.plugins.retain(|entry| !is(entry.kind()));
        self
    }

    /// Put one at the end.
    #[must_use]
    pub fn with(mut self, entry: Entry) -> Self {
        self.plugins.push(Entry { number: None, ..entry });
        self
    }

    /// Whether both lists call the same plugins in the same order with the same settings.
    pub fn calls_as(&self, other: &Self) -> bool {
        self.plugins.len() == other.plugins.len()
            && self.plugins.iter().zip(&other.plugins).all(|(own, other)| own.says(other))
    }

    /// Whether both say the same, plugins and all else.
    pub fn says(&self, other: &Self) -> bool {
        let rest = |list: &Self| -> Vec<(String, String)> {
            let members = list.members.members().filter(|(name, _)| *name != PLUGINS);
            members.map(|(name, raw)| (name.to_owned(), raw.get().to_owned())).collect()
        };
        self.calls_as(other) && rest(self) == rest(other)
    }

    /// Its text: what was read, byte for byte, but for the plugins that came or went, each with what
    /// parts it from the one before. So one that was put at the end and is taken away again leaves no
    /// trace.
    pub fn text(&self) -> String {
        let edited = self.source.as_ref().map(|source| source.with(&self.plugins));
        edited.unwrap_or_else(|| self.rebuilt())
    }

    /// Its text anew: every member as it was, in its place; a line for each.
    fn rebuilt(&self) -> String {
        let plugins: Vec<&str> = self.plugins.iter().map(Entry::text).collect();
        let plugins = format!("[\n    {}\n  ]", plugins.join(",\n    "));
        let last = self.members.members().enumerate().filter(|(_, (name, _))| *name == PLUGINS);
        let last = last.last().map(|(number, _)| number);
        let members = self.members.members().enumerate().map(|(number, (name, raw))| {
            let value = if Some(number) == last { &plugins } else { raw.get() };
            format!("  {}: {value}", Value::String(name.to_owned()))
        });
        format!("{{\n{}\n}}\n", members.collect::<Vec<_>>().join(",\n"))
    }
}

fn object(text: &str) -> Result<Object, BadList> {
    serde_json::from_str(text).map_err(|error| BadList::Json(error.to_string()))
}

/// A member of exactly this name: runtimes read a list into a map (libcni, `ConfListFromBytes`), of
/// whose equal names the last one counts.
fn member<'o>(object: &'o Object, name: &str) -> Option<&'o RawValue> {
    object.members().filter(|(own, _)| *own == name).last().map(|(_, raw)| raw)
}

/// The type of a plugin, as libcni finds it: it makes the plugin's text anew, in which the last of equal
/// names is left and names are sorted, and reads it without regard to the case of names. So capitals
/// come first, and give way to what comes later.
fn kind(text: &str) -> Option<String> {
    let object = object(text).ok()?;
    let mut named: BTreeMap<&str, &RawValue> = BTreeMap::new();
    named.extend(object.members().filter(|(name, _)| name.eq_ignore_ascii_case("type")));
    let mut kind = None;
    for raw in named.values() {
        // Nothing is said by null (Go, `encoding/json`), and what is no text is an error.
        kind = serde_json::from_str::<Option<String>>(raw.get()).ok()?.or(kind);
    }
    kind.filter(|kind| !kind.is_empty())
}

fn name(object: &Object) -> Result<String, BadList> {
    let name: Option<String> =
        member(object, "name").and_then(|raw| serde_json::from_str(raw.get()).ok());
    name.filter(|name| !name.is_empty()).ok_or(BadList::Name)
}
