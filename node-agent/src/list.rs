//! The text of a network's configuration: a list of plugins (CNI specification 1.1.0, section 1),
//! changed in its `plugins` alone. All else keeps its text byte for byte: members that nobody knows,
//! numbers of any size, and the blanks between.

use std::ops::Range;
use std::sync::Arc;

use millrace_cni::protocol::Object;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The plugins of a list.
const PLUGINS: &str = "plugins";

/// Why a text is no configuration that a runtime can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadList {
    /// It isn't JSON.
    #[error("it is no JSON object: {0}")]
    Json(String),
    /// It has no name.
    #[error("it has no name, which has to be a text that is not empty")]
    Name,
    /// It has no plugins.
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

/// A list of plugins.
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

/// The text of a list, and where its plugins stand in it.
#[derive(Clone, Debug)]
struct Source {
    text: Arc<str>,
    /// The place behind the bracket that opens the plugins, in bytes.
    open: usize,
    /// The plugins' own places; at least one.
    plugins: Vec<Range<usize>>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

impl Entry {
    /// Read an entry.
    ///
    /// # Errors
    /// When it is no object with a type.
    pub fn parse(text: &str) -> Result<Self, BadList> {
        let raw: Box<RawValue> =
            serde_json::from_str(text).map_err(|error| BadList::Json(error.to_string()))?;
        Self::new(raw, 1)
    }

    fn new(raw: Box<RawValue>, number: usize) -> Result<Self, BadList> {
        let kind: Kind = serde_json::from_str(raw.get()).map_err(|_bad| BadList::Plugin(number))?;
        if kind.kind.is_empty() {
            return Err(BadList::Plugin(number));
        }
        Ok(Self { raw, kind: kind.kind, number: None })
    }

    /// The name of the program's file.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Its text.
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

impl Source {
    /// Where the plugins of a list stand in its text; none where it has several members of that name.
    fn of(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Members<'t> {
            #[serde(borrow)]
            plugins: &'t RawValue,
        }
        let members: Members<'_> = serde_json::from_str(text).ok()?;
        let plugins: Vec<&RawValue> = serde_json::from_str(members.plugins.get()).ok()?;
        let place = |raw: &RawValue| -> Option<Range<usize>> {
            let start = raw.get().as_ptr().addr().checked_sub(text.as_ptr().addr())?;
            let place = start..start.checked_add(raw.get().len())?;
            (text.get(place.clone()) == Some(raw.get())).then_some(place)
        };
        let open = place(members.plugins)?.start + 1;
        let plugins = plugins.into_iter().map(place).collect::<Option<Vec<_>>>()?;
        (!plugins.is_empty()).then(|| Self { text: text.into(), open, plugins })
    }

