//! What Consul's injector makes of a manifest.

use std::collections::BTreeMap;

use super::annotations::{
    ANNOTATIONS, CONFIG, DUAL_STACK, INIT_CONTAINER, INIT_VARIABLE, PROXY_CONTAINER,
};
use super::flags::Consul;
use super::resolve::{Raw, resolve};
use super::{LAYOUT, MESH, NFT_LAYOUT, annotations};
use crate::dialect::error::{ConfigError, ConfigErrors};
use crate::dialect::flags::Words as _;
use crate::dialect::go::parse_bool;
use crate::dialect::init_container::{NotStated, words};
use crate::dialect::injector::{Asked, Doubt, Field, Injector, assumed};
use crate::dialect::raw::FileValues;
use crate::dialect::sidecar::{AnnotationDef, Captured, Effect, def};
use crate::pod::{Container, Elsewhere, Handler, PodFacts};
use crate::source::{Source, Sourced};

const TRANSPARENT: &str = "consul.hashicorp.com/transparent-proxy";
const HEALTH: &str = "consul.hashicorp.com/use-proxy-health-check";
const METRICS: &str = "consul.hashicorp.com/enable-metrics";
const SCRAPE: &str = "consul.hashicorp.com/prometheus-scrape-port";
const PROBES: &str = "consul.hashicorp.com/transparent-proxy-overwrite-probes";
const DNS: &str = "consul.hashicorp.com/consul-dns";

/// What Consul's injector reads from a pod, and what it puts in.
pub static INJECTOR: Injector = Injector {
    mesh: &MESH,
    layout: &LAYOUT,
    nft_layout: &NFT_LAYOUT,
    proxy: PROXY_CONTAINER,
    inside: INIT_CONTAINER,
    others: &["consul-connect-inject-init", "consul-mesh-init", "envoy-sidecar", "consul-sidecar"],
    asked: Asked {
        name: "consul.hashicorp.com/connect-inject",
        field: Field::Annotation,
        yes: &["true", "1", "t", "T", "TRUE", "True"],
        no: &["false", "0", "f", "F", "FALSE", "False"],
    },
    own: &["consul.hashicorp.com/transparent-proxy"],
    prefixes: &["consul.hashicorp.com/"],
    annotations: CAPTURE,
    known: KNOWN,
    reads_namespaces: false,
    ports: &[
        (15001, "captured outbound connections"),
        (20000, "captured inbound connections"),
        (19000, "its administration"),
        (20200, "its metrics"),
        (21000, "its health"),
    ],
    policy,
    is_told: |pod| pod.annotation(CONFIG).is_some_and(|text| !text.is_empty()),
    doubts,
};

/// Annotations about capture, with the flags that set the same.
const CAPTURE: &[AnnotationDef] = &[
    ANNOTATIONS[0],
    ANNOTATIONS[1],
    def(
        "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports",
        "exclude-inbound-port",
        Effect::Adds,
    ),
    def(
        "consul.hashicorp.com/transparent-proxy-exclude-outbound-ports",
        "exclude-outbound-port",
        Effect::Adds,
    ),
    def(
        "consul.hashicorp.com/transparent-proxy-exclude-outbound-cidrs",
        "exclude-outbound-cidr",
        Effect::Adds,
    ),
    def("consul.hashicorp.com/transparent-proxy-exclude-uids", "exclude-uid", Effect::Adds),
];

