//! Which pods of a node its proxy serves, and how each is captured: from labels and annotations, as Istio's
//! agent reads them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;

use super::resolve::{Raw, resolve};
use crate::dialect::error::ConfigErrors;
use crate::dialect::{FileValues, go};
use crate::facts::HostFacts;
use crate::from_objects;
use crate::pod::PodFacts;
use crate::policy::CapturePolicy;
use crate::source::{Source, Sourced};

/// The label of pods and namespaces that says which kind of proxy serves them.
pub const MODE: &str = "istio.io/dataplane-mode";
/// The annotation that says whether a pod is served, and what it says then.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The value of [`REDIRECTION`] on a pod that is captured and served.
pub const ENABLED: &str = "enabled";
/// The annotation that an injector leaves on a pod with a proxy of its own.
const SIDECAR: &str = "sidecar.istio.io/status";
/// The label by which the proxy's own pods are known, and its value.
const PROXY: (&str, &str) = ("app", "ztunnel");

/// Annotations that change how a pod is captured, with the flag of `millrace ambient rules` that does the
/// same. Those of sidecars say what is left alone, which Istio's ambient mode has no annotation for.
const ANNOTATIONS: [(&str, &str); 7] = [
    ("ambient.istio.io/bypass-inbound-capture", "bypass-inbound-capture"),
    ("ambient.istio.io/dns-capture", "dns-capture"),
    ("istio.io/reroute-virtual-interfaces", "reroute-virtual-interfaces"),
    ("traffic.sidecar.istio.io/excludeInboundPorts", "exclude-inbound-ports"),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", "exclude-outbound-ports"),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "exclude-outbound-cidrs"),
    ("traffic.sidecar.istio.io/excludeInterfaces", "exclude-interfaces"),
];
/// Those of them that are yes or no. Istio's agent ignores any other value.
const SWITCHES: [&str; 2] = ["bypass-inbound-capture", "dns-capture"];

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Which pods are served: those that any of these pairs selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selectors(Vec<Pair>);

/// A pod is selected where both its labels and those of its namespace are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default, deny_unknown_fields)]
struct Pair {
    pod_selector: Selector,
    namespace_selector: Selector,
}

/// A selector of Kubernetes (`LabelSelector`); an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default, deny_unknown_fields)]
struct Selector {
    match_labels: Labels,
    match_expressions: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

from_objects!(Pair, Selector, Requirement);

impl Selector {
    fn selects(&self, labels: &Labels) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(has)
            && self.match_expressions.iter().all(|own| own.selects(labels))
    }
}

impl Requirement {
    fn selects(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let is_listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => is_listed,
            Operator::NotIn => !is_listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }

    /// What is wrong with it, as the API would say it.
    fn fault(&self) -> Option<String> {
        let key = &self.key;
        let lists = matches!(self.operator, Operator::In | Operator::NotIn);
        if key.is_empty() {
            return Some("an expression has an empty key".to_owned());
        }
        (lists == self.values.is_empty()).then(|| {
            let how = if lists { "needs values" } else { "has no values" };
            format!("the operator {:?} of the key {key:?} {how}", self.operator)
        })
    }
}

impl Default for Selectors {
    /// A pod with the label, or one in a namespace with the label that doesn't opt out.
    fn default() -> Self {
        let labelled = || Selector {
            match_labels: Labels::from([(MODE.to_owned(), "ambient".to_owned())]),
            ..Selector::default()
        };
        let opted_out = Requirement {
            key: MODE.to_owned(),
            operator: Operator::NotIn,
            values: vec!["none".to_owned()],
        };
        Self(vec![
            Pair { pod_selector: labelled(), ..Pair::default() },
            Pair {
                pod_selector: Selector {
                    match_expressions: vec![opted_out],
                    ..Selector::default()
                },
                namespace_selector: labelled(),
            },
        ])
    }
}

impl std::str::FromStr for Selectors {
    type Err = String;

