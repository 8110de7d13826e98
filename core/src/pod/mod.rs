//! What is known of a pod. A manifest tells everything; a container runtime tells annotations
//! only, and what is not known is told from what is not there.

mod answer;
mod expand;

pub use answer::{Answer, NotThePod};
pub use expand::{Elsewhere, expand};

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

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
    /// Whether it has no network of its own, but the node's.
    pub host_network: bool,
    /// Servers that its manifest names for the resolution of names.
    pub nameservers: Vec<String>,
    /// Whether it asks these servers alone (`dnsPolicy: None`), and not the cluster's as well.
    pub own_nameservers: bool,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default)]
pub struct Container {
    /// Unique in the pod (Kubernetes, `Container.name`).
    pub name: String,
    /// Whether it is an init container.
    pub init: bool,
    /// The user that it runs as, if its or the pod's security context says so.
    pub user: Option<u32>,
    /// The group that it runs as (`runAsGroup`), likewise.
    pub group: Option<u32>,
    /// Its command; empty for that of its image.
    pub command: Vec<String>,
    /// The words behind its command.
    pub args: Vec<String>,
    /// Variables with a value of their own; those that are taken from elsewhere are left out.
    pub env: BTreeMap<String, String>,
    /// The names of variables whose values are taken from elsewhere; `*` behind what the names begin
    /// with where not even these are known.
    pub env_elsewhere: Vec<String>,
    /// Whether it is an init container that stays, while the others go on (`restartPolicy: Always`).
    pub restarts: bool,
    /// Capabilities that it has beside the usual ones.
    pub capabilities: Vec<String>,
    /// The ports that it names.
    pub ports: Vec<ContainerPort>,
    /// What asks whether it lives.
    pub probes: Vec<Probe>,
}

/// A port that a container names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct ContainerPort {
    /// Up to 15 characters, unique in the pod; probes and services may refer to it.
    pub name: Option<String>,
    /// From 1 to 65535, as `containerPort` in a manifest.
    pub number: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// Something that asks whether a container lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Probe {
    /// The field of the manifest, `livenessProbe` and others.
    pub kind: String,
    /// A request by the network, or something inside the container.
    pub handler: Handler,
}

/// What a probe does: a request to a port, or something inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handler {
    /// By a GET request (`httpGet`).
    Http {
        /// A number, or the name of a port of the same container.
        port: PortRef,
        /// The host, where it is not the pod.
        host: Option<String>,
        /// The path, where it says one.
        #[serde(default)]
        path: Option<String>,
    },
    /// By a connection of TCP that nothing is sent on (`tcpSocket`).
    Tcp {
        /// A number, or the name of a port of the same container.
        port: PortRef,
        /// The host, where it is not the pod.
        host: Option<String>,
    },
    /// By the health checking protocol of gRPC (`grpc`).
    Grpc {
        /// Always a number in a manifest of Kubernetes.
        port: PortRef,
    },
    /// By a command in the container (`exec`), or by nothing: no port is asked.
    Inside,
}

impl Handler {
    /// The protocol and port, where it asks by the network.
    pub const fn network(&self) -> Option<(&'static str, &PortRef)> {
        match self {
            Self::Http { port, .. } => Some(("HTTP", port)),
            Self::Tcp { port, .. } => Some(("TCP", port)),
            Self::Grpc { port } => Some(("gRPC", port)),
            Self::Inside => None,
        }
    }
}

/// A port by its number or by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// From 1 to 65535.
    Number(u16),
    /// Of a port of the same container.
    Name(String),
}

impl std::fmt::Display for PortRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => write!(f, "{name:?}"),
        }
    }
}

impl Container {
    /// Whether a variable has, or may have, a value that is taken from elsewhere, so that it is not
    /// known. A value of its own counts before those of a whole `ConfigMap` or Secret.
    pub fn is_elsewhere(&self, variable: &str) -> bool {
        let is_it = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => variable.starts_with(prefix),
            None => variable == pattern,
        };
        !self.env.contains_key(variable) && self.env_elsewhere.iter().any(is_it)
    }
}

