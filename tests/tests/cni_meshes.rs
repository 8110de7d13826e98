//! The plugin and pods of Kuma and Consul, on a node that expects those of several meshes: real connections
//! from and to them by each way in which rules are written, one list for all of them, and what the meshes' own
//! plugins have left behind.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::cni::{
    Api, CONSUL_CONFIG, Call, Host, KUMA_CONFIG, List, Pod, Reply, consul_annotations, expecting,
    expecting_all, in_pod, kuma_annotations, manifest, mesh,
};
use millrace_tests::process::Listeners;
use millrace_tests::topology::APP;
use millrace_tests::wire::Identity;
use serde_json::{Value, json};

/// A way in which the plugin writes rules: its setting, whether the kernel lacks `nf_tables`, and a sign of
/// the rules of each mesh.
type Way = (&'static str, bool, &'static str, &'static str);
const WAYS: [Way; 3] = [
    ("nftables", false, "kuma-transparent-proxy", "consul_tproxy"),
    ("iptables", false, "KUMA_MESH_", "CONSUL_PROXY_"),
    ("auto", true, "KUMA_MESH_", "CONSUL_PROXY_"),
];

/// A mesh's pod, its proxy, and its connections: from whom, as whom, to what, and who answers.
struct Meshed {
    name: &'static str,
    called: &'static str,
    annotations: Value,
    containers: &'static [&'static str],
    proxy: Identity,
    ports: &'static [u16],
    datagrams: &'static [u16],
    ends: &'static [(bool, bool, &'static str, (&'static str, u16))],
}

fn meshes() -> [Meshed; 2] {
    [
        Meshed {
            name: "kuma",
            called: "Kuma",
            annotations: kuma_annotations(),
            containers: &["kuma-validation:", "kuma-sidecar", "app"],
            proxy: Identity { uid: 5678, gid: 5678 },
            ports: &[15001, 15006],
            datagrams: &[15053],
            ends: &[
                (true, false, "10.1.0.1:80", ("proxy", 15001)),
                (true, false, "[fd01::1]:80", ("proxy", 15001)),
                (true, false, "10.1.0.1:81", ("host", 81)),
                (true, true, "10.1.0.1:80", ("host", 80)),
                (true, false, "127.0.0.1:8080", ("app", 8080)),
                (true, false, "10.1.0.2:8080", ("app", 8080)),
                (false, false, "10.1.0.2:8080", ("proxy", 15006)),
                (false, false, "[fd01::2]:8080", ("proxy", 15006)),
                (false, false, "10.1.0.2:8081", ("app", 8081)),
            ],
        },
        Meshed {
            name: "consul",
            called: "Consul",
            annotations: consul_annotations(),
            containers: &["consul-connect-inject-init:", "consul-dataplane", "app"],
            proxy: Identity { uid: 5995, gid: 5995 },
            ports: &[15001, 20000],
            datagrams: &[],
            ends: &[
                (true, false, "10.1.0.1:80", ("proxy", 15001)),
                (true, false, "[fd01::1]:80", ("proxy", 15001)),
                (true, false, "10.1.0.1:81", ("host", 81)),
                (true, true, "10.1.0.1:80", ("host", 80)),
                (true, false, "127.0.0.1:8080", ("app", 8080)),
                // Consul captures what a pod sends to itself.
                (true, false, "10.1.0.2:8080", ("proxy", 15001)),
                (false, false, "10.1.0.2:8080", ("proxy", 20000)),
                (false, false, "[fd01::2]:8080", ("proxy", 20000)),
                (false, false, "10.1.0.2:8081", ("app", 8081)),
            ],
        },
    ]
}

/// Make a call, on a kernel without `nf_tables` where that is meant: under strace, which refuses sockets but the
/// first ones, which are for questions to the API, addresses, a first look and the lock of the run.
fn run(host: &Host, call: &Call, without_nf_tables: bool, first: usize) -> Result<Reply> {
    if !without_nf_tables {
        return call.run(host);
    }
    let refuse = format!("inject=socket:error=EPROTONOSUPPORT:when={}+", first + 1);
    let words = ["strace", "-qqq", "-o", "/dev/null", "-e", "trace=socket", "-e", &refuse];
    call.run_under(host, &words)
}

/// All rules in a pod, whatever wrote them.
fn rules(host: &Host, pod: &Pod) -> Result<String> {
    let legacy = host.inside(pod, |inside| {
        Ok(inside.run("iptables-legacy-save", &[])? + &inside.run("ip6tables-legacy-save", &[])?)
    })?;
    Ok(host.rules(pod)? + &legacy)
}

/// Verify the life of a pod of each mesh by each way in which rules are written: real connections in both
/// directions and families, `status` in the pod, CHECK with what it finds missing, and DEL. A pod of Consul is
/// never looked up, one of Kuma once.
#[test]
fn a_pods_life() -> Result<()> {
    let host = Host::new()?;
    let _hosts: Vec<Listeners> = ["0.0.0.0:80", "0.0.0.0:81"]
        .iter()
        .map(|addr| host.serve(None, "host", addr))
        .collect::<Result<_>>()?;
    for meshed in meshes() {
        for (backend, legacy, kuma, consul) in WAYS {
            let sign = if meshed.name == "kuma" { kuma } else { consul };
            life(&host, &meshed, (backend, legacy), sign)
                .with_context(|| format!("{} {backend} {legacy}", meshed.name))?;
        }
    }
    Ok(())
}

fn life(host: &Host, meshed: &Meshed, way: (&str, bool), sign: &str) -> Result<()> {
    let (backend, legacy) = way;
    let pod = host.linked_pod()?;
    let mut api = Api::start(host)?;
    let looked_up = meshed.name == "kuma";
    let mut add = expecting(host, &pod, meshed.name, &meshed.annotations);
    add = add.with_key("backend", json!(backend));
    if looked_up {
        let manifest = manifest(meshed.containers, &meshed.annotations);
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest);
        add = add.with_key("kubeconfig", json!(api.kubeconfig("127.0.0.1")?));
    }
    let added = || -> Result<Value> {
        let reply = run(host, &add, legacy, 3 + usize::from(looked_up))?;
        reply.success()?;
        reply.lines()?.pop().context("a line")
    };
    let line = added()?;
    ensure!(line["mesh"] == meshed.name && line["changed"] == true, "{line}");
    let known = if looked_up { json!(["runtime", "api"]) } else { json!(["runtime"]) };
    assert_eq!(line["knownFrom"], known);
    let found = rules(host, &pod)?;
    ensure!(found.contains(sign), "{found}");
    ensure!(!legacy || line["by"].to_string().contains("iptables-legacy"), "{line}");
    // A runtime's plugin for lo refuses a pod that has other addresses there.
    let lo = host.inside(&pod, |inside| inside.run("ip", &["address", "show", "dev", "lo"]))?;
    ensure!(!lo.contains("::6"), "{lo}");
    ensure!(added()?["changed"] == false);
    let _proxy = host.proxy_of(&pod, meshed.proxy, meshed.ports, meshed.datagrams)?;
    let _apps: Vec<Listeners> = ["0.0.0.0:8080", "0.0.0.0:8081"]
        .iter()
        .map(|addr| host.serve(Some(&pod), "app", addr))
        .collect::<Result<_>>()?;
    for (from_pod, as_proxy, to, wanted) in meshed.ends {
        let who = if *as_proxy { meshed.proxy } else { APP };
        host.arrives(from_pod.then_some(&pod), who, to, *wanted)?;
    }
    if meshed.datagrams == [15053] {
        host.datagram_arrives(&pod, APP, "10.1.0.1:53", ("proxy", 15053))?;
        host.datagram_arrives(&pod, APP, "[fd01::1]:53", ("proxy", 15053))?;
    }
    let (code, status) = in_pod(host, &pod, &["status"])?;
    ensure!(code == Some(0) && status.contains(meshed.called), "{code:?} {status}");
    // CHECK goes by the note and what the runtime tells: nobody is asked.
    api.stop();
    let check = add.clone().to("CHECK");
    run(host, &check, legacy, 3)?.success()?;
    let said = run(host, &check.clone().without_key(meshed.name), legacy, 3)?.failure(101)?;
    ensure!(said.contains(&format!("captured as a pod of {}", meshed.called)), "{said}");
    let (flush, words): (&str, &[&str]) = if legacy {
        ("iptables-legacy", &["-t", "nat", "-F"])
    } else {
        ("nft", &["flush", "ruleset"])
    };
    host.inside(&pod, |inside| inside.run(flush, words))?;
    run(host, &check, legacy, 3)?.failure(101)?;
    // It counts other sockets; those of nf_tables find nothing there.
    ensure!(add.clone().to("DEL").run(host)?.success()? == Value::Null);
    let found = rules(host, &pod)?;
    ensure!(!found.contains(sign), "{found}");
    host.arrives(Some(&pod), APP, "10.1.0.1:80", ("host", 80))?;
    host.unlink(&pod)
}

