//! Pods of this node, as its container runtime knows them: the Container Runtime Interface
//! (`k8s.io/cri-api`, `runtime.v1`), which containerd and CRI-O serve on a unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{ListPodSandboxRequest, PodSandbox, PodSandboxState, PodSandboxStatusRequest};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::netlink::runtime;

/// Where containerd serves the CRI by default: a unix socket.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// How long the runtime may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod that was named: `NAME`, `NAMESPACE/NAME`, or the id of its sandbox or its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    namespace: Option<String>,
    name: String,
}

impl PodRef {
    /// `NAMESPACE/NAME`, split at the first `/`; without one, a name or id. Nothing is refused.
    pub fn new(text: &str) -> Self {
        match text.split_once('/') {
            Some((namespace, name)) => {
                Self { namespace: Some(namespace.to_owned()), name: name.to_owned() }
            }
            None => Self { namespace: None, name: text.to_owned() },
        }
    }

    /// Whether a sandbox is its. Ids count from 8 characters on, so that no name is one by chance.
    fn names(&self, pod: &PodSandbox) -> bool {
        let by_id =
            self.namespace.is_none() && self.name.len() >= 8 && pod.id.starts_with(&self.name);
        let by_name = pod.metadata.as_ref().is_some_and(|meta| {
            meta.name == self.name && self.namespace.as_ref().is_none_or(|n| *n == meta.namespace)
        });
        by_id || by_name
    }
}

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A pod's namespace can't be found.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// The runtime does not answer.
    #[error(
        "the container runtime at {socket} can't be asked: {why}; --runtime-endpoint says where \
         it listens"
    )]
    Runtime {
        /// Path of the unix socket of its CRI.
        socket: PathBuf,
        /// The last cause of a failed connection, a gRPC status message, or that time was up.
        why: String,
    },
    /// No running pod is called so.
    #[error("the container runtime at {socket} runs no pod {pod}{}", known(.others))]
    NoPod {
        /// Path of the unix socket of the CRI that was queried.
        socket: PathBuf,
        /// The pod that was asked for.
        pod: PodRef,
        /// Some of those that it runs.
        others: Vec<String>,
    },
    /// Several running pods are called so.
    #[error("{pod} is the name of several pods: {}; say NAMESPACE/NAME or an id", .found.join(", "))]
    Several {
        /// The pod that was asked for.
        pod: PodRef,
        /// Those that it may be.
        found: Vec<String>,
    },
    /// It shares the node's network.
    #[error("pod {0} uses the node's own network, whose traffic no mesh diverts")]
    HostNetwork(PodRef),
    /// The runtime does not tell.
    #[error("the container runtime does not say where the network namespace of pod {0} is")]
    Untold(PodRef),
}

fn known(others: &[String]) -> String {
    if others.is_empty() { String::new() } else { format!("; it runs {}", others.join(", ")) }
}

/// The network namespace of a running pod, by a path that this process can open.
///
/// # Errors
/// When the runtime can't be asked, or the name does not lead to one pod with a network of its
/// own.
pub fn netns(socket: &Path, pod: &PodRef) -> Result<PathBuf, CriError> {
    let failed = |why: String| CriError::Runtime { socket: socket.to_owned(), why };
    let runtime = runtime().map_err(|e| failed(e.to_string()))?;
    runtime.block_on(async {
        match tokio::time::timeout(PATIENCE, find(socket, pod)).await {
            Ok(found) => found,
            Err(_) => Err(failed(format!("no answer within {PATIENCE:?}"))),
        }
    })
}

