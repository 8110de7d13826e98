//! A pod's annotations, as istio-cni reads them: who is captured, and how.
//!
//! ```text
//! PodFacts ──decide──► pass (and why) │ capture │ ask somebody who knows the containers
//!                                          │ policy
//!                                          ▼
//!                               CapturePolicy, each value with its annotation
//! ```

mod decide;
mod injected;
mod lists;
mod policy;

pub use decide::{Decision, Node, Passed, Unknown, decide, decide_by_contents};
pub use injected::{ids_are_ranged, names_proxy};
pub(super) use policy::PROXY_PORTS;
pub use policy::{Captured, Defaults, policy};

/// The container that the proxy runs in.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// The init container that captures a pod from inside.
pub const INIT_CONTAINER: &str = "istio-init";

/// Says that the injector has been here, and what it put in.
pub const STATUS: &str = "sidecar.istio.io/status";
/// Whether the pod is to have a proxy: a label, and an annotation of the same name.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// What kind of proxy the injector puts in.
pub const TEMPLATES: &str = "inject.istio.io/templates";
/// Settings of the pod's proxy, among them its environment.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// The security context constraints by which the platform let a pod in.
pub const SCC: &str = "openshift.io/scc";

/// An annotation that says how a pod is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnotationDef {
    /// The whole key, with its prefix.
    pub name: &'static str,
    /// The value that holds where the pod has no such annotation.
    pub default: &'static str,
    /// In one line, what it does and which values it takes.
    pub help: &'static str,
}

const fn def(name: &'static str, default: &'static str, help: &'static str) -> AnnotationDef {
    AnnotationDef { name, default, help }
}

pub(super) const MODE: AnnotationDef = def(
    "sidecar.istio.io/interceptionMode",
    "REDIRECT",
    "How inbound connections reach the proxy: REDIRECT or TPROXY",
);
pub(super) const INCLUDE_OUTBOUND_NETWORKS: AnnotationDef = def(
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "*",
    "Outbound networks to capture: *, a comma-separated list, or empty for none",
);
pub(super) const EXCLUDE_OUTBOUND_NETWORKS: AnnotationDef = def(
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "",
    "Outbound networks to leave alone, comma-separated",
);
pub(super) const INCLUDE_INBOUND_PORTS: AnnotationDef = def(
    "traffic.sidecar.istio.io/includeInboundPorts",
    "*",
    "Inbound ports to capture: *, a comma-separated list, or empty for none",
);
pub(super) const EXCLUDE_INBOUND_PORTS: AnnotationDef = def(
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "15020",
    "Inbound ports to leave alone, comma-separated; 15020, 15021 and 15090 always are",
);
pub(super) const INCLUDE_OUTBOUND_PORTS: AnnotationDef = def(
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "",
    "Outbound TCP ports to capture wherever they go, comma-separated",
);
pub(super) const EXCLUDE_OUTBOUND_PORTS: AnnotationDef = def(
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "15020",
    "Outbound ports to leave alone, comma-separated",
);
pub(super) const EXCLUDE_INTERFACES: AnnotationDef = def(
    "traffic.sidecar.istio.io/excludeInterfaces",
    "",
    "Interfaces to leave alone in both directions, comma-separated",
);
pub(super) const REROUTE_INTERFACES: AnnotationDef = def(
    "istio.io/reroute-virtual-interfaces",
    "",
    "Interfaces whose incoming traffic counts as outbound, comma-separated",
);
pub(super) const KUBEVIRT_INTERFACES: AnnotationDef = def(
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "",
    "Older name of istio.io/reroute-virtual-interfaces, used where that is absent",
);

/// Every annotation that says how a pod is captured.
pub const ANNOTATIONS: &[AnnotationDef] = &[
    MODE,
    INCLUDE_OUTBOUND_NETWORKS,
    EXCLUDE_OUTBOUND_NETWORKS,
    INCLUDE_INBOUND_PORTS,
    EXCLUDE_INBOUND_PORTS,
    INCLUDE_OUTBOUND_PORTS,
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_INTERFACES,
    REROUTE_INTERFACES,
    KUBEVIRT_INTERFACES,
];