/// Verify that one entry serves pods of four meshes in one network, each under the names of its mesh, with what
/// a runtime does with a list of plugins.
#[test]
fn one_list_for_every_mesh() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let mut list = List::ptp(&host, "1.0.0", 77);
    for key in ["linkerd", "kuma", "consul"] {
        list.plugins[1][key] = json!({});
    }
    list.plugins[1]["kubeconfig"] = json!(api.kubeconfig("127.0.0.1")?);
    // Debian's plugins don't speak the version that has these commands.
    let newest = List { version: "1.1.0".to_owned(), ..list.clone() };
    newest.status(&host)?.success()?;
    let mut added = Vec::new();
    for (containers, annotations, sign) in [
        (&["istio-proxy", "app"][..], mesh(&[]), Some("table inet millrace")),
        (&["linkerd-proxy", "app"], json!({}), Some("linkerd-proxy-init")),
        (&["kuma-sidecar", "app"], kuma_annotations(), Some("kuma-transparent-proxy")),
        (&["consul-dataplane", "app"], consul_annotations(), Some("consul_tproxy")),
        (&["app"], json!({}), None),
    ] {
        let pod = host.pod()?;
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest(containers, &annotations));
        let result = list.add(&host, &pod, annotations).context(format!("{containers:?}"))?;
        let found = host.rules(&pod)?;
        for other in
            ["table inet millrace", "linkerd-proxy-init", "kuma-transparent-proxy", "consul_tproxy"]
        {
            assert_eq!(found.contains(other), sign == Some(other), "{other}: {found}");
        }
        added.push((pod, result));
    }
    for (pod, result) in &added {
        list.check(&host, pod, result)?;
    }
    let left = |(pod, _): &(Pod, _)| json!({ "containerID": pod.id, "ifname": "eth0" });
    let valid: Vec<Value> = added.iter().take(2).map(left).collect();
    newest.collect(&host, json!(valid))?.success()?;
    for (index, (pod, result)) in added.iter().enumerate() {
        let found = host.rules(pod)?;
        assert_eq!(!found.is_empty(), index < 2, "{found}");
        list.delete(&host, pod, Some(result))?;
        let found = host.rules(pod)?;
        ensure!(found.is_empty(), "{found}");
    }
    Ok(())
}

