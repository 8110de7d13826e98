//! The plugin and pods of Linkerd: real connections from and to them, by each way in which rules are
//! written, and what comes of pods that nobody can tell of.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::capture::millrace;
use millrace_tests::cni::{Api, Call, Host, Pod, manifest, mesh};
use millrace_tests::process::Listeners;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::APP;
use millrace_tests::wire::Identity;
use serde_json::{Value, json};

/// Linkerd's proxy, as its injector has it.
const PROXY: Identity = Identity { uid: 2102, gid: 2102 };
/// What its injector writes.
const INJECTED: &str = "linkerd.io/proxy-version";

/// A call on a node that expects pods of Linkerd, with what the runtime tells of this one.
fn call(host: &Host, api: &Api, pod: &Pod, annotations: Value) -> Result<Call> {
    let call = Call::new(host, "ADD", pod, annotations).with_key("linkerd", json!({}));
    Ok(call.with_key("kubeconfig", json!(api.kubeconfig("127.0.0.1")?)))
}

/// Verify that a pod that only the API knows is captured, by real connections each way and in both
/// families, with what its annotations leave alone; that CHECK knows it without asking and finds what is
/// missing; and that DEL takes everything away.
#[test]
fn a_pods_life() -> Result<()> {
    let host = Host::new()?;
    let mut api = Api::start(&host)?;
    let annotations = json!({
        INJECTED: "stable",
        "config.linkerd.io/skip-outbound-ports": "81",
        "config.linkerd.io/skip-inbound-ports": "8081-8082",
    });
    let _hosts: Vec<Listeners> = ["0.0.0.0:80", "0.0.0.0:81"]
        .iter()
        .map(|addr| host.serve(None, "host", addr))
        .collect::<Result<_>>()?;
    for (backend, names) in [
        ("nftables", "linkerd-proxy-init"),
        ("iptables", "PROXY_INIT_"),
        ("auto", "linkerd-proxy-init"),
    ] {
        let pod = host.linked_pod()?;
        let containers = ["linkerd-network-validator:", "linkerd-proxy", "app"];
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest(&containers, &annotations));
        let add = call(&host, &api, &pod, annotations.clone())?.with_key("backend", json!(backend));
        let line = add.logged(&host)?;
        ensure!(line["mesh"] == "linkerd" && line["changed"] == true, "{backend}: {line}");
        assert_eq!(line["knownFrom"], json!(["runtime", "api"]), "{backend}");
        ensure!(host.rules(&pod)?.contains(names), "{backend}: {}", host.rules(&pod)?);
        ensure!(add.logged(&host)?["changed"] == false, "{backend}");
        let _proxy = host.proxy_of(&pod, PROXY, &[4140, 4143], &[])?;
        let _apps: Vec<Listeners> = ["0.0.0.0:8080", "0.0.0.0:8081", "0.0.0.0:4191"]
            .iter()
            .map(|addr| host.serve(Some(&pod), "app", addr))
            .collect::<Result<_>>()?;
        for (from, who, to, wanted) in [
            (Some(&pod), APP, "10.1.0.1:80", ("proxy", 4140)),
            (Some(&pod), APP, "[fd01::1]:80", ("proxy", 4140)),
            (Some(&pod), APP, "10.1.0.1:81", ("host", 81)),
            (Some(&pod), PROXY, "10.1.0.1:80", ("host", 80)),
            (Some(&pod), APP, "127.0.0.1:8080", ("app", 8080)),
            (None, APP, "10.1.0.2:8080", ("proxy", 4143)),
            (None, APP, "[fd01::2]:8080", ("proxy", 4143)),
            (None, APP, "10.1.0.2:8081", ("app", 8081)),
            (None, APP, "10.1.0.2:4191", ("app", 4191)),
        ] {
            host.arrives(from, who, to, wanted).with_context(|| backend.to_owned())?;
        }
        let status = millrace(["status"])?.get_program().to_str().context("a path")?.to_owned();
        let status = host.inside(&pod, |inside| inside.run(&status, &["status"]))?;
        ensure!(status.contains("Linkerd"), "{backend}: {status}");
        api.take_requests();
        let check = add.clone().to("CHECK");
        check.run(&host)?.success()?;
        assert_eq!(api.take_requests(), Vec::<String>::new(), "{backend}");
        let other = json!({ "outgoing-proxy-port": 5140 });
        check.clone().with_key("linkerd", other).run(&host)?.failure(101)?;
        let said = check.clone().without_key("linkerd").run(&host)?.failure(101)?;
        ensure!(said.contains("captured as a pod of Linkerd"), "{said}");
        host.inside(&pod, |inside| inside.run("nft", &["flush", "ruleset"]))?;
        check.run(&host)?.failure(101)?;
        add.logged(&host)?;
        check.run(&host)?.success()?;
        ensure!(add.clone().to("DEL").logged(&host)?["removed"] == true, "{backend}");
        ensure!(!host.rules(&pod)?.contains(names), "{backend}: {}", host.rules(&pod)?);
        host.arrives(Some(&pod), APP, "10.1.0.1:80", ("host", 80))?;
        host.unlink(&pod)?;
    }
    // It goes by what is noted, with nobody there.
    api.stop();
    Ok(())
}

