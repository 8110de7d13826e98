//! Ambient mode: connections, really made, that end where they were recorded to end; rules that an agent wrote
//! itself, which are captured and whole; and what Millrace's commands say of either.

#[expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]
#[path = "../../core/tests/support/verdicts.rs"]
mod verdicts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail, ensure};
use millrace_tests::capture::{Variant, millrace, ran};
use millrace_tests::others;
use millrace_tests::process::{Listeners, dial};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{APP, Family, Layout, ROOT, Spot, Stack, Topology};
use millrace_tests::wire::{Dial, Listen, Outcome, Proto, Serve};
use verdicts::{RecordedVerdict, Who};

/// The proxy's mark.
const ZTUNNEL: u32 = 0x539;

/// What carries the rules out: backends of Millrace, and the text of an agent by the programs of others.
const WAYS: [&str; 5] = ["nftables", "iptables-nft", "iptables-legacy", "its iptables", "its nft"];

/// `millrace ambient rules` in the pod.
fn rules(topology: &Topology, flags: &[&str]) -> Result<(Option<i32>, String)> {
    ran(&topology.pod, &mut millrace([&["ambient", "rules"], flags].concat())?)
}

/// Have the pod captured in some way.
fn capture(topology: &Topology, way: &str, flags: &[&str]) -> Result<()> {
    let (backend, print): (_, &[&str]) = match way {
        "its iptables" => ("iptables-nft", &["--dry-run"]),
        "its nft" => ("nftables", &["--dry-run"]),
        backend => (backend, &[]),
    };
    let (code, said) = rules(topology, &[flags, &["--backend", backend], print].concat())?;
    ensure!(code == Some(0), "{way}: {said}");
    if print.is_empty() {
        return Ok(());
    }
    if backend == "nftables" {
        topology.pod.feed("nft", &["-f", "-"], &said)?;
    } else {
        let lines: Vec<&str> = said.lines().skip(2).collect();
        let text = lines.join("\n") + "\n";
        let six = text.rfind("* mangle").unwrap_or(text.len());
        topology.pod.feed("iptables-nft-restore", &["--noflush"], &text[..six])?;
        topology.pod.feed("ip6tables-nft-restore", &["--noflush"], &text[six..])?;
    }
    for (family, all) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        for line in [
            "rule add fwmark 0x111/0xfff pref 32764 lookup 100".to_owned(),
            format!("route add local {all} dev lo table 100"),
        ] {
            let words: Vec<&str> = [family].into_iter().chain(line.split(' ')).collect();
            topology.pod.run("ip", &words)?;
        }
    }
    Ok(())
}

/// A pod whose node has a proxy, with an application and neighbours on the ports of the recording.
fn pod() -> Result<(Topology, [Listeners; 3])> {
    let mut topology = Topology::new(Stack::Dual, Layout::default())?;
    topology.stop_listeners();
    let everywhere = |ports: &[u16]| -> Vec<Listen> {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let all = ports.iter().flat_map(|port| any.map(|ip| SocketAddr::new(ip, *port)));
        all.map(|addr| Listen { proto: Proto::Tcp, addr, transparent: false }).collect()
    };
    let datagrams = |spot: Spot, port| -> Result<Vec<Listen>> {
        let addrs = [Family::V4, Family::V6].map(|family| spot.at(family, port));
        let addrs: Result<Vec<SocketAddr>> = addrs.into_iter().collect();
        let listen = |addr| Listen { proto: Proto::Udp, addr, transparent: false };
        Ok(addrs?.into_iter().map(listen).collect())
    };
    let mut proxy = everywhere(&[15006, 15001, 15008, 15053]);
    proxy.extend(datagrams(Spot::Localhost, 15053)?);
    let mut app = everywhere(&[8080, 4190, 15090]);
    app.extend(datagrams(Spot::Localhost, 53)?);
    let mut peer = everywhere(&[9999, 53, 443]);
    peer.extend(datagrams(Spot::Peer, 53)?);
    let start = |namespace, name: &str, listen| {
        Listeners::start(namespace, &Serve { name: name.to_owned(), identity: ROOT, listen })
    };
    let listeners = [
        start(&topology.pod, "pod", proxy)?,
        start(&topology.pod, "pod", app)?,
        start(&topology.outside, "peer", peer)?,
    ];
    Ok((topology, listeners))
}

