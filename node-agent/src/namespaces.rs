//! The labels of namespaces, as the Kubernetes API tells of them: a list, then a watch, for ever. What is
//! known stays known, whatever goes wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube_runtime::utils::Backoff as _;
use kube_runtime::watcher::{self, DefaultBackoff, Event, watcher};
use millrace_cni::causes::chain;
use millrace_core::dialect::ambient::enrol::Labels;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::api::story;

/// How many namespaces one answer has.
const PAGE: u32 = 200;
/// How long each page of a list may take.
const PATIENCE: Duration = Duration::from_secs(30);
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

    fn change(&self, f: impl FnOnce(&mut Known)) {
        let mut known = self.known();
        known.trouble = None;
        f(&mut known);
        drop(known);
        self.changed.notify_one();
    }

    /// Note why they can't be followed.
    pub fn failed(&self, why: &str) {
        let mut known = self.known();
        if known.trouble.as_deref() != Some(why) {
            tracing::warn!("namespaces can't be listed or watched, which is tried again: {why}");
        }
        known.trouble = Some(why.to_owned());
    }

    /// Follow them for ever.
    pub async fn follow(&self, client: Client) {
        let api: Api<Record> = Api::all_with(client, &resource());
        let config = watcher::Config::default().page_size(PAGE);
        let mut pauses = DefaultBackoff::default();
        loop {
            let mut events = watcher(api.clone(), config.clone()).boxed();
            let (mut listed, mut is_watching) = (HashMap::new(), false);
            loop {
                let event = if is_watching {
                    events.next().await
                } else if let Ok(event) = timeout(PATIENCE, events.next()).await {
                    event
                } else {
                    self.failed(&format!(
                        "the Kubernetes API did not list them within {PATIENCE:?}"
                    ));
                    break;
                };
                match event {
                    None => break,
                    Some(Ok(Event::Init)) => (listed, is_watching) = (HashMap::new(), false),
                    Some(Ok(Event::InitApply(record))) => listed.extend(read(record)),
                    Some(Ok(Event::InitDone)) => {
                        is_watching = true;
                        pauses.reset();
                        let labels = std::mem::take(&mut listed);
                        self.change(|known| (known.labels, known.is_synced) = (labels, true));
                    }
                    Some(Ok(Event::Apply(record))) => {
                        self.change(|known| known.labels.extend(read(record)));
                    }
                    Some(Ok(Event::Delete(record))) => self.change(|known| {
                        if let Some((name, _)) = read(record) {
                            known.labels.remove(&name);
                        }
                    }),
                    Some(Err(error)) => {
                        self.failed(&chain(&error));
                        // A watch from too long ago would be begun again where it was.
                        if matches!(&error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
                        {
                            break;
                        }
                        sleep(pauses.next().unwrap_or(PATIENCE)).await;
                    }
                }
            }
            sleep(pauses.next().unwrap_or(PATIENCE)).await;
        }
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
        let listed = HashMap::from([read(record).unwrap()]);
        namespaces.failed("403");
        assert_eq!(namespaces.trouble().as_deref(), Some("403"));
        namespaces.change(|known| (known.labels, known.is_synced) = (listed, true));
        assert!(namespaces.trouble().is_none());
        assert_eq!(namespaces.labels("shop").unwrap().get("a").map(String::as_str), Some("b"));
        assert_eq!(namespaces.labels("other"), None);
        // What is known stays known.
        namespaces.failed("500");
        assert!(namespaces.trouble().is_none() && namespaces.labels("shop").is_some());
    }
}
