//! What users of each mesh get wrong is found, what is right is not, and nobody gets another mesh's advice.

use super::lint;
use crate::finding::Severity::{self, Error, Note, Warning};
use crate::manifest::read;

/// What is found in a manifest: how bad, which, and where.
fn found(text: &str) -> Vec<(Severity, &'static str, String)> {
    let manifest = read(text).unwrap();
    assert!(manifest.bad.is_empty(), "{text}: {:?}", manifest.bad);
    let findings = manifest.workloads.iter().flat_map(|w| lint(w, &manifest.namespaces));
    findings.map(|f| (f.severity, f.code, f.at)).collect()
}

/// A pod with these labels and annotations.
fn pod(labels: &str, annotations: &str) -> String {
    format!(
        "kind: Pod\nmetadata:\n  name: a\n  namespace: shop\n  labels: {{{labels}}}\n  annotations: \
         {{{annotations}}}\nspec:\n  containers: [{{name: app, ports: [{{containerPort: 8080}}]}}]\n"
    )
}

/// How a pod asks for a proxy: its labels, and its annotations.
const LINKERD: (&str, &str) = ("", "linkerd.io/inject: enabled, ");
const KUMA: (&str, &str) = ("kuma.io/sidecar-injection: enabled", "");
const CONSUL: (&str, &str) = ("", "consul.hashicorp.com/connect-inject: \"true\", ");
const OSM: (&str, &str) = ("", "openservicemesh.io/sidecar-injection: enabled, ");

fn of((labels, asked): (&str, &str), annotations: &str) -> Vec<(Severity, &'static str, String)> {
    found(&pod(labels, &format!("{asked}{annotations}")))
}

#[test]
fn what_is_right_is_not_found() {
    for (mesh, annotations) in [
        (LINKERD, ""),
        (
            LINKERD,
            "config.linkerd.io/skip-outbound-ports: \"3306,4444-4446\", config.linkerd.io/opaque-ports: \
             \"25\", config.linkerd.io/proxy-log-level: warn, linkerd.io/created-by: x",
        ),
        (KUMA, ""),
        (
            KUMA,
            "traffic.kuma.io/exclude-outbound-ports-for-uids: \"tcp:80:7;9\", kuma.io/mesh: default, \
             traffic.kuma.io/exclude-inbound-ips: \"10.0.0.1, fd00::/8\", \
             traffic.kuma.io/drop-invalid-packets: \"yes\"",
        ),
        (CONSUL, ""),
        (
            CONSUL,
            "consul.hashicorp.com/transparent-proxy-exclude-outbound-cidrs: \"10.0.0.1,10.0.0.0/8\", \
             consul.hashicorp.com/service-meta-x: web, consul.hashicorp.com/enable-metrics: \"true\"",
        ),
        (OSM, "openservicemesh.io/outbound-port-exclusion-list: \"6379\""),
    ] {
        assert_eq!(of(mesh, annotations), [], "{annotations}");
    }
}

