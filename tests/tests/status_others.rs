//! `status` where rules of others are beside those of a whole capture: what they do together to captured
//! connections is told, with every backend, and nothing of rules that do nothing to these.

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, millrace_in_pod};
use millrace_tests::capture::{ran, unattended};
use millrace_tests::ebpf::{self, FOLDER};
use millrace_tests::topology::Topology;

/// What is told where rules of others undo capture.
const TOLD: &str = "note: rules of others treat connections differently than desired: ";

/// Rules of others, each a script, with words of what is to be told of them.
const UNDOING: [(&str, &str); 8] = [
    // Behind all of ours, and of native nftables.
    (
        "nft add table inet x && nft 'add chain inet x in { type filter hook input priority 50; }' && \
         nft add rule inet x in tcp dport 15006 drop",
        "by x in 1",
    ),
    (
        "iptables-nft -A INPUT -p tcp --dport 15006 -j REJECT --reject-with tcp-reset",
        "--reject-with tcp-reset; expected: redirected to port 15006",
    ),
    // Marked by the one, dropped by the other.
    (
        "iptables-nft -t mangle -A OUTPUT -d 198.51.100.0/24 -p tcp -j MARK --set-mark 0x70 && \
         iptables-nft -A OUTPUT -m mark --mark 0x70/0xf0 -j DROP",
        "by filter OUTPUT 1: -m mark --mark 112/0xf0 -j DROP; expected: redirected to port 15001",
    ),
    (
        "nft add table ip x && nft 'add chain ip x out { type nat hook output priority -150; }' && \
      nft add set ip x ports '{ type inet_service; elements = { 9000, 9001 }; }' && \
      nft add rule ip x out tcp dport @ports redirect to :9999",
        "by x out 1",
    ),
    (
        "nft add table netdev x && \
         nft 'add chain netdev x in { type filter hook ingress device eth0 priority 0; }' && \
         nft add rule netdev x in tcp dport 8080 drop",
        "by x in 1",
    ),
    (
        "iptables-legacy -t security -A OUTPUT -p tcp --dport 15001 -j DROP",
        "by security OUTPUT 1: ",
    ),
    ("ip6tables-nft -t raw -A OUTPUT -p tcp --dport 443 -j CT --notrack", "IPv6 uid not 1337"),
    (
        "iptables-nft -A OUTPUT -m length --length 40:90 -j DROP",
        "note: whether rules treat these as expected can't be told: IPv4 ",
    ),
];

/// Rules of others in front of ours and elsewhere that do nothing to captured connections.
const HARMLESS: [&str; 5] = [
    // The kernel goes on with the next chain of translation.
    "nft add table ip x && nft 'add chain ip x out { type nat hook output priority -150; }' && \
     nft add rule ip x out tcp dport 9000 accept",
    "nft add table ip x && nft 'add chain ip x out { type nat hook output priority -110; }' && \
     nft add rule ip x out udp dport 9000 redirect to :9001",
    "iptables-nft -t nat -I OUTPUT -p udp --dport 9000 -j ACCEPT",
    "iptables-nft -t mangle -A OUTPUT -p tcp -j MARK --set-mark 0x70",
    "iptables-nft -t raw -A PREROUTING -i eth9 -p tcp -j NOTRACK",
];

/// What `status` says of a pod with a script run in it, with its exit code.
fn beside(topology: &Topology, script: &str, settings: &[&str]) -> Result<(Option<i32>, String)> {
    topology.pod.run("sh", &["-c", script])?;
    ran(&topology.pod, &mut millrace([&["status"], settings].concat())?)
}

/// Verify that what rules of others do to captured connections is told, with the rule.
#[test]
fn what_rules_of_others_do_together_is_told() -> Result<()> {
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        for (script, words) in UNDOING {
            let told = || format!("{backend}: {script}");
            let topology = unattended(backend, &[])?;
            let (code, said) = beside(&topology, script, &[]).with_context(told)?;
            ensure!(code == Some(0) && said.contains(words), "{}: {code:?}: {said}", told());
            ensure!(said.contains(TOLD) != words.starts_with("note: "), "{}: {said}", told());
            // By a configuration as well.
            let (_, given) = beside(&topology, "true", &["--inbound-port", "15006"])?;
            ensure!(given.contains(words), "{}: {given}", told());
        }
    }
    Ok(())
}

/// Verify that a rule of others that takes away the proxy's answers is told, in each direction.
#[test]
fn answers_that_others_take_away_are_told() -> Result<()> {
    let told = "note: rules of others: IPv4 ";
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        for (script, words) in [
            (
                "iptables-nft -A OUTPUT -p tcp --sport 15006 -j DROP",
                "the last rule that it met: filter OUTPUT 1: ",
            ),
            (
                "iptables-nft -t raw -A OUTPUT -p tcp --sport 15001 -j DROP",
                "the last rule that it met: raw OUTPUT 1: ",
            ),
            (
                "nft add table inet x && \
                 nft 'add chain inet x out { type filter hook postrouting priority 300; }' && \
                 nft add rule inet x out meta skuid 1337 ct direction reply drop",
                "the last rule that it met: x out 1: ",
            ),
        ] {
            let topology = unattended(backend, &[])?;
            let (code, said) = beside(&topology, script, &[])?;
            let is_told = code == Some(0) && said.contains(told) && said.contains(words);
            ensure!(is_told, "{backend} {script}: {code:?}: {said}");
        }
    }
    Ok(())
}

