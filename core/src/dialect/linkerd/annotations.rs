//! A pod's containers and annotations, as linkerd-cni reads them: who is captured, and how. What is
//! captured is resolved as what is typed for proxy-init.

use super::resolve::{Raw, resolve};
use super::{DIALECT, MESH};
use crate::dialect::error::ConfigErrors;
use crate::dialect::raw::FileValues;
use crate::dialect::sidecar::{
    AnnotationDef, Captured, Decision, Effect, Passed, ReportedBy, Sidecar, Unknown, annotated, def,
};
use crate::pod::PodFacts;
use crate::source::{Source, Sourced};

/// The container that the proxy runs in, a native sidecar among them.
pub const PROXY_CONTAINER: &str = "linkerd-proxy";
/// The init container that captures a pod from inside.
pub const INIT_CONTAINER: &str = "linkerd-init";
/// The annotation that the injector writes when it puts a proxy in: with which release's.
pub const INJECTED: &str = "linkerd.io/proxy-version";
/// The label of the pods of Linkerd's own control plane.
pub const COMPONENT: &str = "linkerd.io/control-plane-component";
/// Where these reach the Kubernetes API, which has to be there before their proxies are.
const API_PORTS: &str = "443,6443";

/// How pods of Linkerd are known and captured by the CNI plugin.
pub static SIDECAR: Sidecar = Sidecar {
    mesh: &MESH,
    dialect: &DIALECT,
    proxy: PROXY_CONTAINER,
    has_several: false,
    inside: INIT_CONTAINER,
    reported_by: ReportedBy::Containers,
    decide,
    injected: INJECTED,
    names_proxy: |pod| pod.annotation(INJECTED).is_some(),
    policy,
    check: |settings| resolve(&of_node(settings)).map(drop),
    annotations: ANNOTATIONS,
    leave: "annotation linkerd.io/inject: disabled",
};

/// Every annotation that says how a pod is captured.
pub const ANNOTATIONS: &[AnnotationDef] = &[
    def("config.linkerd.io/skip-inbound-ports", "inbound-ports-to-ignore", Effect::Adds),
    def("config.linkerd.io/skip-outbound-ports", "outbound-ports-to-ignore", Effect::Replaces),
    def("config.linkerd.io/skip-subnets", "subnets-to-ignore", Effect::Replaces),
    def("config.linkerd.io/proxy-uid", "proxy-uid", Effect::Replaces),
    def("config.linkerd.io/proxy-gid", "proxy-gid", Effect::Replaces),
];

/// What a node's setting is where nobody says so: as Linkerd's installer writes it.
pub const DEFAULTS: &[(&str, &str)] = &[
    ("incoming-proxy-port", "4143"),
    ("outgoing-proxy-port", "4140"),
    ("proxy-uid", "2102"),
    ("inbound-ports-to-ignore", "4190,4191"),
];

/// Decide about a pod. Its containers alone tell: annotations are a wish, or can be copied.
pub fn decide(pod: &PodFacts) -> Decision {
    if pod.containers.is_none() {
        return Decision::Ask(Unknown::Proxy(PROXY_CONTAINER));
    }
    if pod.container(PROXY_CONTAINER).is_none() {
        return Decision::Pass(Passed::NoProxy(PROXY_CONTAINER));
    }
    let mut containers = pod.containers.iter().flatten();
    if containers.any(|container| container.init && container.name == INIT_CONTAINER) {
        return Decision::Pass(Passed::InitContainer(INIT_CONTAINER));
    }
    Decision::Capture
}

/// The defaults, and these settings of a node.
fn of_node(settings: &FileValues) -> Raw {
    let of = |(flag, value): &(&'static str, &str)| {
        (*flag, Sourced::new((*value).to_owned(), Source::Default((*flag).to_owned())))
    };
    let defaults = DEFAULTS.iter().map(of).collect();
    Raw::default().with_file(defaults).with_file(settings.clone())
}

