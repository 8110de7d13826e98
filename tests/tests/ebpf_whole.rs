//! Each pin and attachment that decides: where one is gone, every command that looks at capture says
//! so, nothing is said to be as desired, and `node-bpf load` makes it whole.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, millrace_in_pod, ran};
use millrace_tests::cni::{Call, Host, Pod, Reply, mesh};
use millrace_tests::ebpf::{
    APPLY, Cgroup, FOLDER, captured, enrol, load, load_with, loaded, node, options,
};
use millrace_tests::netns::Namespace;
use millrace_tests::sys_bpf;
use millrace_tests::topology::{Stack, Topology};
use millrace_tests::wire::Answer;
use serde_json::json;

const STATUS: [&str; 5] = ["status", "--backend", "ebpf", "--bpffs", FOLDER];
const NODE: [&str; 4] = ["node-bpf", "status", "--bpffs", FOLDER];
const PATIENCE: Duration = Duration::from_secs(10);

/// Who answers.
fn answers(namespace: &Namespace, to: &str) -> Result<String> {
    let to: SocketAddr = to.parse()?;
    namespace.enter(|| -> Result<String> { Ok(Answer::of(to, PATIENCE)?.name) })?
}

/// Detach what is pinned, or take the pin away.
fn take(pin: &Path, detached: bool) -> io::Result<()> {
    if detached { sys_bpf::detach(pin) } else { fs::remove_file(pin) }
}

/// Both ways are the proxy's, and everybody says so.
fn is_whole(topology: &Topology) -> Result<()> {
    let out = answers(&topology.pod, "10.71.0.10:80").context("outbound")?;
    let inward = answers(&topology.outside, "10.70.0.2:8080").context("inbound")?;
    ensure!((out.as_str(), inward.as_str()) == ("proxy", "proxy"), "{out}, {inward}");
    millrace_in_pod(topology, &STATUS, 0)?;
    millrace_in_pod(topology, &NODE, 0).map(drop)
}

/// The pins in one of the folders.
fn pins(topology: &Topology, part: &str) -> Result<Vec<PathBuf>> {
    let folder = Path::new(FOLDER).join(part);
    topology.pod.enter(|| -> Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    })?
}

/// Somebody who is asked does not say that all is well, and names what is gone.
fn is_told(topology: &Topology, name: &str, args: &[&str]) -> Result<()> {
    let (code, said) = ran(&topology.pod, &mut millrace(args)?)?;
    ensure!(code != Some(0) && said.contains(name), "{name}: {args:?}: {code:?}: {said}");
    Ok(())
}

/// Verify that each map whose pin is gone is missed by all, that nobody makes another one in its
/// place, and that a load puts back the one that programs use, with all that it holds.
#[test]
fn every_map() -> Result<()> {
    let (_cgroup, topology) = captured(&["--exclude-outbound-ports", "9999"])?;
    let pins = pins(&topology, "maps")?;
    ensure!(pins.len() > 10, "{pins:?}");
    // Those are made again by each load, so that nothing is lost with their pins.
    let renewed =
        |pin: &PathBuf| ["LIMITS", "ROOM", "LATELY"].iter().any(|name| pin.ends_with(name));
    // Of this pod there is nothing in it: programs of earlier versions have none.
    let (more, pins): (Vec<_>, Vec<_>) = pins.into_iter().partition(|pin| pin.ends_with("MORE"));
    for pin in pins.into_iter().filter(|pin| !renewed(pin)) {
        let name = pin.file_name().and_then(|name| name.to_str()).context("a name")?;
        topology.pod.enter(|| fs::remove_file(&pin))??;
        for args in [&STATUS[..], &NODE, &APPLY] {
            is_told(&topology, name, args)?;
        }
        let inward = answers(&topology.outside, "10.70.0.2:8080");
        ensure!(inward.is_err() || inward.is_ok_and(|by| by == "proxy"), "{name}");
        let loaded = load_with(&topology.pod, &options()?)?;
        ensure!(loaded.restored == [name] && loaded.pods == 1, "{name}: {loaded:?}");
        is_whole(&topology).with_context(|| name.to_owned())?;
    }
    let of_consul = "-- consul connect redirect-traffic -proxy-uid=5995 -proxy-inbound-port=20000";
    let words: Vec<&str> = APPLY.into_iter().chain(of_consul.split(' ')).collect();
    millrace_in_pod(&topology, &words, 0)?;
    topology.pod.enter(|| fs::remove_file(&more[0]))??;
    is_told(&topology, "MORE", &STATUS)?;
    is_told(&topology, "MORE", &NODE)?;
    let loaded = load_with(&topology.pod, &options()?)?;
    ensure!(loaded.restored == ["MORE"], "{loaded:?}");
    millrace_in_pod(&topology, &STATUS, 0).map(drop)
}

