//! Containers that podman runs with its CNI backend: they are no pods of Kubernetes, and captured
//! when the network's configuration says so.

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Host, List, Podman, mesh};
use millrace_tests::ebpf::{Cgroup, FOLDER, load, node};
use millrace_tests::topology::ROOT;
use millrace_tests::wire::{Answer, Identity};
use serde_json::json;

/// Verify that a container on a network whose entry says so is captured, and one on another is
/// not; that its traffic meets its proxy; and that nothing is left when it is removed.
#[test]
fn containers_on_networks() -> Result<()> {
    let host = Host::new()?;
    host.namespace.ip("addr add 198.51.100.7/32 dev lo")?;
    host.namespace.run("sysctl", &["-qw", "net.ipv4.ip_unprivileged_port_start=0"])?;
    let mut meshed = List::bridge(&host, "0.4.0", 60);
    "meshed".clone_into(&mut meshed.name);
    let mut plain = List::bridge(&host, "0.4.0", 61);
    "plain".clone_into(&mut plain.name);
    let index = meshed.plugins.len() - 1;
    meshed.plugins[index]["annotations"] = mesh(&[]);
    let podman = Podman::new(&host, &[&meshed, &plain])?;
    let _service = host.serve(None, "service", "198.51.100.7:80")?;
    let dial = |container: &str, user: &str| -> Result<Answer> {
        let text = podman.run(&[
            "exec",
            "--user",
            user,
            container,
            "/bin/nc",
            "-w",
            "5",
            "198.51.100.7",
            "80",
        ])?;
        serde_json::from_str(&text).with_context(|| text)
    };
    let one = podman.start("one", "meshed")?;
    let two = podman.start("two", "plain")?;
    ensure!(host.rules(&one)?.contains("table inet millrace"));
    ensure!(!host.rules(&two)?.contains("millrace"));
    let proxy = host.proxy(&one)?;
    let out = dial("one", "1000:1000")?;
    assert_eq!((out.name.as_str(), out.port), ("proxy", 15001), "{out:?}");
    assert_eq!(out.original, Some("198.51.100.7:80".parse()?), "{out:?}");
    assert_eq!(dial("one", "1337:1337")?.name, "service");
    assert_eq!(dial("two", "1000:1000")?.name, "service");
    let address = ["inspect", "--format", "{{.NetworkSettings.Networks.meshed.IPAddress}}", "one"];
    let address = format!("{}:8080", podman.run(&address)?);
    let inbound = host.dial(None, ROOT, &address)?.context("inbound")?;
    assert_eq!((inbound.name.as_str(), inbound.port), ("proxy", 15006), "{inbound:?}");
    assert_eq!(inbound.original, Some(address.parse()?), "{inbound:?}");
    drop(proxy);
    for name in ["one", "two"] {
        podman.run(&["rm", "--force", "--time", "0", name])?;
    }
    ensure!(!host.has_notes()?, "notes are left");
    Ok(())
}

/// Verify that podman shows why a container is not started, and that none is.
#[test]
fn a_failing_add_is_shown() -> Result<()> {
    let host = Host::new()?;
    let mut list = List::bridge(&host, "0.4.0", 62);
    let name = "traffic.sidecar.istio.io/includeInboundPorts";
    let index = list.plugins.len() - 1;
    list.plugins[index]["annotations"] = mesh(&[(name, "http")]);
    "broken".clone_into(&mut list.name);
    let podman = Podman::new(&host, &[&list])?;
    let error = format!("{:#}", podman.start("three", "broken").unwrap_err());
    ensure!(error.contains(name) && error.contains("http"), "{error}");
    assert_eq!(podman.run(&["ps", "--quiet"])?, "");
    Ok(())
}

/// Verify that a container with users of its own is captured by its own ids, with each backend, looked at, and
/// left as it was.
#[test]
fn containers_with_users_of_their_own() -> Result<()> {
    const FIRST: u32 = 200_000;
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    host.namespace.ip("addr add 198.51.100.7/32 dev lo")?;
    load(&host.namespace)?;
    let _service = host.serve(None, "service", "198.51.100.7:80")?;
    let backends = ["nftables", "iptables", "ebpf", "auto"];
    let lists = backends.iter().zip(63..).map(|(backend, subnet)| {
        let mut list = List::bridge(&host, "0.4.0", subnet);
        (*backend).clone_into(&mut list.name);
        if let Some(entry) = list.plugins.last_mut() {
            entry["annotations"] = mesh(&[]);
            entry["backend"] = json!(backend);
            entry["bpffs"] = json!(FOLDER);
        }
        list
    });
    let lists: Vec<List> = lists.collect();
    let podman = Podman::new(&host, &lists.iter().collect::<Vec<_>>())?;
    for backend in backends {
        let container = podman.start_among(backend, backend, FIRST)?;
        let pods = node(&host.namespace, |node| Ok(node.pods()?.len()))?;
        ensure!((pods == 1) == matches!(backend, "ebpf" | "auto"), "{backend}: {pods} by eBPF");
        let proxy = host.proxy(&container)?;
        for (id, who) in [(1000, "proxy"), (1337, "service")] {
            let identity = Identity { uid: FIRST + id, gid: FIRST + id };
            let answer = host.dial(Some(&container), identity, "198.51.100.7:80")?;
            let answer = answer.context("somebody answers")?;
            ensure!(answer.name == who, "{backend}: user {id}: {answer:?}");
        }
        drop(proxy);
        podman.run(&["rm", "--force", "--time", "0", backend])?;
        ensure!(node(&host.namespace, |node| Ok(node.pods()?.len()))? == 0, "{backend}");
    }
    ensure!(!host.has_notes()?, "notes are left");
    Ok(())
}