/// How a pod is captured on a node with these settings.
///
/// # Errors
/// All annotations that are wrong, at once.
pub fn policy(pod: &PodFacts, settings: &FileValues) -> Result<Captured, ConfigErrors> {
    let mut raw = annotated(of_node(settings), pod, ANNOTATIONS);
    if pod.labels.as_ref().is_some_and(|labels| labels.contains_key(COMPONENT)) {
        let source = Source::Host(format!("label {COMPONENT}"));
        let ports = Sourced::new(API_PORTS.to_owned(), source);
        raw = raw.with_more("outbound-ports-to-ignore", ports);
    }
    resolve(&raw).map(|resolved| Captured { policy: resolved.policy, warnings: resolved.warnings })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt;

    use super::*;
    use crate::pod::Container;
    use crate::policy::InboundSelection;

    fn with(containers: &[&str], annotations: &[(&str, &str)]) -> PodFacts {
        // A name with a colon is an init container's.
        let named = |name: &&str| Container {
            name: name.trim_end_matches(':').to_owned(),
            init: name.ends_with(':'),
            ..Container::default()
        };
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        PodFacts {
            annotations: Some(annotations.iter().map(own).collect()),
            labels: Some(BTreeMap::new()),
            containers: Some(containers.iter().map(named).collect()),
            ..PodFacts::default()
        }
    }

    /// These settings of a node.
    fn node(settings: &[(&'static str, &str)]) -> FileValues {
        let of = |(flag, value): &(&'static str, &str)| {
            (*flag, Sourced::new((*value).to_owned(), Source::File(format!("linkerd.{flag}"))))
        };
        settings.iter().map(of).collect()
    }

    /// Each value with where it is from.
    fn reported<T: fmt::Display>(list: &[Sourced<T>]) -> Vec<String> {
        list.iter().map(|item| format!("{} {}", item.value, item.source)).collect()
    }

    #[test]
    fn containers_alone_tell() {
        let injected = [(INJECTED, "stable"), ("linkerd.io/inject", "enabled")];
        for (containers, wanted) in [
            (&["app", PROXY_CONTAINER][..], Decision::Capture),
            (&["linkerd-proxy:", "app"], Decision::Capture),
            (&["linkerd-network-validator:", PROXY_CONTAINER], Decision::Capture),
            (
                &["linkerd-init:", PROXY_CONTAINER],
                Decision::Pass(Passed::InitContainer(INIT_CONTAINER)),
            ),
            (
                &["linkerd-init:", "linkerd-proxy:"],
                Decision::Pass(Passed::InitContainer(INIT_CONTAINER)),
            ),
            (&["linkerd-init:", "app"], Decision::Pass(Passed::NoProxy(PROXY_CONTAINER))),
            // Beside the others it comes too late.
            (&[INIT_CONTAINER, PROXY_CONTAINER], Decision::Capture),
            (&["app"], Decision::Pass(Passed::NoProxy(PROXY_CONTAINER))),
        ] {
            for annotations in [&[][..], &injected] {
                assert_eq!(decide(&with(containers, annotations)), wanted, "{containers:?}");
            }
        }
        for annotations in [&[][..], &injected, &[("linkerd.io/inject", "disabled")]] {
            let unknown = PodFacts { containers: None, ..with(&[], annotations) };
            assert_eq!(
                decide(&unknown),
                Decision::Ask(Unknown::Proxy(PROXY_CONTAINER)),
                "{annotations:?}"
            );
        }
        let names = |list: &[(&str, &str)]| (SIDECAR.names_proxy)(&with(&[], list));
        assert!(names(&injected) && !names(&injected[1..]));
    }

    #[test]
    fn without_a_word_it_is_as_the_installer_writes_it() {
        let policy = policy(&with(&[PROXY_CONTAINER], &[]), &node(&[])).unwrap().policy;
        assert_eq!(
            (policy.inbound.port.value.get(), policy.outbound.port.value.get()),
            (4143, 4140)
        );
        assert_eq!(reported(&policy.proxy.uids), ["2102 default of proxy-uid"]);
        assert!(policy.ipv6.value && policy.proxy.gids.is_empty());
        let InboundSelection::AllExcept { except, .. } = &policy.inbound.selection else {
            panic!("{policy:?}");
        };
        assert_eq!(except.iter().map(|p| p.value.first().get()).collect::<Vec<_>>(), [4190, 4191]);
    }

    #[test]
    fn inbound_ports_are_added_and_everything_else_is_replaced() {
        let node = node(&[
            ("inbound-ports-to-ignore", "4190,25"),
            ("outbound-ports-to-ignore", "25"),
            ("subnets-to-ignore", "10.0.0.0/8"),
            ("proxy-gid", "7"),
        ]);
        let annotated = with(
            &[PROXY_CONTAINER],
            &[
                ("config.linkerd.io/skip-inbound-ports", "80,8000-8010"),
                ("config.linkerd.io/skip-outbound-ports", "3306"),
                ("config.linkerd.io/skip-subnets", " fd00::/8 "),
                ("config.linkerd.io/proxy-uid", "5"),
                ("config.linkerd.io/proxy-gid", "6"),
            ],
        );
        let policy = policy(&annotated, &node).unwrap().policy;
        let InboundSelection::AllExcept { except, .. } = &policy.inbound.selection else {
            panic!("{policy:?}");
        };
        assert_eq!(
            reported(except),
            [
                "4190 configuration key linkerd.inbound-ports-to-ignore",
                "25 configuration key linkerd.inbound-ports-to-ignore",
                "80 annotation config.linkerd.io/skip-inbound-ports",
                "8000:8010 annotation config.linkerd.io/skip-inbound-ports",
            ]
        );
        assert_eq!(
            reported(&policy.outbound.except_ports),
            ["3306 annotation config.linkerd.io/skip-outbound-ports"]
        );
        assert_eq!(
            reported(&policy.inbound.except_sources),
            ["fd00::/8 annotation config.linkerd.io/skip-subnets"]
        );
        assert_eq!(reported(&policy.proxy.uids), ["5 annotation config.linkerd.io/proxy-uid"]);
        assert_eq!(reported(&policy.proxy.gids), ["6 annotation config.linkerd.io/proxy-gid"]);
        let nothing = with(&[], &[("config.linkerd.io/skip-outbound-ports", "")]);
        assert!(super::policy(&nothing, &node).unwrap().policy.outbound.except_ports.is_empty());
    }

    #[test]
    fn the_control_plane_reaches_the_api_beside_its_proxy() {
        let mut pod = with(&[PROXY_CONTAINER], &[("config.linkerd.io/skip-outbound-ports", "25")]);
        pod.labels.as_mut().unwrap().insert(COMPONENT.to_owned(), "destination".to_owned());
        assert_eq!(
            reported(&policy(&pod, &node(&[])).unwrap().policy.outbound.except_ports),
            [
                "25 annotation config.linkerd.io/skip-outbound-ports",
                "443 the pod's label linkerd.io/control-plane-component",
                "6443 the pod's label linkerd.io/control-plane-component",
            ]
        );
    }

    /// The reference leaves out what it can't read, and the exception with it.
    #[test]
    fn a_bad_value_is_named_with_its_annotation() {
        for def in ANNOTATIONS {
            let errors = policy(&with(&[], &[(def.name, "80;x")]), &node(&[])).unwrap_err();
            let text = errors.to_string();
            assert!(text.contains(&format!("annotation {}: \"80;x\": ", def.name)), "{text}");
        }
    }
}