/// Verify that a node goes over from the meshes' own plugins: their entries are taken but for the type, with
/// `kuma` in that of Kuma's; pods that they captured are as desired to CHECK, whole, and DEL leaves their rules,
/// of which there is no note; and ADD of such a pod changes nothing.
#[test]
fn a_list_of_their_own_plugins() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let kubeconfig = api.kubeconfig("127.0.0.1")?;
    let folder = kubeconfig.parent().context("a folder")?;
    let file = kubeconfig.file_name().and_then(|name| name.to_str()).context("a name")?;
    let kuma_entry = json!({
        "kuma": {},
        "log_level": "info",
        "kubernetes": {
            "cni_bin_dir": "/opt/cni/bin",
            "exclude_namespaces": ["kuma-system"],
            "kubeconfig": kubeconfig,
        },
    });
    let consul_entry = json!({
        "autorotate_token": false,
        "cni_bin_dir": "/opt/cni/bin",
        "cni_host_token_path": "/etc/cni/net.d/cni-host-token",
        "cni_net_dir": folder,
        "cni_token_path": "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "kubeconfig": file,
        "log_level": "info",
        "multus": false,
    });
    for (entry, containers, annotations) in [
        (kuma_entry, &["kuma-sidecar", "app"], kuma_annotations()),
        (consul_entry, &["consul-dataplane", "app"], consul_annotations()),
    ] {
        let pod = host.linked_pod()?;
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest(containers, &annotations));
        as_their_plugin(&host, &pod, &annotations)?;
        let before = rules(&host, &pod)?;
        ensure!(before.contains("_PROXY_") || before.contains("KUMA_MESH_"), "{before}");
        let mut add = Call::new(&host, "ADD", &pod, annotations);
        for (key, value) in entry.as_object().into_iter().flatten() {
            add = add.with_key(key, value.clone());
        }
        add = add.with_key("backend", json!("iptables"));
        add.clone().to("CHECK").run(&host)?.success()?;
        add.clone().to("DEL").run(&host)?.success()?;
        assert_eq!(rules(&host, &pod)?, before);
        let reply = add.run(&host)?;
        reply.success()?;
        ensure!(!reply.log.contains("is not known"), "{reply:?}");
        add.clone().to("CHECK").run(&host)?.success()?;
        ensure!(add.to("DEL").logged(&host)?["removed"] == true);
        let after = rules(&host, &pod)?;
        ensure!(!after.contains("CONSUL_") && !after.contains("KUMA_MESH_"), "{after}");
        host.unlink(&pod)?;
    }
    Ok(())
}

