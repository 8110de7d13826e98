//! The plugin, and pods of Kuma and Consul that it does not capture: those of two meshes, those of which
//! nobody can tell, those with wrong settings, and those that are not its to capture.

use anyhow::{Result, ensure};
use millrace_tests::cni::{
    Api, CONSUL, CONSUL_CONFIG, Call, Host, KUMA, TRANSPARENT, consul_annotations, expecting,
    expecting_all, in_pod, kuma_annotations, manifest, mesh,
};
use millrace_tests::snapshot::Snapshot;
use serde_json::{Value, json};

/// Verify that a pod with the proxies of two meshes is an error that names both, and not captured: by
/// annotations where these tell of both, and otherwise by containers.
#[test]
fn a_pod_of_two_meshes() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let both = |one: Value, other: Value| {
        let (Value::Object(mut one), Value::Object(other)) = (one, other) else { return json!({}) };
        one.extend(other);
        Value::Object(one)
    };
    for (containers, annotations, named) in [
        (
            &["kuma-sidecar", "consul-dataplane"][..],
            both(kuma_annotations(), consul_annotations()),
            ["kuma-sidecar of Kuma", "consul-dataplane of Consul"],
        ),
        (
            &["kuma-sidecar", "linkerd-proxy"],
            kuma_annotations(),
            ["linkerd-proxy of Linkerd", "kuma-sidecar of Kuma"],
        ),
        (
            &["istio-proxy", "kuma-sidecar"],
            both(mesh(&[]), kuma_annotations()),
            ["istio-proxy of Istio", "kuma-sidecar of Kuma"],
        ),
        (
            &["istio-proxy", "consul-dataplane"],
            both(mesh(&[]), consul_annotations()),
            ["istio-proxy of Istio", "consul-dataplane of Consul"],
        ),
        // One of them captures it from inside.
        (
            &["kuma-init:", "kuma-sidecar", "consul-dataplane"],
            both(kuma_annotations(), consul_annotations()),
            ["kuma-sidecar of Kuma", "consul-dataplane of Consul"],
        ),
    ] {
        let pod = host.pod()?;
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest(containers, &annotations));
        let said = expecting_all(&host, &api, &pod, annotations)?.run(&host)?.failure(104)?;
        for part in [pod.name.as_str(), named[0], named[1]] {
            ensure!(said.contains(part), "{part}: {said}");
        }
        ensure!(host.rules(&pod)?.is_empty(), "{}", host.rules(&pod)?);
    }
    // Annotations are enough where both meshes write them.
    let pod = host.pod()?;
    let annotations = both(mesh(&[]), consul_annotations());
    expecting(&host, &pod, "consul", &annotations).run(&host)?.failure(104)?;
    Ok(())
}

