//! Rules of others in tables of iptables that undo capture wherever they stand: what they match is not
//! tracked, so never redirected, or is refused where it was redirected to. Only rules that say so by
//! themselves are told: one that drops what is invalid, marked or forwarded is everywhere.

use std::collections::BTreeSet;

use crate::nft::expr::Expr;
use crate::observed::{Holding, Observed};
use crate::ownership::{Footprint, Owned, known_tables};
use crate::ruleset::{Hook, Table, Target};

/// Each chain with such rules in a sentence; whether DNS is captured as well.
pub(super) fn notes(observed: &Observed, footprints: &[Footprint], dns: bool) -> Vec<String> {
    let ports = proxy_ports(observed, footprints);
    let of = |holding: &Holding| {
        let owned = Owned::find(&holding.dump, footprints);
        let mut notes = Vec::new();
        for (table, content) in known_tables(&holding.dump) {
            // What goes through the namespace, or has left it, is not captured.
            let elsewhere = [Hook::Forward, Hook::Postrouting].map(Hook::as_str);
            let chains = content.chains.iter();
            for chain in chains.filter(|chain| !elsewhere.contains(&chain.name.as_str())) {
                let theirs = chain.rules.iter().enumerate();
                let theirs = theirs.filter(|(i, _)| !owned.has_rule(table, &chain.name, *i));
                let mut texts = theirs.map(|(_, rule)| rule.text.as_str());
                let at = format!(
                    "chain {} of {} {table} ({})",
                    chain.name, holding.family, holding.variant
                );
                let note = match table {
                    Table::Raw => texts.find(|text| leaves_untracked(text, dns)).map(|text| {
                        format!("a rule of others in {at} keeps what it matches from being tracked, and so from being captured: {text}")
                    }),
                    Table::Filter | Table::Mangle => texts
                        .find(|text| refuses(text) && names(text, &ports))
                        .map(|text| format!("a rule of others in {at} refuses what is led to the proxy: {text}")),
                    Table::Nat => None,
                };
                notes.extend(note);
            }
        }
        notes
    };
    observed.holdings.iter().flat_map(of).collect()
}

/// The ports that rules of ours lead to.
fn proxy_ports(observed: &Observed, footprints: &[Footprint]) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for holding in &observed.holdings {
        let owned = Owned::find(&holding.dump, footprints);
        for (table, content) in known_tables(&holding.dump) {
            for chain in &content.chains {
                let rules = chain.rules.iter().enumerate();
                let ours = rules.filter(|(index, _)| owned.has_rule(table, &chain.name, *index));
                ports.extend(ours.filter_map(|(_, rule)| match rule.rule.as_ref().ok()?.target {
                    Target::Redirect { port, .. } | Target::Tproxy { port, .. } => Some(port.get()),
                    _ => None,
                }));
            }
        }
    }
    let chains = observed.native.iter().flat_map(|(_, chains)| chains);
    for exprs in chains.flat_map(|(_, chain)| &chain.rules).filter_map(|rule| rule.as_ref().ok()) {
        ports.extend(exprs.windows(2).filter_map(|pair| match pair {
            [Expr::Load(port), Expr::Redirect | Expr::Tproxy(_)] => {
                Some(u16::from_be_bytes(port.as_slice().try_into().ok()?))
            }
            _ => None,
        }));
    }
    ports
}

/// `NOTRACK`, `CT --notrack`, and what nftables calls so; of UDP alone only where that is captured.
fn leaves_untracked(text: &str, dns: bool) -> bool {
    let untracked = text.to_ascii_lowercase().contains("notrack");
    let mut words = text.split_ascii_whitespace();
    let protocol = words.by_ref().find(|word| *word == "-p").and_then(|_| words.next());
    untracked && protocol.is_none_or(|protocol| protocol == "tcp" || (dns && protocol == "udp"))
}

fn refuses(text: &str) -> bool {
    text.split_ascii_whitespace().any(|word| {
        ["DROP", "REJECT"].iter().any(|target| word.trim_start_matches('[').starts_with(target))
    })
}

/// Whether a rule asks for one of these destination ports.
fn names(text: &str, ports: &BTreeSet<u16>) -> bool {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    words.windows(3).any(|three| {
        let [before, option, list] = three else { return false };
        let asks = ["--dport", "--dports"].contains(option) && *before != "!";
        asks && list.split(',').any(|range| {
            let (first, last) = range.split_once(':').unwrap_or((range, range));
            let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
                return false;
            };
            first <= last && ports.range::<u16, _>(first..=last).next().is_some()
        })
    })
}