/// Verify that a pod with the proxies of two meshes is an error that names both, and not captured.
#[test]
fn a_pod_of_two_meshes() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    let both = manifest(&["istio-proxy", "linkerd-proxy", "app"], &mesh(&[]));
    api.put_pod("shop", &pod.name, &pod.uid(), &both);
    let add = call(&host, &api, &pod, mesh(&[]))?;
    for add in [add.clone(), add.without_key("linkerd")] {
        let said = add.run(&host)?.failure(104)?;
        for part in [pod.name.as_str(), "istio-proxy of Istio", "linkerd-proxy of Linkerd"] {
            ensure!(said.contains(part), "{part}: {said}");
        }
        ensure!(host.rules(&pod)?.is_empty(), "{}", host.rules(&pod)?);
    }
    Ok(())
}

/// Verify that a pod that may be Linkerd's does not start where nobody tells, or tells what the injector
/// disproves; and that STATUS says so first.
#[test]
fn a_pod_that_nobody_can_tell_of() -> Result<()> {
    let host = Host::new()?;
    let mut api = Api::start(&host)?;
    let pod = host.pod()?;
    let injected = json!({ INJECTED: "stable" });
    let add = |annotations: &Value| -> Result<Call> {
        Ok(call(&host, &api, &pod, annotations.clone())?.with_key("deadline", json!("1s")))
    };
    let calls = [add(&json!({}))?, add(&injected)?, add(&mesh(&[]))?];
    let status = calls[0].clone().to("STATUS");
    status.run(&host)?.success()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &manifest(&["app"], &json!({})));
    let said = calls[1].run(&host)?.failure(11)?;
    ensure!(said.contains("knows no container linkerd-proxy") && said.contains(INJECTED), "{said}");
    // The answer is about another pod of the same name.
    api.put_pod("shop", &pod.name, "another", &manifest(&["linkerd-proxy"], &json!({})));
    let said = calls[0].run(&host)?.failure(11)?;
    ensure!(said.contains("another pod of this name"), "{said}");
    api.stop();
    for call in &calls {
        let said = call.run(&host)?.failure(11)?;
        ensure!(said.contains("it is not started uncaptured"), "{said}");
        let said = call.clone().without_key("kubeconfig").run(&host)?.failure(11)?;
        ensure!(said.contains("set kubeconfig"), "{said}");
    }
    status.run(&host)?.failure(50)?;
    let said = status.without_key("kubeconfig").run(&host)?.failure(50)?;
    ensure!(said.contains("with linkerd every pod has to be looked up"), "{said}");
    ensure!(host.rules(&pod)?.is_empty(), "{}", host.rules(&pod)?);
    Ok(())
}