async fn find(socket: &Path, pod: &PodRef) -> Result<PathBuf, CriError> {
    let failed = |why: String| CriError::Runtime { socket: socket.to_owned(), why };
    let said = |status: tonic::Status| failed(status.message().to_owned());
    let mut client = RuntimeServiceClient::new(connect(socket).await.map_err(failed)?);
    let answer = client.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(said)?;
    let ready = |pod: &PodSandbox| pod.state() == PodSandboxState::SandboxReady;
    let running: Vec<PodSandbox> = answer.into_inner().items.into_iter().filter(ready).collect();
    let found: Vec<&PodSandbox> = running.iter().filter(|p| pod.names(p)).collect();
    let id = match found.as_slice() {
        [one] => one.id.clone(),
        [] => {
            let others = running.iter().take(10).map(title).collect();
            return Err(CriError::NoPod { socket: socket.to_owned(), pod: pod.clone(), others });
        }
        several => {
            let found = several.iter().map(|p| format!("{} ({})", title(p), short(&p.id)));
            return Err(CriError::Several { pod: pod.clone(), found: found.collect() });
        }
    };
    let request = PodSandboxStatusRequest { pod_sandbox_id: id, verbose: true };
    let answer = client.pod_sandbox_status(request).await.map_err(said)?.into_inner();
    let info = answer.info.get("info").ok_or_else(|| CriError::Untold(pod.clone()))?;
    path_of(info, pod)
}

fn title(pod: &PodSandbox) -> String {
    pod.metadata.as_ref().map_or_else(
        || short(&pod.id).to_owned(),
        |meta| format!("{}/{}", meta.namespace, meta.name),
    )
}

fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}

async fn connect(socket: &Path) -> Result<Channel, String> {
    let path = socket.to_owned();
    // What is asked for is on the socket, whatever the address says.
    let endpoint = Endpoint::from_static("http://[::]");
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        cause.to_string()
    })
}

/// Where a pod's namespace is, in the words of its runtime: containerd and CRI-O both give the OCI
/// configuration of the pod's own container, and its process.
fn path_of(info: &str, pod: &PodRef) -> Result<PathBuf, CriError> {
    let Ok(info) = serde_json::from_str::<serde_json::Value>(info) else {
        return Err(CriError::Untold(pod.clone()));
    };
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
    if let Some(namespaces) = namespaces {
        let Some(network) = namespaces.iter().find(|n| n["type"] == "network") else {
            return Err(CriError::HostNetwork(pod.clone()));
        };
        if let Some(path) = network["path"].as_str().filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
    }
    match info["pid"].as_u64() {
        Some(pid) if pid > 0 => Ok(format!("/proc/{pid}/ns/net").into()),
        _ => Err(CriError::Untold(pod.clone())),
    }
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::PodSandboxMetadata;

    use super::*;

    fn sandbox(namespace: &str, name: &str) -> PodSandbox {
        PodSandbox {
            id: "0123456789abcdef".to_owned(),
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_goes_by_name_namespace_and_id() {
        let pod = sandbox("shop", "web");
        for good in ["web", "shop/web", "01234567", "0123456789abcdef"] {
            assert!(PodRef::new(good).names(&pod), "{good}");
        }
        for bad in ["we", "other/web", "0123456", "shop/01234567", ""] {
            assert!(!PodRef::new(bad).names(&pod), "{bad}");
        }
    }

    #[test]
    fn the_runtimes_words_lead_to_the_namespace() {
        let pod = PodRef::new("web");
        let path = |info: &str| path_of(info, &pod).map(|p| p.display().to_string());
        let named = r#"{"pid": 7, "runtimeSpec": {"linux": {"namespaces": [
            {"type": "pid"}, {"type": "network", "path": "/run/netns/cni-1"}]}}}"#;
        assert_eq!(path(named).unwrap(), "/run/netns/cni-1");
        let made = r#"{"pid": 7, "runtimeSpec": {"linux": {"namespaces": [{"type": "network"}]}}}"#;
        assert_eq!(path(made).unwrap(), "/proc/7/ns/net");
        assert_eq!(path(r#"{"pid": 7}"#).unwrap(), "/proc/7/ns/net");
        let host = r#"{"pid": 7, "runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}]}}}"#;
        assert!(matches!(path(host), Err(CriError::HostNetwork(_))));
        for untold in ["", "{}", r#"{"pid": 0}"#, "[]"] {
            assert!(matches!(path(untold), Err(CriError::Untold(_))), "{untold}");
        }
    }

    #[test]
    fn a_runtime_that_is_not_there_is_named() {
        let error = netns(Path::new("/nowhere/cri.sock"), &PodRef::new("web")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nowhere/cri.sock") && text.contains("No such file"), "{text}");
    }
}
