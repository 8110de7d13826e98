//! Each mistake is found, and what is right is not.

use super::lint;
use crate::finding::Severity::{self, Error, Note, Warning};
use crate::manifest::read;

/// What is found in a manifest: how bad, which, and where.
fn found(text: &str) -> Vec<(Severity, &'static str, String)> {
    let workloads = read(text).unwrap().workloads;
    let findings = workloads.iter().flat_map(lint);
    findings.map(|f| (f.severity, f.code, f.at)).collect()
}

/// A pod with these annotations, and this behind `spec:`.
fn pod(annotations: &str, spec: &str) -> String {
    format!("kind: Pod\nmetadata:\n  name: a\n  annotations: {{{annotations}}}\nspec:\n{spec}")
}

const APP: &str = "  containers:\n  - {name: app, ports: [{containerPort: 8080, name: http}]}\n";

fn one(annotations: &str, spec: &str, severity: Severity, code: &str, at: &str) {
    let text = pod(annotations, spec);
    assert_eq!(
        found(&text),
        [(severity, code, at.to_owned())].map(|(s, c, a)| (s, leak(c), a)),
        "{text}"
    );
}

fn leak(text: &str) -> &'static str {
    text.to_owned().leak()
}

#[test]
fn a_sound_pod_is_sound() {
    for annotations in [
        "",
        "traffic.sidecar.istio.io/excludeInboundPorts: \"9090\"",
        "traffic.sidecar.istio.io/includeInboundPorts: \"8080\"",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.0.0/8",
        "other.example/annotation: x",
    ] {
        assert_eq!(found(&pod(annotations, APP)), [], "{annotations}");
    }
}

#[test]
fn a_pod_of_a_mesh_that_is_not_known_gets_none_of_istios_advice() {
    let wrong = "  containers:\n  - {name: app, securityContext: {runAsUser: 1337}}\n  initContainers: \
                 [{name: proxyinit}]\n";
    let text = pod("traffic.sidecar.istio.io/excludeInboundPorts: x", wrong);
    let findings = lint(&read(&text).unwrap().workloads[0]);
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!((finding.severity, finding.code), (Note, "other-mesh"));
    assert_eq!(finding.at, "init container proxyinit");
    assert!(finding.what.contains("AWS App Mesh"), "{finding}");
}

#[test]
fn the_proxys_user_is_the_proxys_alone() {
    let own = "  containers: [{name: app, securityContext: {runAsUser: 1337}}]\n";
    one("", own, Error, "runs-as-proxy", "container app");
    // Whatever else is wrong.
    let bad = found(&pod("traffic.sidecar.istio.io/excludeInboundPorts: x", own));
    assert!(bad.iter().any(|(_, code, _)| *code == "runs-as-proxy"), "{bad:?}");
    let of_pod =
        "  securityContext: {runAsUser: 1000, runAsGroup: 1337}\n  containers: [{name: app}]\n";
    one("", of_pod, Error, "runs-as-proxy", "container app");
    let beaten = "  securityContext: {runAsUser: 1337}\n  containers:\n  - \
                  {name: app, securityContext: {runAsUser: 1}}\n  - {name: istio-proxy}\n";
    assert_eq!(found(&pod("", beaten)), []);
    let other = "  containers:\n  - {name: app, securityContext: {runAsUser: 2000}}\n  - \
                 {name: istio-proxy, securityContext: {runAsUser: 2000}}\n";
    one("", other, Error, "runs-as-proxy", "container app");
    let admin =
        "  containers: [{name: app, securityContext: {capabilities: {add: [NET_ADMIN]}}}]\n";
    one("", admin, Note, "may-change-rules", "container app");
    one("", &format!("  hostNetwork: true\n{APP}"), Error, "host-network", "hostNetwork");
}