    /// The text with these plugins in the place of those that were read.
    fn with(&self, plugins: &[Entry]) -> String {
        let (first, last) = match self.plugins.as_slice() {
            [first, .., last] => (first, last),
            [only] => (only, only),
            [] => return self.text.to_string(),
        };
        let between =
            |one: usize, other: usize| &self.text[self.plugins[one].end..self.plugins[other].start];
        // A new one is parted from the one before as the last two are, or else the first from the
        // bracket.
        let usual = match self.plugins.len() {
            1 => format!(",{}", &self.text[self.open..first.start]),
            count => between(count - 2, count - 1).to_owned(),
        };
        let mut text = self.text[..first.start].to_owned();
        let mut before: Option<&Entry> = None;
        for entry in plugins {
            match before.map(|before| (before.number, entry.number)) {
                None => {}
                Some((Some(one), Some(other))) if other == one + 1 => {
                    text.push_str(between(one, other));
                }
                Some(_) => text.push_str(&usual),
            }
            text.push_str(entry.text());
            before = Some(entry);
        }
        text.push_str(&self.text[last.end..]);
        text
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

fn name(object: &Object) -> Result<String, BadList> {
    let name: Option<String> =
        member(object, "name").and_then(|raw| serde_json::from_str(raw.get()).ok());
    name.filter(|name| !name.is_empty()).ok_or(BadList::Name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"{"zeta": 1500000000000000000001, "cniVersion": "0.3.1", "name": "k8s",
 "unknown": {"b": 1e400, "a": [ 1 ]}, "plugins": [
  {"type": "calico", "mtu": 123456789012345678901234567890, "a": {"z":1,"b":2}},
  {"type": "portmap"} ], "disableCheck": true}"#;

    fn ours() -> Entry {
        Entry::parse(r#"{"type":"millrace-cni","deadline":"3s"}"#).unwrap()
    }

    #[test]
    fn all_but_the_plugins_keeps_its_order_and_its_text() {
        let list = List::parse(TEXT).unwrap();
        let text = list.clone().with(ours()).text();
        for part in [
            "1500000000000000000001",
            r#"{"b": 1e400, "a": [ 1 ]}"#,
            r#"{"type": "calico", "mtu": 123456789012345678901234567890, "a": {"z":1,"b":2}}"#,
            r#""cniVersion": "0.3.1""#,
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let order = ["zeta", "cniVersion", "name", "unknown", "plugins", "disableCheck"];
        let places: Vec<usize> =
            order.iter().map(|k| text.find(&format!("\"{k}\":")).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
        let again = List::parse(&text).unwrap();
        assert_eq!(again.plugins.last().unwrap().kind(), "millrace-cni");
        let without = again.clone().without(|kind| kind == "millrace-cni");
        assert!(without.says(&list));
        assert_eq!((again.text(), without.text()), (text, TEXT.to_owned()));
    }

    /// Verify how a new plugin is parted from the one before, and that what takes the place of another
    /// one and gives it back leaves the text as it was.
    #[test]
    fn a_plugin_is_written_as_those_before_it() {
        let ours = ours();
        for (text, between) in [
            (r#"{"name":"n","plugins":[{"type":"a"}]}"#, ","),
            ("{\n  \"name\": \"n\",\n  \"plugins\": [\n    {\"type\":\"a\"}\n  ]\n}\n", ",\n    "),
            (
                "{\"name\":\"n\",\"plugins\":[\r\n\t{\"type\":\"a\"} ,\r\n{\"type\":\"b\"}]}",
                " ,\r\n",
            ),
            ("{\"plugins\":[{\"type\":\"a\"},\n {\"type\":\"b\"}] ,\"name\":\"n\"}", ",\n "),
        ] {
            let list = List::parse(text).unwrap();
            let longer = list.clone().with(ours.clone()).text();
            assert!(longer.contains(&format!("}}{between}{}", ours.text())), "{longer}");
            // The last one is taken over, and comes back.
            let last = list.plugins.last().unwrap().clone();
            let taken = list.clone().without(|kind| kind == last.kind()).with(ours.clone()).text();
            let back = List::parse(&taken).unwrap().without(|kind| kind == "millrace-cni");
            assert_eq!(back.with(last).text(), text, "{taken}");
            // So does one from the middle, but for its place.
            let longer = List::parse(&longer).unwrap().with(ours.clone());
            let shorter = longer.without(|kind| kind == "a");
            assert!(List::parse(&shorter.text()).unwrap().says(&shorter), "{}", shorter.text());
        }
    }

    #[test]
    fn what_runtimes_cannot_use_is_told() {
        for (text, bad) in [
            (r#"{"name":"a","plugins":[]}"#, BadList::Plugins),
            (r#"{"name":"a"}"#, BadList::Plugins),
            (r#"{"name":"a","Plugins":[{"type":"a"}]}"#, BadList::Plugins),
            (r#"{"name":"","plugins":[{"type":"a"}]}"#, BadList::Name),
            (r#"{"name":7,"plugins":[{"type":"a"}]}"#, BadList::Name),
            (r#"{"name":"a","plugins":[{"type":"a"},{"type":""}]}"#, BadList::Plugin(2)),
            (r#"{"name":"a","plugins":[7]}"#, BadList::Plugin(1)),
        ] {
            assert_eq!(List::parse(text).unwrap_err(), bad, "{text}");
        }
        for text in ["", "{", "[]", "null", "{}x"] {
            assert!(matches!(List::parse(text), Err(BadList::Json(_))), "{text}");
        }
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let text = r#"{"cniVersion":"0.4.0","name":"n\"et","type":"bridge","mtu":7}"#;
        let list = List::of_single(text).unwrap();
        let read = List::parse(&list.with(ours()).text()).unwrap();
        assert_eq!(read.name, "n\"et");
        assert_eq!(read.plugins[0].text(), text);
        assert!(read.text().contains("\"cniVersion\": \"0.4.0\""));
        assert_eq!(List::of_single(TEXT).unwrap_err(), BadList::Ending);
        assert_eq!(List::of_single(r#"{"name":"a"}"#).unwrap_err(), BadList::Plugin(1));
    }

    #[test]
    fn the_last_of_equal_names_counts() {
        let text = r#"{"plugins":[{"type":"a"}],"name":"x","name":"y","plugins":[{"type":"b"}]}"#;
        let list = List::parse(text).unwrap();
        assert_eq!((list.name.as_str(), list.plugins[0].kind()), ("y", "b"));
        let text = list.with(ours()).text();
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["plugins"][1]["type"], "millrace-cni", "{text}");
    }

    #[test]
    fn drop_ins_can_be_refused() {
        let list = |said: &str| {
            List::parse(&format!(r#"{{"name":"a","plugins":[{{"type":"a"}}]{said}}}"#)).unwrap()
        };
        assert!(!list("").refuses_drop_ins());
        assert!(!list(r#","loadOnlyInlinedPlugins":false"#).refuses_drop_ins());
        assert!(list(r#","loadOnlyInlinedPlugins":true"#).refuses_drop_ins());
        assert!(list(r#","loadOnlyInlinedPlugins":"true""#).refuses_drop_ins());
    }

    /// Blanks of JSON.
    fn blanks() -> impl Strategy<Value = String> {
        "[ \t\r\n]{0,3}"
    }

    proptest! {
        #[test]
        fn a_plugin_that_comes_and_goes_leaves_no_trace(
            kinds in prop::collection::vec(("[a-z]{1,8}", blanks(), blanks()), 1..5),
            (before, after, colon) in (blanks(), blanks(), blanks()),
            is_first in any::<bool>(),
        ) {
            let plugin = |(kind, before, after): &(String, String, String)| {
                format!(r#"{before}{{"type":{after}"{kind}"}}{after}"#)
            };
            let plugins: Vec<String> = kinds.iter().map(plugin).collect();
            let plugins = format!("\"plugins\":{colon}[{}]", plugins.join(","));
            let name = r#""name":"n","unknown":{"plugins":[ 1e400 ]}"#;
            let members = if is_first { [&plugins, name] } else { [name, plugins.as_str()] };
            let text = format!("{before}{{{after}{}{before}}}{after}", members.join(","));
            let list = List::parse(&text).unwrap();
            let longer = list.clone().with(ours()).text();
            let read = List::parse(&longer).unwrap();
            prop_assert_eq!(read.plugins.len(), kinds.len() + 1);
            let back = read.without(|kind| kind == "millrace-cni");
            prop_assert_eq!(back.text(), text);
        }

        #[test]
        fn any_list_is_written_as_it_was_read(
            kinds in prop::collection::vec("[a-z]{1,8}", 1..6),
            members in prop::collection::btree_map("[a-zA-Z\"\\\\é]{1,6}", any::<i128>(), 0..5),
        ) {
            let plugins: Vec<String> =
                kinds.iter().map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect();
            let more: Vec<String> = members
                .iter()
                .filter(|(name, _)| !["name", "plugins"].contains(&name.as_str()))
                .map(|(name, number)| format!(",{}:{number}", Value::String(name.clone())))
                .collect();
            let more = more.concat();
            let text = format!(r#"{{"name":"n","plugins":[{}]{more}}}"#, plugins.join(","));
            let list = List::parse(&text).unwrap();
            let again = List::parse(&list.rebuilt()).unwrap();
            prop_assert!(again.says(&list));
            prop_assert_eq!(list.text(), text);
            let read = again.plugins.iter().map(|entry| entry.kind().to_owned()).collect::<Vec<_>>();
            prop_assert_eq!(read, kinds);
        }
    }
}