    /// Read a JSON list of objects with `podSelector` and `namespaceSelector`, as istio-cni's setting has
    /// it. An empty list would select nothing, and is an error.
    fn from_str(text: &str) -> Result<Self, String> {
        let pairs: Vec<Pair> = serde_json::from_str(text)
            .map_err(|error| format!("it is no list of enablement selectors: {error}"))?;
        if pairs.is_empty() {
            return Err("an empty list selects no pod".to_owned());
        }
        let both = pairs.iter().flat_map(|pair| [&pair.pod_selector, &pair.namespace_selector]);
        let fault = both.flat_map(|own| &own.match_expressions).find_map(Requirement::fault);
        fault.map_or(Ok(Self(pairs)), Err)
    }
}

impl Selectors {
    /// Whether the labels of a pod and of its namespace are selected.
    pub fn select(&self, pod: &Labels, namespace: &Labels) -> bool {
        let both = |pair: &Pair| {
            pair.pod_selector.selects(pod) && pair.namespace_selector.selects(namespace)
        };
        self.0.iter().any(both)
    }
}

/// What the node says of all its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Which pods are served.
    pub selectors: Selectors,
    /// Namespaces whose pods never are.
    pub excluded_namespaces: Vec<String>,
    /// Whether DNS queries go to the proxy where the pod doesn't say.
    pub dns_capture: bool,
    /// Whether IPv6 is captured.
    pub ipv6: bool,
}

/// Whether a pod is served by the node's proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// It is.
    Served,
    /// It is not, and this is why.
    Bypassed(Reason),
}

/// Why a pod is not served by the node's proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has no network of its own.
    HostNetwork,
    /// Its namespace is excluded.
    ExcludedNamespace,
    /// It has a proxy of its own.
    Sidecar,
    /// It is the proxy.
    Proxy,
    /// No selector selects it.
    NotSelected,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str("it has the network of its node"),
            Self::ExcludedNamespace => f.write_str("its namespace is excluded"),
            Self::Sidecar => write!(f, "it has a proxy of its own (annotation {SIDECAR})"),
            Self::Proxy => write!(f, "it is the node's proxy (label {}={})", PROXY.0, PROXY.1),
            Self::NotSelected => {
                f.write_str("no enablement selector selects it and its namespace by their labels")
            }
        }
    }
}

/// Decide about a pod of which everything is known.
pub fn decide(pod: &PodFacts, namespace: &Labels, node: &NodeSettings) -> Enrolment {
    let none = Labels::new();
    let labels = pod.labels.as_ref().unwrap_or(&none);
    let excluded = |name: &String| node.excluded_namespaces.contains(name);
    let reason = if pod.host_network {
        Reason::HostNetwork
    } else if pod.namespace.as_ref().is_some_and(excluded) {
        Reason::ExcludedNamespace
    } else if pod.annotation(SIDECAR).is_some() {
        Reason::Sidecar
    } else if labels.get(PROXY.0).map(String::as_str) == Some(PROXY.1) {
        Reason::Proxy
    } else if node.selectors.select(labels, namespace) {
        return Enrolment::Served;
    } else {
        Reason::NotSelected
    };
    Enrolment::Bypassed(reason)
}

/// Whether a pod's annotation says that it is captured and served.
pub fn is_annotated(pod: &PodFacts) -> bool {
    pod.annotation(REDIRECTION) == Some(ENABLED)
}

/// How a pod is captured that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// What is captured.
    pub policy: CapturePolicy,
    /// What its owner should know.
    pub warnings: Vec<String>,
}

