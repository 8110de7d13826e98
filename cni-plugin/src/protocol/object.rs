//! A JSON object whose members keep their order and their text.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A JSON object as it was written: order of members, members that nobody knows, and numbers of
/// any size are kept, and so is the text between the braces of each member.
#[derive(Clone, Debug, Default)]
pub struct Object {
    members: Vec<(String, Box<RawValue>)>,
}

/// Whether a member has this name. Go, which most runtimes are written in, does not look at the
/// case of names (`encoding/json`, `Unmarshal`), so some of them arrive in another one.
pub fn member_is(name: &str, wanted: &str) -> bool {
    name.eq_ignore_ascii_case(wanted)
}

impl Object {
    /// The members, in their order.
    pub fn members(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.members.iter().map(|(name, value)| (name.as_str(), value.as_ref()))
    }

    /// The value of a member, whatever the case of its name; the last one counts, as in Go.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        let named = |member: &&(String, Box<RawValue>)| member_is(&member.0, name);
        self.members.iter().rfind(named).map(|(_, value)| value.as_ref())
    }

    /// Give a member this text as its value: in its place if it is there, else in front.
    pub fn set_text(&mut self, name: &str, text: &str) {
        let Ok(value) = serde_json::value::to_raw_value(text) else { return };
        let mut there = false;
        for (_, old) in self.members.iter_mut().filter(|(n, _)| n == name) {
            old.clone_from(&value);
            there = true;
        }
        if !there {
            self.members.insert(0, (name.to_owned(), value));
        }
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object { members })
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl Serialize for Object {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.members())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        r#"{"z":1500000000000000001,"a":[ 1e400, 2 ],"Unknown":{"k":null},"cniVersion":"0.4.0"}"#;

    #[test]
    fn order_numbers_and_unknown_members_stay() {
        let mut object: Object = serde_json::from_str(TEXT).unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), TEXT);
        object.set_text("cniVersion", "1.0.0");
        let again = serde_json::to_string(&object).unwrap();
        assert_eq!(again, TEXT.replace("0.4.0", "1.0.0"));
    }

    #[test]
    fn a_member_that_is_not_there_is_put_in_front() {
        let mut object: Object = serde_json::from_str(r#"{"ips":[]}"#).unwrap();
        object.set_text("cniVersion", "1.0.0");
        let text = serde_json::to_string(&object).unwrap();
        assert_eq!(text, r#"{"cniVersion":"1.0.0","ips":[]}"#);
    }

    #[test]
    fn names_are_found_whatever_their_case() {
        let object: Object =
            serde_json::from_str(r#"{"RuntimeConfig":1,"runtimeconfig":2}"#).unwrap();
        assert_eq!(object.get("runtimeConfig").unwrap().get(), "2");
        assert!(object.get("prevResult").is_none());
    }

    #[test]
    fn only_objects_are_objects() {
        for bad in ["[]", "7", "null", "{", "\"x\"", "{\"a\":01}"] {
            assert!(serde_json::from_str::<Object>(bad).is_err(), "{bad}");
        }
    }
}