/// Verify that each program at the cgroup that is unpinned or detached is missed by all, and that a
/// load attaches it.
#[test]
fn every_program() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    let pins = pins(&topology, "links")?;
    for pin in pins.iter().filter(|pin| !pin.ends_with("mr_idle")) {
        let name = pin.file_name().and_then(|name| name.to_str()).context("a name")?;
        for detached in [false, true] {
            topology.pod.enter(|| take(pin, detached))??;
            for args in [&STATUS[..], &NODE, &APPLY] {
                is_told(&topology, name, args)?;
            }
            let loaded = load_with(&topology.pod, &options()?)?;
            ensure!(loaded.attached == [name] && loaded.pods == 1, "{name}: {loaded:?}");
            is_whole(&topology).with_context(|| name.to_owned())?;
        }
    }
    Ok(())
}

/// Verify that a pod's own program that is unpinned, detached, or finds its pod no more is missed, and
/// that applying its configuration again captures what comes in; and that programs that have nothing
/// to go on with are missed.
#[test]
fn a_pods_own_program() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    let maps = Path::new(FOLDER).join("maps");
    for what in ["unpinned", "detached", "number"] {
        let pods = node(&topology.pod, |node| Ok(node.pods()?))?;
        let pod = pods.first().context("a pod")?;
        let pin = Path::new(FOLDER).join("pods").join(pod.cookie.to_string());
        topology.pod.enter(|| match what {
            "unpinned" => fs::remove_file(&pin),
            "detached" => sys_bpf::detach(&pin),
            _ => sys_bpf::delete(&maps.join("LOOKUPS"), &pod.pod.lookup.to_ne_bytes()),
        })??;
        is_told(&topology, "its program for inbound connections", &STATUS)?;
        let said = millrace_in_pod(&topology, &APPLY, 0)?;
        ensure!(said.contains("the pod's entry is replaced"), "{what}: {said}");
        is_whole(&topology).context(what)?;
    }
    topology.pod.enter(|| sys_bpf::delete(&maps.join("INBOUND"), &0_u32.to_ne_bytes()))??;
    for args in [&STATUS[..], &NODE, &APPLY] {
        is_told(&topology, "INBOUND", args)?;
    }
    load_with(&topology.pod, &options()?)?;
    is_whole(&topology)
}

fn call(host: &Host, pod: &Pod, word: &str) -> Call {
    let call = Call::new(host, word, pod, mesh(&[]));
    call.with_key("backend", json!("ebpf")).with_key("bpffs", json!(FOLDER))
}

/// Verify that the CNI plugin misses a map's pin and an attachment with ADD, CHECK and STATUS.
#[test]
fn the_plugin_misses_them() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    load(&host.namespace)?;
    let pod = host.pod()?;
    call(&host, &pod, "ADD").run(&host)?.success()?;
    let pin = |name: &str| Path::new(FOLDER).join(name);
    for (name, detached) in [
        ("maps/LOOKUPS", false),
        ("maps/FLOWS", false),
        ("maps/ENDS", false),
        ("links/mr_connect4", true),
    ] {
        host.namespace.enter(|| take(&pin(name), detached))??;
        let short = name.split('/').nth(1).context("a name")?;
        for word in ["ADD", "CHECK", "STATUS"] {
            let Reply { code, text, .. } = call(&host, &pod, word).run(&host)?;
            ensure!(code == Some(1) && text.contains(short), "{name}: {word}: {text}");
        }
        load_with(&host.namespace, &options()?)?;
        for word in ["ADD", "CHECK", "STATUS"] {
            call(&host, &pod, word).run(&host)?.success()?;
        }
    }
    Ok(())
}