/// Verify that a rule of others that takes away the mark of TPROXY is told.
#[test]
fn a_mark_that_others_take_away_is_told() -> Result<()> {
    let script = "iptables-nft -t mangle -A PREROUTING -p tcp -j MARK --set-mark 0x1";
    let topology = unattended("iptables-nft", &["--mode", "tproxy"])?;
    let (code, said) = beside(&topology, "true", &[])?;
    ensure!(code == Some(0) && !said.contains("note: "), "{said}");
    let native = "nft add table ip x && \
         nft 'add chain ip x pre { type filter hook prerouting priority -100; }' && \
         nft add rule ip x pre tcp dport 8080 meta mark set 0x1";
    let (code, said) = beside(&topology, native, &[])?;
    ensure!(code == Some(0) && said.contains(TOLD) && said.contains("port 8080"), "{said}");
    ensure!(said.contains("expected: handed to port 15006"), "{said}");
    topology.pod.run("nft", &["delete", "table", "ip", "x"])?;
    // ACCEPT ends the chain before it.
    let (code, said) = beside(&topology, script, &[])?;
    ensure!(code == Some(0) && !said.contains(TOLD), "{said}");
    Ok(())
}

/// Verify that what a chain at an interface does to captured connections is told: that it marks them as what
/// is not captured, drops them or sends them elsewhere, and that it isn't known what a copy does.
#[test]
fn what_interfaces_do_is_told() -> Result<()> {
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        for (rule, words) in [
            ("meta mark set 0x539", TOLD),
            ("tcp dport 8080 drop", TOLD),
            ("tcp dport 8080 fwd to lo", "can't be told: "),
            ("dup to lo", "can't be told: "),
        ] {
            let script = format!(
                "nft add table netdev x && \
                 nft 'add chain netdev x in {{ type filter hook ingress device eth0 priority 0; }}' && \
                 nft add rule netdev x in {rule}"
            );
            let topology = unattended(backend, &["--mode", "tproxy"])?;
            let (code, said) = beside(&topology, &script, &[])?;
            ensure!(code == Some(0) && said.contains(words), "{backend} {rule}: {code:?}: {said}");
        }
    }
    Ok(())
}

/// Verify that nothing is told of rules that do nothing to captured connections.
#[test]
fn rules_that_do_nothing_to_the_capture_are_not_told() -> Result<()> {
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        for script in HARMLESS {
            let topology = unattended(backend, &[])?;
            let (code, said) = beside(&topology, script, &[])?;
            ensure!(code == Some(0) && !said.contains("note: "), "{backend} {script}: {said}");
        }
    }
    Ok(())
}

/// The same where eBPF captures.
#[test]
fn what_rules_do_beside_ebpf_is_told() -> Result<()> {
    let (_cgroup, topology) = ebpf::captured(&[])?;
    let status = ["status", "--bpffs", FOLDER];
    let clean = millrace_in_pod(&topology, &status, 0)?;
    ensure!(!clean.contains("note: "), "{clean}");
    for (script, back, words) in [
        (
            "iptables-nft -A INPUT -p tcp --dport 8080 -j REJECT --reject-with tcp-reset",
            "iptables-nft -F INPUT",
            "expected: handed to port 15006",
        ),
        (
            "nft add table ip x && nft 'add chain ip x out { type filter hook output priority 0; }' && \
             nft add rule ip x out tcp dport 15001 drop",
            "nft delete table ip x",
            "expected: redirected to port 15001",
        ),
    ] {
        topology.pod.run("sh", &["-c", script])?;
        let said = millrace_in_pod(&topology, &status, 0)?;
        ensure!(said.contains(TOLD) && said.contains(words), "{script}: {said}");
        topology.pod.run("sh", &["-c", back])?;
        let said = millrace_in_pod(&topology, &status, 0)?;
        ensure!(!said.contains("note: "), "{back}: {said}");
    }
    Ok(())
}

/// Verify that localhost, to which connections are redirected, and the policy of a nat table, which drops the
/// proxy's own, are looked at.
#[test]
fn localhost_and_nat_policies_are_looked_at() -> Result<()> {
    let topology = unattended("iptables-nft", &[])?;
    let pod = &topology.pod;
    let drifted = |what: &str| -> Result<()> {
        let said = millrace_in_pod(&topology, &["status"], 5)?;
        ensure!(said.contains(what), "{what}: {said}");
        Ok(())
    };
    for (table, family) in [("ip", "IPv4"), ("ip6", "IPv6")] {
        let policy = |policy: &str| {
            pod.run("nft", &[&format!("add chain {table} nat OUTPUT {{ policy {policy}; }}")])
        };
        policy("drop")?;
        drifted(&format!("the policy of chain OUTPUT of {family} nat is to drop"))?;
        policy("accept")?;
        millrace_in_pod(&topology, &["status"], 0)?;
    }
    pod.ip("addr del 127.0.0.1/8 dev lo\naddr add 127.0.0.2/32 dev lo")?;
    drifted("lo has no address 127.0.0.1")?;
    pod.ip("addr add 127.0.0.3/8 dev lo")?;
    millrace_in_pod(&topology, &["status"], 0).map(drop)
}