/// Known annotations about anything else
/// (<https://developer.hashicorp.com/consul/docs/k8s/annotations-and-labels>).
const KNOWN: &[&str] = &[
    TRANSPARENT,
    HEALTH,
    METRICS,
    SCRAPE,
    PROBES,
    DNS,
    "consul.hashicorp.com/connect-inject",
    "consul.hashicorp.com/connect-inject-managed-by",
    "consul.hashicorp.com/connect-inject-mount-volume",
    "consul.hashicorp.com/connect-inject-status",
    "consul.hashicorp.com/connect-k8s-version",
    "consul.hashicorp.com/connect-service",
    "consul.hashicorp.com/connect-service-port",
    "consul.hashicorp.com/connect-service-protocol",
    "consul.hashicorp.com/connect-service-upstreams",
    "consul.hashicorp.com/consul-envoy-proxy-concurrency",
    "consul.hashicorp.com/consul-k8s-version",
    "consul.hashicorp.com/consul-namespace",
    "consul.hashicorp.com/consul-sidecar-user-volume",
    "consul.hashicorp.com/consul-sidecar-user-volume-mount",
    "consul.hashicorp.com/enable-consul-dataplane-as-sidecar",
    "consul.hashicorp.com/enable-metrics-merging",
    "consul.hashicorp.com/enable-sidecar-proxy-lifecycle",
    "consul.hashicorp.com/enable-sidecar-proxy-lifecycle-shutdown-drain-listeners",
    "consul.hashicorp.com/envoy-extra-args",
    "consul.hashicorp.com/gateway-consul-service-name",
    "consul.hashicorp.com/gateway-kind",
    "consul.hashicorp.com/gateway-namespace",
    "consul.hashicorp.com/gateway-wan-address-source",
    "consul.hashicorp.com/gateway-wan-address-static",
    "consul.hashicorp.com/gateway-wan-port",
    "consul.hashicorp.com/kubernetes-service",
    "consul.hashicorp.com/merged-metrics-port",
    "consul.hashicorp.com/mesh-gateway-container-port",
    "consul.hashicorp.com/mesh-inject",
    "consul.hashicorp.com/mesh-inject-status",
    "consul.hashicorp.com/mesh-service-destinations",
    "consul.hashicorp.com/original-pod",
    "consul.hashicorp.com/peering-version",
    "consul.hashicorp.com/prometheus-ca-file",
    "consul.hashicorp.com/prometheus-ca-path",
    "consul.hashicorp.com/prometheus-cert-file",
    "consul.hashicorp.com/prometheus-key-file",
    "consul.hashicorp.com/prometheus-scrape-path",
    "consul.hashicorp.com/proxy-config-map",
    "consul.hashicorp.com/service-metrics-path",
    "consul.hashicorp.com/service-metrics-port",
    "consul.hashicorp.com/service-tags",
    "consul.hashicorp.com/sidecar-hold-app-until-proxy-starts",
    "consul.hashicorp.com/sidecar-proxy-cpu-limit",
    "consul.hashicorp.com/sidecar-proxy-cpu-request",
    "consul.hashicorp.com/sidecar-proxy-graceful-shutdown",
    "consul.hashicorp.com/sidecar-proxy-lifecycle-graceful-port",
    "consul.hashicorp.com/sidecar-proxy-lifecycle-graceful-shutdown-path",
    "consul.hashicorp.com/sidecar-proxy-lifecycle-graceful-startup-path",
    "consul.hashicorp.com/sidecar-proxy-lifecycle-shutdown-grace-period-seconds",
    "consul.hashicorp.com/sidecar-proxy-lifecycle-startup-grace-period-seconds",
    "consul.hashicorp.com/sidecar-proxy-liveness-failure-seconds",
    "consul.hashicorp.com/sidecar-proxy-memory-limit",
    "consul.hashicorp.com/sidecar-proxy-memory-request",
    "consul.hashicorp.com/sidecar-proxy-startup-failure-seconds",
    "consul.hashicorp.com/transparent-proxy-status",
];

/// Flags and values as Consul's installation has them unless an annotation says otherwise.
const ASSUMED: &[(&str, &str)] = &[
    ("proxy-uid", "5995"),
    ("proxy-inbound-port", "20000"),
    ("proxy-outbound-port", "15001"),
    ("exclude-uid", "5996"),
];
/// Where the proxy answers for the application's health.
const HEALTH_PORT: &str = "21000";
/// Where it has its metrics unless an annotation says so.
const SCRAPE_PORT: &str = "20200";
/// Where probes are answered: the first port of each kind, one more for each container.
const PROBE_PORTS: [(&str, u16); 3] =
    [("livenessProbe", 20300), ("readinessProbe", 20400), ("startupProbe", 20500)];

