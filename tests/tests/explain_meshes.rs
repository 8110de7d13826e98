//! `millrace explain` of manifests whose pods are in meshes other than Istio's.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;

/// Verify that pods of other meshes are explained by what their init container is told, by what the injector
/// has put into annotations, or by what will hold once they are injected; that what the mesh's installation
/// sets is said to be taken for granted; and that it is never Istio's way.
#[test]
fn pods_of_other_meshes_are_explained_by_their_own_words() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("web.yaml");
    let name = file.to_str().context("UTF-8")?.to_owned();
    let says = |text: &str, port: &str, code: i32, parts: &[&str]| -> Result<()> {
        fs::write(&file, text)?;
        let to = format!("10.9.9.9:{port}");
        let words = ["explain", "--from", "uid=1000", "--to", &to, "--manifest", &name];
        let output = Command::new(binary::millrace()?).args(words).output()?;
        let said = String::from_utf8([output.stdout, output.stderr].concat())?;
        ensure!(output.status.code() == Some(code), "{text}{said}");
        for part in parts {
            ensure!(said.contains(part), "{part} is not in\n{said}\nof\n{text}");
        }
        ensure!(!said.contains("istio") && !said.contains("MILLRACE_"), "{said}");
        Ok(())
    };
    let pod = |labels: &str, annotations: &str, init: &str, proxy: &str| {
        format!(
            "kind: Pod\nmetadata:\n  name: a\n  labels: {{{labels}}}\n  annotations: \
             {{{annotations}}}\nspec:\n  initContainers: [{init}]\n  containers: [{proxy}{{name: app}}]\n"
        )
    };
    let to = |port: u16| format!("=> delivered to 127.0.0.1 on port {port}");
    let leaves = "=> leaves by eth0";

    // Not injected yet: by annotations, on top of what the installation sets.
    for (labels, annotations, port, chain, taken) in [
        (
            "",
            "linkerd.io/inject: enabled, config.linkerd.io/skip-outbound-ports: \"81\"",
            4140,
            "PROXY_INIT_OUTPUT",
            "Linkerd's installation",
        ),
        (
            "kuma.io/sidecar-injection: enabled",
            "traffic.kuma.io/exclude-outbound-ports: \"81\"",
            15001,
            "KUMA_MESH_OUTBOUND",
            "Kuma's installation",
        ),
        (
            "",
            "consul.hashicorp.com/connect-inject: \"true\", \
             consul.hashicorp.com/transparent-proxy-exclude-outbound-ports: \"81\"",
            15001,
            "CONSUL_PROXY_OUTPUT",
            "Consul's installation",
        ),
        (
            "",
            "openservicemesh.io/sidecar-injection: enabled, \
             openservicemesh.io/outbound-port-exclusion-list: \"81\"",
            15001,
            "OSM_PROXY_OUTBOUND",
            "installation of Open Service Mesh",
        ),
    ] {
        let text = pod(labels, annotations, "", "");
        says(&text, "80", 0, &[&to(port), chain, taken, "once it is injected"])?;
        let name = annotations.rsplit(", ").next().unwrap_or_default();
        let name = name.split(':').next().unwrap_or_default();
        says(&text, "81", 0, &[leaves, &format!("annotation {name}")])?;
        let made = text.replace("name: a\n", "name: a\n  uid: x\n");
        says(&made, "80", 0, &["this pod is not captured", leaves])?;
    }
    let refused = "linkerd.io/inject: disabled, config.linkerd.io/proxy-uid: \"7\"";
    says(&pod("", refused, "", ""), "80", 0, &["this pod is not captured", leaves])?;
    let bad = "linkerd.io/inject: enabled, config.linkerd.io/skip-outbound-ports: \"x\"";
    says(&pod("", bad, "", ""), "80", 1, &["annotation config.linkerd.io/skip-outbound-ports"])?;

    // Injected for a CNI plugin.
    let linkerd =
        pod("", "config.linkerd.io/skip-outbound-ports: \"81\"", "", "{name: linkerd-proxy}, ");
    says(&linkerd, "80", 0, &[&to(4140), "what the CNI plugin does"])?;
    let config = "kuma.io/sidecar-injected: \"true\", traffic.kuma.io/transparent-proxy-config: \
                  \"redirect: {outbound: {port: 16001, excludePorts: [81]}}\"";
    let kuma = |init: &str| pod("", config, init, "{name: kuma-sidecar}, ");
    says(&kuma(""), "80", 0, &[&to(16001), "redirect.outbound.port of annotation"])?;
    let settings = "consul.hashicorp.com/connect-inject-status: injected, \
                    consul.hashicorp.com/transparent-proxy-status: enabled, \
                    consul.hashicorp.com/redirect-traffic-config: '{\"ProxyUserID\":\"5995\",\
                    \"ProxyInboundPort\":20000,\"ProxyOutboundPort\":15002}'";
    let consul = |annotations, init: &str| pod("", annotations, init, "{name: consul-dataplane}, ");
    says(&consul(settings, ""), "80", 0, &[&to(15002), "ProxyOutboundPort of annotation"])?;
    let off = "consul.hashicorp.com/connect-inject-status: injected";
    says(&consul(off, ""), "80", 0, &["this pod is not captured", leaves])?;

    // Captured from inside: by what the container is told, and annotations that say otherwise are named.
    let init = "{name: kuma-init, command: [/usr/bin/kumactl, install, transparent-proxy], args: [";
    let flags = format!("{init}--kuma-dp-user=7, --redirect-outbound-port=16002]}}");
    says(&kuma(&flags), "80", 0, &[&to(16002), "flag --redirect-outbound-port", "say otherwise"])?;
    let files = format!("{init}--config=/tmp/default/config.yaml]}}");
    says(&kuma(&files), "80", 0, &[&to(16001), "put into annotation"])?;
    let untold = pod("", "", &files, "{name: kuma-sidecar}, ");
    says(&untold, "80", 1, &["--config /tmp/default/config.yaml", "no manifest tells"])?;
    let elsewhere = "env: [{name: KUMA_TRANSPARENT_PROXY_DRY_RUN, valueFrom: {fieldRef: {fieldPath: x}}}], args";
    let untold = flags.replace("args", elsewhere);
    says(&kuma(&untold), "80", 1, &["KUMA_TRANSPARENT_PROXY_DRY_RUN", "from elsewhere"])?;
    let variable = "{name: consul-connect-inject-init, env: [{name: CONSUL_REDIRECT_TRAFFIC_CONFIG, value: \
                    '{\"ProxyUserID\":\"5995\",\"ProxyInboundPort\":20000,\"ProxyOutboundPort\":15003}'}]}";
    says(
        &consul(off, variable),
        "80",
        0,
        &[&to(15003), "ProxyOutboundPort of environment variable"],
    )?;
    let secret = "{name: consul-connect-inject-init, env: [{name: CONSUL_REDIRECT_TRAFFIC_CONFIG, valueFrom: \
                  {fieldRef: {fieldPath: x}}}]}";
    says(&consul(off, secret), "80", 1, &["CONSUL_REDIRECT_TRAFFIC_CONFIG", "from elsewhere"])?;
    let words = "{name: first, command: [consul, connect, redirect-traffic, -proxy-uid=7, \
                 -proxy-inbound-port=20000, -proxy-outbound-port=15004]}";
    says(&pod("", "", words, ""), "80", 0, &[&to(15004), "flag --proxy-outbound-port"])?;
    let script =
        |annotations| pod("", annotations, "{name: osm-init, command: [sh], args: [-c, x]}", "");
    says(&script(""), "80", 1, &["osm-init", "runs a script that is not what"])?;

    // Of two meshes it is nobody's.
    let two = pod("", "", "", "{name: linkerd-proxy}, {name: kuma-sidecar}, ");
    says(&two, "80", 1, &["one of Linkerd and Kuma"])?;
    Ok(())
}