/// Verify that `status` misses what a pod needs beside its entry, with a configuration and without, and
/// that applying the configuration again makes it whole.
#[test]
fn what_stands_beside_the_entry() -> Result<()> {
    let (_cgroup, topology) = captured(&["--dns", "all"])?;
    let apply = [&APPLY[..], &["--dns", "all"]].concat();
    let status = [&STATUS[..], &["--dns", "all"]].concat();
    for (step, told) in [
        ("link del millrace0", "to repair: add interface millrace0 with address ::6"),
        ("link set lo down", "to repair: set lo up"),
        (
            "route del local 127.0.0.1 dev eth0 table local",
            "to repair: add route local 127.0.0.1 dev eth0 table local",
        ),
        (
            "route del local ::1 dev eth0 table local",
            "to repair: add route local ::1 dev eth0 table local",
        ),
    ] {
        topology.pod.ip(step)?;
        for args in [&STATUS[..], &status] {
            let found = millrace_in_pod(&topology, args, 5)?;
            let drifted = found.starts_with("drifted: by eBPF");
            ensure!(drifted && found.contains(told), "{step}: {args:?}: {found}");
        }
        let json = millrace_in_pod(&topology, &[&STATUS[..], &["--output", "json"]].concat(), 5)?;
        let json: serde_json::Value = serde_json::from_str(&json)?;
        let differences = json["differences"].as_array().context("differences")?;
        ensure!(json["state"] == "drifted" && differences.len() == 1, "{step}: {json}");
        millrace_in_pod(&topology, &apply, 0)?;
        for args in [&STATUS[..], &status] {
            millrace_in_pod(&topology, args, 0).context(step)?;
        }
    }
    // What nobody puts right by himself is told as well, and so is what captures twice.
    topology.pod.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6"])?;
    let found = millrace_in_pod(&topology, &STATUS, 5)?;
    ensure!(found.contains("note: IPv6 is switched off on lo"), "{found}");
    Ok(())
}

/// Verify that an interface which comes, goes up or gets an address after the pod was enrolled is told of in
/// a note, is no drift to anybody, and has its ways once the configuration is applied again.
#[test]
fn an_interface_that_comes_later() -> Result<()> {
    let (_cgroup, topology) = captured(&["--dns", "all"])?;
    let apply = [&APPLY[..], &["--dns", "all"]].concat();
    let notes = || -> Result<Vec<String>> {
        let found = millrace_in_pod(&topology, &STATUS, 0)?;
        let of =
            |line: &str| line.strip_prefix("note: localhost is not reached by ").map(str::to_owned);
        Ok(found.lines().filter_map(of).collect())
    };
    topology.pod.ip("link add eth8 type veth peer name eth9")?;
    ensure!(notes()?.is_empty(), "down");
    for step in ["link set eth8 up\nlink set eth9 up", "addr add fd99::1/64 dev eth8 nodad"] {
        topology.pod.ip(step)?;
        let found = notes()?;
        let ways = ["eth8 over IPv4", "eth9 over IPv4", "eth8 over IPv6", "eth9 over IPv6"];
        let told = |way: &&str| found.iter().any(|note| note.starts_with(way));
        ensure!(found.len() == 4 && ways.iter().all(told), "{step}: {found:?}");
    }
    millrace_in_pod(&topology, &apply, 0)?;
    ensure!(notes()?.is_empty(), "applied again");
    let said = millrace_in_pod(&topology, &apply, 0)?;
    ensure!(said.contains("no change") && !said.contains("route"), "{said}");
    Ok(())
}

