//! Millrace behind the reference plugins of Debian's containernetworking-plugins, called as libcni
//! calls them: what the pods' traffic then does, and what is left of it.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Host, List, Pod, mesh};
use millrace_tests::process::dial;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{APP, PROXY, ROOT};
use millrace_tests::wire::{Dial, Outcome, Proto};
use serde_json::{Value, json};

/// What Debian's plugins, of 1.1.1, speak.
const VERSIONS: [&str; 4] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0"];

/// An address with a port.
fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Verify that a pod's connections meet the proxy in both families and both directions, with the
/// destination that they had, and that the proxy's own don't.
fn is_captured(host: &Host, pod: &Pod, addresses: &[String], outside: [&str; 2]) -> Result<()> {
    let _proxy = host.proxy(pod)?;
    for (address, outside) in addresses.iter().zip(outside) {
        let _app = host.serve(Some(pod), "app", &at(address, 8080))?;
        let _service = host.serve(None, "service", &at(outside, 80))?;
        let out = host.dial(Some(pod), APP, &at(outside, 80))?.context("outbound")?;
        assert_eq!((out.name.as_str(), out.port), ("proxy", 15001), "{out:?}");
        assert_eq!(out.original, Some(at(outside, 80).parse()?), "{out:?}");
        let own = host.dial(Some(pod), PROXY, &at(outside, 80))?.context("the proxy's own")?;
        assert_eq!(own.name, "service", "{own:?}");
        let inbound = host.dial(None, ROOT, &at(address, 8080))?.context("inbound")?;
        assert_eq!((inbound.name.as_str(), inbound.port), ("proxy", 15006), "{inbound:?}");
        assert_eq!(inbound.original, Some(at(address, 8080).parse()?), "{inbound:?}");
    }
    Ok(())
}

/// Verify that nothing of a pod's traffic is touched.
fn is_left_alone(host: &Host, pod: &Pod, addresses: &[String], outside: [&str; 2]) -> Result<()> {
    for (address, outside) in addresses.iter().zip(outside) {
        let _app = host.serve(Some(pod), "app", &at(address, 8080))?;
        let _service = host.serve(None, "service", &at(outside, 80))?;
        let out = host.dial(Some(pod), APP, &at(outside, 80))?.context("outbound")?;
        assert_eq!(out.name, "service", "{out:?}");
        let inbound = host.dial(None, ROOT, &at(address, 8080))?.context("inbound")?;
        assert_eq!(inbound.name, "app", "{inbound:?}");
    }
    ensure!(!host.rules(pod)?.contains("millrace"));
    Ok(())
}

