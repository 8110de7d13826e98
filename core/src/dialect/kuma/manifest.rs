//! What Kuma's injector makes of a manifest.

use super::annotations::{
    ANNOTATIONS, CONFIG, GATEWAY, INIT_CONTAINER, PROXY_CONTAINER, policy_on,
};
use super::{LAYOUT, MESH, NFT_LAYOUT, Raw};
use crate::dialect::error::ConfigErrors;
use crate::dialect::init_container::{NotStated, words};
use crate::dialect::injector::{Asked, Doubt, Field, Injector, assumed};
use crate::dialect::sidecar::Captured;
use crate::pod::PodFacts;
use crate::source::{Source, Sourced};

const FAMILIES: &str = "kuma.io/transparent-proxying-ip-family-mode";
const PROBES: &str = "kuma.io/application-probe-proxy-port";
const CONFIG_MAP: &str = "traffic.kuma.io/transparent-proxy-configmap-name";

/// What Kuma's injector reads from a pod, and what it puts in.
pub static INJECTOR: Injector = Injector {
    mesh: &MESH,
    layout: &LAYOUT,
    nft_layout: &NFT_LAYOUT,
    proxy: PROXY_CONTAINER,
    inside: INIT_CONTAINER,
    others: &["kuma-validation"],
    asked: Asked {
        name: "kuma.io/sidecar-injection",
        field: Field::Label,
        yes: &["enabled", "true"],
        no: &["disabled", "false"],
    },
    own: &["traffic.kuma.io/"],
    prefixes: &["kuma.io/"],
    annotations: ANNOTATIONS,
    known: KNOWN,
    reads_namespaces: false,
    ports: &[
        (15001, "captured outbound connections"),
        (15006, "captured inbound connections"),
        (15053, "captured DNS queries"),
        (9901, "its administration"),
        (9001, "probes of the application"),
    ],
    policy,
    is_told: |pod| pod.annotation(CONFIG).is_some_and(|text| !text.is_empty()),
    doubts,
};

/// Known annotations about anything else
/// (<https://kuma.io/docs/latest/reference/kubernetes-annotations/>).
const KNOWN: &[&str] = &[
    CONFIG,
    CONFIG_MAP,
    "kuma.io/container-patches",
    "kuma.io/direct-access-services",
    "kuma.io/envoy-admin-port",
    "kuma.io/envoy-component-log-level",
    "kuma.io/envoy-log-level",
    "kuma.io/ignore",
    "kuma.io/ingress",
    "kuma.io/ingress-public-address",
    "kuma.io/ingress-public-port",
    "kuma.io/egress",
    "kuma.io/init-first",
    "kuma.io/mesh",
    "kuma.io/reachable-backends",
    "kuma.io/service-account-token-volume",
    "kuma.io/sidecar-drain-time",
    "kuma.io/sidecar-env-vars",
    "kuma.io/sidecar-injected",
    "kuma.io/sidecar-injection",
    "kuma.io/sidecar-proxy-concurrency",
    "kuma.io/tags",
    "kuma.io/transparent-proxying",
    "kuma.io/transparent-proxying-ebpf",
    "kuma.io/transparent-proxying-ebpf-bpf-fs-path",
    "kuma.io/transparent-proxying-ebpf-cgroup-path",
    "kuma.io/transparent-proxying-ebpf-instance-ip-env-var-name",
    "kuma.io/transparent-proxying-ebpf-programs-source-path",
    "kuma.io/transparent-proxying-ebpf-tc-attach-iface",
    "kuma.io/transparent-proxying-experimental-engine",
    "kuma.io/transparent-proxying-inbound-v6-port",
    "kuma.io/transparent-proxying-reachable-services",
    "kuma.io/virtual-probes",
    "kuma.io/wait-for-dataplane-ready",
    "kuma.io/workload",
];

/// Flags and values as Kuma's installation has them unless an annotation says otherwise.
const ASSUMED: &[(&str, &str)] =
    &[("redirect-dns", "true"), ("redirect-all-dns-traffic", "true"), ("kuma-dp-user", "5678")];