/// Verify that the plugin's CHECK misses it, too.
#[test]
fn the_plugin_misses_what_stands_beside_the_entry() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    load(&host.namespace)?;
    let pod = host.pod()?;
    for (step, told) in
        [("link del millrace0", "add interface millrace0"), ("link set lo down", "set lo up")]
    {
        call(&host, &pod, "ADD").run(&host)?.success()?;
        call(&host, &pod, "CHECK").run(&host)?.success()?;
        host.inside(&pod, |inside| inside.ip(step))?;
        let Reply { code, text, .. } = call(&host, &pod, "CHECK").run(&host)?;
        ensure!(code == Some(1) && text.contains(told), "{step}: {text}");
    }
    // But not what came later than the pod was enrolled.
    call(&host, &pod, "ADD").run(&host)?.success()?;
    let step = "link add eth8 type veth peer name eth9\nlink set eth8 up\nlink set eth9 up";
    host.inside(&pod, |inside| inside.ip(step))?;
    call(&host, &pod, "CHECK").run(&host)?.success().map(drop)
}

/// Verify that a pod is not said to be free, nor left without what its capture needs, by who names another
/// folder than that of the programs that capture it.
#[test]
fn programs_of_another_folder() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    let elsewhere = "by programs that /run/bpf/other does not hold";
    let other = ["--bpffs", "/run/bpf/other"];
    let asked = |words: &[&'static str]| [words, &other].concat();
    for words in [&["status"][..], &["status", "--backend", "ebpf"], &["cleanup"]] {
        let said = millrace_in_pod(&topology, &asked(words), 1)?;
        ensure!(said.contains(elsewhere), "{words:?}: {said}");
        is_whole(&topology).with_context(|| format!("{words:?}"))?;
    }
    let rules = asked(&["status", "--backend", "nftables"]);
    let said = millrace_in_pod(&topology, &rules, 3)?;
    ensure!(said.contains(elsewhere), "{said}");
    // No rules are written beside, by whatever name Millrace is called.
    for words in [&["apply", "--backend", "nftables"][..], &["apply", "--backend", "iptables"]] {
        let said = millrace_in_pod(&topology, &asked(words), 1)?;
        ensure!(said.contains(elsewhere) && said.contains("none were written"), "{said}");
        is_whole(&topology)?;
    }
    for words in [
        &["istio-iptables"][..],
        &["linkerd", "-p", "4143", "-o", "4140"],
        &["kuma", "install", "transparent-proxy", "--kuma-dp-user", "5678"],
        &["consul", "connect", "redirect-traffic", "-proxy-uid=5995", "-proxy-inbound-port=20000"],
        &["osm"],
    ] {
        let said = millrace_in_pod(&topology, words, 1)?;
        ensure!(said.contains("have it leave with `millrace cleanup` first"), "{words:?}: {said}");
        is_whole(&topology)?;
    }
    let said = millrace_in_pod(&topology, &["istio-iptables", "--cleanup-only"], 0)?;
    ensure!(said.contains("what belongs to that is left as it is"), "{said}");
    is_whole(&topology)?;
    // Once it has left, nothing is attached.
    millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 0)?;
    millrace_in_pod(&topology, &asked(&["status"]), 3)?;
    millrace_in_pod(&topology, &asked(&["cleanup"]), 0).map(drop)
}

/// Verify that a pod that has no address of IPv6 when it is enrolled is captured by IPv6 from its first one
/// on, unless the settings leave IPv6.
#[test]
fn ipv6_that_comes_later() -> Result<()> {
    for (flags, name, told) in [(&[][..], "proxy", false), (&["--ipv6", "off"], "outside", true)] {
        let (_cgroup, topology) = loaded(Stack::Dual)?;
        let pod = &topology.pod;
        pod.ip("addr del fd70::2/64 dev eth0")?;
        enrol(&topology, flags)?;
        pod.ip("addr add fd70::2/64 dev eth0 nodad")?;
        pod.run("ip", &["-6", "route", "replace", "default", "via", "fd70::1"])?;
        let answered = answers(pod, "[fd71::10]:80")?;
        ensure!(answered == name, "{flags:?}: {answered}");
        let said = millrace_in_pod(&topology, &["status", "--bpffs", FOLDER], 0)?;
        ensure!(said.contains("IPv6 is not captured") == told, "{flags:?}: {said}");
        let whole = [&["status", "--bpffs", FOLDER], flags].concat();
        millrace_in_pod(&topology, &whole, 0)?;
    }
    Ok(())
}
