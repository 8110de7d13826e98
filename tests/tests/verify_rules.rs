//! `millrace verify`: what no connection that it makes meets is found by the rules themselves; and
//! rules that take no part in the capture are no fault.

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, millrace_in_pod, ran, unattended, verified};
use millrace_tests::ebpf::{self, FOLDER};
use millrace_tests::topology::{Layout, Stack, Topology};
use serde_json::Value;

fn list<'v>(found: &'v Value, name: &str) -> Result<&'v Vec<Value>> {
    found[name].as_array().with_context(|| format!("{name}: {found:#}"))
}

/// Whether what is found is this alone: no connection that was made failed, and these are the kinds
/// that rules treat otherwise.
fn only_rules_differ(found: &Value) -> Result<&Vec<Value>> {
    ensure!(found["failed"] == 0 && found["verified"] == false, "{found:#}");
    let kinds = list(found, "otherwise")?;
    let count = found["kindsOtherwise"].as_u64().and_then(|count| usize::try_from(count).ok());
    let count = count.context("kindsOtherwise")?;
    ensure!(count > 0 && kinds.len() == count.min(8), "{found:#}");
    Ok(kinds)
}

/// Run commands in the pod, of which each is a line.
fn in_pod(topology: &Topology, lines: &[&str]) -> Result<()> {
    for line in lines {
        topology.pod.run("sh", &["-c", line])?;
    }
    Ok(())
}

/// Verify that rules of others that let real connections past the proxy are found, each with the rule
/// and a connection, where they are in front of those of each backend.
#[test]
fn what_rules_of_others_let_past_is_found() -> Result<()> {
    let network = "-t nat -I OUTPUT -d 198.51.100.0/24 -j ACCEPT";
    let user = "-t nat -I OUTPUT -m owner --uid-owner 1234 -j ACCEPT";
    let sources = "-t nat -I PREROUTING -s 10.4.0.0/24 -p tcp -j ACCEPT";
    let port = "-t nat -I PREROUTING -p tcp --dport 8080 -j ACCEPT";
    let untracked = "-t raw -I PREROUTING -i eth0 -p tcp --dport 8080 -j NOTRACK";
    let refused = "-t filter -I INPUT -i eth0 -p tcp --dport 15006 -j REJECT";
    let programs = ["iptables-nft", "iptables-legacy"];
    let in_front = programs.iter().flat_map(|backend| {
        let cases = [network, user, sources, port, untracked, refused];
        cases.map(|rule| (*backend, format!("{backend} {rule}")))
    });
    let table = "nft add table ip other && nft add chain ip other c \
                 '{ type nat hook prerouting priority -110; }' && \
                 nft add rule ip other c tcp dport 8080 redirect to :8081";
    let elsewhere = ["iptables-nft", "iptables-legacy", "nftables"].map(|b| (b, table.to_owned()));
    let native = [("nftables", format!("iptables-nft {untracked}"))];
    for (backend, line) in in_front.chain(elsewhere).chain(native) {
        let told = || format!("{backend}: {line}");
        let topology = unattended(backend, &["--exclude-inbound-ports", "15090"])?;
        in_pod(&topology, &[&line])?;
        for settings in [&[][..], &["--exclude-inbound-ports", "15090"]] {
            let found = verified(&topology, settings, 126).with_context(told)?;
            for kind in only_rules_differ(&found).with_context(told)? {
                let is_capture = kind["expected"]["outcome"] == "captured";
                ensure!(is_capture && kind["family"] == "ipv4", "{}: {kind:#}", told());
                ensure!(!kind["example"]["protocol"].is_null(), "{}: {kind:#}", told());
            }
        }
        let (code, said) = ran(&topology.pod, &mut millrace(["verify"])?)?;
        ensure!(code == Some(126) && said.contains("DIFFERS IPv4 "), "{}: {said}", told());
        ensure!(said.contains("; rules treat "), "{}: {said}", told());
    }
    Ok(())
}