#[test]
fn what_users_get_wrong_is_found() {
    let skip = "config.linkerd.io/skip-inbound-ports";
    let exclude = "traffic.kuma.io/exclude-inbound-ports";
    let cidrs = "consul.hashicorp.com/transparent-proxy-exclude-outbound-cidrs";
    for (mesh, annotations, severity, code, at) in [
        // Names that nobody reads.
        (LINKERD, "config.linkerd.io/skip-inbound-port: \"1\"", Error, "unknown-annotation", ""),
        (LINKERD, "config.linkerd.io/brand-new: \"1\"", Warning, "unknown-annotation", ""),
        (KUMA, "traffic.kuma.io/exclude-inbound-port: \"1\"", Error, "unknown-annotation", ""),
        (KUMA, "traffic.kuma.io/anything: \"1\"", Error, "unknown-annotation", ""),
        (KUMA, "kuma.io/gatewya: enabled", Error, "unknown-annotation", ""),
        (
            CONSUL,
            "consul.hashicorp.com/transparent-proxy-exclude-inbound-port: \"1\"",
            Error,
            "unknown-annotation",
            "",
        ),
        (
            OSM,
            "openservicemesh.io/inbound-port-exclusion: \"1\"",
            Warning,
            "unknown-annotation",
            "",
        ),
        // Values that are none.
        (LINKERD, "config.linkerd.io/skip-inbound-ports: \"80;81\"", Error, "bad-value", skip),
        (LINKERD, "config.linkerd.io/skip-subnets: 10.0.0.0/40", Error, "bad-value", ""),
        (LINKERD, "config.linkerd.io/proxy-uid: root", Error, "bad-value", ""),
        (KUMA, "traffic.kuma.io/exclude-inbound-ports: http", Error, "bad-value", exclude),
        (KUMA, "traffic.kuma.io/exclude-outbound-ports-for-uids: \"80:*\"", Error, "bad-value", ""),
        (KUMA, "traffic.kuma.io/drop-invalid-packets: enabled", Error, "bad-value", ""),
        (KUMA, "kuma.io/transparent-proxying-ip-family-mode: ipv6", Error, "bad-value", ""),
        (CONSUL, "consul.hashicorp.com/transparent-proxy: \"on\"", Error, "bad-value", ""),
        (
            CONSUL,
            "consul.hashicorp.com/transparent-proxy-exclude-outbound-cidrs: 10.0.0.0/33",
            Error,
            "bad-value",
            cidrs,
        ),
        (
            CONSUL,
            "consul.hashicorp.com/transparent-proxy-exclude-uids: app",
            Error,
            "bad-value",
            "",
        ),
        (
            OSM,
            "openservicemesh.io/outbound-ip-range-exclusion-list: \"fd00::/8\"",
            Error,
            "bad-value",
            "",
        ),
        // Settings that contradict, or leave more alone than is meant.
        (LINKERD, "config.linkerd.io/skip-inbound-ports: \"8080\"", Warning, "excluded-port", skip),
        (
            LINKERD,
            "config.linkerd.io/skip-outbound-ports: \"25\", config.linkerd.io/opaque-ports: \"25\"",
            Warning,
            "no-effect",
            "config.linkerd.io/opaque-ports",
        ),
        (
            KUMA,
            "kuma.io/gateway: enabled, traffic.kuma.io/exclude-inbound-ports: \"80\"",
            Warning,
            "no-effect",
            exclude,
        ),
        (
            KUMA,
            "kuma.io/transparent-proxying-ip-family-mode: ipv4, traffic.kuma.io/exclude-outbound-ips: \
             \"fd00::1\"",
            Warning,
            "no-effect",
            "",
        ),
        (KUMA, "kuma.io/transparent-proxying: disabled", Error, "no-effect", ""),
        (KUMA, "kuma.io/sidecar-injection: enabled", Error, "old-inject", ""),
        (KUMA, "traffic.kuma.io/exclude-outbound-ips: \"0.0.0.0/0\"", Warning, "contradiction", ""),
        (
            CONSUL,
            "consul.hashicorp.com/transparent-proxy: \"false\", \
             consul.hashicorp.com/transparent-proxy-exclude-uids: \"7\"",
            Warning,
            "no-effect",
            "",
        ),
        (
            CONSUL,
            "consul.hashicorp.com/redirect-traffic-config: '{\"ProxyUserID\":\"5995\",\"ProxyInboundPort\":1}'",
            Error,
            "no-effect",
            "",
        ),
    ] {
        let found = of(mesh, annotations);
        let [(severity_found, code_found, at_found)] = found.as_slice() else {
            panic!("{annotations}: {found:?}");
        };
        assert_eq!((*severity_found, *code_found), (severity, code), "{annotations}");
        let at_first = annotations.split(':').next().unwrap();
        let at = if at.is_empty() { at_first } else { at };
        let is_there = at_found == &format!("annotation {at}")
            || annotations.contains(at_found.trim_start_matches("annotation "));
        assert!(is_there, "{annotations}: {at_found}");
    }
}

#[test]
fn a_word_that_is_none_is_found() {
    for text in [
        pod("", "linkerd.io/inject: \"true\", config.linkerd.io/proxy-uid: \"7\""),
        pod("kuma.io/sidecar-injection: \"on\"", "traffic.kuma.io/exclude-inbound-ports: \"1\""),
        pod(
            "",
            "consul.hashicorp.com/connect-inject: enabled, consul.hashicorp.com/transparent-proxy-exclude-uids: \"7\"",
        ),
    ] {
        let found = found(&text);
        assert!(
            found.iter().any(|(s, code, _)| (*s, *code) == (Error, "unclear-inject")),
            "{found:?}"
        );
    }
}