/// Where a connection really ends, in the words of the recording. None where the family has no such
/// address.
fn measured(
    topology: &Topology,
    verdict: &RecordedVerdict,
    family: Family,
) -> Result<Option<String>> {
    let spot = match verdict.to.as_str() {
        "pod" => Spot::Pod,
        "peer" => Spot::Peer,
        "127.0.0.1" => Spot::Localhost,
        "127.0.0.2" => Spot::Localhost2,
        other => bail!("{other} is nowhere here"),
    };
    let from = verdict.from.as_ref().map(|from| from.parse()).transpose()?;
    let Some(to) = spot.ip(family).filter(|_| family == Family::V4 || from.is_none()) else {
        return Ok(None);
    };
    let (namespace, identity) = match verdict.who {
        Who::Peer => (&topology.outside, ROOT),
        Who::App => (&topology.pod, APP),
        Who::Proxy => (&topology.pod, ROOT),
    };
    let request = Dial {
        identity,
        proto: if verdict.udp { Proto::Udp } else { Proto::Tcp },
        from,
        from_port: None,
        transparent_mark: (verdict.who == Who::Proxy).then_some(ZTUNNEL),
        to: SocketAddr::new(to, verdict.port),
        timeout_ms: 5000,
    };
    let Outcome::Answered { answer, .. } = dial(namespace, &request)? else {
        return Ok(Some("nobody".to_owned()));
    };
    let localhost = Spot::Localhost.ip(family) == Some(answer.local.ip());
    let (name, port) = (answer.name, answer.port);
    Ok(Some(match (verdict.udp, localhost) {
        (true, _) => format!("{name}:udp{port}"),
        (false, true) => format!("{name}:{port}@lo"),
        (false, false) => format!("{name}:{port}@ip"),
    }))
}

/// Verify that every recorded connection ends where it did, in both families, by whatever carries the rules
/// out, and by what an agent writes itself.
#[test]
fn connections_end_where_they_were_recorded_to_end() -> Result<()> {
    for (recorded, flags) in [
        (include_str!("../../core/tests/ambient/verdicts.txt"), &[][..]),
        (include_str!("../../core/tests/ambient/verdicts-cilium.txt"), &["--as", "cilium"]),
    ] {
        let (_, verdicts) = verdicts::read(recorded);
        for way in WAYS {
            let (topology, _listeners) = pod()?;
            capture(&topology, way, flags)?;
            let mut made = 0;
            for family in [Family::V4, Family::V6] {
                for verdict in &verdicts {
                    if let Some(end) = measured(&topology, verdict, family)? {
                        made += 1;
                        let line = &verdict.line;
                        ensure!(
                            end == verdict.end,
                            "{way} {flags:?} {family:?}: {line}, but {end}"
                        );
                    }
                }
            }
            ensure!(made == 17 + 15, "{way}: {made} connections were made");
        }
    }
    Ok(())
}

/// Who answers a connection of this sender to the pod's port 8080, or from the pod to the peer's 9999.
fn answered(topology: &Topology, inward: bool) -> Result<u16> {
    let (namespace, to) = if inward {
        (&topology.outside, Spot::Pod.at(Family::V4, 8080)?)
    } else {
        (&topology.pod, Spot::Peer.at(Family::V4, 9999)?)
    };
    let request = Dial {
        identity: APP,
        proto: Proto::Tcp,
        from: None,
        from_port: None,
        transparent_mark: None,
        to,
        timeout_ms: 5000,
    };
    match dial(namespace, &request)? {
        Outcome::Answered { answer, .. } => Ok(answer.port),
        failed @ Outcome::Failed(_) => bail!("{failed:?}"),
    }
}