/// Verify that what is excluded has to get where it was sent: a rule of others that leads it elsewhere is
/// found, whatever it is excluded by, and one that drops it is a firewall's business.
#[test]
fn what_is_excluded_gets_where_it_was_sent() -> Result<()> {
    let settings = [
        "--exclude-outbound-ports",
        "9092",
        "--exclude-outbound-cidrs",
        "10.96.0.0/16",
        "--exclude-inbound-ports",
        "8080",
    ];
    let elsewhere = [
        "-t nat -I OUTPUT -p tcp --dport 9092 -j REDIRECT --to-ports 9999",
        "-t nat -I OUTPUT -p udp --dport 9092 -j DNAT --to-destination 10.9.9.9:9092",
        "-t nat -I OUTPUT -d 10.96.0.10/32 -p tcp --dport 443 -j DNAT --to-destination 10.70.0.9:6443",
        "-t nat -I PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 9999",
    ];
    let firewalls = [
        "-t filter -I OUTPUT -p tcp --dport 9092 -j REJECT",
        "-t filter -I INPUT -p tcp --dport 8080 -j DROP",
        "-t nat -I OUTPUT -p tcp --dport 22 -m owner --uid-owner 1337 -j REDIRECT --to-ports 9999",
    ];
    for (rules, code) in [(&elsewhere[..], 126), (&firewalls, 0)] {
        for rule in rules {
            let topology = unattended("nftables", &settings)?;
            // These are found by the rules alone, whichever connections are made.
            in_pod(&topology, &[&format!("iptables-nft {rule}")])?;
            let (found, said) = ran(&topology.pod, &mut millrace(["verify"])?)?;
            let differs = said.contains("DIFFERS IPv4 ");
            ensure!(differs == (code == 126), "{rule}: {found:?}: {said}");
            ensure!(code == 0 || found == Some(code), "{rule}: {found:?}: {said}");
        }
    }
    Ok(())
}

/// Verify that rules of another configuration are found where no connection that is tried tells.
#[test]
fn rules_of_another_configuration_are_found() -> Result<()> {
    let settings = [
        "--proxy-uid",
        "1337",
        "--exclude-outbound-ports",
        "9092,80,443",
        "--exclude-outbound-cidrs",
        "10.96.0.0/16",
        "--exclude-inbound-ports",
        "8080",
    ];
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("w.yaml");
    let path = path.to_str().context("UTF-8")?;
    std::fs::write(path, "proxy: {uids: [1337]}\n")?;
    for backend in ["iptables-nft", "iptables-legacy", "nftables"] {
        let topology = unattended(backend, &settings)?;
        let found = verified(&topology, &["--config", path], 126).context(backend)?;
        let kinds = only_rules_differ(&found).context(backend)?;
        ensure!(kinds.iter().all(|k| k["expected"]["outcome"] == "captured"), "{found:#}");
        ensure!(kinds.iter().any(|k| k["outcome"]["outcome"] == "delivered"), "{found:#}");
        ensure!(kinds.iter().any(|k| k["outcome"]["outcome"] == "passed"), "{found:#}");
        ensure!(verified(&topology, &settings, 0)?["kindsOtherwise"] == 0, "{backend}");
    }
    Ok(())
}

/// The same where eBPF captures.
#[test]
fn another_entry_of_ebpf_is_found() -> Result<()> {
    let settings = ["--exclude-outbound-cidrs", "10.96.0.0/16", "--exclude-inbound-ports", "8080"];
    let (_cgroup, mut topology) = ebpf::captured(&settings)?;
    topology.stop_listeners();
    let found = verified(&topology, &["--bpffs", FOLDER, "--inbound-port", "15006"], 126)?;
    let kinds = only_rules_differ(&found)?;
    ensure!(kinds.iter().any(|k| k["outcome"]["outcome"] == "delivered"), "{found:#}");
    ensure!(kinds.iter().any(|k| k["outcome"]["outcome"] == "passed"), "{found:#}");
    let good = [&["--bpffs", FOLDER], &settings[..]].concat();
    for settings in [&good[..], &good[..2]] {
        let found = verified(&topology, settings, 0)?;
        ensure!(found["notMet"] == serde_json::json!([]), "{found:#}");
    }
    Ok(())
}

/// Verify that every identity of the proxy is tried, and an application that is not root: with the
/// rule of one of them gone, a connection tells.
#[test]
fn every_identity_is_tried() -> Result<()> {
    let settings = ["--proxy-uid", "1337,2000", "--proxy-gid", "3000,3001"];
    let topology = unattended("iptables-nft", &settings)?;
    let found = verified(&topology, &settings, 0)?;
    let connections = list(&found, "connections")?;
    for (maker, key, id) in [
        ("application", "uid", 0),
        ("application", "uid", 1000),
        ("proxy", "uid", 1337),
        ("proxy", "uid", 2000),
        ("proxy", "gid", 3000),
        ("proxy", "gid", 3001),
    ] {
        let is = |c: &&Value| c["maker"] == maker && c["owner"][key] == id && c["passed"] == true;
        ensure!(connections.iter().any(|c| is(&c)), "{maker} {key}={id}: {found:#}");
    }
    in_pod(&topology, &["iptables-nft -t nat -I OUTPUT -m owner --uid-owner 1000 -j ACCEPT"])?;
    let found = verified(&topology, &settings, 126)?;
    let failed: Vec<_> =
        list(&found, "connections")?.iter().filter(|c| c["passed"] == false).collect();
    ensure!(!failed.is_empty() && failed.iter().all(|c| c["owner"]["uid"] == 1000), "{found:#}");
    Ok(())
}

