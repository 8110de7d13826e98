//! What a rule of nft's JSON asks of routing.

use serde_json::Value;

use super::super::super::fib::{AddressTypes, ReturnRoute};
use super::super::super::rule::Test;
use super::JsonReader;
use super::condition::equality;
use crate::ruleset::Side;

impl JsonReader<'_> {
    /// What routing says.
    pub(super) fn fib(&self, content: &Value, operator: &str, right: &Value) -> Option<Test> {
        // One flag is no list.
        let flags = content.get("flags")?;
        let flags: Vec<&str> = match flags.as_array() {
            Some(flags) => flags.iter().map(Value::as_str).collect::<Option<_>>()?,
            None => vec![flags.as_str()?],
        };
        let negated = equality(operator)?;
        match (content.get("result")?.as_str()?, &flags[..]) {
            ("type", [side @ ("saddr" | "daddr")]) => {
                let names = self.one_or_several(right)?;
                let mut names = names.iter().map(|n| AddressTypes::from_name(n.as_str()?));
                let first = names.next()??;
                let types = names.try_fold(first, |all, one| Some(all.or(one?)))?;
                let side = if *side == "saddr" { Side::Source } else { Side::Destination };
                Some(Test::address_type(side, negated, types))
            }
            ("oif", flags) if flags.contains(&"saddr") => {
                let known = ["saddr", "mark", "iif"];
                if !flags.iter().all(|flag| known.contains(flag)) {
                    return None;
                }
                let exists = match right {
                    Value::Bool(exists) => *exists,
                    Value::String(word) if word == "missing" => false,
                    Value::String(word) if word == "exists" => true,
                    Value::Number(number) if number.as_u64() == Some(0) => false,
                    _ => return None,
                };
                Some(Test::ReturnRoute(ReturnRoute {
                    negated: negated == exists,
                    mark: flags.contains(&"mark"),
                    loose: !flags.contains(&"iif"),
                    own: false,
                }))
            }
            _ => None,
        }
    }
}
