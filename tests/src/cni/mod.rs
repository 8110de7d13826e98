//! What a container runtime does with CNI plugins, as far as a plugin can see it: a host with pods'
//! namespaces, single calls, and lists of plugins that are called one after the other.
//!
//! ```text
//! Host (network and mount namespace of its own: /run, /var/lib/cni)
//!   |- pods in /run/netns
//!   |- Call: one plugin, its variables, its standard input
//!   |- List: the plugins of a network; ADD, CHECK, DEL, GC, STATUS as libcni does them
//! ```

mod api;
mod call;
mod containerd;
mod feed;
mod host;
mod image;
mod list;
mod merge;
mod meshed;
mod podman;
mod restart;
mod run;

pub use api::{Api, Mood, NAME};
pub use call::{Call, Reply, end_within, kept};
pub use containerd::{Containerd, Sandbox};
pub use host::{Host, Pod};
pub use list::{Added, List};
pub use meshed::{
    CONSUL, CONSUL_CONFIG, DUAL_STACK, KUMA, KUMA_CONFIG, TRANSPARENT, consul_annotations,
    expecting, expecting_all, in_pod, kuma_annotations, manifest,
};
pub use podman::Podman;
pub use run::{Ended, Expected};

use serde_json::{Value, json};

/// The annotation that says what was injected.
pub const STATUS: &str = "sidecar.istio.io/status";
/// Its value for a pod with a sidecar and no init container that captures.
pub const SIDECAR: &str = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"#;
/// The member of runtimeConfig that holds a pod's annotations.
pub const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// Annotations of a mesh pod, and these.
pub fn mesh(more: &[(&str, &str)]) -> Value {
    let mut annotations = json!({ STATUS: SIDECAR });
    for (name, value) in more {
        annotations[*name] = json!(value);
    }
    annotations
}

/// `CNI_ARGS` of a pod.
pub fn pod_args(namespace: &str, name: &str, uid: &str) -> String {
    format!(
        "K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID={uid};IgnoreUnknown=1;K8S_POD_NAME={name};\
         K8S_POD_NAMESPACE={namespace}"
    )
}