/// Verify that a family that is not captured is not looked for, and one that is captured all the
/// same is found.
#[test]
fn ipv6_that_is_not_captured_is_not_expected() -> Result<()> {
    for backend in ["iptables-nft", "iptables-legacy", "nftables"] {
        let topology = unattended(backend, &["--ipv6", "off"])?;
        for settings in [&["--ipv6", "off"][..], &[]] {
            let found = verified(&topology, settings, 0).context(backend)?;
            assert_eq!((&found["failed"], &found["skipped"]), (&0.into(), &0.into()), "{found:#}");
            let passes = "IPv6 is not captured, and there is an IPv6 address";
            ensure!(list(&found, "notMet")?.contains(&passes.into()), "{found:#}");
            let is = |c: &&Value| c["to"].as_str().is_some_and(|to| to.contains('['));
            let of_v6: Vec<_> =
                list(&found, "connections")?.iter().filter(is).map(|c| &c["source"]).collect();
            ensure!(!of_v6.is_empty() && !of_v6.contains(&&"::6".into()), "{found:#}");
        }
        let other = unattended(backend, &[])?;
        let found = verified(&other, &[], 0).context(backend)?;
        ensure!(list(&found, "notMet")?.is_empty(), "{found:#}");
        verified(&other, &["--ipv6", "off"], 126).context(backend)?;
    }
    Ok(())
}

/// Rules as Docker, kubelet and kube-proxy write them.
const OF_OTHERS: [&str; 18] = [
    "-t nat -N DOCKER_OUTPUT",
    "-t nat -A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT",
    "-t nat -A DOCKER_OUTPUT -d 127.0.0.11/32 -p tcp --dport 53 -j DNAT \
     --to-destination 127.0.0.11:41735",
    "-t nat -A DOCKER_OUTPUT -d 127.0.0.11/32 -p udp --dport 53 -j DNAT \
     --to-destination 127.0.0.11:43027",
    "-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    "-t filter -N DOCKER-USER",
    "-t filter -A FORWARD -j DOCKER-USER",
    "-t filter -A DOCKER-USER -j RETURN",
    "-t filter -N KUBE-FIREWALL",
    "-t filter -I OUTPUT -j KUBE-FIREWALL",
    "-t filter -I INPUT -j KUBE-FIREWALL",
    "-t filter -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
    "-t nat -N KUBE-SERVICES",
    "-t nat -A OUTPUT -j KUBE-SERVICES",
    "-t nat -A PREROUTING -j KUBE-SERVICES",
    "-t nat -A KUBE-SERVICES -d 10.97.0.10/32 -p tcp --dport 443 -j DNAT \
     --to-destination 10.70.0.9:6443",
    "-t nat -N KUBE-POSTROUTING",
    "-t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE",
];

/// Verify that rules of others that change nothing for the capture are no fault of it, whichever
/// backend and mode capture.
#[test]
fn rules_that_take_no_part_are_no_fault() -> Result<()> {
    let dns = ["--dns", "all"];
    let tproxy = ["--mode", "tproxy"];
    for backend in ["iptables-nft", "iptables-legacy", "nftables"] {
        for settings in [&[][..], &dns, &tproxy] {
            let topology = unattended(backend, settings)?;
            let clean = verified(&topology, settings, 0)?;
            ensure!(clean["notMet"] == serde_json::json!([]), "{backend}: {clean:#}");
            if settings == dns {
                continue;
            }
            let program = if backend == "iptables-legacy" { backend } else { "iptables-nft" };
            let lines = OF_OTHERS.map(|rule| format!("{program} {rule}"));
            in_pod(&topology, &lines.each_ref().map(String::as_str))?;
            for settings in [settings, &[]] {
                let found = verified(&topology, settings, 0).context(backend)?;
                ensure!(found["kindsOtherwise"] == 0 && found["failed"] == 0, "{found:#}");
                let is = |w: &Value| w.as_str().is_some_and(|w| w.contains("rules do more"));
                ensure!(list(&found, "notMet")?.iter().any(is), "{backend}: {found:#}");
            }
        }
    }
    Ok(())
}

