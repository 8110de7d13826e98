//! The pods of this node, as the Kubernetes API tells of them: a list, then a watch, for ever.
//! Whatever goes wrong, what is known stays known, and it is begun anew.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, ApiResource, GroupVersionKind};
use kube::core::Object;
use kube_runtime::watcher;
use millrace_core::from_objects;
use millrace_core::pod::{Answer, NotThePod, PodFacts};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::api::story;
use crate::follow::{Keeper, follow};

/// The kind of object that is asked for.
const KIND: &str = "Pod";
/// How many pods one answer has.
const PAGE: u32 = 50;
/// How long the API may take for a pod that is asked for while the plugin waits, which does so for
/// two seconds.
const ONE: Duration = Duration::from_millis(1700);

/// A pod as the API has it. What is not read here is passed on as it is.
pub(crate) type Record = Object<Value, Status>;

/// What the API says became of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
pub(crate) struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Ip>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(remote = "Self", default)]
struct Ip {
    ip: String,
}

from_objects!(Status, Ip);

/// The pods of a node.
#[derive(Debug, Default)]
pub struct Pods {
    known: Mutex<Known>,
    /// Tells one who waits that something has changed.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    pods: HashMap<Name, Pod>,
    trouble: Option<String>,
    is_synced: bool,
    failures: u64,
}

/// Namespace and name, which a pod that is made anew may have again.
pub type Name = (String, String);

/// What is known of a pod of this node, from the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`, which no other pod ever has.
    pub uid: String,
    /// The version of its object.
    pub version: String,
    /// What the plugin is told: metadata and spec, as JSON.
    pub manifest: Arc<str>,
    /// Its addresses, as far as they are known.
    pub addresses: Vec<IpAddr>,
    /// Whether it has ended, or is to.
    pub is_over: bool,
    /// Whether all that ran in it has ended.
    pub has_ended: bool,
    /// Whether something makes it anew when it is gone.
    pub has_owner: bool,
}

impl Pod {
    /// What is known of it.
    ///
    /// # Errors
    /// When its manifest can't be read.
    pub fn facts(&self) -> serde_json::Result<PodFacts> {
        serde_json::from_str(&self.manifest)
    }

    /// What is known of it, if it is the pod that was asked for.
    ///
    /// # Errors
    /// What tells it from that pod.
    pub fn about(&self, wanted: &PodFacts) -> Result<PodFacts, NotThePod> {
        let answer: Result<Answer, _> = serde_json::from_str(&self.manifest);
        // What has no readable containers is no pod to go by.
        answer.map_err(|_unreadable| NotThePod::NoContainers)?.of_a_pod().about(wanted)
    }
}

impl Pods {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod with these name and id. Without an id nothing is known: it may be another one of that
    /// name that is asked for.
    pub fn find(&self, wanted: &PodFacts) -> Option<Pod> {
        wanted.uid.as_ref()?;
        let name = (wanted.namespace.clone()?, wanted.name.clone()?);
        let pod = self.known().pods.get(&name)?.clone();
        pod.about(wanted).is_ok().then_some(pod)
    }

    /// All pods that are known, in no order.
    pub fn all(&self) -> Vec<(Name, Pod)> {
        self.known().pods.iter().map(|(name, pod)| (name.clone(), pod.clone())).collect()
    }

    /// How many pods of the node are known now.
    pub fn count(&self) -> usize {
        self.known().pods.len()
    }

    /// How often they could not be followed.
    pub fn failures(&self) -> u64 {
        self.known().failures
    }

    /// Why they are not all known; nothing where they are.
    pub fn trouble(&self) -> Option<String> {
        let known = self.known();
        let asked = || "they have not been listed yet".to_owned();
        (!known.is_synced).then(|| known.trouble.clone().unwrap_or_else(asked))
    }

    /// Follow the pods of a node for ever.
    pub async fn follow(&self, client: Client, node: &str) {
        let api: Api<Record> = Api::all_with(client, &resource());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        follow(self, api, config.page_size(PAGE)).await;
    }
}

impl Keeper for Pods {
    type Record = Record;
    type Kept = (Name, Pod);

    fn read(record: Record) -> Option<(Name, Pod)> {
        read(record)
    }

    fn replace(&self, pods: Vec<(Name, Pod)>) {
        let mut known = self.known();
        if known.trouble.take().is_some() || !known.is_synced {
            tracing::info!("the list of this node's pods is complete, and is kept up to date");
        }
        (known.pods, known.is_synced) = (pods.into_iter().collect(), true);
        self.changed.notify_one();
    }

    fn put(&self, (name, pod): (Name, Pod)) {
        let mut known = self.known();
        known.trouble = None;
        known.pods.insert(name, pod);
        self.changed.notify_one();
    }

    fn remove(&self, (name, gone): (Name, Pod)) {
        let mut known = self.known();
        known.trouble = None;
        // One of the same name may have been told of already.
        if known.pods.get(&name).is_some_and(|pod| pod.uid == gone.uid) {
            known.pods.remove(&name);
        }
        self.changed.notify_one();
    }

    fn failed(&self, why: &str) {
        let mut known = self.known();
        if known.trouble.as_deref() != Some(why) {
            tracing::warn!(
                "this node's pods can't be listed or watched, which is tried again: {why}"
            );
        }
        known.trouble = Some(why.to_owned());
        known.failures += 1;
    }
}