#[test]
fn what_pods_do_not_get_is_found() {
    let deployment = |meta: &str, template: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: a, {meta}}}\nspec: {{template: \
             {{metadata: {{{template}}}, spec: {{containers: [{{name: app}}]}}}}}}\n"
        )
    };
    for (meta, template, code) in [
        (
            "annotations: {config.linkerd.io/skip-inbound-ports: \"80\"}",
            "annotations: {linkerd.io/inject: enabled}",
            "misplaced-annotation",
        ),
        ("annotations: {linkerd.io/inject: enabled}", "", "misplaced-annotation"),
        (
            "annotations: {traffic.kuma.io/exclude-inbound-ports: \"80\"}",
            "",
            "misplaced-annotation",
        ),
        ("labels: {kuma.io/sidecar-injection: enabled}", "", "misplaced-label"),
        ("labels: {traffic.kuma.io/exclude-inbound-ports: \"80\"}", "", "misplaced-label"),
        (
            "annotations: {consul.hashicorp.com/connect-inject: \"true\"}",
            "",
            "misplaced-annotation",
        ),
        ("", "labels: {linkerd.io/inject: enabled}", "misplaced-label"),
        ("", "labels: {consul.hashicorp.com/connect-inject: \"true\"}", "misplaced-label"),
    ] {
        let found = found(&deployment(meta, template));
        let right = matches!(found.as_slice(), [(Error, found, _)] if *found == code);
        assert!(right, "{meta} {template}: {found:?}");
    }
}

#[test]
fn what_a_namespace_says_otherwise_is_found() {
    let namespace = |labels: &str, annotations: &str| {
        format!(
            "kind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}, annotations: \
             {{{annotations}}}}}\n---\n"
        )
    };
    let (on, off) = ("kuma.io/sidecar-injection: enabled", "kuma.io/sidecar-injection: disabled");
    let exclude = "traffic.kuma.io/exclude-inbound-ports: \"80\"";
    for (of_namespace, of_pod, severity, code) in [
        (namespace(off, ""), pod(on, ""), Note, "contradicting-inject"),
        (namespace(on, ""), pod(off, ""), Note, "contradicting-inject"),
        (namespace(off, ""), pod("", exclude), Warning, "contradicting-inject"),
        (namespace("", on), pod(on, ""), Error, "misplaced-label"),
        (
            namespace(on, "traffic.kuma.io/exclude-inbound-ports: \"81\""),
            pod("", exclude),
            Error,
            "misplaced-annotation",
        ),
        (
            namespace("", "config.linkerd.io/skip-outbound-ports: \"81\""),
            pod("", "config.linkerd.io/skip-outbound-ports: \"80\""),
            Note,
            "contradiction",
        ),
        (
            namespace("", "linkerd.io/inject: enabled"),
            pod("", "linkerd.io/inject: disabled"),
            Note,
            "contradicting-inject",
        ),
    ] {
        let found = found(&format!("{of_namespace}{of_pod}"));
        let right = matches!(found.as_slice(), [(s, c, _)] if (*s, *c) == (severity, code));
        assert!(right, "{of_namespace}{of_pod}: {found:?}");
    }
    assert_eq!(found(&(namespace(on, "") + &pod(on, ""))), []);
    // A pod that says nothing is its namespace's.
    let as_istios =
        pod("", "").replace("name: app,", "name: app, securityContext: {runAsUser: 1337},");
    assert_eq!(found(&(namespace(on, "") + &as_istios)), []);
    let elsewhere = namespace(off, "").replace("shop", "other");
    assert_eq!(found(&(elsewhere + &pod(on, ""))), []);
}