/// Verify that what can't be told of rules is a warning.
#[test]
fn what_can_not_be_told_is_a_warning() -> Result<()> {
    let topology = unattended("iptables-nft", &[])?;
    let rule = "iptables-nft -t nat -I OUTPUT -p tcp --dport 7000 -m statistic --mode nth \
                --every 1000000 --packet 999999 -j ACCEPT";
    in_pod(&topology, &[rule])?;
    let found = verified(&topology, &[], 0)?;
    let is = |w: &Value| w.as_str().is_some_and(|w| w.contains("can't be told: "));
    ensure!(list(&found, "notMet")?.iter().any(is), "{found:#}");
    Ok(())
}

/// Verify that damage is never taken for a wish: without a configuration, rules that no settings give are
/// not proved, and with it what they lack is found.
#[test]
fn what_is_damaged_is_not_wanted() -> Result<()> {
    for backend in ["iptables-nft", "iptables-legacy"] {
        for damage in [
            "-t nat -D PREROUTING -p tcp -j MILLRACE_INBOUND",
            "-t nat -R MILLRACE_IN_REDIRECT 1 -p tcp ! --syn -j REDIRECT --to-ports 15006",
        ] {
            let topology = unattended(backend, &[])?;
            in_pod(&topology, &[&format!("{backend} {damage}")])?;
            let (code, said) = ran(&topology.pod, &mut millrace(["verify"])?)?;
            ensure!(code == Some(1), "{backend} {damage}: {code:?} {said}");
            ensure!(said.contains("give the configuration"), "{backend} {damage}: {said}");
            let found = verified(&topology, &["--outbound-port", "15001"], 126)?;
            ensure!(found["verified"] == false, "{found:#}");
        }
    }
    Ok(())
}

/// Verify that a capture which settings of the kernel undo is a failure that names them: what TPROXY's mark
/// leads to this host is taken for forged.
#[test]
fn what_settings_undo_is_found() -> Result<()> {
    let settings = ["--mode", "tproxy"];
    for backend in ["iptables-nft", "nftables"] {
        let topology = unattended(backend, &settings)?;
        let clean = verified(&topology, &settings, 0)?;
        ensure!(clean["failed"] == 0, "{backend}: {clean:#}");
        topology.pod.run("sysctl", &["-qw", "net.ipv4.conf.all.src_valid_mark=1"])?;
        let found = verified(&topology, &settings, 126)?;
        let failed = list(&found, "connections")?.iter().filter(|one| one["passed"] == false);
        let named = |one: &Value| {
            let why = one["expected"]["why"].as_str();
            why.is_some_and(|why| why.contains("src_valid_mark is 1"))
        };
        let failed: Vec<&Value> = failed.collect();
        ensure!(!failed.is_empty() && failed.into_iter().all(named), "{backend}: {found:#}");
    }
    Ok(())
}

/// Verify that IPv6 which is asked for and switched off is told, as nothing of it can be tried.
#[test]
fn ipv6_that_is_not_there_is_told() -> Result<()> {
    let mut topology = Topology::new(Stack::V4, Layout::default())?;
    topology.stop_listeners();
    for scope in ["all", "default", "lo", "eth0"] {
        let setting = format!("net.ipv6.conf.{scope}.disable_ipv6=1");
        topology.pod.run("sysctl", &["-qw", &setting])?;
    }
    millrace_in_pod(&topology, &["apply", "--backend", "nftables", "--ipv6", "on"], 0)?;
    for (options, is_told) in [(&["--ipv6", "on"][..], true), (&[], false)] {
        let found = verified(&topology, options, 0)?;
        let told = found["notMet"].as_array().context("notMet")?;
        let absent = |why: &Value| why.to_string().contains("no interface has an IPv6 address");
        ensure!(told.iter().any(absent) == is_told, "{found:#}");
        ensure!(found["inPart"] == is_told, "{found:#}");
    }
    Ok(())
}

/// Verify that a pod which nobody reaches any more is said to be tried from inside alone.
#[test]
fn a_pod_without_addresses_has_nobody_outside() -> Result<()> {
    let topology = unattended("nftables", &[])?;
    topology.pod.ip("link del eth0")?;
    let output = topology.pod.output(&mut millrace(["verify", "--output", "json"])?)?;
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let nobody = found["nobodyOutside"].as_str().unwrap_or_default();
    ensure!(nobody.contains("no address at which others reach it"), "{found:#}");
    ensure!(found["inPart"] == true, "{found:#}");
    Ok(())
}
