//! Pods that containerd runs: what their containers' traffic does, and what is left when
//! something fails.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::cni::{Call, Containerd, Host, List, Sandbox, mesh};
use millrace_tests::ebpf::{self, Cgroup, FOLDER, load};
use millrace_tests::topology::ROOT;
use millrace_tests::wire::Answer;
use serde_json::{Value, json};

const SERVICES: [&str; 2] = ["198.51.100.7", "2001:db8::7"];

fn node(subnet: u8) -> Result<(Host, List)> {
    let host = Host::new()?;
    host.namespace.ip("addr add 198.51.100.7/32 dev lo\naddr add 2001:db8::7/128 dev lo nodad")?;
    host.namespace.run("sysctl", &["-qw", "net.ipv4.ip_unprivileged_port_start=0"])?;
    let list = List::bridge(&host, "1.0.0", subnet);
    Ok((host, list))
}

fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Connect from a container with its own tools.
fn dial(containerd: &Containerd, container: &str, address: &str, port: u16) -> Result<Answer> {
    let text = containerd.exec(container, &["nc", "-w", "5", address, &port.to_string()])?;
    serde_json::from_str(&text).with_context(|| text)
}

fn is_captured(host: &Host, sandbox: &Sandbox) -> Result<bool> {
    Ok(host.rules(&sandbox.pod)?.contains("table inet millrace"))
}

/// Verify that a mesh pod's traffic meets its proxy with the destination that it had, in both
/// families and directions, that the proxy's own does not, and that a plain pod's is left alone.
#[test]
fn traffic_of_containers() -> Result<()> {
    let (host, list) = node(50)?;
    let containerd = Containerd::start(&host, &list)?;
    let _services: Vec<_> = SERVICES
        .iter()
        .map(|address| host.serve(None, "service", &at(address, 80)))
        .collect::<Result<_>>()?;
    let meshed = containerd.run_pod("meshed", &mesh(&[]))?;
    let plain = containerd.run_pod("plain", &json!({ "a": "b" }))?;
    ensure!(is_captured(&host, &meshed)? && !is_captured(&host, &plain)?);
    assert_eq!(meshed.addresses.len(), 2);
    let _proxy = host.proxy(&meshed.pod)?;
    let app = containerd.run_container(&meshed, "app", 1000)?;
    let proxy = containerd.run_container(&meshed, "proxy", 1337)?;
    let other = containerd.run_container(&plain, "app", 1000)?;
    for (address, own) in SERVICES.iter().zip(&meshed.addresses) {
        let out = dial(&containerd, &app, address, 80)?;
        assert_eq!((out.name.as_str(), out.port), ("proxy", 15001), "{out:?}");
        assert_eq!(out.original, Some(at(address, 80).parse()?), "{out:?}");
        assert_eq!(dial(&containerd, &proxy, address, 80)?.name, "service");
        let direct = dial(&containerd, &other, address, 80)?;
        assert_eq!(direct.name, "service", "{direct:?}");
        let inbound = host.dial(None, ROOT, &at(own, 8080))?.context("inbound")?;
        assert_eq!((inbound.name.as_str(), inbound.port), ("proxy", 15006), "{inbound:?}");
        assert_eq!(inbound.original, Some(at(own, 8080).parse()?), "{inbound:?}");
    }
    for id in containerd.pods()? {
        containerd.remove_pod(&id)?;
    }
    ensure!(containerd.pods()?.is_empty());
    ensure!(!host.has_notes()?, "notes are left");
    Ok(())
}

/// Verify that the kubelet learns from a failing ADD what to do, and that nothing is left of it.
#[test]
fn a_failing_add_leaves_nothing() -> Result<()> {
    let (host, list) = node(51)?;
    let containerd = Containerd::start(&host, &list)?;
    let name = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    let error = containerd.run_pod("bad", &mesh(&[(name, "10.0.0.0/99")])).unwrap_err();
    let error = format!("{error:#}");
    for part in [name, "10.0.0.0/99", "pod shop/bad"] {
        ensure!(error.contains(part), "{part}: {error}");
    }
    ensure!(containerd.pods()?.is_empty());
    let left = host.namespace.run("ls", &["/run/netns"])?;
    assert_eq!(left, "");
    ensure!(!host.state_dir().exists() || host.state_dir().read_dir()?.next().is_none());
    // The same pod, corrected.
    let good = containerd.run_pod("bad", &mesh(&[(name, "10.0.0.0/9")]))?;
    ensure!(is_captured(&host, &good)?);
    containerd.remove_pod(&good.pod.id)
}

