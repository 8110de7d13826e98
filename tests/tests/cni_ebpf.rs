//! The CNI plugin with the node's eBPF programs.

use std::fs::File;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Api, Call, Host, Pod, mesh};
use millrace_tests::ebpf::{Cgroup, FOLDER, MOUNT, load, load_with, mount_bpffs, node, options};
use millrace_tests::topology::{APP, PROXY};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

/// A pod with a link, so that there is somewhere to go. It gets no link-local address by itself: that
/// would come at any time, and change the pod's entry.
fn pod(host: &Host) -> Result<Pod> {
    let pod = host.pod()?;
    host.inside(&pod, |inside| {
        inside.ip("link add eth0 type veth peer name eth1\nlink set eth1 up\n\
             link set eth0 addrgenmode none\n\
             addr add 10.1.0.2/24 dev eth0\naddr add fd01::2/64 dev eth0 nodad\nlink set eth0 up")
    })?;
    Ok(pod)
}

fn add(host: &Host, pod: &Pod, backend: &str, annotations: &[(&str, &str)]) -> Call {
    let call = Call::new(host, "ADD", pod, mesh(annotations));
    call.with_key("backend", json!(backend)).with_key("bpffs", json!(FOLDER))
}

/// What the log says at the end.
fn last(call: &Call, host: &Host) -> Result<Value> {
    let reply = call.run(host)?;
    reply.success()?;
    reply.lines()?.pop().context("a line")
}

fn captured(host: &Host, pod: &Pod) -> Result<()> {
    let _proxy = host.proxy(pod)?;
    for to in ["10.1.0.9:80", "[fd01::9]:80"] {
        let answer = host.dial(Some(pod), APP, to)?.context("somebody answers")?;
        ensure!((answer.name.as_str(), answer.port) == ("proxy", 15001), "{answer:?}");
        ensure!(answer.original == Some(to.parse()?), "{answer:?}");
    }
    // The proxy's own call to its pod comes in.
    let inward = host.dial(Some(pod), PROXY, "10.1.0.2:8080")?.context("somebody answers")?;
    ensure!(inward.port == 15006, "{inward:?}");
    Ok(())
}

fn pods(host: &Host) -> Result<usize> {
    node(&host.namespace, |node| Ok(node.pods()?.len()))
}

/// Verify that a pod is enrolled by ADD, looked at by CHECK, and leaves by DEL, by name and by
/// `auto`, without a rule or a program that is run; a second time changes nothing.
#[test]
fn a_pods_life() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    load(&host.namespace)?;
    for backend in ["ebpf", "auto"] {
        let pod = pod(&host)?;
        let call = add(&host, &pod, backend, &[]);
        let line = last(&call, &host)?;
        ensure!(line["by"] == "eBPF" && line["changed"] == true, "{backend}: {line}");
        ensure!(line["processes"] == 0, "{backend}: {line}");
        ensure!(last(&call, &host)?["changed"] == false, "{backend}");
        captured(&host, &pod)?;
        ensure!(host.rules(&pod)?.is_empty(), "{backend}: {}", host.rules(&pod)?);
        call.clone().to("CHECK").run(&host)?.success()?;
        let ports = ("traffic.sidecar.istio.io/excludeOutboundPorts", "81");
        add(&host, &pod, backend, &[ports]).to("CHECK").run(&host)?.failure(101)?;
        ensure!(pods(&host)? == 1, "{backend}");
        let line = last(&call.clone().to("DEL"), &host)?;
        ensure!(line["removed"] == true, "{backend}: {line}");
        ensure!(pods(&host)? == 0, "{backend}");
        if backend == "ebpf" {
            call.to("CHECK").run(&host)?.failure(101)?;
        }
    }
    Ok(())
}

/// Verify that a pod which eBPF captures is captured by rules alone once the setting says so: its
/// entry is gone, also where the namespace's rules are as desired already.
#[test]
fn rules_replace_an_entry() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    load(&host.namespace)?;
    for backend in ["nftables", "iptables"] {
        let pod = pod(&host)?;
        ensure!(last(&add(&host, &pod, "ebpf", &[]), &host)?["by"] == "eBPF");
        ensure!(pods(&host)? == 1, "{backend}");
        let call = add(&host, &pod, backend, &[]);
        let reply = call.clone().to("CHECK").run(&host)?;
        let missed = reply.failure(101)?;
        ensure!(missed.contains("eBPF captures it"), "{backend}: {missed}");
        ensure!(last(&call, &host)?["by"] != "eBPF", "{backend}");
        ensure!(pods(&host)? == 0, "{backend}: captured twice");
        captured(&host, &pod)?;
        call.clone().to("CHECK").run(&host)?.success()?;
        ensure!(last(&call.to("DEL"), &host)?["removed"] == true, "{backend}");
    }
    Ok(())
}

