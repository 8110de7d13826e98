//! What Linkerd's injector makes of a manifest.

use super::annotations::{ANNOTATIONS, COMPONENT, INIT_CONTAINER, PROXY_CONTAINER};
use super::resolve::{Raw, resolve};
use super::{LAYOUT, MESH, NFT_LAYOUT};
use crate::dialect::error::ConfigErrors;
use crate::dialect::injector::{Asked, Doubt, Field, Injector, assumed};
use crate::dialect::raw::FileValues;
use crate::dialect::sidecar::{AnnotationDef, Captured, Effect, def};
use crate::pod::PodFacts;
use crate::source::{Source, Sourced};

const SKIP_INBOUND: &str = ANNOTATIONS[0].name;
const OPAQUE: &str = "config.linkerd.io/opaque-ports";
const SKIP_OUTBOUND: &str = ANNOTATIONS[1].name;

/// What Linkerd's injector reads from a pod, and what it puts in.
pub static INJECTOR: Injector = Injector {
    mesh: &MESH,
    layout: &LAYOUT,
    nft_layout: &NFT_LAYOUT,
    proxy: PROXY_CONTAINER,
    inside: INIT_CONTAINER,
    others: &["linkerd-network-validator", "linkerd-debug"],
    asked: Asked {
        name: "linkerd.io/inject",
        field: Field::Annotation,
        yes: &["enabled", "ingress"],
        no: &["disabled"],
    },
    own: &[],
    prefixes: &["config.linkerd.io/", "config.alpha.linkerd.io/", "config.beta.linkerd.io/"],
    annotations: CAPTURE,
    known: KNOWN,
    reads_namespaces: true,
    ports: &[
        (4140, "captured outbound connections"),
        (4143, "captured inbound connections"),
        (4190, "its control"),
        (4191, "its administration and metrics"),
    ],
    policy,
    is_told: |_pod| false,
    doubts,
};

/// Annotations about capture: those that the CNI plugin reads, and the proxy's ports.
const CAPTURE: &[AnnotationDef] = &[
    ANNOTATIONS[0],
    ANNOTATIONS[1],
    ANNOTATIONS[2],
    ANNOTATIONS[3],
    ANNOTATIONS[4],
    def("config.linkerd.io/inbound-port", "incoming-proxy-port", Effect::Replaces),
    def("config.linkerd.io/outbound-port", "outgoing-proxy-port", Effect::Replaces),
];

/// Known annotations about anything else (<https://linkerd.io/2/reference/proxy-configuration/>).
const KNOWN: &[&str] = &[
    "config.alpha.linkerd.io/proxy-enable-native-sidecar",
    "config.alpha.linkerd.io/proxy-wait-before-exit-seconds",
    "config.beta.linkerd.io/proxy-enable-native-sidecar",
    "config.linkerd.io/access-log",
    "config.linkerd.io/admin-port",
    "config.linkerd.io/close-wait-timeout",
    "config.linkerd.io/control-port",
    "config.linkerd.io/debug-image",
    "config.linkerd.io/debug-image-pull-policy",
    "config.linkerd.io/debug-image-version",
    "config.linkerd.io/default-inbound-policy",
    "config.linkerd.io/disable-identity",
    "config.linkerd.io/disable-tap",
    "config.linkerd.io/enable-debug-sidecar",
    "config.linkerd.io/enable-external-profiles",
    "config.linkerd.io/enable-gateway",
    "config.linkerd.io/image-pull-policy",
    "config.linkerd.io/init-image",
    "config.linkerd.io/init-image-version",
    OPAQUE,
    "config.linkerd.io/pod-inbound-ports",
    "config.linkerd.io/proxy-admin-shutdown",
    "config.linkerd.io/proxy-await",
    "config.linkerd.io/proxy-cpu-limit",
    "config.linkerd.io/proxy-cpu-request",
    "config.linkerd.io/proxy-disable-inbound-protocol-detect-timeout",
    "config.linkerd.io/proxy-disable-outbound-protocol-detect-timeout",
    "config.linkerd.io/proxy-ephemeral-storage-limit",
    "config.linkerd.io/proxy-ephemeral-storage-request",
    "config.linkerd.io/proxy-image",
    "config.linkerd.io/proxy-inbound-connect-timeout",
    "config.linkerd.io/proxy-inbound-discovery-cache-unused-timeout",
    "config.linkerd.io/proxy-log-format",
    "config.linkerd.io/proxy-log-level",
    "config.linkerd.io/proxy-memory-limit",
    "config.linkerd.io/proxy-memory-request",
    "config.linkerd.io/proxy-outbound-connect-timeout",
    "config.linkerd.io/proxy-outbound-discovery-cache-unused-timeout",
    "config.linkerd.io/proxy-require-identity-inbound-ports",
    "config.linkerd.io/proxy-version",
    "config.linkerd.io/shutdown-grace-period",
    "config.linkerd.io/trace-collector",
];

