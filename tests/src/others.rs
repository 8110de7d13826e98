//! Rules of others in a pod: what kube-proxy, a firewall and an administrator would write, through
//! a library that knows nothing of Millrace.

use anyhow::{Result, anyhow};

use crate::capture::Variant;
use crate::netns::Namespace;
use crate::snapshot::Snapshot;

/// Table, chain and rule; `{net}` and `{host}` stand for a network and an address of the family.
const RULES: [(&str, &str, &str); 15] = [
    ("nat", "PREROUTING", "-m comment --comment \"service portals\" -j KUBE-SERVICES"),
    ("nat", "OUTPUT", "-m comment --comment \"service portals\" -j KUBE-SERVICES"),
    ("nat", "OUTPUT", "-p tcp -m tcp --dport 15001 -j RETURN"),
    ("nat", "POSTROUTING", "-s {net} -o eth9 -j MASQUERADE"),
    ("nat", "KUBE-SERVICES", "-d {host} -p tcp -m tcp --dport 443 -j NOT_ISTIO_OUTPUT"),
    ("nat", "KUBE-SERVICES", "-m addrtype --dst-type LOCAL -j RETURN"),
    ("nat", "NOT_ISTIO_OUTPUT", "-m statistic --mode random --probability 0.5 -j RETURN"),
    ("mangle", "PREROUTING", "-i eth9 -j MARK --set-xmark 0x4000/0x4000"),
    ("mangle", "PREROUTING", "-p tcp -m mark --mark 0x77 -j CONNMARK --save-mark"),
    ("mangle", "OUTPUT", "-p tcp -m connmark --mark 0x77 -j CONNMARK --restore-mark"),
    ("mangle", "POSTROUTING", "-p udp -m udp --dport 1 -j RETURN"),
    ("raw", "PREROUTING", "-p udp -m udp --dport 9999 -j CT --zone 7"),
    ("raw", "OUTPUT", "-p tcp -m tcp --dport 80 -j RETURN"),
    ("filter", "INPUT", "-m conntrack --ctstate INVALID -j DROP"),
    ("filter", "OUTPUT", "-m owner --uid-owner 1337 -j ACCEPT"),
];

fn error(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

/// Do something with iptables of a variant in a namespace, for each family.
fn each_family(
    namespace: &Namespace,
    variant: Variant,
    what: impl Fn(&iptables::IPTables, bool) -> Result<()> + Send + Sync,
) -> Result<()> {
    for ipv6 in [false, true] {
        namespace.enter(|| -> Result<()> {
            let mut iptables = iptables::new(ipv6).map_err(error)?;
            iptables.cmd = match (ipv6, variant) {
                (false, Variant::Nft) => "iptables-nft",
                (false, Variant::Legacy) => "iptables-legacy",
                (true, Variant::Nft) => "ip6tables-nft",
                (true, Variant::Legacy) => "ip6tables-legacy",
            };
            what(&iptables, ipv6)
        })??;
    }
    Ok(())
}

/// Write all of them.
pub fn write(namespace: &Namespace, variant: Variant) -> Result<()> {
    each_family(namespace, variant, |iptables, ipv6| {
        for chain in ["KUBE-SERVICES", "NOT_ISTIO_OUTPUT"] {
            iptables.new_chain("nat", chain).map_err(error)?;
        }
        for (table, chain, rule) in RULES {
            let (net, host) =
                if ipv6 { ("fd44::/64", "fd96::1/128") } else { ("10.44.0.0/16", "10.96.0.1/32") };
            let rule = rule.replace("{net}", net).replace("{host}", host);
            iptables.append(table, chain, &rule).map_err(error)?;
        }
        iptables.set_policy("filter", "FORWARD", "DROP").map_err(error)
    })
}

/// Write some more in front of and behind what is there by now.
pub fn write_around(namespace: &Namespace, variant: Variant) -> Result<()> {
    each_family(namespace, variant, |iptables, _| {
        for (table, chain) in [("nat", "OUTPUT"), ("nat", "PREROUTING"), ("mangle", "PREROUTING")] {
            iptables.insert(table, chain, "-p tcp -m tcp --dport 2 -j RETURN", 1).map_err(error)?;
            iptables.append(table, chain, "-p tcp -m tcp --dport 3 -j RETURN").map_err(error)?;
        }
        Ok(())
    })
}

/// The rules of a chain that are nobody's but others', with their counters in front.
pub fn of_others(snapshot: &Snapshot) -> Vec<(String, Vec<String>)> {
    let ours = |text: &str| {
        let words = text.split([' ', ':']);
        let signs = [
            "ISTIO_",
            "PROXY_INIT_",
            "KUMA_MESH_",
            "CONSUL_",
            "MILLRACE_",
            "istio-proxy-",
            "linkerd-",
            "kuma-",
            "consul_",
            "millrace",
        ];
        words.into_iter().any(|w| signs.iter().any(|sign| w.starts_with(sign)))
    };
    let marked = |text: &str| {
        // What is written into builtin chains beside jumps: rules with the marks of TPROXY that
        // the suites use and that of self-calls, or about the interfaces that they name.
        [
            " 0x539",
            " 0x1092",
            " 0x4d",
            " 0x4e",
            " 0x53a",
            " eth1 ",
            " eth7 ",
            " tap0 ",
            " tap1 ",
            " --comment millrace",
            "kuma/mesh/transparent/proxy/",
        ]
        .iter()
        .any(|sign| text.contains(sign))
    };
    let chains = snapshot.chains.iter().filter(|(name, _)| !ours(name));
    let chains = chains.map(|(name, rules)| {
        let rules = rules.iter().filter(|r| !ours(r) && !marked(r)).cloned().collect();
        (name.clone(), rules)
    });
    chains.filter(|(_, rules): &(String, Vec<String>)| !rules.is_empty()).collect()
}

/// Hold the rules of others against what they were: the same, in the same order, and no counter
/// went back.
pub fn untouched(before: &Snapshot, after: &Snapshot) -> Result<()> {
    let (before, after) = (of_others(before), of_others(after));
    let bare = |chains: &[(String, Vec<String>)]| -> Vec<String> {
        let all = chains.iter().flat_map(|(name, rules)| rules.iter().map(move |r| (name, r)));
        all.map(|(name, rule)| format!("{name}: {}", split(rule).1)).collect()
    };
    let (old, new) = (bare(&before), bare(&after));
    if old != new {
        return Err(anyhow!("rules of others were {old:#?}, and are {new:#?}"));
    }
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        for (before, after) in before.iter().zip(after) {
            if split(after).0 < split(before).0 {
                return Err(anyhow!("{name}: counters went back from {before} to {after}"));
            }
        }
    }
    Ok(())
}

/// The packets a rule has seen, and the rule.
fn split(rule: &str) -> (u64, &str) {
    let Some((counters, bare)) = rule.split_once("] ") else { return (0, rule) };
    let packets = counters.trim_start_matches('[').split(':').next().unwrap_or_default();
    (packets.parse().unwrap_or(0), bare)
}