/// Where it has probes of the application answered.
const PROBE_PORT: &str = "9001";

fn policy(pod: &PodFacts) -> Result<Captured, ConfigErrors> {
    let mut raw: Raw = assumed(ASSUMED);
    if pod.annotation(PROBES).is_none() {
        let source = Source::Default("exclude-inbound-ports".to_owned());
        raw = raw.with_more("exclude-inbound-ports", Sourced::new(PROBE_PORT.to_owned(), source));
    }
    let mut captured = policy_on(pod, raw)?;
    if !(INJECTOR.is_told)(pod) {
        captured.warnings.push(
            "what no annotation says is taken as Kuma's installation has it: the proxy's user is 5678, its \
             ports 15001 and 15006, all DNS queries by UDP go to 15053, and port 9001 is left alone for \
             probes; what the control plane's configuration or a ConfigMap of this mesh sets otherwise no \
             manifest of a pod tells"
                .to_owned(),
        );
    }
    if let Some(name) = pod.annotation(CONFIG_MAP).filter(|_| !(INJECTOR.is_told)(pod)) {
        captured.warnings.push(format!(
            "annotation {CONFIG_MAP}: ConfigMap {name} sets more, which this manifest does not tell"
        ));
    }
    Ok(captured)
}

/// The words behind `kumactl` of a pod's init container; none where it has no such container.
///
/// # Errors
/// When the manifest does not tell them.
pub fn init_container(pod: &PodFacts) -> Option<Result<Vec<String>, NotStated>> {
    let container = pod.container(INIT_CONTAINER).filter(|container| container.init)?;
    Some(words(container, &["kumactl"], 1))
}

fn doubts(pod: &PodFacts) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    let mut add = |name: &str, what: String, why, fix: &str, is_error| {
        let (at, fix) = (format!("annotation {name}"), fix.to_owned());
        doubts.push(Doubt { at, what, why, fix, is_error });
    };
    let is_gateway = matches!(pod.annotation(GATEWAY), Some("enabled" | "true" | "yes"));
    for name in ["traffic.kuma.io/exclude-inbound-ports", "traffic.kuma.io/exclude-inbound-ips"] {
        if is_gateway && pod.annotation(name).is_some_and(|text| !text.is_empty()) {
            let what = format!("it has no effect beside {GATEWAY}");
            let why =
                "nothing is captured on its way into a gateway, so there is nothing to exclude";
            add(name, what, why, "leave one of the two out", false);
        }
    }
    let v4_only = pod.annotation(FAMILIES) == Some("ipv4");
    for name in ["traffic.kuma.io/exclude-inbound-ips", "traffic.kuma.io/exclude-outbound-ips"] {
        let list = pod.annotation(name).unwrap_or_default();
        if let Some(item) = list.split(',').find(|item| v4_only && item.contains(':')) {
            let what = format!("{} is of IPv6, which {FAMILIES} leaves alone", item.trim());
            let why = "IPv6 is not captured at all, so the exclusion has no effect";
            add(name, what, why, "take it off the list, or have both families captured", false);
        }
    }
    let whole = pod.annotation(CONFIG).filter(|text| !text.is_empty());
    let name = "kuma.io/sidecar-injected";
    if whole.is_some() && pod.annotation(name).is_none() && !INJECTOR.is_injected(pod) {
        let what = "it is written by the injector, and this pod is not injected".to_owned();
        let why = "the injector writes it anew when it puts a proxy in, from the mesh's configuration and \
                   single annotations: what is written here does not happen";
        let fix = "set single annotations (traffic.kuma.io/exclude-...), or name a ConfigMap with \
                   traffic.kuma.io/transparent-proxy-configmap-name";
        add(CONFIG, what, why, fix, true);
    }
    let name = "kuma.io/transparent-proxying";
    if matches!(pod.annotation(name), Some("disabled" | "false" | "no")) {
        let what = "it can't be switched off".to_owned();
        let why = "on Kubernetes traffic is always captured: the annotation is passed over";
        add(name, what, why, "leave it out; exclude ports or addresses instead", true);
    }
    doubts
}