#[test]
fn annotations_that_nobody_reads_are_found() {
    let name = "traffic.sidecar.istio.io/excludeOutboundPort";
    let text = pod(&format!("{name}: \"1\""), APP);
    let finding = lint(&read(&text).unwrap().workloads[0]).remove(0);
    assert_eq!((finding.severity, finding.code), (Error, "unknown-annotation"));
    assert_eq!(finding.fix, "did you mean traffic.sidecar.istio.io/excludeOutboundPorts?");
    let text = "kind: Deployment\nmetadata:\n  name: a\n  annotations:\n    \
                traffic.sidecar.istio.io/excludeInboundPorts: \"8080\"\nspec:\n  template:\n    \
                spec: {containers: [{name: app}]}\n";
    let at = "annotation traffic.sidecar.istio.io/excludeInboundPorts".to_owned();
    assert_eq!(found(text), [(Error, "misplaced-annotation", at)]);
    let bad = "traffic.sidecar.istio.io/excludeInboundPorts: \"80,http\"";
    one(bad, APP, Error, "bad-value", "annotation traffic.sidecar.istio.io/excludeInboundPorts");
    let inject = "annotation sidecar.istio.io/inject";
    one("sidecar.istio.io/inject: \"true\"", APP, Note, "old-inject", inject);
    let text = pod("sidecar.istio.io/inject: \"true\"", APP)
        .replace("  name: a", "  name: a\n  labels: {sidecar.istio.io/inject: \"false\"}");
    assert_eq!(found(&text), [(Warning, "contradicting-inject", inject.to_owned())]);
    let text = pod("", APP).replace("  name: a", "  labels: {sidecar.istio.io/inject: enabled}");
    assert_eq!(
        found(&text),
        [(Warning, "unclear-inject", "label sidecar.istio.io/inject".to_owned())]
    );
    let both = "istio.io/reroute-virtual-interfaces: net1, \
                traffic.sidecar.istio.io/kubevirtInterfaces: net1";
    one(both, APP, Warning, "no-effect", "annotation traffic.sidecar.istio.io/kubevirtInterfaces");
    let broken = "proxy.istio.io/config: \"proxyMetadata: {INVALID_DROP: sometimes}\"";
    one(broken, APP, Warning, "odd-setting", "the pod");
    let untold = "  containers:\n  - {name: app}\n  - {name: istio-proxy, env: \
                  [{name: ISTIO_META_DNS_CAPTURE, valueFrom: {configMapKeyRef: {name: a, key: b}}}]}\n";
    one("", untold, Warning, "odd-setting", "the pod");
    let finding = lint(&read(&pod("", untold)).unwrap().workloads[0]).remove(0);
    assert!(finding.what.contains("ISTIO_META_DNS_CAPTURE"), "{}", finding.what);
}

#[test]
fn ports_past_the_proxy_are_found() {
    let exclude = "annotation traffic.sidecar.istio.io/excludeInboundPorts";
    let include = "annotation traffic.sidecar.istio.io/includeInboundPorts";
    let excluded = "traffic.sidecar.istio.io/excludeInboundPorts: \"8080\"";
    one(excluded, APP, Warning, "excluded-port", exclude);
    let lacking = "traffic.sidecar.istio.io/includeInboundPorts: \"80\"";
    one(lacking, APP, Warning, "excluded-port", include);
    let udp = "  containers: [{name: app, ports: [{containerPort: 80, protocol: UDP}]}]\n";
    one(lacking, udp, Warning, "not-tcp", include);
    let taken = "  containers: [{name: app, ports: [{containerPort: 15021}]}]\n";
    one("", taken, Error, "proxy-port", "container app");
}

#[test]
fn lists_that_contradict_each_other_are_found() {
    let name = |name| format!("annotation traffic.sidecar.istio.io/{name}");
    let ports = "traffic.sidecar.istio.io/includeOutboundPorts: \"80\", \
                 traffic.sidecar.istio.io/excludeOutboundPorts: \"80\"";
    let of_ports = found(&pod(ports, APP));
    let wanted = [
        (Error, "contradiction", name("includeOutboundPorts")),
        (Warning, "no-effect", name("includeOutboundPorts")),
    ];
    assert_eq!(of_ports, wanted);
    let networks = "traffic.sidecar.istio.io/includeOutboundIPRanges: 10.0.0.0/8, \
                    traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.0.0/8";
    one(networks, APP, Error, "contradiction", &name("excludeOutboundIPRanges"));
    let all = "traffic.sidecar.istio.io/excludeOutboundIPRanges: 0.0.0.0/0";
    one(all, APP, Warning, "contradiction", &name("excludeOutboundIPRanges"));
    let inbound = "traffic.sidecar.istio.io/includeInboundPorts: \"8080\", \
                   traffic.sidecar.istio.io/excludeInboundPorts: \"8080\"";
    let wanted = [
        (Error, "contradiction", name("includeInboundPorts")),
        (Warning, "no-effect", name("excludeInboundPorts")),
    ];
    assert_eq!(found(&pod(inbound, APP)), wanted);
}