fn policy(pod: &PodFacts) -> Result<Captured, ConfigErrors> {
    if (INJECTOR.is_told)(pod) {
        return annotations::policy(pod, &FileValues::new());
    }
    let mut errors = ConfigErrors::default();
    let mut switch = |name: &str| {
        let text = pod.annotation(name).filter(|text| !text.is_empty())?;
        match parse_bool(text) {
            Ok(on) => Some(on),
            Err(error) => {
                errors.0.push(ConfigError {
                    source_name: Source::Annotation(name.to_owned()),
                    value: text.to_owned(),
                    expected: error.to_string(),
                    usage: false,
                });
                None
            }
        }
    };
    let (health, metrics) = (switch(HEALTH) == Some(true), switch(METRICS) == Some(true));
    let (probes, dns) = (switch(PROBES) == Some(true), switch(DNS) == Some(true));
    switch(TRANSPARENT);
    let mut raw: Raw = assumed(ASSUMED);
    for def in CAPTURE {
        let Some(text) = pod.annotation(def.name) else { continue };
        let value = Sourced::new(text.to_owned(), Source::Annotation(def.name.to_owned()));
        raw = match def.effect {
            Effect::Adds => raw.with_more(def.flag, value),
            Effect::Replaces => raw.with_file(FileValues::from([(def.flag, value)])),
        };
    }
    let more = |raw: Raw, flag, by: &str, text: String| {
        raw.with_more(flag, Sourced::new(text, Source::Annotation(by.to_owned())))
    };
    let inbound = "exclude-inbound-port";
    if health {
        raw = more(raw, inbound, HEALTH, HEALTH_PORT.to_owned());
    }
    if metrics {
        let port = pod.annotation(SCRAPE).unwrap_or(SCRAPE_PORT);
        raw = more(raw, inbound, METRICS, port.to_owned());
    }
    for port in probe_ports(pod).into_iter().filter(|_| probes) {
        raw = more(raw, inbound, PROBES, port.to_string());
    }
    if dns {
        let port = Sourced::new("8600".to_owned(), Source::Annotation(DNS.to_owned()));
        raw = raw.with_file(FileValues::from([("consul-dns-port", port)]));
    }
    let resolved = match resolve(&raw, None) {
        Ok(resolved) => errors.into_result(resolved)?,
        Err(more) => {
            errors.0.extend(more.0);
            return Err(errors);
        }
    };
    let mut warnings = resolved.warnings;
    warnings.push(format!(
        "what no annotation says is taken as Consul's installation has it: traffic is captured \
         ({TRANSPARENT}), the proxy's user is 5995, its ports 15001 and 20000, user 5996 is left alone; DNS \
         queries are led to the proxy and IPv6 is captured only where annotations say so ({DNS}, \
         {DUAL_STACK}); whether this mesh does so by default no manifest of a pod tells"
    ));
    Ok(Captured { policy: resolved.policy, warnings })
}

/// The ports that probes over HTTP are led to.
fn probe_ports(pod: &PodFacts) -> Vec<u16> {
    let containers = pod.containers.iter().flatten();
    let own = containers.filter(|c| !c.init && !INJECTOR.is_own(c));
    let of = |(index, container): (usize, &Container)| -> Vec<u16> {
        let probes =
            container.probes.iter().filter(|probe| matches!(probe.handler, Handler::Http { .. }));
        let first = probes.filter_map(|probe| {
            PROBE_PORTS.iter().find(|(kind, _)| *kind == probe.kind).map(|(_, port)| *port)
        });
        first.filter_map(|port| port.checked_add(u16::try_from(index).ok()?)).collect()
    };
    own.enumerate().flat_map(of).collect()
}

/// What an init container is told that captures its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitContainer {
    /// Its command line behind `consul`, where it has one.
    pub words: Option<Vec<String>>,
    /// Its variables, as far as they are settings.
    pub env: BTreeMap<String, String>,
}

/// What a pod's init container is told; none where no container captures it.
///
/// # Errors
/// When the manifest does not tell it.
pub fn init_container(pod: &PodFacts) -> Option<Result<InitContainer, NotStated>> {
    let containers = || pod.containers.iter().flatten().filter(|container| container.init);
    let has_settings = |container: &&Container| {
        let is_there = |name: &String| name.ends_with('*') || name.as_str() == INIT_VARIABLE;
        container.name.starts_with(INIT_CONTAINER)
            && (container.env.get(INIT_VARIABLE).is_some_and(|text| !text.is_empty())
                || container.env_elsewhere.iter().any(is_there))
    };
    // By hand, under any name.
    let runs = |container: &&Container| {
        let mut words = container.command.iter().chain(&container.args).map(String::as_str);
        let is_tool = words.next().and_then(|word| word.rsplit('/').next()) == Some("consul");
        is_tool && words.next() == Some("connect") && words.next() == Some("redirect-traffic")
    };
    let container = containers().find(has_settings).or_else(|| containers().find(runs))?;
    let matters = |name: &&String| name.ends_with('*') || Consul::is_variable(name);
    if let Some(name) = container.env_elsewhere.iter().find(matters) {
        let (container, source) = (container.name.clone(), Elsewhere(name.clone()));
        return Some(Err(NotStated::Elsewhere { container, source }));
    }
    let settings = container.env.iter().filter(|(name, _)| Consul::is_variable(name));
    let env = settings.map(|(name, value)| (name.clone(), value.clone())).collect();
    let words = runs(&container).then(|| words(container, &["consul"], 1)).transpose();
    Some(words.map(|words| InitContainer { words, env }))
}

