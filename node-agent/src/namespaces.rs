//! The labels of namespaces, as the Kubernetes API tells of them: a list, then a watch, for ever. What is
//! known stays known, whatever goes wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube_runtime::watcher;
use millrace_core::dialect::ambient::enrol::Labels;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::api::story;
use crate::follow::{Keeper, follow};

/// How many namespaces one answer has.
const PAGE: u32 = 200;
/// How long the API may take for a namespace that is asked for while the plugin waits.
const ONE: Duration = Duration::from_millis(1700);

/// A namespace as the API has it; its labels alone count.
type Record = DynamicObject;

/// The labels of all namespaces.
#[derive(Debug, Default)]
pub struct Namespaces {
    known: Mutex<Known>,
    /// Tells one who waits that something has changed.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    labels: HashMap<String, Labels>,
    trouble: Option<String>,
    is_synced: bool,
}

impl Namespaces {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The labels of a namespace; none where it isn't known.
    pub fn labels(&self, name: &str) -> Option<Labels> {
        self.known().labels.get(name).cloned()
    }

    /// Why they are not all known; nothing where they are.
    pub fn trouble(&self) -> Option<String> {
        let known = self.known();
        let asked = || "they have not been listed yet".to_owned();
        (!known.is_synced).then(|| known.trouble.clone().unwrap_or_else(asked))
    }

    /// Whether nothing keeps changes from being heard of.
    pub fn is_followed(&self) -> bool {
        let known = self.known();
        known.is_synced && known.trouble.is_none()
    }

    fn change(&self, f: impl FnOnce(&mut Known)) {
        let mut known = self.known();
        known.trouble = None;
        f(&mut known);
        drop(known);
        self.changed.notify_one();
    }

    /// Follow them for ever.
    pub async fn follow(&self, client: Client) {
        let api: Api<Record> = Api::all_with(client, &resource());
        follow(self, api, watcher::Config::default().page_size(PAGE)).await;
    }
}

impl Keeper for Namespaces {
    type Record = Record;
    type Kept = (String, Labels);

    fn read(record: Record) -> Option<(String, Labels)> {
        read(record)
    }

    fn replace(&self, all: Vec<(String, Labels)>) {
        self.change(|known| (known.labels, known.is_synced) = (all.into_iter().collect(), true));
    }

    fn put(&self, (name, labels): (String, Labels)) {
        self.change(|known| {
            known.labels.insert(name, labels);
        });
    }

    fn remove(&self, (name, _): (String, Labels)) {
        self.change(|known| {
            known.labels.remove(&name);
        });
    }

    fn failed(&self, why: &str) {
        let mut known = self.known();
        if known.trouble.as_deref() != Some(why) {
            tracing::warn!("namespaces can't be listed or watched, which is tried again: {why}");
        }
        known.trouble = Some(why.to_owned());
    }
}

/// The labels of one namespace, which nobody has told of yet. None where there is none of this name.
///
/// # Errors
/// When the API does not tell in time.
pub async fn labels_of(client: Client, name: &str) -> Result<Option<Labels>, String> {
    let api: Api<Record> = Api::all_with(client, &resource());
    match timeout(ONE, api.get_opt(name)).await {
        Err(_late) => Err(format!("the Kubernetes API did not answer within {ONE:?}")),
        Ok(Err(error)) => Err(story(&error)),
        Ok(Ok(record)) => Ok(record.and_then(read).map(|(_, labels)| labels)),
    }
}

fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Namespace"))
}

fn read(record: Record) -> Option<(String, Labels)> {
    let labels: BTreeMap<String, String> = record.metadata.labels.unwrap_or_default();
    Some((record.metadata.name?, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_known_once_all_are_listed() {
        let namespaces = Namespaces::default();
        assert!(namespaces.trouble().is_some());
        let record = serde_json::json!({ "metadata": { "name": "shop", "labels": { "a": "b" } } });
        let record: Record = serde_json::from_value(record).unwrap();
        let listed = vec![read(record).unwrap()];
        namespaces.failed("403");
        assert_eq!(namespaces.trouble().as_deref(), Some("403"));
        namespaces.replace(listed);
        assert!(namespaces.trouble().is_none() && namespaces.is_followed());
        assert_eq!(namespaces.labels("shop").unwrap().get("a").map(String::as_str), Some("b"));
        assert_eq!(namespaces.labels("other"), None);
        // What is known stays known.
        namespaces.failed("500");
        assert!(namespaces.trouble().is_none() && namespaces.labels("shop").is_some());
        assert!(!namespaces.is_followed());
    }
}