#[test]
fn probes_that_ask_the_wrong_are_found() {
    let spec = |probe: &str| {
        format!(
            "  containers:\n  - name: app\n    ports: [{{containerPort: 8080, name: http}}]\n    \
             livenessProbe: {{{probe}}}\n"
        )
    };
    let at = "container app, livenessProbe";
    for right in [
        "httpGet: {port: http}",
        "tcpSocket: {port: 8080}",
        "exec: {command: [x]}",
        "grpc: {port: 8080}",
    ] {
        assert_eq!(found(&pod("", &spec(right))), [], "{right}");
    }
    one("", &spec("httpGet: {port: web}"), Error, "probe-port", at);
    one("", &spec("httpGet: {port: 15021}"), Warning, "probe-port", at);
    one("", &spec("tcpSocket: {port: 9}"), Note, "probe-port", at);
    one("", &spec("httpGet: {port: 8080, host: localhost}"), Error, "probe-host", at);
    let rewrite = "sidecar.istio.io/rewriteAppHTTPProbers: \"false\"";
    one(rewrite, &spec("httpGet: {port: 8080}"), Warning, "probe-captured", at);
}

#[test]
fn who_needs_the_network_too_early_is_found() {
    let early = "  initContainers:\n  - {name: wait, command: [sh, -c, \"until nc -z db 5432; do :; \
                 done\"]}\n  containers: [{name: app}]\n";
    one("", early, Warning, "early-network", "init container wait");
    let url = early.replace("until nc -z db 5432; do :; done", "load https://x.example");
    one("", &url, Warning, "early-network", "init container wait");
    let quiet = early.replace("until nc -z db 5432; do :; done", "chown -R 1 /data");
    one("", &quiet, Note, "early-network", "init container wait");
    let as_proxy =
        early.replace("{name: wait,", "{name: wait, securityContext: {runAsUser: 1337},");
    assert_eq!(found(&pod("", &as_proxy)), []);
    let native = early.replace(
        "  - {name: wait",
        "  - {name: istio-proxy, restartPolicy: Always}\n  - {name: wait",
    );
    assert_eq!(found(&pod("", &native)), []);
    let before = early.replace("  containers:", "  - {name: istio-init}\n  containers:");
    assert_eq!(found(&pod("", &before)), []);
    let open = "traffic.sidecar.istio.io/includeOutboundIPRanges: \"\"";
    assert_eq!(found(&pod(open, early)), []);
}

#[test]
fn dns_in_a_circle_and_jobs_without_end_are_found() {
    let dns = "proxy.istio.io/config: \"proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}\"";
    let loopback = "  dnsConfig: {nameservers: [127.0.0.53]}\n  containers: [{name: app}]\n";
    one(dns, loopback, Error, "dns-loop", "dnsConfig.nameservers");
    assert_eq!(found(&pod("", loopback)), []);
    let server = "  containers: [{name: cache, ports: [{containerPort: 53, protocol: UDP}]}]\n";
    one(dns, server, Warning, "dns-loop", "container cache");
    let job = |proxy: &str| {
        format!("kind: Job\nmetadata: {{name: a}}\nspec:\n  template:\n    spec:\n      {proxy}\n")
    };
    let common = job("containers: [{name: app}, {name: istio-proxy}]");
    assert_eq!(found(&common), [(Warning, "never-ends", "the Job".to_owned())]);
    let unknown = job("containers: [{name: app}]");
    assert_eq!(found(&unknown), [(Note, "never-ends", "the Job".to_owned())]);
    let native = job(
        "{containers: [{name: app}], initContainers: [{name: istio-proxy, restartPolicy: Always}]}",
    );
    assert_eq!(found(&native), []);
}