fn doubts(pod: &PodFacts) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    let is_off = pod.annotation(TRANSPARENT).is_some_and(|text| parse_bool(text) == Ok(false));
    let excludes = |def: &&AnnotationDef| {
        def.effect == Effect::Adds && pod.annotation(def.name).is_some_and(|t| !t.is_empty())
    };
    for def in CAPTURE.iter().filter(excludes).filter(|_| is_off) {
        doubts.push(Doubt {
            at: format!("annotation {}", def.name),
            what: format!("it has no effect beside {TRANSPARENT}: \"false\""),
            why: "nothing is captured, so there is nothing to exclude",
            fix: "leave one of the two out".to_owned(),
            is_error: false,
        });
    }
    if pod.annotation(CONFIG).is_some() && !INJECTOR.is_injected(pod) {
        doubts.push(Doubt {
            at: format!("annotation {CONFIG}"),
            what: "it is written by the injector, and this pod is not injected".to_owned(),
            why: "the injector writes it anew from the mesh's configuration and single annotations: what is \
                  written here does not happen",
            fix: "set single annotations (consul.hashicorp.com/transparent-proxy-exclude-...)".to_owned(),
            is_error: true,
        });
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::read;

    /// The policy of a pod with these annotations, and of the settings that the injector makes of them.
    fn same(annotations: &str, settings: &str) {
        let text = format!(
            "kind: Pod\nmetadata: {{name: a, annotations: {{{annotations}}}}}\nspec: {{containers: [{{name: \
             app, livenessProbe: {{httpGet: {{port: 8080}}}}}}, {{name: consul-dataplane, readinessProbe: \
             {{httpGet: {{port: 1}}}}}}]}}\n"
        );
        let pod = &read(&text).unwrap().workloads[0].pod;
        let found = policy(pod).unwrap();
        assert_eq!(found.warnings.len(), 1, "{annotations}");
        let own = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
        let written = PodFacts {
            annotations: Some(
                [(CONFIG, settings), (DUAL_STACK, "false")].into_iter().map(own).collect(),
            ),
            ..PodFacts::default()
        };
        let wanted = annotations::policy(&written, &FileValues::new()).unwrap().policy;
        // Where a value is from differs.
        let reported = |policy: &crate::policy::CapturePolicy| {
            let ruleset = crate::capture::to_iptables(policy, &LAYOUT);
            crate::report::restore_text(&ruleset, crate::value::Family::V4)
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(str::to_owned)
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(reported(&found.policy), reported(&wanted), "{annotations}");
    }

    /// As the injector's own tests have it, of which the recording tells.
    #[test]
    fn settings_are_those_that_the_injector_makes() {
        let config = |more: &str| {
            format!(
                r#"{{"ProxyUserID":"5995","ProxyInboundPort":20000,"ProxyOutboundPort":15001{more}}}"#
            )
        };
        let own = r#","ExcludeUIDs":["5996"]"#;
        let inbound = |ports: &str| config(&format!(r#","ExcludeInboundPorts":[{ports}]{own}"#));
        same("", &config(own));
        same("consul.hashicorp.com/use-proxy-health-check: \"true\"", &inbound("\"21000\""));
        same(
            "consul.hashicorp.com/enable-metrics: \"true\", consul.hashicorp.com/prometheus-scrape-port: \
             \"13373\"",
            &inbound("\"13373\""),
        );
        same("consul.hashicorp.com/enable-metrics: \"true\"", &inbound("\"20200\""));
        same(
            "consul.hashicorp.com/transparent-proxy-overwrite-probes: \"true\"",
            &inbound("\"20300\""),
        );
        same(
            "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports: \"1111,11111\", \
             consul.hashicorp.com/transparent-proxy-exclude-outbound-ports: \"2222,22222\", \
             consul.hashicorp.com/transparent-proxy-exclude-outbound-cidrs: \"3.3.3.3,3.3.3.3/24\", \
             consul.hashicorp.com/transparent-proxy-exclude-uids: \"4444,44444\"",
            &config(
                r#","ExcludeInboundPorts":["1111","11111"],"ExcludeOutboundPorts":["2222","22222"],
                   "ExcludeOutboundCIDRs":["3.3.3.3","3.3.3.3/24"],"ExcludeUIDs":["4444","44444","5996"]"#,
            ),
        );
        same(
            "consul.hashicorp.com/consul-dns: \"true\"",
            &config(&format!(r#","ConsulDNSPort":8600{own}"#)),
        );
    }

    #[test]
    fn every_wrong_value_is_told_with_its_annotation() {
        let text = "kind: Pod\nmetadata: {name: a, annotations: {consul.hashicorp.com/enable-metrics: \
                    invalid, consul.hashicorp.com/transparent-proxy-exclude-uids: x}}\nspec: {containers: \
                    [{name: app}]}\n";
        let errors = policy(&read(text).unwrap().workloads[0].pod).unwrap_err().to_string();
        for part in
            ["annotation consul.hashicorp.com/enable-metrics: \"invalid\"", "exclude-uids: \"x\""]
        {
            assert!(errors.contains(part), "{errors}");
        }
    }
}
