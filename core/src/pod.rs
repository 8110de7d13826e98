//! What is known of a pod. A manifest tells everything; a container runtime tells annotations
//! only, and what is not known is told from what is not there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is known of a pod. A manifest of Kubernetes (`v1` `Pod`) deserializes into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Manifest")]
pub struct PodFacts {
    /// Its name; none outside Kubernetes.
    pub name: Option<String>,
    /// Its namespace; none outside Kubernetes.
    pub namespace: Option<String>,
    /// Its unique id, which tells it from an earlier pod of the same name.
    pub uid: Option<String>,
    /// Its annotations, where they are known.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Its labels, where they are known.
    pub labels: Option<BTreeMap<String, String>>,
    /// Its containers, where they are known: init containers first.
    pub containers: Option<Vec<Container>>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Whether it is an init container.
    pub init: bool,
    /// The user that it runs as, if its or the pod's security context says so.
    pub user: Option<u32>,
    /// The group, likewise.
    pub group: Option<u32>,
    /// The words behind its command.
    pub args: Vec<String>,
    /// Variables with a value of their own; those that are taken from elsewhere are left out.
    pub env: BTreeMap<String, String>,
}

/// A text is no manifest of a pod.
#[derive(Debug, thiserror::Error)]
#[error("this is no manifest of a pod: {0}")]
pub struct BadManifest(#[from] serde_saphyr::Error);

/// Read a pod's manifest, in YAML or JSON.
///
/// # Errors
/// When it is none.
pub fn read_manifest(text: &str) -> Result<PodFacts, BadManifest> {
    Ok(serde_saphyr::from_str(text)?)
}

impl PodFacts {
    /// An annotation's value, if annotations are known and this one is there.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// A container, if containers are known and this one is there.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.as_ref()?.iter().find(|c| c.name == name)
    }
}

/// The part of a manifest that matters here. Lists and maps may be null.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    init_containers: Option<Vec<RawContainer>>,
    containers: Option<Vec<RawContainer>>,
    security_context: Option<SecurityContext>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawContainer {
    name: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    security_context: Option<SecurityContext>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecurityContext {
    run_as_user: Option<u32>,
    run_as_group: Option<u32>,
}

impl From<Manifest> for PodFacts {
    fn from(manifest: Manifest) -> Self {
        let Manifest { metadata, spec } = manifest;
        let of_pod = spec.security_context.unwrap_or_default();
        let read = |init: bool| move |raw: RawContainer| raw.read(init, of_pod);
        let first = spec.init_containers.into_iter().flatten().map(read(true));
        let containers = spec.containers.into_iter().flatten().map(read(false));
        Self {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            annotations: Some(metadata.annotations.unwrap_or_default()),
            labels: Some(metadata.labels.unwrap_or_default()),
            containers: Some(first.chain(containers).collect()),
        }
    }
}

impl RawContainer {
    /// A container's security context beats its pod's, value by value.
    fn read(self, init: bool, of_pod: SecurityContext) -> Container {
        let own = self.security_context.unwrap_or_default();
        let literal = |v: Variable| Some((v.name, v.value?));
        Container {
            name: self.name,
            init,
            user: own.run_as_user.or(of_pod.run_as_user),
            group: own.run_as_group.or(of_pod.run_as_group),
            args: self.args.unwrap_or_default(),
            env: self.env.into_iter().flatten().filter_map(literal).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_tells_everything() {
        let pod: PodFacts = serde_json::from_str(
            r#"{"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "namespace": "b", "uid": "c", "labels": null,
                             "annotations": {"x": "y"}},
                "spec": {"nodeName": "n",
                         "securityContext": {"runAsUser": 7, "runAsGroup": 8, "fsGroup": 9},
                         "initContainers": [{"name": "first"}],
                         "containers": [{"name": "proxy", "args": ["proxy", "sidecar"],
                            "securityContext": {"runAsUser": 1337},
                            "env": [{"name": "A", "value": "1"},
                                    {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "z"}}}]}]}}"#,
        )
        .unwrap();
        assert_eq!(pod.annotation("x"), Some("y"));
        assert_eq!(pod.labels, Some(BTreeMap::new()));
        let proxy = pod.container("proxy").unwrap();
        assert_eq!((proxy.user, proxy.group, proxy.init), (Some(1337), Some(8), false));
        assert_eq!(proxy.env, BTreeMap::from([("A".to_owned(), "1".to_owned())]));
        assert!(pod.container("first").unwrap().init);
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for bad in ["7", r#"{"metadata": {"annotations": {"x": 1}}}"#, r#"{"spec": 5}"#] {
            assert!(serde_json::from_str::<PodFacts>(bad).is_err(), "{bad}");
        }
    }
}