/// Verify with real connections what a pod can be told: exclusions, and that its node is let through without
/// any rule on the node.
#[test]
fn exclusions_and_probes_of_the_node() -> Result<()> {
    let peer = Spot::Peer.ip(Family::V4).map(|ip| ip.to_string()).unwrap_or_default();
    let network = format!("{peer}/32");
    for backend in &WAYS[..3] {
        let (topology, _listeners) = pod()?;
        for (flags, inward, outward) in [
            (&[][..], 15006, 15001),
            (&["--node-ips", &peer], 8080, 15001),
            (&["--host-probe-snat-ip", &peer], 8080, 9999),
            (&["--exclude-inbound-ports", "8080"], 8080, 15001),
            (&["--exclude-inbound-cidrs", &network], 8080, 15001),
            (&["--exclude-outbound-ports", "9999"], 15006, 9999),
            (&["--exclude-outbound-cidrs", &network], 15006, 9999),
            (&["--exclude-interfaces", "eth0"], 8080, 9999),
            (&["--bypass-inbound-capture"], 8080, 15001),
        ] {
            capture(&topology, backend, flags)?;
            let ends = (answered(&topology, true)?, answered(&topology, false)?);
            ensure!(ends == (inward, outward), "{backend} {flags:?}: {ends:?}");
        }
    }
    Ok(())
}

/// Verify that a pod which an agent captured is captured and whole, by any name that says whose rules they
/// are; that Millrace changes nothing of them, and that all goes at once, with the policy routing, and
/// nothing of others.
#[test]
fn a_pod_of_an_agent_is_known() -> Result<()> {
    for (flags, name) in
        [(&[][..], "Istio's ambient mode"), (&["--as", "cilium"][..], "Cilium's ztunnel")]
    {
        for way in WAYS {
            let topology = Topology::new(Stack::Dual, Layout::default())?;
            let untaken = Snapshot::take(&topology.pod)?;
            others::write(&topology.pod, Variant::Nft)?;
            let beside = Snapshot::take(&topology.pod)?;
            capture(&topology, way, flags)?;
            let backend = match way {
                "its iptables" => "iptables-nft",
                "its nft" => "nftables",
                backend => backend,
            };
            let wanted = format!("captured: IPv4 and IPv6 by {backend}, rules of {name}");
            let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
            ensure!(code == Some(0) && said.starts_with(&wanted), "{way}: {code:?} {said}");
            let (code, said) = rules(&topology, &[flags, &["--check"]].concat())?;
            ensure!(code == Some(0) && said.starts_with(&wanted), "{way}: {code:?} {said}");
            let other = [flags, &["--check", "--exclude-outbound-ports=443"]].concat();
            let (code, said) = rules(&topology, &other)?;
            ensure!(code == Some(5), "{way}: {code:?} {said}");
            let (code, said) = rules(&topology, &[flags, &["--backend", backend]].concat())?;
            ensure!(code == Some(0) && said.contains("no change"), "{way}: {code:?} {said}");
            let explain = ["explain", "--live", "--from", "uid=1000", "--to", "198.51.100.1:80"];
            let (code, said) = ran(&topology.pod, &mut millrace(explain)?)?;
            let end = "delivered to 127.0.0.1 on port 15001, original destination 198.51.100.1:80";
            ensure!(code == Some(0) && said.contains(end), "{way}: {said}");
            let remove: &[&str] = if backend == "nftables" {
                &["cleanup"]
            } else {
                &["ambient", "rules", "--remove"]
            };
            let (code, said) = ran(&topology.pod, &mut millrace(remove)?)?;
            ensure!(code == Some(0), "{way}: {said}");
            let left = Snapshot::take(&topology.pod)?;
            ensure!(left.chains.keys().eq(beside.chains.keys()), "{}", beside.differences(&left));
            ensure!(left.rules == untaken.rules && left.addresses == untaken.addresses, "{way}");
            let (code, said) = rules(&topology, &[flags, &["--check"]].concat())?;
            ensure!(code == Some(3), "{way}: {said}");
        }
    }
    Ok(())
}