/// Verify that without programs `auto` writes rules and `ebpf` refuses the pod, and that what the
/// programs can't do is refused with the reason, or done by rules.
#[test]
fn what_can_not_be_done() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    mount_bpffs(&host.namespace)?;
    let first = pod(&host)?;
    add(&host, &first, "ebpf", &[]).to("STATUS").run(&host)?.failure(50)?;
    let reply = add(&host, &first, "ebpf", &[]).run(&host)?;
    let error = reply.failure(100)?;
    ensure!(error.contains("node-bpf load"), "{error}");
    ensure!(last(&add(&host, &first, "auto", &[]), &host)?["by"] != "eBPF");
    load(&host.namespace)?;
    add(&host, &first, "ebpf", &[]).to("STATUS").run(&host)?.success()?;
    // What is captured by rules stays so.
    ensure!(last(&add(&host, &first, "auto", &[]), &host)?["by"] != "eBPF");
    ensure!(pods(&host)? == 0);
    let second = pod(&host)?;
    let tproxy = [("sidecar.istio.io/interceptionMode", "TPROXY")];
    let error = add(&host, &second, "ebpf", &tproxy).run(&host)?.failure(100)?;
    ensure!(error.contains("inbound mode tproxy"), "{error}");
    let reply = add(&host, &second, "auto", &tproxy).run(&host)?;
    reply.success()?;
    let by = reply.lines()?.pop().context("a line")?["by"].clone();
    ensure!(by != "eBPF" && reply.log.contains("inbound mode tproxy"), "{}", reply.log);
    ensure!(pods(&host)? == 0);
    // What is captured by eBPF stays so as well.
    let third = pod(&host)?;
    ensure!(last(&add(&host, &third, "auto", &[]), &host)?["by"] == "eBPF");
    let error = add(&host, &third, "auto", &tproxy).run(&host)?.failure(100)?;
    ensure!(error.contains("inbound mode tproxy"), "{error}");
    ensure!(pods(&host)? == 1 && host.rules(&third)?.is_empty(), "it is captured twice");
    Ok(())
}

/// Verify that entries of pods that are gone without DEL go with GC and with the DEL of any pod.
#[test]
fn gone_without_del() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    load(&host.namespace)?;
    for word in ["GC", "DEL"] {
        let (gone, other) = (pod(&host)?, pod(&host)?);
        add(&host, &gone, "ebpf", &[]).run(&host)?.success()?;
        add(&host, &other, "ebpf", &[]).run(&host)?.success()?;
        host.remove(&gone)?;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            // The kernel takes a namespace apart on its own time.
            let valid = json!([{ "containerID": other.id, "ifname": "eth0" }]);
            let pod = if word == "GC" { &other } else { &gone };
            let call = add(&host, pod, "ebpf", &[]).to(word);
            call.with_key("cni.dev/valid-attachments", valid).run(&host)?.success()?;
            if pods(&host)? == 1 {
                break;
            }
            ensure!(std::time::Instant::now() < end, "{word}: the entry is still there");
        }
        captured(&host, &other)?;
        add(&host, &other, "ebpf", &[]).to("DEL").run(&host)?.success()?;
        ensure!(pods(&host)? == 0, "{word}");
    }
    Ok(())
}

/// Verify that a lock of the programs' folder that somebody holds ends ADD at its deadline with a code
/// that has it tried again, and keeps neither DEL nor the pod's rules.
#[test]
fn a_lock_that_is_held() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    load(&host.namespace)?;
    let pod = pod(&host)?;
    let held = host.namespace.enter(|| -> Result<Flock<File>> {
        let folder = File::open(FOLDER)?;
        Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
    })??;
    for backend in ["ebpf", "auto"] {
        let call = add(&host, &pod, backend, &[]).with_key("deadline", json!("1s"));
        let error = call.run(&host)?.failure(11)?;
        ensure!(error.contains("did not end in time"), "{backend}: {error}");
        let reply = call.to("DEL").run(&host)?;
        reply.success()?;
        ensure!(reply.log.contains("did not end in time"), "{}", reply.log);
    }
    drop(held);
    ensure!(last(&add(&host, &pod, "auto", &[]), &host)?["by"] == "eBPF", "it is free");
    Ok(())
}