/// Verify that pods that are not the plugin's to capture pass: one that linkerd-init has captured, whose
/// rules stay to the end, one without a proxy, and, where the entry does not expect it, any; and that a
/// pod of Istio is captured as always.
#[test]
fn pods_of_others() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let inside = host.pod()?;
    let words = ["linkerd", "-p", "4143", "-o", "4140", "-u", "2102"];
    let program = millrace(words)?.get_program().to_str().context("a path")?.to_owned();
    host.inside(&inside, |namespace| namespace.run(&program, &words))?;
    let before = host.inside(&inside, Snapshot::take)?;
    let injected = json!({ INJECTED: "stable" });
    let containers = ["linkerd-init:", "linkerd-proxy", "app"];
    api.put_pod("shop", &inside.name, &inside.uid(), &manifest(&containers, &injected));
    let add = call(&host, &api, &inside, injected.clone())?;
    let line = add.logged(&host)?;
    ensure!(line["reason"].to_string().contains("linkerd-init captures it from inside"), "{line}");
    for command in ["CHECK", "DEL", "DEL"] {
        add.clone().to(command).run(&host)?.success()?;
        let now = host.inside(&inside, Snapshot::take)?;
        assert_eq!(before.differences(&now), "", "{command}");
    }
    let plain = host.pod()?;
    api.put_pod("shop", &plain.name, &plain.uid(), &manifest(&["app"], &json!({})));
    let line = call(&host, &api, &plain, json!({}))?.logged(&host)?;
    ensure!(line["reason"].to_string().contains("no container linkerd-proxy"), "{line}");
    let istio = host.pod()?;
    let sidecar = manifest(&["istio-proxy", "app"], &mesh(&[]));
    api.put_pod("shop", &istio.name, &istio.uid(), &sidecar);
    let add = call(&host, &api, &istio, mesh(&[]))?;
    ensure!(add.logged(&host)?["mesh"] == "istio");
    ensure!(host.rules(&istio)?.contains("table inet millrace"));
    add.clone().to("CHECK").run(&host)?.success()?;
    add.to("DEL").run(&host)?.success()?;
    ensure!(!host.rules(&istio)?.contains("millrace"));
    // Nobody expects it: it is not captured, but not in silence.
    let strange = host.pod()?;
    let reply = call(&host, &api, &strange, injected)?.without_key("linkerd").run(&host)?;
    reply.success()?;
    for part in ["\"warn\"", "a proxy of Linkerd's", INJECTED, "no key linkerd"] {
        ensure!(reply.log.contains(part), "{part}: {reply:?}");
    }
    ensure!(host.rules(&strange)?.is_empty() && host.rules(&plain)?.is_empty());
    Ok(())
}

/// Verify that `explain` says what ADD would do with a pod of Linkerd, with the reasons of its rules, and
/// changes nothing.
#[test]
fn explained() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    let annotations = json!({ "config.linkerd.io/skip-outbound-ports": "81" });
    let args = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={}", pod.name);
    let input = call(&host, &api, &pod, annotations.clone())?.config.to_string();
    let program = binary::millrace_cni()?;
    let explain = |words: &[&str]| -> Result<(bool, String)> {
        let mut command = Command::new(&program);
        command.arg("explain").args(words).env("CNI_ARGS", &args).stdin(Stdio::piped());
        command.stdout(Stdio::piped());
        let mut child = host.namespace.enter(|| command.spawn())??;
        child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        Ok((output.status.success(), String::from_utf8(output.stdout)?))
    };
    let containers = ["linkerd-proxy", "app"];
    api.put_pod("shop", &pod.name, &pod.uid(), &manifest(&containers, &annotations));
    let (good, text) = explain(&[])?;
    ensure!(good, "{text}");
    for part in
        ["a proxy of Linkerd's", "PROXY_INIT_OUTPUT", "config.linkerd.io/skip-outbound-ports"]
    {
        ensure!(text.contains(part), "{part}: {text}");
    }
    let (_, text) = explain(&["--json"])?;
    let said: Value = serde_json::from_str(&text)?;
    ensure!(said["mesh"] == "linkerd" && said["outcome"] == "capture", "{text}");
    let rules = said["nftables"].as_str().context("rules")?;
    ensure!(rules.contains("linkerd-proxy-init"), "{text}");
    ensure!(host.rules(&pod)?.is_empty(), "{}", host.rules(&pod)?);
    Ok(())
}

/// Verify that without its note the rules of a pod stay, since linkerd-init may have written them, and
/// that GC takes away those of which there is a note.
#[test]
fn notes_tell_whose_rules_they_are() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let captured = |pod: &Pod| -> Result<Call> {
        let containers = manifest(&["linkerd-proxy"], &json!({}));
        api.put_pod("shop", &pod.name, &pod.uid(), &containers);
        let add = call(&host, &api, pod, json!({}))?;
        add.run(&host)?.success()?;
        Ok(add)
    };
    let lost = host.pod()?;
    let add = captured(&lost)?;
    std::fs::remove_dir_all(host.state_dir())?;
    add.clone().to("DEL").run(&host)?.success()?;
    ensure!(host.rules(&lost)?.contains("linkerd-proxy-init"), "{}", host.rules(&lost)?);
    let left = host.pod()?;
    let gc = captured(&left)?.to("GC").with_key("cni.dev/valid-attachments", json!([]));
    gc.run(&host)?.success()?;
    ensure!(host.rules(&left)?.is_empty(), "{}", host.rules(&left)?);
    Ok(())
}