/// Verify that pods outlive the plugin's removal from the list: they stay captured, and can be
/// deleted; later ones are not captured.
#[test]
fn the_plugin_is_removed_from_the_list() -> Result<()> {
    let (host, list) = node(52)?;
    let containerd = Containerd::start(&host, &list)?;
    let before = containerd.run_pod("before", &mesh(&[]))?;
    let mut without = list.clone();
    without.plugins.retain(|plugin| plugin["type"] != "millrace-cni");
    containerd.change_list(&without)?;
    let began = Instant::now();
    let after = loop {
        let after = containerd.run_pod("after", &mesh(&[]))?;
        if !is_captured(&host, &after)? {
            break after;
        }
        // The list is read when containerd's watch of the folder tells of it.
        ensure!(began.elapsed() < Duration::from_secs(30), "the new list is never read");
        containerd.remove_pod(&after.pod.id)?;
    };
    ensure!(is_captured(&host, &before)?);
    containerd.remove_pod(&before.pod.id)?;
    containerd.remove_pod(&after.pod.id)?;
    ensure!(containerd.pods()?.is_empty());
    // Its DEL was never called: GC forgets the pod.
    assert_eq!(host.state_dir().read_dir()?.count(), 1);
    let mut newer = list;
    "1.1.0".clone_into(&mut newer.version);
    newer.collect(&host, Value::Null)?.success()?;
    ensure!(!host.has_notes()?, "notes are left");
    Ok(())
}

/// Verify that an ADD that waits for somebody who never answers ends when the runtime's time is
/// up, at once and with nothing left; and at its own deadline, with its reason.
#[test]
fn deadlines() -> Result<()> {
    let (host, mut list) = node(53)?;
    let socket = host.folder().join("agent.sock");
    // It listens, and never answers.
    let _agent = std::os::unix::net::UnixListener::bind(&socket)?;
    let index = list.plugins.len() - 1;
    list.plugins[index]["agent_socket"] = json!(socket);
    list.plugins[index]["deadline"] = json!("1500ms");
    let unclear = json!({ "sidecar.istio.io/status": "{}" });
    let containerd = Containerd::start(&host, &list)?;
    let began = Instant::now();
    let error = format!("{:#}", containerd.run_pod("slow", &unclear).unwrap_err());
    ensure!(error.contains("may be in the mesh") && error.contains("no answer in time"), "{error}");
    ensure!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let began = Instant::now();
    let limit = Duration::from_millis(700);
    containerd.run_pod_within("slower", &unclear, limit).unwrap_err();
    ensure!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for _ in 0..100 {
        let left = host.namespace.run("ls", &["/run/netns"])?;
        if left.is_empty() && containerd.pods()?.is_empty() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("something is left: {}", host.namespace.run("ls", &["/run/netns"])?)
}

/// Verify that twenty pods at once are all captured, without a process of the plugin's own, and
/// deleted.
#[test]
fn twenty_pods_at_once() -> Result<()> {
    let (host, list) = node(54)?;
    let containerd = Containerd::start(&host, &list)?;
    let names: Vec<String> = (0..20).map(|number| format!("pod-{number}")).collect();
    let pods = containerd.run_pods(&names, &mesh(&[]))?;
    for sandbox in &pods {
        ensure!(is_captured(&host, sandbox)?, "{}", sandbox.pod.name);
    }
    assert_eq!(host.state_dir().read_dir()?.count(), 20);
    for sandbox in &pods {
        containerd.remove_pod(&sandbox.pod.id)?;
    }
    ensure!(!host.has_notes()?, "notes are left");
    Ok(())
}

/// Verify that a pod with users of its own starts under containerd 2 by each backend, is captured by its
/// own ids in both families and directions, passes CHECK, and that what is done to it by name is done
/// among its users.
#[test]
fn pods_with_users_of_their_own() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    for (backend, subnet) in ["nftables", "iptables", "ebpf", "auto"].into_iter().zip(55..) {
        users_of_their_own(backend, subnet).context(backend)?;
    }
    Ok(())
}

