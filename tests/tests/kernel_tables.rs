//! Reading iptables-legacy's tables from the kernel gives what its own program prints.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use millrace_core::iptables::{Dump, TableDump};
use millrace_core::value::Family;
use millrace_host::xtables;
use millrace_tests::capture::{Capture as _, Millrace, Variant};
use millrace_tests::cases;
use millrace_tests::netns::Namespace;
use millrace_tests::topology::{Stack, Topology};

const NAMES: [&str; 3] = ["nat", "mangle", "raw"];

/// The tables as the kernel gives them, and as iptables-legacy-save prints them.
fn both_ways(namespace: &Namespace, family: Family) -> Result<(Option<Dump>, Dump)> {
    let (program, file) = match family {
        Family::V4 => ("iptables-legacy-save", "/proc/thread-self/net/ip_tables_names"),
        Family::V6 => ("ip6tables-legacy-save", "/proc/thread-self/net/ip6_tables_names"),
    };
    let read = || -> Result<Option<Dump>> {
        let there = std::fs::read_to_string(file)?;
        let names: Vec<&str> =
            NAMES.into_iter().filter(|n| there.lines().any(|l| l == *n)).collect();
        Ok(xtables::read(family, &names))
    };
    for _ in 0..10 {
        let before = namespace.enter(read)??;
        let printed = Dump::parse(&namespace.run(program, &["-c"])?)?;
        // No packet of the kernel's own was counted meanwhile.
        if namespace.enter(read)?? == before {
            return Ok((before, printed));
        }
    }
    bail!("{family}: packets are counted all the time")
}

/// Rules by chain in one form, with counters; how a program orders chains means nothing.
fn comparable(dump: &Dump) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for TableDump { name: table, chains } in &dump.tables {
        for chain in chains {
            lines.push(format!("{table} {} {:?}", chain.name, chain.policy));
            for (index, rule) in chain.rules.iter().enumerate() {
                let known = rule.rule.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
                let known = known.canonical(&BTreeMap::new());
                let counters = rule.counters;
                lines.push(format!("{table} {} {index:03} {known:?} {counters:?}", chain.name));
            }
        }
    }
    lines.sort();
    Ok(lines)
}

/// Verify for the rules of every case of the traffic matrix, with packets counted.
#[test]
fn the_kernels_tables_are_read_as_iptables_save_prints_them() -> Result<()> {
    for case in cases::all() {
        let topology = Topology::new(Stack::Dual, case.layout)?;
        Millrace { variant: Variant::Legacy }.apply(&topology, &case.config)?;
        millrace_tests::scenario::astray(&topology, case.ports, &case.probes)?;
        for family in Family::ALL {
            let (read, printed) = both_ways(&topology.pod, family)?;
            let read = read.with_context(|| format!("{}: {family} is understood", case.name))?;
            assert_eq!(comparable(&read)?, comparable(&printed)?, "{}, {family}", case.name);
        }
    }
    Ok(())
}

/// Verify that rules which mean something else are left to the program that knows them, one by
/// one.
#[test]
fn what_is_not_understood_is_not_guessed() -> Result<()> {
    let rules = [
        "-p tcp -m tcp --tcp-flags SYN,ACK SYN -j ACCEPT",
        "-p tcp -m tcp",
        "-p icmp -j ACCEPT",
        "! -p tcp -j ACCEPT",
        "-s 10.0.0.0/255.0.255.0 -j ACCEPT",
        "-f -j ACCEPT",
        "-p tcp -g elsewhere",
        "-p tcp -m multiport --sports 1,2 -j ACCEPT",
        "-m owner --uid-owner 1-5 -j ACCEPT",
        "-m owner --socket-exists -j ACCEPT",
        "-m conntrack --ctproto 6 -j ACCEPT",
        "-m conntrack ! --ctstate NEW -j ACCEPT",
        "-m comment --comment something -j ACCEPT",
        "-m limit --limit 1/sec -j ACCEPT",
        "-j MARK --xor-mark 1",
        "-j CONNMARK --set-mark 5",
        "-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
        "-p udp -j CT --notrack",
        "-j LOG",
        "",
    ];
    let namespace = Namespace::new()?;
    namespace.run("iptables-legacy", &["-t", "mangle", "-N", "elsewhere"])?;
    for rule in rules {
        let table = if rule.contains(" CT ") { "raw" } else { "mangle" };
        let append = format!("-t {table} -A OUTPUT {rule}");
        let append: Vec<&str> = append.split_ascii_whitespace().collect();
        namespace.run("iptables-legacy", &append)?;
        let (read, printed) = both_ways(&namespace, Family::V4)?;
        let printed = printed.table(table).and_then(|t| t.chain("OUTPUT"));
        assert_eq!(printed.map(|c| c.rules.len()), Some(1), "{rule:?} was written");
        assert_eq!(read, None, "{rule:?} was read");
        namespace.run("iptables-legacy", &["-t", table, "-F", "OUTPUT"])?;
    }
    Ok(())
}