#[test]
fn probes_that_the_agent_passes_on_are_the_applications() {
    let spec = |env: &str, path: &str| {
        format!(
            "  initContainers:\n  - {{name: istio-proxy, restartPolicy: Always, env: [{env}]}}\n  \
             containers:\n  - name: app\n    ports: [{{containerPort: 8080, name: http}}]\n    \
             livenessProbe: {{httpGet: {{port: 15020, path: {path}}}}}\n"
        )
    };
    let reported = |probe: &str| {
        format!("{{name: ISTIO_KUBE_APP_PROBERS, value: '{{\"/app-health/app/livez\":{probe}}}'}}")
    };
    let http = |port| reported(&format!("{{\"httpGet\":{{\"path\":\"/\",\"port\":{port}}}}}"));
    let livez = "/app-health/app/livez";
    for env in
        [String::new(), reported("{\"tcpSocket\":{\"port\":8080}}"), http("8080"), reported("7")]
    {
        assert_eq!(found(&pod("", &spec(&env, livez))), [], "{env}");
    }
    // What it asks for the node is looked at as if the node asked.
    one("", &spec(&http("\"web\""), livez), Error, "probe-port", "container app, livenessProbe");
    one("", &spec(&http("15021"), livez), Warning, "probe-port", "container app, livenessProbe");
    // Other paths of the agent say nothing of the application.
    one("", &spec("", "/healthz/ready"), Warning, "probe-port", "container app, livenessProbe");
}

#[test]
fn labels_that_nobody_reads_are_found() {
    let of = |own: &str, pods: &str| {
        format!(
            "kind: Deployment\nmetadata: {{name: a, labels: {{{own}}}}}\nspec:\n  template:\n    \
             metadata: {{labels: {{{pods}}}}}\n    spec: {{containers: [{{name: app}}]}}\n"
        )
    };
    let (inject, ports) = (
        "sidecar.istio.io/inject: \"true\"",
        "traffic.sidecar.istio.io/excludeOutboundPorts: \"1\"",
    );
    let at = |name: &str| (Error, "misplaced-label", format!("label {name}"));
    let name = "traffic.sidecar.istio.io/excludeOutboundPorts";
    assert_eq!(found(&of("", ports)), [at(name)]);
    assert_eq!(found(&of(ports, ports)), [at(name)]);
    let mode = "sidecar.istio.io/interceptionMode";
    assert_eq!(found(&of("", &format!("{mode}: TPROXY"))), [at(mode)]);
    assert_eq!(found(&of(inject, "")), [at("sidecar.istio.io/inject")]);
    for right in [of("", inject), of(inject, inject), of("app: a", "app: a")] {
        assert_eq!(found(&right), [], "{right}");
    }
}

#[test]
fn ports_that_are_included_beside_everything_are_found() {
    let ports = "traffic.sidecar.istio.io/includeOutboundPorts: \"8443\"";
    let at = "annotation traffic.sidecar.istio.io/includeOutboundPorts";
    one(ports, APP, Warning, "no-effect", at);
    for networks in ["\"\"", "10.0.0.0/8"] {
        let networks = format!("traffic.sidecar.istio.io/includeOutboundIPRanges: {networks}");
        assert_eq!(found(&pod(&format!("{ports}, {networks}"), APP)), [], "{networks}");
    }
}

#[test]
fn virtual_machines_and_unnamed_containers_are_looked_at() {
    let machine = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: a}\nspec: \
                   {template: {metadata: {annotations: {traffic.sidecar.istio.io/kubevirtInterfaces: \
                   veryverylonginterface0}}, spec: {domain: {}}}}\n";
    let at = "annotation traffic.sidecar.istio.io/kubevirtInterfaces";
    let wanted = (Error, "bad-value", at.to_owned());
    assert_eq!(found(&format!("{machine}---\n{}", pod("", APP))), [wanted]);
    let service = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: \
                   {template: {spec: {containers: [{securityContext: {runAsUser: 1337}}]}}}\n";
    assert_eq!(found(service), [(Error, "runs-as-proxy", "container user-container".to_owned())]);
}