/// Verify that a pod that rules capture because the programs are missing, where the entry says that the
/// node has them, is told of with a warning; and none where it doesn't.
#[test]
fn programs_that_are_missing_are_told_of() -> Result<()> {
    let host = Host::new()?;
    mount_bpffs(&host.namespace)?;
    let pod = pod(&host)?;
    let warning = "the node's eBPF programs are not loaded";
    let warned = |call: &Call| -> Result<bool> {
        let reply = call.run(&host)?;
        reply.success()?;
        let told = |line: &Value| {
            line["level"] == "warn" && line["msg"].as_str().is_some_and(|m| m.contains(warning))
        };
        Ok(reply.lines()?.iter().any(told))
    };
    let call = add(&host, &pod, "auto", &[]);
    ensure!(warned(&call)?, "the backend is named");
    ensure!(warned(&call.clone().without_key("backend"))?, "the folder is named");
    let call = call.without_key("bpffs");
    ensure!(warned(&call)?, "the backend is named");
    ensure!(!warned(&call.without_key("backend"))?, "nobody expects eBPF");
    // As after a start of the machine with notes that outlive it.
    let _cgroup = Cgroup::enter()?;
    load_with(&host.namespace, &options()?)?;
    let (before, after) = (self::pod(&host)?, self::pod(&host)?);
    let call = add(&host, &before, "ebpf", &[]);
    ensure!(last(&call, &host)?["by"] == "eBPF");
    call.to("DEL").run(&host)?.success()?;
    host.namespace.run("umount", &["-l", MOUNT])?;
    let call = add(&host, &after, "auto", &[]).without_key("backend").without_key("bpffs");
    ensure!(warned(&call)?, "eBPF has captured here");
    Ok(())
}

/// Verify that a pod of Linkerd is captured by eBPF, as Linkerd captures, and by nothing else.
#[test]
fn a_pod_of_linkerd() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    load(&host.namespace)?;
    let api = Api::start(&host)?;
    let pod = pod(&host)?;
    let spec = json!({ "containers": [{ "name": "linkerd-proxy" }, { "name": "app" }] });
    api.put_pod("shop", &pod.name, &pod.uid(), &json!({ "spec": spec }));
    let call = |backend: &str| -> Result<Call> {
        let settings = json!({
            "incoming-proxy-port": 15006,
            "outgoing-proxy-port": 15001,
            "proxy-uid": PROXY.uid,
            "subnets-to-ignore": ["192.0.2.0/24"],
        });
        let call = Call::new(&host, "ADD", &pod, json!({})).with_key("linkerd", settings);
        let call = call.with_key("kubeconfig", json!(api.kubeconfig("127.0.0.1")?));
        Ok(call.with_key("backend", json!(backend)).with_key("bpffs", json!(FOLDER)))
    };
    for backend in ["ebpf", "auto"] {
        call(backend)?.run(&host)?.success()?;
        ensure!(host.rules(&pod)?.is_empty() && pods(&host)? == 1, "{backend}");
        let proxy = host.proxy(&pod)?;
        for to in ["10.1.0.9:80", "[fd01::9]:80"] {
            let answer = host.dial(Some(&pod), APP, to)?.context("somebody answers")?;
            ensure!((answer.name.as_str(), answer.port) == ("proxy", 15001), "{answer:?}");
            ensure!(answer.original == Some(to.parse()?), "{answer:?}");
        }
        // The proxy's own call to its pod is left alone, and nobody else listens there.
        ensure!(host.dial(Some(&pod), PROXY, "10.1.0.2:8080")?.is_none(), "{backend}");
        drop(proxy);
        call(backend)?.to("CHECK").run(&host)?.success()?;
        call(backend)?.to("DEL").run(&host)?.success()?;
        ensure!(pods(&host)? == 0, "{backend}");
    }
    Ok(())
}

/// Verify that DEL of a pod that is gone leaves the entry of the one that its path leads to by now, where
/// that one is noted and where nobody is.
#[test]
fn a_path_that_leads_to_another_pod() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    load(&host.namespace)?;
    let (gone, other) = (host.pod()?, pod(&host)?);
    let call = add(&host, &other, "ebpf", &[]);
    call.run(&host)?.success()?;
    let previous = json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.1.0.7/24" }] });
    let del = call.clone().to("DEL").with_env("CNI_CONTAINERID", &gone.id);
    let del = del.with_key("prevResult", previous);
    for noted in [true, false] {
        if !noted {
            std::fs::remove_dir_all(host.state_dir())?;
        }
        ensure!(last(&del, &host)?["removed"] != true && pods(&host)? == 1, "{noted}");
        call.clone().to("CHECK").run(&host)?.success()?;
    }
    let own = json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.1.0.2/24" }] });
    last(&call.to("DEL").with_key("prevResult", own), &host)?;
    ensure!(pods(&host)? == 0);
    Ok(())
}