/// How a pod is captured, by the node's settings and the pod's annotations. Connections from these addresses,
/// by which the node reaches the pod, are let through to it: its probes.
///
/// # Errors
/// All that is wrong with its annotations. A switch that is neither yes nor no is a warning, and not set.
pub fn served(
    pod: &PodFacts,
    node: &NodeSettings,
    probes: &[IpAddr],
) -> Result<Served, ConfigErrors> {
    let mut values = FileValues::new();
    let mut warnings = Vec::new();
    let key = |name: &str| Source::File(name.to_owned());
    let mut set = |flag, value: &str, source| {
        values.insert(flag, Sourced::new(value.to_owned(), source));
    };
    let switch = |on: bool| if on { "true" } else { "false" };
    set("dns-capture", switch(node.dns_capture), key("ambient.dnsCapture"));
    set("ipv6", if node.ipv6 { "on" } else { "off" }, key("ambient.ipv6"));
    let probes: Vec<String> = probes.iter().map(IpAddr::to_string).collect();
    set("node-ips", &probes.join(","), Source::Host("node".to_owned()));
    for flag in ["host-probe-snat-ip", "host-probe-snat-ipv6"] {
        set(flag, "none", Source::Always);
    }
    for (annotation, flag) in ANNOTATIONS {
        let Some(value) = pod.annotation(annotation) else { continue };
        if SWITCHES.contains(&flag) && go::parse_bool(value).is_err() {
            warnings.push(format!(
                "annotation {annotation}: {value:?} is neither true nor false, and is ignored"
            ));
        } else {
            set(flag, value, Source::Annotation(annotation.to_owned()));
        }
    }
    let raw = Raw::new([], BTreeMap::new()).with_file(values);
    Ok(Served { policy: resolve(&raw, &HostFacts::default())?.policy, warnings })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{InboundSelection, Probe};

    fn labels(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn pod(own: &[(&str, &str)], annotations: &[(&str, &str)]) -> PodFacts {
        PodFacts {
            name: Some("a".to_owned()),
            namespace: Some("shop".to_owned()),
            labels: Some(labels(own)),
            annotations: Some(labels(annotations)),
            ..PodFacts::default()
        }
    }

    fn node() -> NodeSettings {
        NodeSettings {
            selectors: Selectors::default(),
            excluded_namespaces: vec!["kube-system".to_owned()],
            dns_capture: true,
            ipv6: true,
        }
    }

    #[test]
    fn labels_of_the_pod_and_of_its_namespace_decide() {
        let (ambient, none, other) = ((MODE, "ambient"), (MODE, "none"), (MODE, "other"));
        let not = Enrolment::Bypassed(Reason::NotSelected);
        for (own, namespace, expected) in [
            (&[][..], &[][..], not),
            (&[], &[ambient], Enrolment::Served),
            (&[ambient], &[], Enrolment::Served),
            (&[ambient], &[none], Enrolment::Served),
            (&[none], &[ambient], not),
            (&[other], &[ambient], Enrolment::Served),
            (&[other], &[], not),
        ] {
            let decided = decide(&pod(own, &[]), &labels(namespace), &node());
            assert_eq!(decided, expected, "{own:?} {namespace:?}");
        }
    }

    #[test]
    fn some_pods_are_never_served() {
        let ambient = labels(&[(MODE, "ambient")]);
        let reason = |pod: &PodFacts| match decide(pod, &ambient, &node()) {
            Enrolment::Bypassed(reason) => Some(reason),
            Enrolment::Served => None,
        };
        let own = pod(&[(MODE, "ambient")], &[]);
        assert_eq!(reason(&own), None);
        let host = PodFacts { host_network: true, ..own.clone() };
        assert_eq!(reason(&host), Some(Reason::HostNetwork));
        let excluded = PodFacts { namespace: Some("kube-system".to_owned()), ..own };
        assert_eq!(reason(&excluded), Some(Reason::ExcludedNamespace));
        assert_eq!(reason(&pod(&[], &[(SIDECAR, "{}")])), Some(Reason::Sidecar));
        assert_eq!(reason(&pod(&[PROXY], &[])), Some(Reason::Proxy));
        for reason in [
            Reason::HostNetwork,
            Reason::ExcludedNamespace,
            Reason::Sidecar,
            Reason::Proxy,
            Reason::NotSelected,
        ] {
            assert!(reason.to_string().starts_with(['i', 'n']), "{reason}");
        }
    }

    #[test]
    fn selectors_are_those_of_kubernetes() {
        let text = r#"[{"podSelector":{"matchLabels":{"a":"1"},"matchExpressions":[
            {"key":"b","operator":"In","values":["x","y"]},{"key":"c","operator":"Exists"},
            {"key":"d","operator":"DoesNotExist"},{"key":"e","operator":"NotIn","values":["z"]}]}}]"#;
        let own: Selectors = text.parse().unwrap();
        let good = labels(&[("a", "1"), ("b", "y"), ("c", "")]);
        assert!(own.select(&good, &Labels::new()));
        for (key, value) in [("a", "2"), ("b", "z"), ("d", ""), ("e", "z")] {
            let mut bad = good.clone();
            bad.insert(key.to_owned(), value.to_owned());
            assert!(!own.select(&bad, &Labels::new()), "{key}={value}");
        }
        let mut bad = good;
        bad.remove("c");
        assert!(!own.select(&bad, &Labels::new()));
        let of_namespaces: Selectors =
            r#"[{"namespaceSelector":{"matchLabels":{"a":"1"}}}]"#.parse().unwrap();
        assert!(of_namespaces.select(&Labels::new(), &labels(&[("a", "1")])));
        assert!(!of_namespaces.select(&labels(&[("a", "1")]), &Labels::new()));
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for (bad, part) in [
            ("{}", "no list"),
            ("[]", "empty list"),
            (r#"[{"podselector":{}}]"#, "podselector"),
            (r#"[{"podSelector":{"matchExpressions":[{"key":"a","operator":"Is"}]}}]"#, "Is"),
            (r#"[{"podSelector":{"matchExpressions":[{"key":"a","operator":"In"}]}}]"#, "values"),
            (
                r#"[{"podSelector":{"matchExpressions":[{"key":"a","operator":"Exists","values":["x"]}]}}]"#,
                "has no values",
            ),
            (
                r#"[{"podSelector":{"matchExpressions":[{"key":"","operator":"Exists"}]}}]"#,
                "empty key",
            ),
        ] {
            let error = bad.parse::<Selectors>().unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn annotations_say_how_a_pod_is_captured() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let plain = served(&pod(&[], &[]), &node(), &[address]).unwrap();
        assert!(plain.warnings.is_empty() && plain.policy.ipv6.value);
        assert!(plain.policy.dns.is_some());
        let probes: Vec<&Probe> =
            plain.policy.inbound.probes.iter().map(|own| &own.value).collect();
        assert_eq!(probes, [&Probe::Node(address)]);
        let own = pod(
            &[],
            &[
                ("ambient.istio.io/dns-capture", "false"),
                ("ambient.istio.io/bypass-inbound-capture", "true"),
                ("traffic.sidecar.istio.io/excludeOutboundPorts", "5432"),
                ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/8"),
                ("traffic.sidecar.istio.io/excludeInterfaces", "eth1"),
                ("istio.io/reroute-virtual-interfaces", "tap0"),
            ],
        );
        let policy = served(&own, &node(), &[]).unwrap().policy;
        assert!(policy.dns.is_none() && policy.inbound.probes.is_empty());
        assert_eq!(policy.inbound.selection, InboundSelection::Nothing);
        let (outbound, interfaces) = (&policy.outbound, &policy.interfaces);
        assert_eq!((outbound.except_ports.len(), outbound.except_networks.len()), (1, 1));
        assert_eq!((interfaces.excluded.len(), interfaces.rerouted.len()), (1, 1));
        let off = NodeSettings { dns_capture: false, ipv6: false, ..node() };
        let policy = served(&pod(&[], &[]), &off, &[]).unwrap().policy;
        assert!(policy.dns.is_none() && !policy.ipv6.value);
    }

    #[test]
    fn what_is_wrong_with_annotations_is_said_by_their_names() {
        let unclear = pod(&[], &[("ambient.istio.io/dns-capture", "yes")]);
        let made = served(&unclear, &node(), &[]).unwrap();
        assert!(made.policy.dns.is_some());
        assert!(made.warnings[0].contains("ambient.istio.io/dns-capture"), "{:?}", made.warnings);
        let name = "traffic.sidecar.istio.io/excludeOutboundPorts";
        let error = served(&pod(&[], &[(name, "http")]), &node(), &[]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("http"), "{error}");
    }
}
