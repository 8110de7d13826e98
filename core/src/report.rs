//! Rules with their reasons, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::iptables::{Counters, Dump, layout, render_line, render_rule};
use crate::ownership::{Footprint, Owned, known_tables};
use crate::plan::{PASSTHROUGH_LINK, PASSTHROUGH_PEER, PASSTHROUGH_READY};
use crate::ruleset::{Emission, Home, MarkedRoute, Reason, Rule, Ruleset};
use crate::value::{Family, Groups};

/// A rule with the reason it is there.
#[derive(Clone, Debug, Serialize)]
pub struct RuleReport {
    /// The rule as iptables writes it, without its chain.
    pub rule: String,
    /// Packets and bytes that matched it; none for rules of a configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    /// Why it is there; none when nothing that was read back explains it.
    pub reason: Option<Reason>,
}

/// A chain with its rules of ours, in the order in which a packet meets them.
#[derive(Clone, Debug, Serialize)]
pub struct ChainReport {
    /// As `iptables -t` and nftables have it.
    pub table: String,
    /// Its name; built-in chains have that of their hook, in capitals.
    pub chain: String,
    /// In the order in which the kernel asks them.
    pub rules: Vec<RuleReport>,
}

/// Chains of one IP version: an element of `families` in the JSON of `dump`.
#[derive(Clone, Debug, Serialize)]
pub struct FamilyReport {
    /// IPv4 or IPv6: a report has one part for each.
    pub family: Family,
    /// Which iptables holds it, when it is in a namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iptables: Option<String>,
    /// Those that are ours, and those of others with rules of ours in them.
    pub chains: Vec<ChainReport>,
}

/// What the rules of a configuration are.
pub fn of_ruleset(ruleset: &Ruleset) -> Vec<FamilyReport> {
    let chain = |((table, chain), rules): (&crate::ruleset::TableChain, &Vec<&Emission>)| {
        let rules = rules.iter().map(|e| RuleReport {
            rule: render_rule(&e.rule),
            counters: None,
            reason: Some(e.reason.clone()),
        });
        let (table, chain) = (table.to_string(), chain.to_string());
        ChainReport { table, chain, rules: rules.collect() }
    };
    ruleset
        .families()
        .map(|family| {
            let chains = ruleset.chains(family).iter().map(chain).collect();
            FamilyReport { family, iptables: None, chains }
        })
        .collect()
}

/// What of a dump is ours. Reasons come from `explained`, the rules that the settings give which
/// were read back: a rule that they don't give has none.
pub fn of_dump(
    dump: &Dump,
    family: Family,
    footprints: &[Footprint],
    explained: Option<&Ruleset>,
    groups: &Groups,
) -> Vec<ChainReport> {
    let owned = Owned::find(dump, footprints);
    let explained = explained.map(|e| e.chains(family)).unwrap_or_default();
    let mut chains = Vec::new();
    for (table, content) in known_tables(dump) {
        for chain in &content.chains {
            let ours = |i: usize| owned.has_rule(table, &chain.name, i);
            if !owned.has_chain(table, &chain.name) && !(0..chain.rules.len()).any(ours) {
                continue;
            }
            let mut left: Vec<(Rule, &Reason)> = chain
                .name
                .parse()
                .ok()
                .and_then(|name| explained.get(&(table, name)))
                .into_iter()
                .flatten()
                .map(|e| (e.rule.canonical(groups), &e.reason))
                .collect();
            let rules = chain.rules.iter().enumerate().filter(|(i, _)| ours(*i)).map(|(_, r)| {
                let meaning = r.rule.as_ref().ok().map(|rule| rule.canonical(groups));
                let known = left.iter().position(|(rule, _)| Some(rule) == meaning.as_ref());
                RuleReport {
                    rule: r.text.clone(),
                    counters: r.counters,
                    reason: known.map(|i| left.remove(i).1.clone()),
                }
            });
            chains.push(ChainReport {
                table: table.to_string(),
                chain: chain.name.clone(),
                rules: rules.collect(),
            });
        }
    }
    chains
}