/// Verify that a pod that may be in a mesh does not start where nobody tells, or tells what annotations
/// disprove; that STATUS says so first; and that wrong settings are refused by the annotation's name.
#[test]
fn pods_that_do_not_start() -> Result<()> {
    let host = Host::new()?;
    let mut api = Api::start(&host)?;
    let pod = host.pod()?;
    let config = api.kubeconfig("127.0.0.1")?;
    let add = |key: &str, annotations: &Value| {
        let call = expecting(&host, &pod, key, annotations).with_key("deadline", json!("1s"));
        call.with_key("kubeconfig", json!(config))
    };
    let kuma = add("kuma", &kuma_annotations());
    let transparent = json!({ CONSUL: "injected", TRANSPARENT: "enabled" });
    let consul = add("consul", &transparent);
    kuma.clone().to("STATUS").run(&host)?.success()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &manifest(&["app"], &json!({})));
    let said = kuma.run(&host)?.failure(11)?;
    ensure!(said.contains("knows no container kuma-sidecar") && said.contains(KUMA), "{said}");
    // The settings of a pod of Consul are nowhere.
    let said = consul.run(&host)?.failure(102)?;
    ensure!(said.contains(CONSUL_CONFIG) && said.contains("it is missing"), "{said}");
    api.stop();
    for (call, part) in [(&kuma, "kuma-init"), (&consul, "consul-connect-inject-init")] {
        let said = call.run(&host)?.failure(11)?;
        ensure!(said.contains("it is not started uncaptured") && said.contains(part), "{said}");
        let said = call.clone().without_key("kubeconfig").run(&host)?.failure(11)?;
        ensure!(said.contains("set kubeconfig"), "{said}");
    }
    kuma.clone().to("STATUS").run(&host)?.failure(50)?;
    kuma.clone().to("STATUS").without_key("kubeconfig").run(&host)?.failure(50)?;
    // Annotations tell all of a pod of Consul, and that others are none of Kuma's.
    consul.clone().to("STATUS").run(&host)?.success()?;
    for key in ["kuma", "consul"] {
        ensure!(add(key, &json!({})).logged(&host)?["msg"] == "not captured");
    }
    let mut bad = consul_annotations();
    bad[CONSUL_CONFIG] =
        json!(r#"{"ProxyUserID":"5995","ProxyInboundPort":20000,"ExcludeOutboundCIDRs":["x;"]}"#);
    let said = add("consul", &bad).run(&host)?.failure(102)?;
    for part in ["ExcludeOutboundCIDRs", CONSUL_CONFIG, "x;", "correct its annotations"] {
        ensure!(said.contains(part), "{part}: {said}");
    }
    ensure!(host.rules(&pod)?.is_empty(), "{}", host.rules(&pod)?);
    Ok(())
}

/// Verify that pods that are not the plugin's to capture pass: those that a container in them has captured,
/// whose rules stay to the end; and, where the entry does not expect them, those with a proxy, with a warning.
#[test]
fn pods_of_others() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let variable = json!({ "name": "CONSUL_REDIRECT_TRAFFIC_CONFIG", "value": "{}" });
    let mut consul = manifest(&["consul-connect-inject-init:", "consul-dataplane"], &json!({}));
    consul["spec"]["initContainers"][0]["env"] = json!([variable]);
    let transparent = json!({ CONSUL: "injected", TRANSPARENT: "enabled" });
    for (words, manifest, annotations, reason) in [
        (
            &["kuma", "install", "transparent-proxy", "--kuma-dp-user", "5678"][..],
            manifest(&["kuma-init:", "kuma-sidecar"], &json!({})),
            kuma_annotations(),
            "kuma-init captures it from inside",
        ),
        (
            &[
                "consul",
                "connect",
                "redirect-traffic",
                "-proxy-uid=5995",
                "-proxy-inbound-port=20000",
            ],
            consul,
            transparent,
            "consul-connect-inject-init captures it from inside",
        ),
    ] {
        let pod = host.pod()?;
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest);
        let (code, said) = in_pod(&host, &pod, words)?;
        ensure!(code == Some(0), "{said}");
        let before = host.inside(&pod, Snapshot::take)?;
        let add = expecting_all(&host, &api, &pod, annotations)?;
        let line = add.logged(&host)?;
        ensure!(line["reason"].to_string().contains(reason), "{line}");
        for command in ["CHECK", "DEL", "DEL"] {
            add.clone().to(command).run(&host)?.success()?;
            let now = host.inside(&pod, Snapshot::take)?;
            assert_eq!(before.differences(&now), "", "{command}");
        }
    }
    for (annotations, parts) in [
        (kuma_annotations(), ["a proxy of Kuma's", KUMA, "no key kuma"]),
        (consul_annotations(), ["a proxy of Consul's", CONSUL, "no key consul"]),
    ] {
        let pod = host.pod()?;
        let reply = Call::new(&host, "ADD", &pod, annotations).run(&host)?;
        reply.success()?;
        for part in parts.iter().chain(&["\"warn\""]) {
            ensure!(reply.log.contains(part), "{part}: {reply:?}");
        }
        ensure!(host.rules(&pod)?.is_empty());
    }
    Ok(())
}