/// Capture a pod as its mesh's own plugin does: with the very text or commands of its tool, carried out by the
/// real iptables.
fn as_their_plugin(host: &Host, pod: &Pod, annotations: &Value) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("config.yaml");
    if let Some(text) = annotations[KUMA_CONFIG].as_str() {
        fs::write(&file, text)?;
        let path = file.to_str().context("a path")?;
        let words = ["kuma", "install", "transparent-proxy", "--dry-run", "--config", path];
        let (code, said) = in_pod(host, pod, &words)?;
        ensure!(code == Some(0), "{said}");
        let (v4, v6) = said.split_once("### IPv6 ###").context("both families")?;
        host.inside(pod, |inside| inside.ip("addr replace ::6/128 dev lo"))?;
        for (program, text) in [("iptables-nft-restore", v4), ("ip6tables-nft-restore", v6)] {
            host.inside(pod, |inside| inside.feed(program, &["--noflush"], text))?;
        }
        return Ok(());
    }
    let config = annotations[CONSUL_CONFIG].as_str().context("settings")?;
    let flags = ["-dry-run", "-dual-stack", "-redirect-traffic-config", config];
    let words = [&["consul", "connect", "redirect-traffic"], flags.as_slice()].concat();
    let (code, said) = in_pod(host, pod, &words)?;
    ensure!(code == Some(0), "{said}");
    for line in said.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (program, args) = words.split_first().context("a command")?;
        let program = program.replace("tables", "tables-nft");
        host.inside(pod, |inside| inside.run(&program, args))?;
    }
    Ok(())
}

/// Verify that `explain` says what ADD would do with a pod of each mesh, with where each rule is from, and
/// changes nothing.
#[test]
fn explained() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    for (containers, annotations, parts, table) in [
        (
            &["kuma-sidecar", "app"],
            kuma_annotations(),
            ["a proxy of Kuma's", "KUMA_MESH_OUTBOUND", "redirect.outbound.excludePorts"],
            "kuma-transparent-proxy",
        ),
        (
            &["consul-dataplane", "app"],
            consul_annotations(),
            ["proxy of Consul's", "CONSUL_PROXY_OUTPUT", "ExcludeOutboundPorts"],
            "consul_tproxy",
        ),
    ] {
        let pod = host.pod()?;
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest(containers, &annotations));
        let call = expecting_all(&host, &api, &pod, annotations)?;
        let args = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={}", pod.name);
        let explain = |words: &[&str]| -> Result<(bool, String)> {
            let mut command = Command::new(binary::millrace_cni()?);
            command.arg("explain").args(words).env("CNI_ARGS", &args).stdin(Stdio::piped());
            command.stdout(Stdio::piped());
            let mut child = host.namespace.enter(|| command.spawn())??;
            let input = call.config.to_string();
            child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
            let output = child.wait_with_output()?;
            Ok((output.status.success(), String::from_utf8(output.stdout)?))
        };
        let (good, text) = explain(&[])?;
        ensure!(good, "{text}");
        for part in parts {
            ensure!(text.contains(part), "{part}: {text}");
        }
        let (_, text) = explain(&["--json"])?;
        let said: Value = serde_json::from_str(&text)?;
        ensure!(said["outcome"] == "capture", "{text}");
        ensure!(said["nftables"].to_string().contains(table), "{text}");
        ensure!(host.rules(&pod)?.is_empty(), "{}", host.rules(&pod)?);
    }
    Ok(())
}