/// The first of the machine's users that are the pod's.
const FIRST_USER: u32 = 300_000;

fn users_of_their_own(backend: &str, subnet: u8) -> Result<()> {
    let (host, mut list) = node(subnet)?;
    load(&host.namespace)?;
    let entry = list.plugins.last_mut().context("the plugin's entry")?;
    entry["backend"] = json!(backend);
    entry["bpffs"] = json!(FOLDER);
    let containerd = Containerd::start_newer(&host, &list)?;
    let _services: Vec<_> = SERVICES
        .iter()
        .map(|address| host.serve(None, "service", &at(address, 80)))
        .collect::<Result<_>>()?;
    let pod = containerd.run_pod_with_users("users", &mesh(&[]), FIRST_USER)?;
    assert_eq!(pod.addresses.len(), 2);
    let rules = host.rules(&pod.pod)?;
    let enrolled = ebpf::node(&host.namespace, |node| Ok(node.pods()?.len()))?;
    match backend {
        "nftables" => ensure!(rules.contains("table inet millrace") && enrolled == 0, "{rules}"),
        "iptables" => ensure!(rules.contains("chain MILLRACE_OUTPUT") && enrolled == 0, "{rules}"),
        _ => ensure!(rules.is_empty() && enrolled == 1, "{enrolled} pods:\n{rules}"),
    }
    let _proxy = host.proxy(&pod.pod)?;
    let app = containerd.run_container(&pod, "app", 1000)?;
    let proxy = containerd.run_container(&pod, "proxy", 1337)?;
    let map = containerd.exec(&app, &["cat", "/proc/self/uid_map"])?;
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(words, ["0", &FIRST_USER.to_string(), "65536"]);
    let is_captured = |by: &str| -> Result<()> {
        for (address, own) in SERVICES.iter().zip(&pod.addresses) {
            let out = dial(&containerd, &app, address, 80)?;
            ensure!((out.name.as_str(), out.port) == ("proxy", 15001), "{by}: {out:?}");
            ensure!(out.original == Some(at(address, 80).parse()?), "{by}: {out:?}");
            let own_calls = dial(&containerd, &proxy, address, 80)?;
            ensure!(own_calls.name == "service", "{by}: {own_calls:?}");
            let inbound = host.dial(None, ROOT, &at(own, 8080))?.context("inbound")?;
            ensure!((inbound.name.as_str(), inbound.port) == ("proxy", 15006), "{by}: {inbound:?}");
            ensure!(inbound.original == Some(at(own, 8080).parse()?), "{by}: {inbound:?}");
        }
        Ok(())
    };
    is_captured("the plugin")?;
    let check = Call::new(&host, "CHECK", &pod.pod, mesh(&[])).with_key("backend", json!(backend));
    check.with_key("bpffs", json!(FOLDER)).run(&host)?.success()?;
    let endpoint = format!("unix://{}", containerd.socket().display());
    let by_hand = |words: &[&str]| -> Result<String> {
        let place = ["--pod", "shop/users", "--runtime-endpoint", &endpoint, "--bpffs", FOLDER];
        let words = [&words[..1], &place, &words[1..]].concat();
        let (code, said) = ran(&host.namespace, &mut millrace(words)?)?;
        ensure!(code == Some(0), "{said}");
        Ok(said)
    };
    by_hand(&["status"])?;
    for other in ["nftables", "iptables-nft"] {
        by_hand(&["apply", "--backend", other])?;
        by_hand(&["status"])?;
        is_captured(other)?;
    }
    let said = by_hand(&["explain", "--from", "uid=1337", "--to", "198.51.100.7:80"])?;
    ensure!(said.contains("leaves by eth0"), "{said}");
    containerd.remove_pod(&pod.pod.id)?;
    ensure!(containerd.pods()?.is_empty());
    ensure!(!host.has_notes()?, "notes are left");
    ensure!(ebpf::node(&host.namespace, |node| Ok(node.pods()?.is_empty()))?, "an entry is left");
    Ok(())
}