/// Rules of a configuration as input for `iptables-restore --noflush`, a comment with its reason
/// in front of each.
pub fn restore_text(ruleset: &Ruleset, family: Family) -> String {
    let lines: Vec<(layout::Line, &Reason)> =
        ruleset.family(family).iter().map(|e| (render_line(e), &e.reason)).collect();
    let plain: Vec<layout::Line> = lines.iter().map(|(l, _)| l.clone()).collect();
    let mut reasons: Vec<(String, &Reason)> =
        lines.iter().map(|(l, r)| (format!("{} {}", l.table, l.text()), *r)).collect();
    let mut table = String::new();
    let mut text = format!("# {family}\n");
    for line in layout::restore(&plain).lines() {
        if let Some(name) = line.strip_prefix("* ") {
            name.clone_into(&mut table);
        }
        let key = format!("{table} {line}");
        if let Some(index) = reasons.iter().position(|(k, _)| *k == key) {
            let (_, reason) = reasons.remove(index);
            writeln!(text, "# {reason}").expect("a String takes all");
        }
        writeln!(text, "{line}").expect("a String takes all");
    }
    text
}

/// Rules of a namespace as text, in the same form.
pub fn dump_text(family: &FamilyReport) -> String {
    let mut text = format!("# {}", family.family);
    if let Some(iptables) = &family.iptables {
        write!(text, ", {iptables}").expect("a String takes all");
    }
    text.push('\n');
    let mut tables: Vec<&str> = family.chains.iter().map(|c| c.table.as_str()).collect();
    tables.dedup();
    for table in tables {
        writeln!(text, "* {table}").expect("a String takes all");
        let chains = || family.chains.iter().filter(|c| c.table == table);
        for chain in chains().filter(|c| crate::ruleset::Hook::from_name(&c.chain).is_none()) {
            writeln!(text, "-N {}", chain.chain).expect("a String takes all");
        }
        for chain in chains() {
            for rule in &chain.rules {
                let why = rule.reason.as_ref().map_or_else(
                    || "not explained by the other rules".to_owned(),
                    ToString::to_string,
                );
                writeln!(text, "# {why}\n-A {} {}", chain.chain, rule.rule)
                    .expect("a String takes all");
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// What a ruleset needs beside its rules, as commands of `ip`, each with a comment.
pub fn routing_text(ruleset: &Ruleset) -> String {
    let mut text = String::new();
    if let Some(MarkedRoute { mark, table, priority, .. }) = ruleset.routing.marked {
        for family in ruleset.families() {
            let (flag, all) = match family {
                Family::V4 => ("-4", "0.0.0.0/0"),
                Family::V6 => ("-6", "::/0"),
            };
            writeln!(
                text,
                "# ip {flag} route add local {all} dev lo table {table}\n# ip {flag} rule add \
                 priority {priority} fwmark {:#x}/{:#x} lookup {table}",
                mark.value, mark.mask
            )
            .expect("a String takes all");
        }
    }
    match ruleset.routing.passthrough_v6 {
        None => {}
        Some(Home::Loopback) => text.push_str("# ip -6 address add ::6/128 dev lo\n"),
        Some(Home::Own) => writeln!(
            text,
            "# ip link add {PASSTHROUGH_LINK} type veth peer name {PASSTHROUGH_PEER}\n\
             # ip link set {PASSTHROUGH_LINK} addrgenmode none arp off multicast off up\n\
             # ip -6 address add ::6/128 dev {PASSTHROUGH_LINK} nodad noprefixroute preferred_lft 0\n\
             # ip -6 route del multicast ff00::/8 dev {PASSTHROUGH_LINK} table local\n\
             # ip link set {PASSTHROUGH_LINK} alias {PASSTHROUGH_READY:?}"
        )
        .expect("a String takes all"),
    }
    if text.is_empty() { text } else { format!("# routing and addresses\n{text}") }
}