impl PodFacts {
    /// An annotation's value, if annotations are known and this one is there.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Its `/etc/resolv.conf`, as far as its manifest tells it.
    ///
    /// # Errors
    /// Why it is not told.
    pub fn resolv_conf(&self) -> Result<String, String> {
        if !self.own_nameservers {
            let why = "it is the pod's own, with the cluster's servers, which no manifest tells: ask \
                       the pod itself, with --pod";
            return Err(why.to_owned());
        }
        let lines = self.nameservers.iter().flat_map(|server| ["nameserver ", server, "\n"]);
        Ok(lines.collect())
    }

    /// A container, if containers are known and this one is there.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.as_ref()?.iter().find(|c| c.name == name)
    }
}

crate::from_objects!(and written: Container, ContainerPort, Probe);
crate::from_objects!(
    Manifest,
    Metadata,
    Spec,
    DnsConfig,
    RawContainer,
    RawPort,
    RawProbe,
    Asked,
    Variable,
    Source,
    SecurityContext,
    Capabilities,
);

/// What is said of the object itself. Null is no word, but not the same as none.
fn stated<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(from).map(|text| Some(text.unwrap_or_default()))
}

/// The part of a manifest that matters here. Lists and maps may be null.
#[derive(Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase")]
struct Manifest {
    #[serde(default, deserialize_with = "stated")]
    api_version: Option<String>,
    #[serde(default, deserialize_with = "stated")]
    kind: Option<String>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(remote = "Self")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
struct Spec {
    init_containers: Option<Vec<RawContainer>>,
    containers: Option<Vec<RawContainer>>,
    security_context: Option<SecurityContext>,
    host_network: Option<bool>,
    dns_config: Option<DnsConfig>,
    dns_policy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(remote = "Self", default)]
struct DnsConfig {
    nameservers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase")]
struct RawContainer {
    name: String,
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    env_from: Option<Vec<Source>>,
    security_context: Option<SecurityContext>,
    restart_policy: Option<String>,
    ports: Option<Vec<RawPort>>,
    liveness_probe: Option<RawProbe>,
    readiness_probe: Option<RawProbe>,
    startup_probe: Option<RawProbe>,
}

#[derive(Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase")]
struct RawPort {
    name: Option<String>,
    container_port: u16,
    protocol: Option<String>,
}

/// A probe as a manifest has it.
#[derive(Default, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
pub(crate) struct RawProbe {
    http_get: Option<Asked>,
    tcp_socket: Option<Asked>,
    grpc: Option<Asked>,
}

#[derive(Deserialize)]
#[serde(remote = "Self")]
struct Asked {
    port: PortRef,
    host: Option<String>,
    path: Option<String>,
}

impl From<RawProbe> for Handler {
    fn from(probe: RawProbe) -> Self {
        match (probe.http_get, probe.tcp_socket, probe.grpc) {
            (Some(Asked { port, host, path }), ..) => Self::Http { port, host, path },
            (_, Some(Asked { port, host, .. }), _) => Self::Tcp { port, host },
            (_, _, Some(Asked { port, .. })) => Self::Grpc { port },
            (None, None, None) => Self::Inside,
        }
    }
}

#[derive(Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase")]
struct Variable {
    name: String,
    value: Option<String>,
    value_from: Option<serde::de::IgnoredAny>,
}

/// A `ConfigMap` or Secret all of whose keys become variables.
#[derive(Deserialize)]
#[serde(remote = "Self")]
struct Source {
    prefix: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
struct SecurityContext {
    run_as_user: Option<u32>,
    run_as_group: Option<u32>,
    capabilities: Option<Capabilities>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(remote = "Self", default)]
struct Capabilities {
    add: Option<Vec<String>>,
}

impl From<Manifest> for PodFacts {
    fn from(manifest: Manifest) -> Self {
        let Manifest { api_version: _, kind: _, metadata, spec } = manifest;
        let of_pod = spec.security_context.unwrap_or_default();
        let first = spec.init_containers.into_iter().flatten().map(|c| c.read(true, &of_pod));
        let containers = spec.containers.into_iter().flatten().map(|c| c.read(false, &of_pod));
        Self {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            annotations: Some(metadata.annotations.unwrap_or_default()),
            labels: Some(metadata.labels.unwrap_or_default()),
            containers: Some(first.chain(containers).collect()),
            host_network: spec.host_network.unwrap_or(false),
            nameservers: spec.dns_config.and_then(|dns| dns.nameservers).unwrap_or_default(),
            own_nameservers: spec.dns_policy.as_deref() == Some("None"),
        }
    }
}

impl RawContainer {
    /// A container's security context beats its pod's, value by value.
    fn read(self, init: bool, of_pod: &SecurityContext) -> Container {
        let own = self.security_context.unwrap_or_default();
        let prefixes = self.env_from.into_iter().flatten();
        let prefixes = prefixes.map(|from| format!("{}*", from.prefix.unwrap_or_default()));
        let (mut env, mut env_elsewhere) = (BTreeMap::new(), prefixes.collect::<Vec<_>>());
        for variable in self.env.into_iter().flatten() {
            match variable {
                // Of several with one name the last one counts.
                Variable { name, value: None, value_from: Some(_) } => {
                    env.remove(&name);
                    env_elsewhere.push(name);
                }
                // Without any value it has none.
                Variable { name, value, .. } => {
                    env_elsewhere.retain(|other| *other != name);
                    env.insert(name, value.unwrap_or_default());
                }
            }
        }
        let port = |port: RawPort| ContainerPort {
            name: port.name,
            number: port.container_port,
            protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
        };
        let probes = [
            ("livenessProbe", self.liveness_probe),
            ("readinessProbe", self.readiness_probe),
            ("startupProbe", self.startup_probe),
        ];
        let probes = probes.into_iter().filter_map(|(kind, probe)| {
            Some(Probe { kind: kind.to_owned(), handler: probe?.into() })
        });
        Container {
            name: self.name,
            init,
            user: own.run_as_user.or(of_pod.run_as_user),
            group: own.run_as_group.or(of_pod.run_as_group),
            command: self.command.unwrap_or_default(),
            args: self.args.unwrap_or_default(),
            env,
            env_elsewhere,
            restarts: init && self.restart_policy.as_deref() == Some("Always"),
            capabilities: own.capabilities.and_then(|c| c.add).unwrap_or_default(),
            ports: self.ports.into_iter().flatten().map(port).collect(),
            probes: probes.collect(),
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
        for bad in [
            "7",
            r#"{"metadata": {"annotations": {"x": 1}}}"#,
            r#"{"spec": 5}"#,
            // Arrays that have what the fields of an object would have, in their order.
            r#"["v1", "Pod", {"name": "a"}, {"containers": [{"name": "c"}]}]"#,
            r#"{"metadata": ["a", "b", "c"]}"#,
            r#"{"spec": {"containers": [["c"]]}}"#,
            r#"{"spec": {"containers": [{"name": "c", "env": [["A", "1"]]}]}}"#,
        ] {
            assert!(serde_json::from_str::<PodFacts>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_variables_with_one_name_the_last_counts() {
        let of = |env: &str| {
            let text = format!(r#"{{"spec": {{"containers": [{{"name": "c", {env}}}]}}}}"#);
            let pod: PodFacts = serde_json::from_str(&text).unwrap();
            pod.container("c").unwrap().clone()
        };
        let (own, other) = (r#"{"name": "A", "value": "1"}"#, r#"{"name": "A", "valueFrom": {}}"#);
        let last = of(&format!(r#""env": [{own}, {other}]"#));
        assert!(last.is_elsewhere("A") && last.env.is_empty());
        let last = of(&format!(r#""env": [{other}, {own}], "envFrom": [{{}}]"#));
        assert!(!last.is_elsewhere("A") && last.is_elsewhere("B"));
        let prefixed = of(r#""envFrom": [{"prefix": "A_"}]"#);
        assert!(prefixed.is_elsewhere("A_B") && !prefixed.is_elsewhere("B"));
        // A note has the same.
        let text = serde_json::to_string(&prefixed).unwrap();
        assert_eq!(serde_json::from_str::<Container>(&text).unwrap(), prefixed);
        assert!(serde_json::from_str::<Container>(r#"["c"]"#).is_err());
    }
}
