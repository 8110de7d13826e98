//! Rules of nft's JSON that look something up: each is a rule for each element of the set or map.

use serde_json::Value;

use super::super::super::ranges::Ranges;
use super::super::super::rule::{Action, Field, Step, Test};
use super::super::is;
use super::action::actions;
use super::condition::Settled;
use super::{JsonReader, single, value};

/// The most rules that one can be.
const MOST: usize = 100_000;

/// A rule as it is for some elements.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) steps: Vec<Step>,
    pub(super) settled: Settled,
}

impl Branch {
    /// Whether it only asks: what is done can't be done once more for each element.
    fn only_asks(&self) -> bool {
        self.steps.iter().all(|step| matches!(step, Step::Test(_) | Step::Do(Action::Note)))
    }
}

/// What an element leads to.
enum Leads {
    Nowhere,
    Verdict(Value),
    /// A statement, in which the element's value has taken the map's place.
    Statement(Value),
}

impl JsonReader<'_> {
    /// The branches of a rule behind a statement that looks something up; none where it does not, or
    /// where that is not known.
    pub(super) fn looked_up(
        &self,
        name: &str,
        content: &Value,
        last: bool,
        before: &[Branch],
    ) -> Option<Vec<Branch>> {
        let (key, data, place) = match name {
            "vmap" if last => (content.get("key")?, content.get("data")?, None),
            "match" => {
                let key = content.get("left").filter(|left| left.get("concat").is_some())?;
                let equal = matches!(content.get("op")?.as_str()?, "==" | "in");
                (key, content.get("right").filter(|_| equal)?, None)
            }
            _ => {
                let places = ["/addr", "/port", "/value"];
                let map = |at: &str| content.pointer(at)?.get("map");
                let mut found = places.into_iter().filter_map(|at| Some((at, map(at)?)));
                let (at, map) = found.next()?;
                if found.next().is_some() {
                    return None;
                }
                (map.get("key")?, map.get("data")?, Some(at))
            }
        };
        if self.kept.left.is_none() {
            return None;
        }
        let leads = |value: Value| match place {
            Some(at) => with(content, at, value).map(Leads::Statement),
            None => Some(Leads::Verdict(value)),
        };
        // A set of one key is a condition like others.
        let elements: Vec<(Value, Leads)> = if name == "match" {
            let alone = data.get("concat").is_some().then(|| vec![data.clone()]);
            let all = alone.or_else(|| self.elements(data))?;
            all.into_iter().map(|key| (key, Leads::Nowhere)).collect()
        } else {
            let pairs = self.elements(data)?.into_iter().map(|element| {
                let Value::Array(pair) = element else { return None };
                let [key, value] = <[Value; 2]>::try_from(pair).ok()?;
                Some((value::bare(key)?, leads(value)?))
            });
            pairs.collect::<Option<_>>()?
        };
        // What is done for one element can change a mark, and then another element would match too.
        let stays = |(_, leads): &(Value, Leads)| match leads {
            Leads::Nowhere | Leads::Statement(_) => false,
            Leads::Verdict(verdict) => verdict.get("jump").is_none(),
        };
        let turns = asks_mark(key) && !elements.iter().all(stays);
        let one_by_one = elements.len() > 1;
        if one_by_one && (turns || !before.iter().all(Branch::only_asks))
            || elements.len().saturating_mul(before.len()) > MOST
            || one_by_one && !self.kept.left.take(elements.len() * before.len())
        {
            return None;
        }
        let mut after = Vec::new();
        for branch in before {
            after.extend(self.each(branch, name, key, &elements)?);
        }
        if after.is_empty() {
            // Without elements the rule is for nobody.
            let settled = before.first()?.settled.clone();
            let nobody = is(Field::Protocol, false, Ranges::default());
            after.push(Branch { steps: vec![nobody.into()], settled });
        }
        Some(after)
    }

    fn elements(&self, of: &Value) -> Option<Vec<Value>> {
        value::elements(of, self.family, self.table, self.sets)
    }

    /// A branch for each element.
    fn each(
        &self,
        branch: &Branch,
        name: &str,
        key: &Value,
        elements: &[(Value, Leads)],
    ) -> Option<Vec<Branch>> {
        let is_rest = |(key, _): &&(Value, Leads)| *key == "*";
        let rest = elements.iter().find(is_rest);
        let mut all = Vec::new();
        for (value, leads) in elements.iter().filter(|element| !is_rest(element)) {
            let mut one = branch.clone();
            let tests = self.keyed(key, value, &mut one.settled)?;
            one.take(tests, name, leads)?;
            all.push(one);
        }
        if let Some((_, leads)) = rest {
            let mut one = branch.clone();
            let others: Vec<Value> =
                elements.iter().filter(|e| !is_rest(e)).map(|(key, _)| key.clone()).collect();
            let tests = if others.is_empty() {
                Vec::new()
            } else {
                let others = serde_json::json!({ "set": others });
                self.matched(key, "!=", &others, &mut one.settled)?
            };
            one.take(tests, name, leads)?;
            all.push(one);
        }
        Some(all)
    }

    /// Whether a key, or each part of it, has a value.
    fn keyed(&self, key: &Value, value: &Value, settled: &mut Settled) -> Option<Vec<Test>> {
        let Some(parts) = key.get("concat") else {
            return self.matched(key, "==", value, settled);
        };
        let (parts, values) = (parts.as_array()?, value.get("concat")?.as_array()?);
        if parts.len() != values.len() {
            return None;
        }
        let mut tests = Vec::new();
        for (part, value) in parts.iter().zip(values) {
            tests.extend(self.matched(part, "==", value, settled)?);
        }
        Some(tests)
    }
}

impl Branch {
    fn take(&mut self, tests: Vec<Test>, name: &str, leads: &Leads) -> Option<()> {
        self.steps.extend(tests.into_iter().map(Step::Test));
        let found = match leads {
            Leads::Nowhere => Vec::new(),
            Leads::Verdict(verdict) => {
                let (name, verdict) = single(verdict)?;
                actions(name, verdict)
            }
            Leads::Statement(content) => actions(name, content),
        };
        if found.iter().any(|action| matches!(action, Action::Unknown(_))) {
            return None;
        }
        self.steps.extend(found.into_iter().map(Step::Do));
        Some(())
    }
}

/// Whether a key has a mark in it.
fn asks_mark(key: &Value) -> bool {
    match key.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.iter().any(asks_mark),
        None => ["/meta/key", "/ct/key"]
            .iter()
            .any(|at| key.pointer(at).is_some_and(|key| key == "mark")),
    }
}

/// A statement with a value where it has a map. An address and a port can be one value.
fn with(content: &Value, at: &str, value: Value) -> Option<Value> {
    let mut content = content.clone();
    let ends = value.get("concat").and_then(Value::as_array);
    if let Some([address, port]) = ends.map(Vec::as_slice).filter(|_| at == "/addr") {
        let ends = content.as_object_mut()?;
        ends.insert("addr".to_owned(), address.clone());
        ends.insert("port".to_owned(), port.clone());
    } else {
        *content.pointer_mut(at)? = value;
    }
    Some(content)
}
