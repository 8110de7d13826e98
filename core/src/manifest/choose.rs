//! Which of several pods is meant.

use std::fmt;
use std::str::FromStr;

use super::{BadObject, Manifest, Name, Workload};

/// The most names that an error lists.
const MOST: usize = 20;

/// Names an object: `KIND/NAME`, `KIND/NAMESPACE/NAME` or `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
}

/// A text names no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: an object is named KIND/NAME, KIND/NAMESPACE/NAME or NAME")]
pub struct BadSelector(String);

impl FromStr for Selector {
    type Err = BadSelector;

    fn from_str(text: &str) -> Result<Self, BadSelector> {
        let parts: Vec<&str> = text.split('/').collect();
        let some = |text: &str| Some(text.to_owned());
        let (kind, namespace, name) = match parts[..] {
            [name] => (None, None, name),
            [kind, name] => (some(kind), None, name),
            [kind, namespace, name] => (some(kind), some(namespace), name),
            _ => return Err(BadSelector(text.to_owned())),
        };
        if parts.contains(&"") {
            return Err(BadSelector(text.to_owned()));
        }
        Ok(Self { kind, namespace, name: name.to_owned() })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.kind, &self.namespace].into_iter().flatten() {
            write!(f, "{part}/")?;
        }
        f.write_str(&self.name)
    }
}

impl Selector {
    fn is(&self, found: &Name) -> bool {
        self.kind.as_ref().is_none_or(|kind| kind.eq_ignore_ascii_case(&found.kind))
            && self.namespace.as_ref().is_none_or(|own| found.namespace.as_ref() == Some(own))
            && found.name.as_ref() == Some(&self.name)
    }

    /// As short as it names none of the others.
    fn of(found: &Name, all: &[Workload]) -> String {
        let Some(name) = &found.name else { return found.to_string() };
        let short = Self { kind: Some(found.kind.clone()), namespace: None, name: name.clone() };
        let long = Self { namespace: found.namespace.clone(), ..short.clone() };
        let alone = all.iter().filter(|workload| short.is(&workload.name)).count() == 1;
        if alone { short } else { long }.to_string()
    }
}

/// Why no pod was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotChosen {
    /// There is no pod and nothing that makes pods; what there is instead.
    #[error("there is no pod in it, and nothing that is known to make pods{}", found(.0))]
    Nothing(Vec<String>),
    /// Several do, and none was named.
    #[error("it has several pods; say which one is meant: {}", listed(.0))]
    Several(Vec<String>),
    /// No pod in the file, and nothing that makes pods, has the name that was asked for.
    #[error("no pod in it, and nothing that makes pods, is called {name}; there is {}", listed(.there))]
    Unnamed {
        /// The name that was asked for, with kind and namespace where these were given.
        name: String,
        /// Every pod in it and all that makes pods, as each can be named.
        there: Vec<String>,
    },
    /// What was chosen is of a kind of others.
    #[error("{0}")]
    Stranger(String),
    /// What may be meant can't be read.
    #[error(transparent)]
    Bad(BadObject),
}

fn found(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(", but {}", listed(names)) }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl Manifest {
    /// The pod that is meant: the one that is named, else the only one.
    ///
    /// # Errors
    /// When there is none, or several, or it is of a kind that is not known to make pods.
    pub fn choose(&self, selector: Option<&Selector>) -> Result<&Workload, NotChosen> {
        let meant = |workload: &&Workload| selector.is_none_or(|wanted| wanted.is(&workload.name));
        let candidates: Vec<&Workload> = self.workloads.iter().filter(meant).collect();
        let names = |list: &[&Workload]| -> Vec<String> {
            list.iter().map(|workload| Selector::of(&workload.name, &self.workloads)).collect()
        };
        // What can't be read may be the one that is meant.
        if let (Some(bad), true) = (self.bad.first(), selector.is_none() || candidates.is_empty()) {
            return Err(NotChosen::Bad(bad.clone()));
        }
        match (candidates[..].as_ref(), selector) {
            ([workload], _) => match &workload.stranger {
                Some(why) => Err(NotChosen::Stranger(why.clone())),
                None => Ok(workload),
            },
            ([], Some(selector)) if !self.workloads.is_empty() => {
                let there = names(&self.workloads.iter().collect::<Vec<_>>());
                Err(NotChosen::Unnamed { name: selector.to_string(), there })
            }
            ([], _) => Err(NotChosen::Nothing(self.others.iter().map(Name::to_string).collect())),
            (several, _) => Err(NotChosen::Several(names(several))),
        }
    }
}
