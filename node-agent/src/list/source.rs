//! The text of a list as it was read, and the same with other plugins in it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Entry, PLUGINS};

/// The text of a list, and where its plugins stand in it.
#[derive(Clone, Debug)]
pub(super) struct Source {
    text: Arc<str>,
    /// The place behind the bracket that opens the plugins, in bytes.
    open: usize,
    /// The plugins' own places; at least one.
    pub(super) plugins: Vec<Range<usize>>,
}

/// The last of the members that are the plugins, in the text itself.
struct Last<'t>(Option<&'t RawValue>);

impl<'t> Deserialize<'t> for Last<'t> {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'t> Visitor<'t> for Members {
            type Value = Last<'t>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Last<'t>, A::Error> {
                let mut last = None;
                while let Some((name, raw)) = map.next_entry::<String, &RawValue>()? {
                    if name == PLUGINS {
                        last = Some(raw);
                    }
                }
                Ok(Last(last))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

impl Source {
    /// Where the plugins of a list stand in its text: in the last member of that name, which counts.
    pub(super) fn of(text: &str) -> Option<Self> {
        let Last(members) = serde_json::from_str(text).ok()?;
        let members = members?;
        let plugins: Vec<&RawValue> = serde_json::from_str(members.get()).ok()?;
        let place = |raw: &RawValue| -> Option<Range<usize>> {
            let start = raw.get().as_ptr().addr().checked_sub(text.as_ptr().addr())?;
            let place = start..start.checked_add(raw.get().len())?;
            (text.get(place.clone()) == Some(raw.get())).then_some(place)
        };
        let open = place(members)?.start + 1;
        let plugins = plugins.into_iter().map(place).collect::<Option<Vec<_>>>()?;
        (!plugins.is_empty()).then(|| Self { text: text.into(), open, plugins })
    }

    /// The text with these plugins in the place of those that were read.
    pub(super) fn with(&self, plugins: &[Entry]) -> String {
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