/// One pod, whatever node it is on. None where there is none.
///
/// # Errors
/// When the API does not tell in time, or tells something else.
pub async fn one(client: Client, wanted: &PodFacts) -> Result<Option<Pod>, String> {
    let (Some(namespace), Some(name)) = (&wanted.namespace, &wanted.name) else { return Ok(None) };
    let api: Api<Record> = Api::namespaced_with(client, namespace, &resource());
    match timeout(ONE, api.get_opt(name)).await {
        Err(_late) => Err(format!("the Kubernetes API did not answer within {ONE:?}")),
        Ok(Err(error)) => Err(story(&error)),
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(found))) => {
            let kind = found.types.as_ref().map(|types| types.kind.clone());
            if kind.as_deref() != Some(KIND) {
                return Err(format!("the Kubernetes API answered with {kind:?} and no {KIND}"));
            }
            Ok(read(found).map(|(_, pod)| pod))
        }
    }
}

pub(crate) fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", KIND))
}

/// A pod as it is kept: what only other programs need is left out.
fn read(record: Record) -> Option<(Name, Pod)> {
    let Object { metadata, spec, status, .. } = record;
    let ObjectMeta { name, namespace, uid, resource_version, deletion_timestamp, .. } = metadata;
    let (name, namespace, uid) = (name?, namespace?, uid?);
    let status = status.unwrap_or_default();
    let reported = json!({
        "name": name, "namespace": namespace, "uid": uid,
        "labels": metadata.labels, "annotations": metadata.annotations,
    });
    let manifest = json!({ "metadata": reported, "spec": spec }).to_string();
    let addresses = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip);
    let mut addresses: Vec<IpAddr> =
        addresses.chain(status.pod_ip).filter_map(|ip| ip.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let pod = Pod {
        uid,
        version: resource_version.unwrap_or_default(),
        manifest: manifest.into(),
        addresses,
        is_over: ended || deletion_timestamp.is_some(),
        has_ended: ended,
        has_owner: metadata.owner_references.is_some_and(|owners| !owners.is_empty()),
    };
    Some(((namespace, name), pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, uid: &str) -> Record {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": "shop", "uid": uid, "resourceVersion": "7",
                "managedFields": [{ "manager": "kubectl" }],
            },
            "spec": { "containers": [{ "name": "app" }] },
            "status": { "phase": "Running", "podIP": "10.0.0.1",
                        "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] },
        }))
        .unwrap()
    }

    fn wanted(name: &str, uid: Option<&str>) -> PodFacts {
        PodFacts {
            name: Some(name.to_owned()),
            namespace: Some("shop".to_owned()),
            uid: uid.map(str::to_owned),
            ..PodFacts::default()
        }
    }

    /// Verify that a pod is known by its id alone, and that the end of an old one takes nothing from the
    /// new one of its name.
    #[test]
    fn a_pod_is_known_by_its_id() {
        let pods = Pods::default();
        assert!(pods.trouble().is_some());
        pods.replace(["a", "b"].into_iter().filter_map(|name| read(record(name, name))).collect());
        assert!(pods.trouble().is_none());
        let found = pods.find(&wanted("a", Some("a"))).unwrap();
        assert!(found.manifest.contains("\"containers\"") && !found.manifest.contains("managed"));
        assert_eq!(found.addresses.len(), 2);
        for unknown in [wanted("a", Some("b")), wanted("a", None), wanted("c", Some("a"))] {
            assert_eq!(pods.find(&unknown), None, "{unknown:?}");
        }
        pods.put(read(record("a", "new")).unwrap());
        pods.remove(read(record("a", "a")).unwrap());
        assert_eq!(pods.find(&wanted("a", Some("a"))), None);
        assert_eq!(pods.find(&wanted("a", Some("new"))).unwrap().uid, "new");
        pods.remove(read(record("a", "new")).unwrap());
        assert_eq!(pods.count(), 1);
        pods.failed("403");
        assert!(pods.trouble().is_none() && pods.find(&wanted("b", Some("b"))).is_some());
    }

    /// Verify that a pod that ends is told from one that runs, and that what names no pod is none.
    #[test]
    fn what_ends_is_over() {
        let with = |path: &str, value: Value| {
            let mut text = json!({ "metadata": { "name": "a", "namespace": "b", "uid": "c" },
                                   "spec": {}, "status": {} });
            *text.pointer_mut(path).unwrap() = value;
            read(serde_json::from_value(text).unwrap()).map(|(_, pod)| pod.is_over)
        };
        for (path, value, over) in [
            ("/status", json!({ "phase": "Running" }), Some(false)),
            ("/status", json!({ "phase": "Pending", "podIPs": null }), Some(false)),
            ("/status", json!({ "phase": "Failed" }), Some(true)),
            ("/status", json!({ "phase": "Succeeded" }), Some(true)),
            (
                "/metadata",
                json!({ "name": "a", "namespace": "b", "uid": "c",
                        "deletionTimestamp": "2026-01-01T00:00:00Z" }),
                Some(true),
            ),
            ("/metadata", json!({ "name": "a", "namespace": "b" }), None),
        ] {
            assert_eq!(with(path, value.clone()), over, "{path} {value}");
        }
    }
}