/// Verify that rules of a sidecar give way to those of ambient mode and the other way round, as a whole; that
/// both at once are told, and that neither is left half.
#[test]
fn one_mode_follows_on_the_other() -> Result<()> {
    let sidecar =
        ["istio-iptables", "-u", "1337", "-b", "*", "-i", "*", "--dual-stack", "--reconcile"];
    for backend in ["iptables-nft", "iptables-legacy"] {
        let (topology, _listeners) = pod()?;
        let before = Snapshot::take(&topology.pod)?;
        let variant = backend.trim_start_matches("iptables-");
        let apply = [&sidecar[..], &["--force-iptables-binary", variant]].concat();
        for turn in 0..2 {
            let (code, said) = ran(&topology.pod, &mut millrace(&apply)?)?;
            ensure!(code == Some(0), "{backend} {turn}: {said}");
            let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
            ensure!(code == Some(0) && said.contains("rules of istio-iptables"), "{said}");
            capture(&topology, backend, &[])?;
            let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
            ensure!(code == Some(0) && said.contains("rules of Istio's ambient mode"), "{said}");
            let ends = (answered(&topology, true)?, answered(&topology, false)?);
            ensure!(ends == (15006, 15001), "{backend}: {ends:?}");
        }
        let part = "*nat\n:ISTIO_INBOUND - [0:0]\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n\
            -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\nCOMMIT\n";
        topology.pod.feed(&format!("iptables-{variant}-restore"), &["--noflush"], part)?;
        let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
        ensure!(code == Some(5), "{backend}: {said}");
        let (code, said) = rules(&topology, &["--remove"])?;
        let told = said.contains("rules of istio-iptables are here as well");
        ensure!(code == Some(1) && told, "{backend}: {code:?} {said}");
        let (code, said) = ran(&topology.pod, &mut millrace(["cleanup"])?)?;
        ensure!(code == Some(0), "{backend}: {said}");
        let after = Snapshot::take(&topology.pod)?;
        ensure!(after.rules == before.rules, "{backend}: {}", before.differences(&after));
        let ends = (answered(&topology, true)?, answered(&topology, false)?);
        ensure!(ends == (8080, 9999), "{backend}: {ends:?}");
    }
    Ok(())
}

/// Verify that what can't be had is refused, with the reason, and that nothing is written then.
#[test]
fn what_is_refused() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let before = Snapshot::take(&topology.pod)?;
    for (flags, wanted) in [
        (&["--backend", "ebpf"][..], "packets of the proxy are known by a mark"),
        (&["--backend", "tc"], "it is one of auto, nftables"),
        (&["--as", "kuma"], "flag --as: \"kuma\""),
        (&["--netns", "nowhere", "--pid", "1"], "--netns names a place already"),
        (&["--check", "--remove"], "one can be done"),
    ] {
        let (code, said) = rules(&topology, flags)?;
        ensure!(code == Some(1) && said.contains(wanted), "{flags:?}: {code:?} {said}");
    }
    ensure!(Snapshot::take(&topology.pod)? == before);
    Ok(())
}

/// Verify what the table of probes of a node is to commands that are run there: its agent's, left as it is.
#[test]
fn the_nodes_own_table_is_left_alone() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let node = "table inet istio-ambient-nat {\n set probes { type ipv4_addr; elements = { 10.0.0.1 } }\n\
        chain postrouting {\n type nat hook postrouting priority 100;\n\
        meta l4proto tcp ip daddr @probes counter snat ip to 169.254.7.127\n }\n}\n";
    topology.pod.feed("nft", &["-f", "-"], node)?;
    let before = Snapshot::take(&topology.pod)?.without_counters();
    let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
    let told = "note: rules of Istio's ambient mode are here (table inet istio-ambient-nat)";
    ensure!(code == Some(3) && said.contains(told), "{code:?} {said}");
    let (code, said) = ran(&topology.pod, &mut millrace(["cleanup"])?)?;
    ensure!(code == Some(0), "{said}");
    ensure!(Snapshot::take(&topology.pod)?.without_counters() == before);
    Ok(())
}
