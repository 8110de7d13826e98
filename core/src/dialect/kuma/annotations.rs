//! A pod's annotations, as kuma-cni reads them: who is captured, and how. What is captured is resolved
//! as what is typed for kumactl.

use std::net::{IpAddr, Ipv6Addr};

use super::file::FileError;
use super::resolve::{Raw, resolve};
use super::{MESH, POD_DIALECT, read_file};
use crate::dialect::error::{ConfigError, ConfigErrors};
use crate::dialect::raw::FileValues;
use crate::dialect::sidecar::{
    AnnotationDef, Captured, Decision, Effect, Lack, Passed, ReportedBy, Sidecar, Unknown, def,
};
use crate::facts::HostFacts;
use crate::pod::PodFacts;
use crate::source::{Source, Sourced};

/// The container that the proxy runs in, a native sidecar among them.
pub const PROXY_CONTAINER: &str = "kuma-sidecar";
/// The init container that captures a pod from inside.
pub const INIT_CONTAINER: &str = "kuma-init";
/// The annotation that the injector writes when it puts a proxy in: `true`, a switch like others.
pub const INJECTED: &str = "kuma.io/sidecar-injected";
/// All settings as the injector has put them together, in YAML. Releases before 2.9 don't write it.
pub const CONFIG: &str = "traffic.kuma.io/transparent-proxy-config";
/// Whether the pod is a gateway, to which nothing is captured.
pub const GATEWAY: &str = "kuma.io/gateway";
/// Whether DNS queries are captured, in pods that older releases injected.
const DNS: &str = "kuma.io/builtin-dns";
/// Where probes of the application are answered; 0 for nowhere. It is left alone.
const PROBES: &str = "kuma.io/application-probe-proxy-port";
/// The same in older releases, and whether it is so.
const OLDER_PROBES: [&str; 2] = ["kuma.io/virtual-probes-port", "kuma.io/virtual-probes"];

/// How pods of Kuma are known and captured by the CNI plugin.
pub static SIDECAR: Sidecar = Sidecar {
    mesh: &MESH,
    dialect: &POD_DIALECT,
    proxy: PROXY_CONTAINER,
    has_several: false,
    inside: INIT_CONTAINER,
    reported_by: ReportedBy::Both,
    decide,
    injected: INJECTED,
    names_proxy: is_injected,
    policy,
    check: |_settings| Ok(()),
    annotations: ANNOTATIONS,
    leave: "label kuma.io/sidecar-injection: disabled",
};

/// Every annotation that says how a pod is captured, where [`CONFIG`] does not say all. The last ones are
/// written by the injector of older releases alone.
pub const ANNOTATIONS: &[AnnotationDef] = &[
    def("traffic.kuma.io/exclude-inbound-ports", "exclude-inbound-ports", Effect::Replaces),
    def("traffic.kuma.io/exclude-outbound-ports", "exclude-outbound-ports", Effect::Replaces),
    def(
        "traffic.kuma.io/exclude-outbound-ports-for-uids",
        "exclude-outbound-ports-for-uids",
        Effect::Replaces,
    ),
    def("traffic.kuma.io/exclude-inbound-ips", "exclude-inbound-ips", Effect::Replaces),
    def("traffic.kuma.io/exclude-outbound-ips", "exclude-outbound-ips", Effect::Replaces),
    def("traffic.kuma.io/drop-invalid-packets", "drop-invalid-packets", Effect::Replaces),
    def("traffic.kuma.io/iptables-logs", "iptables-logs", Effect::Replaces),
    def("kuma.io/transparent-proxying-ip-family-mode", "ip-family-mode", Effect::Replaces),
    def(PROBES, "exclude-inbound-ports", Effect::Adds),
    def(GATEWAY, "redirect-inbound", Effect::Replaces),
    def("kuma.io/sidecar-uid", "kuma-dp-user", Effect::Replaces),
    def("kuma.io/transparent-proxying-inbound-port", "redirect-inbound-port", Effect::Replaces),
    def("kuma.io/transparent-proxying-outbound-port", "redirect-outbound-port", Effect::Replaces),
    def(DNS, "redirect-dns", Effect::Replaces),
    def("kuma.io/builtin-dns-port", "redirect-dns-port", Effect::Replaces),
    def(OLDER_PROBES[0], "exclude-inbound-ports", Effect::Adds),
];