/// A host whose own addresses stand for services that are elsewhere.
fn host_with_services() -> Result<(Host, [&'static str; 2])> {
    let host = Host::new()?;
    host.namespace.ip("addr add 198.51.100.7/32 dev lo\naddr add 2001:db8::7/128 dev lo nodad")?;
    let open = "net.ipv4.ip_unprivileged_port_start=0";
    host.namespace.run("sysctl", &["-qw", open])?;
    Ok((host, ["198.51.100.7", "2001:db8::7"]))
}

/// Verify the whole life of a mesh pod and of a plain one, in every version, behind a plugin.
fn life(list: impl Fn(&Host, &str, u8) -> List) -> Result<()> {
    let (host, outside) = host_with_services()?;
    for (subnet, version) in (10..).zip(VERSIONS) {
        let list = list(&host, version, subnet);
        for meshed in [true, false] {
            let pod = host.pod()?;
            let before = host.inside(&pod, Snapshot::take)?;
            let annotations = if meshed { mesh(&[]) } else { json!({ "a": "b" }) };
            let added = list.add(&host, &pod, annotations)?;
            assert_eq!(added.result["cniVersion"], version);
            // Exactly what the plugin before said: addresses, routes, interfaces.
            let interfaces = added.result["interfaces"].as_array().context("interfaces")?;
            ensure!(interfaces.iter().any(|i| i["name"] == "eth0"), "{}", added.result);
            let addresses = [List::address(&added, false)?, List::address(&added, true)?];
            if version != "0.3.0" && version != "0.3.1" {
                list.check(&host, &pod, &added)?;
            }
            if meshed {
                is_captured(&host, &pod, &addresses, outside)?;
            } else {
                is_left_alone(&host, &pod, &addresses, outside)?;
            }
            list.delete(&host, &pod, Some(&added))?;
            list.delete(&host, &pod, None)?;
            let after = host.inside(&pod, Snapshot::take)?;
            assert_eq!(before.differences(&after), "", "{version}");
            host.remove(&pod)?;
            list.delete(&host, &pod, None)?;
        }
    }
    ensure!(!host.has_notes()?, "notes are left");
    Ok(())
}

#[test]
fn behind_bridge_and_host_local() -> Result<()> {
    life(List::bridge)
}

#[test]
fn behind_ptp_and_host_local() -> Result<()> {
    life(List::ptp)
}

/// Debian's `loopback` plugin, which runtimes call for a pod beside the network's list.
fn loopback(host: &Host, pod: &Pod, command: &str) -> Result<()> {
    let config = json!({ "cniVersion": "1.0.0", "name": "lo", "type": "loopback" });
    let mut plugin = Command::new("/usr/lib/cni/loopback");
    plugin.env_clear().env("CNI_COMMAND", command).env("CNI_CONTAINERID", &pod.id);
    plugin.env("CNI_NETNS", &pod.netns).env("CNI_IFNAME", "lo").env("CNI_PATH", "/usr/lib/cni");
    plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = host.namespace.enter(|| plugin.spawn())?.context("the plugin loopback")?;
    child.stdin.take().context("a pipe")?.write_all(config.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "loopback {command}: {output:?}");
    Ok(())
}

/// Verify that the plugin `loopback` and ours don't make each other fail, in whatever order they are
/// called, and that the proxy can pass IPv6 connections on: also where new interfaces are to have no
/// IPv6.
#[test]
fn the_loopback_plugin_may_be_called_at_any_moment() -> Result<()> {
    let (host, outside) = host_with_services()?;
    let list = List::bridge(&host, "1.0.0", 50);
    for moment in ["before", "meanwhile", "afterwards", "without IPv6 by default"] {
        let pod = host.pod()?;
        if moment == "without IPv6 by default" {
            let off = "net.ipv6.conf.default.disable_ipv6=1";
            host.inside(&pod, |inside| inside.run("sysctl", &["-qw", off]))?;
        }
        let before = host.inside(&pod, Snapshot::take)?;
        if moment == "before" {
            loopback(&host, &pod, "ADD")?;
        }
        let added = thread::scope(|scope| {
            let adding = scope.spawn(|| list.add(&host, &pod, mesh(&[])));
            while moment == "meanwhile" && !adding.is_finished() {
                loopback(&host, &pod, "ADD")?;
            }
            adding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .context(moment)?;
        loopback(&host, &pod, "ADD").context(moment)?;
        loopback(&host, &pod, "CHECK").context(moment)?;
        list.check(&host, &pod, &added).context(moment)?;
        let addresses = [List::address(&added, false)?, List::address(&added, true)?];
        is_captured(&host, &pod, &addresses, outside).context(moment)?;
        let app = at(&addresses[1], 8080);
        let _app = host.serve(Some(&pod), "app", &app)?;
        let passed = Dial {
            identity: PROXY,
            proto: Proto::Tcp,
            from: Some("::6".parse()?),
            from_port: None,
            transparent_mark: None,
            to: app.parse()?,
            timeout_ms: 5000,
        };
        let outcome = host.inside(&pod, |inside| dial(inside, &passed))?;
        ensure!(
            matches!(&outcome, Outcome::Answered { answer, .. }
                if answer.name == "app" && Some(answer.peer.ip()) == passed.from),
            "{moment}: {outcome:?}"
        );
        let from = host.dial(Some(&pod), ROOT, &app)?.context("the application's own")?;
        assert_eq!(from.peer.ip().to_string(), addresses[1], "::6 is nobody's first choice");
        list.check(&host, &pod, &added).context(moment)?;
        list.delete(&host, &pod, Some(&added))?;
        let after = host.inside(&pod, Snapshot::take)?;
        assert_eq!(before.differences(&after), "", "{moment}");
    }
    Ok(())
}

/// Verify that twenty pods at once are each captured, and that all are deleted at once.
#[test]
fn twenty_pods_at_once() -> Result<()> {
    let host = Host::new()?;
    let list = List::bridge(&host, "1.0.0", 20);
    let pods: Vec<Pod> = (0..20).map(|_| host.pod()).collect::<Result<_>>()?;
    let run = |f: &(dyn Fn(&Pod) -> Result<()> + Sync)| -> Result<()> {
        // The first one settles the bridge's own MAC, which that plugin's CHECK goes by: until then each
        // new port may change it.
        let (first, others) = pods.split_first().context("pods")?;
        f(first)?;
        thread::scope(|scope| {
            let threads: Vec<_> = others.iter().map(|pod| scope.spawn(move || f(pod))).collect();
            threads
                .into_iter()
                .try_for_each(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
        })
    };
    run(&|pod| {
        let added = list.add(&host, pod, mesh(&[]))?;
        list.check(&host, pod, &added)
    })?;
    for pod in &pods {
        ensure!(host.rules(pod)?.contains("table inet millrace"), "{}", pod.name);
    }
    assert_eq!(host.state_dir().read_dir()?.count(), 20);
    run(&|pod| list.delete(&host, pod, None))?;
    for pod in &pods {
        ensure!(!host.rules(pod)?.contains("millrace"), "{}", pod.name);
    }
    ensure!(!host.has_notes()?, "notes are left");
    Ok(())
}

/// Verify that an ADD that fails behind a bridge leaves nothing of Millrace, and that the DEL of
/// the whole list, which runtimes do next, has all the rest undone.
#[test]
fn a_failing_add_leaves_nothing() -> Result<()> {
    let host = Host::new()?;
    let list = List::bridge(&host, "1.0.0", 30);
    let pod = host.pod()?;
    let before = host.inside(&pod, Snapshot::take)?;
    let bad = mesh(&[("traffic.sidecar.istio.io/includeInboundPorts", "80;drop")]);
    let error = format!("{:#}", list.add(&host, &pod, bad).unwrap_err());
    for part in ["\\\"code\\\":102", "includeInboundPorts", "80;drop", &pod.name] {
        ensure!(error.contains(part), "{part}: {error}");
    }
    ensure!(!host.rules(&pod)?.contains("millrace"));
    list.delete(&host, &pod, None)?;
    let after = host.inside(&pod, Snapshot::take)?;
    assert_eq!(before.differences(&after), "");
    Ok(())
}

/// Verify that a pod on two networks stays captured until it is on none.
#[test]
fn a_pod_on_two_networks_is_captured_until_the_last_is_gone() -> Result<()> {
    let host = Host::new()?;
    let one = List::bridge(&host, "1.0.0", 40);
    let mut two = one.clone();
    "other".clone_into(&mut two.name);
    let own = |list: &List, command: &str, pod: &Pod| -> Result<Value> {
        let told = json!({ millrace_tests::cni::POD_ANNOTATIONS: mesh(&[]) });
        let told = told.as_object().context("an object")?;
        let result = json!({ "cniVersion": "1.0.0" });
        list.call(&host, command, list.own()?, Some(pod), told, Some(&result))?.success()
    };
    let pod = host.pod()?;
    let added = one.add(&host, &pod, mesh(&[]))?;
    own(&two, "ADD", &pod)?;
    own(&two, "DEL", &pod)?;
    ensure!(host.rules(&pod)?.contains("table inet millrace"));
    one.check(&host, &pod, &added)?;
    own(&two, "ADD", &pod)?;
    one.delete(&host, &pod, Some(&added))?;
    own(&two, "CHECK", &pod)?;
    own(&two, "DEL", &pod)?;
    ensure!(!host.rules(&pod)?.contains("millrace"));
    Ok(())
}
