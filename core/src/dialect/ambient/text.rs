//! The rules as Istio's agent writes them: what `iptables-restore --noflush` takes of each family, and one
//! transaction of nftables. Cilium's have the same words.

use crate::iptables::{render_match, render_target};
use crate::nft::{NftEmission, NftLayout, NftRuleset, Statement, base_chain, rule_text};
use crate::ruleset::{
    Chain, Emission, Hook, Masked, Match, Protocol, Ruleset, Side, Table, Target,
};
use crate::value::{Cidr, Family};

/// What of iptables is run, and with which input.
pub fn dry_run(ruleset: &Ruleset) -> String {
    let mut text = "iptables-save\nip6tables-save\n".to_owned();
    for family in ruleset.families() {
        for table in [Table::Mangle, Table::Nat, Table::Raw] {
            let rules: Vec<&Emission> =
                ruleset.family(family).iter().filter(|e| e.table == table).collect();
            if !rules.is_empty() {
                text.push_str(&table_text(table, &rules));
            }
        }
    }
    text
}

/// Chains with rules come first, then those that are led to.
fn table_text(table: Table, rules: &[&Emission]) -> String {
    let owners = rules.iter().map(|rule| rule.chain.clone());
    let led_to = rules.iter().filter_map(|e| match &e.rule.target {
        Target::Jump(name) => Some(Chain::User(name.clone())),
        _ => None,
    });
    let mut made: Vec<Chain> = Vec::new();
    for chain in owners.chain(led_to) {
        if matches!(chain, Chain::User(_)) && !made.contains(&chain) {
            made.push(chain);
        }
    }
    let made = made.iter().map(|chain| format!("-N {chain}\n"));
    let rules = rules.iter().map(|e| format!("-A {} {}\n", e.chain, spelled(e)));
    format!("* {table}\n{}{}COMMIT\n", made.collect::<String>(), rules.collect::<String>())
}

/// A rule in the agent's words.
fn spelled(emission: &Emission) -> String {
    let rule = &emission.rule;
    let udp = rule.matches.contains(&Match::Protocol(Protocol::Udp));
    let mut words = Vec::new();
    for m in &rule.matches {
        match m {
            Match::Port { .. } if udp => words.extend(["-m udp".to_owned(), render_match(m)]),
            Match::Address { side, negated: false, cidr } if is_probe(emission) => {
                let option = if *side == Side::Source { "-s" } else { "-d" };
                words.push(format!("{option} {}", cidr.address()));
            }
            Match::Mark { negated, mark } => {
                let not = if *negated { "! " } else { "" };
                words.push(format!("-m mark {not}--mark {}", masked(*mark)));
            }
            Match::Connmark { mark, .. } => {
                words.push(format!("-m connmark --mark {}", masked(*mark)));
            }
            other => words.push(render_match(other)),
        }
    }
    if is_probe(emission) {
        words.push("-m tcp".to_owned());
    }
    words.push(match &rule.target {
        Target::RestoreMark => {
            "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff".to_owned()
        }
        other => render_target(other),
    });
    words.join(" ")
}

/// Whether a rule lets the node's probes through, or what is sent to where they come from.
fn is_probe(emission: &Emission) -> bool {
    matches!(
        (emission.rule.matches.as_slice(), &emission.rule.target),
        ([Match::Address { negated: false, .. }, Match::Protocol(Protocol::Tcp)], Target::Accept)
    )
}

fn masked(mark: Masked) -> String {
    format!("{:#x}/{:#x}", mark.value, mark.mask)
}

/// Input for `nft -f` that replaces the rules of these tables in one transaction.
pub fn transaction(ruleset: &NftRuleset) -> String {
    let mut text = String::new();
    for table in ruleset.tables() {
        let Some(name) = ruleset.layout.table(table) else { continue };
        text.push_str(&format!("add table inet {name}\nflush table inet {name}\n"));
        for chain in ruleset.chains(table) {
            let called = ruleset.layout.chain(table, &chain.chain);
            let base = match chain.chain {
                Chain::Builtin(hook) => base(table, hook),
                Chain::User(_) => String::new(),
            };
            text.push_str(&format!("add chain inet {name} {called}{base}\n"));
        }
        for emission in ruleset.emissions.iter().filter(|e| e.table == table) {
            let chain = ruleset.layout.chain(table, &emission.chain);
            let rule = native(ruleset.layout, emission);
            let how = match emission.before {
                Some(index) => format!("insert rule inet {name} {chain} index {index}"),
                None => format!("add rule inet {name} {chain}"),
            };
            text.push_str(&format!("{how} {rule}\n"));
        }
    }
    text
}

fn base(table: Table, hook: Hook) -> String {
    let (kind, priority) = base_chain(table, hook);
    format!(" {{ type {kind} hook {} priority {priority} ; }}", hook.base_chain())
}

/// A rule in the agent's words.
fn native(layout: &NftLayout, emission: &NftEmission) -> String {
    let rule = &emission.rule;
    let spell = |statement: &Statement| match statement {
        Statement::Mark { negated, mark } => marked(*negated, *mark, rule),
        Statement::Address { side, negated: false, cidrs } => address(*side, cidrs),
        Statement::SetConnmark(mark) => {
            format!("ct mark set ct mark & {:#x} |  {:#x}", !mark.mask, mark.value)
        }
        other => rule_text(layout, emission.table, std::slice::from_ref(other)),
    };
    rule.iter().map(spell).collect::<Vec<_>>().join(" ")
}

/// One address stands without its length.
fn address(side: Side, cidrs: &[Cidr]) -> String {
    let side = if side == Side::Source { "saddr" } else { "daddr" };
    let one = |cidr: &Cidr| {
        let ip = if cidr.family() == Family::V4 { "ip" } else { "ip6" };
        let whole = cidr.length() == cidr.family().bits();
        let what = if whole { cidr.address().to_string() } else { cidr.to_string() };
        format!("{ip} {side} {what}")
    };
    cidrs.iter().map(one).collect()
}

/// A mark as the agent spells it in this rule.
fn marked(negated: bool, Masked { value, mask }: Masked, rule: &[Statement]) -> String {
    let is = if negated { "!=" } else { "==" };
    if rule.iter().any(|s| matches!(s, Statement::SetConnmark(_))) {
        return format!("meta mark & {mask:#x} {is} {value:#x}");
    }
    let v4 = |s: &Statement| matches!(s, Statement::Address { negated: true, cidrs, .. } if cidrs.iter().all(|c| c.family() == Family::V4));
    let not_port = |s: &Statement| matches!(s, Statement::Ports { negated: true, .. });
    let gap = if rule.iter().any(v4) && rule.iter().any(not_port) { "  " } else { " " };
    let zone = rule.iter().any(|s| matches!(s, Statement::Zone(_)));
    let meta = if zone { "meta " } else { "" };
    format!("{meta}mark and {mask:#x}{gap}{is} {value:#x}")
}