/// Whether the injector says that it put a proxy in.
fn is_injected(pod: &PodFacts) -> bool {
    pod.annotation(INJECTED).and_then(|text| switch(text, false)) == Some(true)
}

/// What is wrong with what an annotation says, or an item of it.
fn wrong(name: &str, value: &str, expected: &str) -> ConfigError {
    let source_name = Source::Annotation(name.to_owned());
    let (value, expected) = (value.to_owned(), expected.to_owned());
    ConfigError { source_name, value, expected, usage: false }
}

/// Decide about a pod. An annotation tells of a proxy, and the containers whether it is there and what
/// captures it.
pub fn decide(pod: &PodFacts) -> Decision {
    if pod.annotations.is_none() {
        return Decision::Ask(Unknown::Annotations);
    }
    if !is_injected(pod) {
        if let Some(text) = pod.annotation(INJECTED).filter(|text| switch(text, false).is_none()) {
            let expected = "it is true or false, as the injector writes it: what else it says is \
                            neither, so whether it has a proxy is not known";
            return Decision::Wrong(ConfigErrors(vec![wrong(INJECTED, text, expected)]));
        }
        let (mesh, annotation, lack) = (MESH.name, INJECTED, Lack::of(pod, INJECTED));
        return Decision::Pass(Passed::NotInjected { mesh, annotation, lack });
    }
    if pod.containers.is_none() {
        let (annotation, container) = (INJECTED, INIT_CONTAINER);
        return Decision::Ask(Unknown::Inside { annotation, container });
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

/// How a pod is captured on a node with these settings. Both families are, unless a setting says
/// otherwise: whether the pod has them is not known before it is entered.
///
/// # Errors
/// All settings that are wrong, at once.
pub fn policy(pod: &PodFacts, settings: &FileValues) -> Result<Captured, ConfigErrors> {
    policy_on(pod, Raw::default().with_file(settings.clone()))
}

/// The same on top of these settings, whoever made them.
pub(super) fn policy_on(pod: &PodFacts, raw: Raw) -> Result<Captured, ConfigErrors> {
    // The proxy's user needs not be one of the host's.
    let own = Sourced::new("true".to_owned(), Source::Always);
    let raw = raw.with_file(FileValues::from([("cni-mode", own)]));
    let raw = match pod.annotation(CONFIG) {
        Some(text) if !text.is_empty() => raw.with_file(whole(text)?),
        _ => annotated(raw, pod)?,
    };
    let unknown = |_why| {
        "it is the pod's own, which nothing tells before it runs: have all queries \
                          captured (redirect.dns.captureAll)"
    };
    let facts = HostFacts {
        addresses: vec![IpAddr::from(Ipv6Addr::UNSPECIFIED)],
        resolv_conf: Some(pod.resolv_conf().map_err(unknown).map_err(str::to_owned)),
        ..HostFacts::default()
    };
    resolve(&raw, &facts)
        .map(|resolved| Captured { policy: resolved.policy, warnings: resolved.warnings })
}

/// The settings that the injector has put together.
fn whole(text: &str) -> Result<FileValues, ConfigErrors> {
    let source = Source::Annotation(CONFIG.to_owned());
    let values = read_file(text).map_err(|error| {
        let lines = match error {
            FileError::Syntax(why) => vec![format!("this is no YAML: {why}")],
            FileError::Content(lines) => lines,
        };
        let value: String = text.chars().take(60).collect();
        let wrong = |expected| ConfigError {
            source_name: source.clone(),
            value: value.clone(),
            expected,
            usage: false,
        };
        ConfigErrors(lines.into_iter().map(wrong).collect())
    })?;
    let from = |(flag, value): (&'static str, Sourced<String>)| {
        let key = match value.source {
            Source::File(key) => format!("{key} of {source}"),
            other => other.to_string(),
        };
        (flag, Sourced::new(value.value, Source::File(key)))
    };
    Ok(values.into_iter().map(from).collect())
}

/// What is said by single annotations.
fn annotated(mut raw: Raw, pod: &PodFacts) -> Result<Raw, ConfigErrors> {
    let (mut replaced, mut errors) = (FileValues::new(), ConfigErrors::default());
    for def in ANNOTATIONS {
        let Some(text) = pod.annotation(def.name) else { continue };
        let value = match read(def, text, pod) {
            Ok(Some(value)) => Sourced::new(value, Source::Annotation(def.name.to_owned())),
            Ok(None) => continue,
            Err(expected) => {
                errors.0.push(wrong(def.name, text, expected));
                continue;
            }
        };
        if def.name == DNS {
            // Older releases capture all queries or none.
            replaced.insert("redirect-all-dns-traffic", value.clone());
        }
        match def.effect {
            Effect::Adds => raw = raw.with_more(def.flag, value),
            Effect::Replaces => drop(replaced.insert(def.flag, value)),
        }
    }
    errors.into_result(raw.with_file(replaced))
}

/// What an annotation says, as its flag would have it; none where it says nothing.
fn read(def: &AnnotationDef, text: &str, pod: &PodFacts) -> Result<Option<String>, &'static str> {
    const EITHER: &str = "it is true or false";
    let own = |text: &str| Ok(Some(text.to_owned()));
    match def.name {
        GATEWAY => switch(text, true).map(|on| on.then(|| "false".to_owned())).ok_or(
            "it is enabled or disabled: a pod that is a builtin gateway has no proxy beside it",
        ),
        DNS => switch(text, true).map(|on| Some(on.to_string())).ok_or("it is enabled or disabled"),
        PROBES => Ok(Some(text.to_owned()).filter(|text| text != "0")),
        name if name == OLDER_PROBES[0] => {
            let is_on = pod.annotation(OLDER_PROBES[1]).and_then(|text| switch(text, true));
            let is_older = is_on == Some(true) && pod.annotation(PROBES).is_none();
            Ok(Some(text.to_owned()).filter(|_| is_older))
        }
        _ => match def.flag {
            "drop-invalid-packets" | "iptables-logs" => {
                switch(text, false).map(|on| Some(on.to_string())).ok_or(EITHER)
            }
            "exclude-inbound-ips" | "exclude-outbound-ips" => {
                own(&text.split(',').map(str::trim).collect::<Vec<_>>().join(","))
            }
            _ => own(text),
        },
    }
}

/// A switch in Kuma's words, some of which also take these.
fn switch(text: &str, enabled: bool) -> Option<bool> {
    match text {
        "true" | "yes" => Some(true),
        "false" | "no" => Some(false),
        "enabled" if enabled => Some(true),
        "disabled" if enabled => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Container;
    use crate::policy::{CapturePolicy, DnsScope, InboundSelection};

    /// As the injector writes it: every key.
    const WHOLE: &str = "\
cniMode: true
comments: {disabled: false}
dropInvalidPackets: false
ipFamilyMode: dualstack
iptablesExecutables: {ip6tables: '', iptables: ''}
kumaDPUser: '5678'
log: {enabled: false}
redirect:
  dns: {captureAll: true, enabled: true, port: 15053, resolvConfigPath: /etc/resolv.conf}
  inbound: {enabled: true, excludePorts: [7777, 9001], excludePortsForIPs: [], port: 15006}
  outbound: {enabled: true, excludePorts: '22', excludePortsForUIDs: ['tcp:80:7'], port: 15001}
  vnet: {networks: []}
retry: {maxRetries: 4, sleepBetweenRetries: 2s}
storeFirewalld: false
wait: 5
";

    fn pod(annotations: &[(&str, &str)]) -> PodFacts {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        PodFacts { annotations: Some(annotations.iter().map(own).collect()), ..PodFacts::default() }
    }

    fn with(containers: &[&str], annotations: &[(&str, &str)]) -> PodFacts {
        // A name with a colon is an init container's.
        let named = |name: &&str| Container {
            name: name.trim_end_matches(':').to_owned(),
            init: name.ends_with(':'),
            ..Container::default()
        };
        PodFacts { containers: Some(containers.iter().map(named).collect()), ..pod(annotations) }
    }

    fn made(annotations: &[(&str, &str)]) -> CapturePolicy {
        let found = policy(&pod(annotations), &FileValues::new()).unwrap();
        assert_eq!(found.warnings, Vec::<String>::new(), "{annotations:?}");
        found.policy
    }

    /// Inbound ports that are left alone; none where nothing is captured.
    fn spared(policy: &CapturePolicy) -> Option<Vec<u16>> {
        match &policy.inbound.selection {
            InboundSelection::AllExcept { except, .. } => {
                Some(except.iter().map(|port| port.value.first().get()).collect())
            }
            _ => None,
        }
    }

    #[test]
    fn an_annotation_tells_of_a_proxy_and_containers_who_captures() {
        let injected = [(INJECTED, "true")];
        let none = |lack| Passed::NotInjected { mesh: "Kuma", annotation: INJECTED, lack };
        let inside = Unknown::Inside { annotation: INJECTED, container: INIT_CONTAINER };
        for (pod, wanted) in [
            (pod(&[]), Decision::Pass(none(Lack::Absent))),
            (pod(&[(INJECTED, "false")]), Decision::Pass(none(Lack::Denied))),
            (pod(&[(INJECTED, "no")]), Decision::Pass(none(Lack::Denied))),
            (pod(&injected), Decision::Ask(inside)),
            (pod(&[(INJECTED, "yes")]), Decision::Ask(inside)),
            (with(&["kuma-sidecar"], &[(INJECTED, "yes")]), Decision::Capture),
            (with(&["app", "kuma-sidecar"], &injected), Decision::Capture),
            (with(&["kuma-validation:", "kuma-sidecar:", "app"], &injected), Decision::Capture),
            (
                with(&["kuma-init:", "kuma-sidecar"], &injected),
                Decision::Pass(Passed::InitContainer(INIT_CONTAINER)),
            ),
            (with(&["app"], &injected), Decision::Pass(Passed::NoProxy(PROXY_CONTAINER))),
            (with(&["app", "kuma-sidecar"], &[]), Decision::Pass(none(Lack::Absent))),
            (PodFacts { annotations: None, ..pod(&[]) }, Decision::Ask(Unknown::Annotations)),
        ] {
            assert_eq!(decide(&pod), wanted, "{pod:?}");
        }
        let text = none(Lack::Denied).to_string();
        assert!(text.contains("its annotation kuma.io/sidecar-injected says so"), "{text}");
    }

    /// A switch of Kuma's is one of four words; anything else may be meant as a yes.
    #[test]
    fn what_is_neither_a_yes_nor_a_no_is_refused_by_name() {
        for text in ["TRUE", "True", "1", "enabled", "", " true"] {
            let annotations = [(INJECTED, text)];
            for pod in [pod(&annotations), with(&["kuma-sidecar"], &annotations)] {
                let Decision::Wrong(errors) = decide(&pod) else { panic!("{text:?}") };
                let said = errors.to_string();
                assert!(
                    said.contains(&format!("{INJECTED}: {text:?}: it is true or false")),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn one_annotation_says_all() {
        // What else is said was put into it, or came too late.
        let policy = made(&[(CONFIG, WHOLE), ("traffic.kuma.io/exclude-inbound-ports", "1")]);
        assert_eq!(spared(&policy), Some(vec![7777, 9001]));
        assert!(policy.ipv6.value && policy.proxy.uids[0].value.get() == 5678);
        assert_eq!(policy.outbound.except_ports[0].value.first().get(), 22);
        assert_eq!(policy.outbound.except_flows.len(), 1);
        let dns = policy.dns.unwrap();
        assert!(matches!(dns.scope, DnsScope::All(_)), "{dns:?}");
        assert_eq!(
            policy.outbound.port.source.to_string(),
            "configuration key redirect.outbound.port of annotation \
             traffic.kuma.io/transparent-proxy-config"
        );
    }

    #[test]
    fn without_it_single_annotations_do() {
        let policy = made(&[
            ("traffic.kuma.io/exclude-inbound-ports", "80, 81"),
            ("traffic.kuma.io/exclude-outbound-ips", "10.0.0.0/8, fd00::1"),
            ("traffic.kuma.io/exclude-outbound-ports-for-uids", "tcp:80:7;9"),
            ("traffic.kuma.io/drop-invalid-packets", "yes"),
            ("kuma.io/application-probe-proxy-port", "9001"),
            ("kuma.io/transparent-proxying-ip-family-mode", "ipv4"),
            ("kuma.io/transparent-proxying-inbound-port", "16006"),
            ("kuma.io/builtin-dns", "enabled"),
            ("kuma.io/builtin-dns-port", "16053"),
            ("kuma.io/sidecar-uid", "7"),
            ("kuma.io/gateway", "disabled"),
        ]);
        assert_eq!(spared(&policy), Some(vec![80, 81, 9001]));
        assert!(!policy.ipv6.value && policy.drop_invalid.is_some());
        assert_eq!(policy.outbound.except_networks.len(), 2);
        assert_eq!(policy.outbound.except_flows.len(), 2);
        let ports = (policy.inbound.port.value.get(), policy.proxy.uids[0].value.get());
        assert_eq!(ports, (16006, 7));
        assert!(matches!(policy.dns.unwrap().scope, DnsScope::All(_)));
        assert!(made(&[]).dns.is_none() && spared(&made(&[])) == Some(Vec::new()));
        assert_eq!(spared(&made(&[(GATEWAY, "enabled")])), None);
        let older =
            [("kuma.io/virtual-probes-port", "9000"), ("kuma.io/virtual-probes", "enabled")];
        assert_eq!(spared(&made(&older)), Some(vec![9000]));
        assert_eq!(spared(&made(&older[..1])), Some(Vec::new()));
        assert_eq!(spared(&made(&[(PROBES, "0"), older[0], older[1]])), Some(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_annotation() {
        for (name, value, parts) in [
            (CONFIG, "redirect: {inbound: {prot: 1}}", &["redirect.inbound.prot is not known"][..]),
            (CONFIG, "redirect: [", &["no YAML"]),
            (
                CONFIG,
                "redirect: {inbound: {port: 0}}",
                &["redirect.inbound.port of annotation", "\"0\""],
            ),
            (CONFIG, "redirect: {dns: {enabled: true}}", &["resolv.conf", "captureAll"]),
            (CONFIG, "log: {enabled: true}", &["log.enabled of annotation", "millrace trace"]),
            (CONFIG, "kumaDPUser: kuma-dp", &["kumaDPUser of annotation", "give its id"]),
            ("traffic.kuma.io/exclude-inbound-ports", "80;x", &["80;x", "from 1 to 65535"]),
            ("traffic.kuma.io/exclude-outbound-ips", "10.0.0.0/40", &["10.0.0.0/40"]),
            ("traffic.kuma.io/drop-invalid-packets", "enabled", &["true or false"]),
            ("traffic.kuma.io/iptables-logs", "true", &["millrace trace"]),
            ("kuma.io/transparent-proxying-ip-family-mode", "ipv6", &["dualstack or ipv4"]),
            (GATEWAY, "builtin", &["builtin", "enabled or disabled"]),
        ] {
            let found = policy(&pod(&[(name, value)]), &FileValues::new());
            let text = found.unwrap_err().to_string();
            for part in parts.iter().chain(&[name]) {
                assert!(text.contains(part), "{value}: {text}");
            }
        }
    }
}