#[test]
fn containers_are_looked_at_with_the_meshs_own_numbers() {
    let spec = |extra: &str, app: &str| {
        format!("kind: Pod\nmetadata: {{name: a, {extra}}}\nspec:\n  containers:\n{app}")
    };
    let linkerd = "annotations: {linkerd.io/inject: enabled}";
    let kuma = "labels: {kuma.io/sidecar-injection: enabled}";
    let consul = "annotations: {consul.hashicorp.com/connect-inject: \"true\"}";
    let app = |fields: &str| format!("  - {{name: app, {fields}}}\n");
    let user = |uid: u32| app(&format!("securityContext: {{runAsUser: {uid}}}"));
    let port = |number: u16| app(&format!("ports: [{{containerPort: {number}}}]"));
    for (mesh, spec_of, wanted) in [
        (linkerd, user(2102), Some("runs-as-proxy")),
        (kuma, user(5678), Some("runs-as-proxy")),
        (consul, user(5995), Some("runs-as-proxy")),
        // Of another mesh.
        (linkerd, user(1337), None),
        (kuma, user(2102), None),
        (linkerd, port(4143), Some("proxy-port")),
        (kuma, port(15006), Some("proxy-port")),
        (consul, port(20000), Some("proxy-port")),
        (linkerd, port(15006), None),
        (linkerd, "  - {name: app}\n  hostNetwork: true\n".to_owned(), Some("host-network")),
    ] {
        let found = found(&spec(mesh, &spec_of));
        let codes: Vec<_> = found.iter().map(|(_, code, _)| *code).collect();
        assert_eq!(codes, wanted.into_iter().collect::<Vec<_>>(), "{mesh} {spec_of}");
    }
    let injected = "  - {name: linkerd-proxy, securityContext: {runAsUser: 2102}, ports: [{containerPort: \
                    4143}]}\n  - {name: app}\n";
    assert_eq!(found(&spec(linkerd, injected)), []);
}

#[test]
fn a_pod_of_two_meshes_is_an_error_that_names_both() {
    let text = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: linkerd-proxy}, {name: \
                kuma-sidecar}]}\n";
    let manifest = read(text).unwrap();
    let findings = lint(&manifest.workloads[0], &[]);
    assert_eq!((findings.len(), findings[0].code), (1, "two-meshes"));
    assert!(findings[0].what.contains("Linkerd and Kuma"), "{:?}", findings[0]);
    let text = text.replace("kuma-sidecar", "istio-proxy");
    let findings = lint(&read(&text).unwrap().workloads[0], &[]);
    assert!(findings[0].what.contains("Istio and Linkerd"), "{:?}", findings[0]);
    // By what captures it, where there is no proxy that is known.
    let proxyinit = "{name: proxyinit, env: [{name: APPMESH_START_ENABLED, value: '1'}]}";
    for (containers, wanted) in [
        (
            format!("{{name: istio-init, args: [istio-iptables]}}, {proxyinit}"),
            Some("Istio and AWS App Mesh"),
        ),
        (format!("{{name: osm-init}}, {proxyinit}"), Some("Open Service Mesh and AWS App Mesh")),
        ("{name: linkerd-init}, {name: kuma-init}".to_owned(), Some("Linkerd and Kuma")),
        // Anybody may name a container so.
        ("{name: istio-init, args: [istio-iptables]}, {name: proxyinit}".to_owned(), None),
        ("{name: linkerd-init}, {name: linkerd-network-validator}".to_owned(), None),
    ] {
        let text = format!(
            "kind: Pod\nmetadata: {{name: a}}\nspec: {{initContainers: [{containers}], containers: [{{name: a}}]}}\n"
        );
        let findings = lint(&read(&text).unwrap().workloads[0], &[]);
        let two = findings.iter().find(|finding| finding.code == "two-meshes");
        match wanted {
            Some(wanted) => assert!(two.unwrap().what.contains(wanted), "{findings:?}"),
            None => assert_eq!(two, None),
        }
    }
}

#[test]
fn nobody_gets_another_meshs_advice() {
    let spec = |containers: &str| {
        format!(
            "kind: Pod\nmetadata: {{name: a, annotations: {{traffic.sidecar.istio.io/excludeInboundPorts: \
             x}}}}\nspec:\n{containers}  containers:\n  - {{name: app, securityContext: {{runAsUser: \
             1337}}}}\n"
        )
    };
    for containers in [
        "  initContainers: [{name: linkerd-init}]\n",
        "  initContainers: [{name: linkerd-proxy, restartPolicy: Always}]\n",
        "  initContainers: [{name: kuma-init, args: [curl]}]\n",
        "  initContainers: [{name: consul-connect-inject-init}]\n",
        "  initContainers: [{name: osm-init}]\n",
    ] {
        assert_eq!(found(&spec(containers)), [], "{containers}");
    }
    // Where nothing is said, it is Istio's.
    let found = found(&spec(""));
    assert!(found.iter().any(|(_, code, _)| *code == "runs-as-proxy"), "{found:?}");
}
