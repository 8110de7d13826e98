//! Reading iptables-legacy's tables from the kernel gives what its own program prints.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_core::iptables::{Dump, TableDump};
use millrace_core::value::Family;
use millrace_host::xtables;
use millrace_tests::capture::{Capture as _, Millrace, Variant, millrace};
use millrace_tests::cases;
use millrace_tests::netns::Namespace;
use millrace_tests::topology::{Stack, Topology};
use serde_json::Value;

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
        "-m owner --gid-owner 1-5 -j ACCEPT",
        "-m owner --socket-exists -j ACCEPT",
        "-m conntrack --ctproto 6 -j ACCEPT",
        "-m conntrack ! --ctstate NEW -j ACCEPT",
        "-m comment --comment grüße -j ACCEPT",
        "-m limit --limit 1/sec -j ACCEPT",
        "-j MARK --xor-mark 1",
        "-j CONNMARK --xor-mark 5",
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

/// Verify that what other meshes' tools write is read as `iptables-legacy-save` prints it.
#[test]
fn rules_of_other_meshes_are_read() -> Result<()> {
    let namespace = Namespace::new()?;
    for rule in [
        "-m owner --uid-owner 1-5 -j ACCEPT",
        "-p tcp -m comment --comment any/thing -j ACCEPT",
        "-p tcp -m comment --comment it's:\"\\so\" -j ACCEPT",
        "-p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.9",
        "-p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.1:8600",
        "-p tcp -m multiport --dports 1,3:5,9 -j RETURN",
    ] {
        let append = ["-t", "nat", "-A", "OUTPUT"].into_iter().chain(rule.split(' '));
        let append: Vec<&str> = append.collect();
        namespace.run("iptables-legacy", &append)?;
        let (read, printed) = both_ways(&namespace, Family::V4)?;
        let read = read.with_context(|| format!("{rule} is understood"))?;
        assert_eq!(comparable(&read)?, comparable(&printed)?, "{rule}");
        namespace.run("iptables-legacy", &["-t", "nat", "-F", "OUTPUT"])?;
    }
    Ok(())
}

/// Verify that rules which match nothing are told as such, though their text as iptables-legacy-save
/// prints it is that of rules which match all. It prints them where there is a rule that is not read.
#[test]
fn what_iptables_save_leaves_out_is_known() -> Result<()> {
    for (rule, left_out, to) in [
        ("-p tcp ! --dport 0:65535", "-p tcp -m tcp ! --dport 0:65535 -j DROP", "tcp"),
        ("-p udp ! --sport 0:65535", "-p udp -m udp ! --sport 0:65535 -j DROP", "udp"),
        ("! -o +", "! -o + -j DROP", "tcp"),
    ] {
        for (family, program, to) in [
            (Family::V4, "iptables-legacy", format!("127.0.0.1:80/{to}")),
            (Family::V6, "ip6tables-legacy", format!("[::1]:80/{to}")),
        ] {
            let namespace = Namespace::new()?;
            namespace.ip("link set lo up\n")?;
            let append = |rule: &str| -> Result<String> {
                let words = format!("-A OUTPUT {rule}");
                namespace.run(program, &words.split(' ').collect::<Vec<_>>())
            };
            append("-j LOG")?;
            append(&format!("{rule} -j DROP"))?;
            append("-m comment --comment last -j ACCEPT")?;
            let words = ["explain", "--live", "--output", "json", "--to", &to];
            let output = namespace.output(&mut millrace(words)?)?;
            let said: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(said["outcome"]["outcome"] == "delivered", "{family} {rule}: {said:#}");
            let text = said["way"].to_string();
            ensure!(text.contains(left_out), "{family} {rule}: {said:#}");
        }
    }
    Ok(())
}

/// Verify that what stands in a comment is never taken for a rule, and breaks nothing.
#[test]
fn a_comment_may_hold_anything() -> Result<()> {
    for program in ["iptables-legacy", "iptables-nft"] {
        let namespace = Namespace::new()?;
        namespace.ip("link set lo up\n")?;
        let comment = "a\n-A OUTPUT -j ACCEPT\nCOMMIT\n# \"b\\";
        let comment = ["-A", "OUTPUT", "-m", "comment", "--comment", comment];
        namespace.run(program, &[&comment[..], &["-p", "tcp", "-j", "DROP"]].concat())?;
        namespace.run(program, &["-A", "OUTPUT", "-j", "LOG"])?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("rules");
        std::fs::write(
            &file,
            namespace.output(&mut Command::new(format!("{program}-save")))?.stdout,
        )?;
        let file = file.to_str().context("UTF-8")?;
        for source in [&["--live"][..], &["--rules", file]] {
            let words = ["explain", "--output", "json", "--to", "127.0.0.1:80"];
            let output = namespace.output(&mut millrace([&words[..], source].concat())?)?;
            let said: Value = serde_json::from_slice(&output.stdout)
                .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
            ensure!(said["outcome"]["outcome"] == "dropped", "{program} {source:?}: {said:#}");
            ensure!(said["decidedBy"][0]["number"] == 1, "{program} {source:?}: {said:#}");
        }
    }
    Ok(())
}