/// What Linkerd's installation sets: the injector puts the proxy's own ports in front of the others.
const ASSUMED: &[(&str, &str)] = &[
    ("incoming-proxy-port", "4143"),
    ("outgoing-proxy-port", "4140"),
    ("proxy-uid", "2102"),
    ("inbound-ports-to-ignore", "4190,4191"),
    ("outbound-ports-to-ignore", "4567,4568"),
    ("ipv6", "false"),
];
/// The ports that it leaves alone where the pod says nothing.
const INBOUND: &str = "4567,4568";
/// Where the control plane reaches the Kubernetes API.
const API_PORTS: &str = "443,6443";

fn policy(pod: &PodFacts) -> Result<Captured, ConfigErrors> {
    let mut raw: Raw = assumed(ASSUMED);
    let mut replaced = FileValues::new();
    for def in CAPTURE {
        let Some(text) = pod.annotation(def.name) else { continue };
        let value = Sourced::new(text.to_owned(), Source::Annotation(def.name.to_owned()));
        match def.effect {
            Effect::Adds => raw = raw.with_more(def.flag, value),
            Effect::Replaces => drop(replaced.insert(def.flag, value)),
        }
    }
    let of_control = pod.labels.as_ref().is_some_and(|labels| labels.contains_key(COMPONENT));
    if of_control {
        let source = Source::Host(format!("label {COMPONENT}"));
        replaced
            .entry("outbound-ports-to-ignore")
            .or_insert(Sourced::new(API_PORTS.to_owned(), source));
    }
    raw = raw.with_file(replaced);
    if pod.annotation(SKIP_INBOUND).is_none() {
        let source = Source::Default("inbound-ports-to-ignore".to_owned());
        raw = raw.with_more("inbound-ports-to-ignore", Sourced::new(INBOUND.to_owned(), source));
    }
    let mut resolved = resolve(&raw)?;
    resolved.warnings.push(
        "what no annotation says is taken as Linkerd's installation has it: the proxy's user is 2102, \
         ports 4567 and 4568 are left alone in both directions, and IPv6 is (disableIPv6); an annotation of \
         its namespace, or other values of this mesh, no manifest of a pod tells"
            .to_owned(),
    );
    Ok(Captured { policy: resolved.policy, warnings: resolved.warnings })
}

fn doubts(pod: &PodFacts) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    let opaque = items(pod, OPAQUE);
    for name in [SKIP_INBOUND, SKIP_OUTBOUND] {
        for port in items(pod, name).into_iter().filter(|port| opaque.contains(port)) {
            doubts.push(Doubt {
                at: format!("annotation {OPAQUE}"),
                what: format!("port {port} is in {name} too"),
                why: "connections that are skipped don't reach the proxy, so there is nothing for it to \
                      treat as opaque: no mTLS either",
                fix: "keep it in opaque-ports alone where mTLS is wanted, and otherwise take it off there"
                    .to_owned(),
                is_error: false,
            });
        }
    }
    doubts
}

/// The items of a list in an annotation.
fn items<'p>(pod: &'p PodFacts, name: &str) -> Vec<&'p str> {
    let text = pod.annotation(name).unwrap_or_default();
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}
