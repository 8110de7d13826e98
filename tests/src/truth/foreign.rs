//! Random parties that write rules: programs of iptables, and nft.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use millrace_core::ruleset::Hook;

use super::place::{Kind, called_at};
use super::rule::Rule;
use super::step::Step;
use crate::fates::Dice;
use crate::topology::Family;

/// A party's rules.
pub(super) fn party(dice: &mut Dice, number: usize) -> Vec<Step> {
    match dice.pick(&[0, 0, 1, 2, 2]) {
        0 => iptables(dice, "nft"),
        1 => iptables(dice, "legacy"),
        _ => vec![native(dice, number)],
    }
}

fn families(dice: &mut Dice) -> &'static [Family] {
    dice.pick(&[&[Family::V4][..], &[Family::V4, Family::V6], &[Family::V6]])
}

fn iptables(dice: &mut Dice, variant: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for family in families(dice) {
        let program = match family {
            Family::V4 => format!("iptables-{variant}"),
            Family::V6 => format!("ip6tables-{variant}"),
        };
        let mut run = |words: &str| steps.push(Step::words(&program, words));
        let mut chains = Vec::new();
        let rules: Vec<Rule> = (0..=dice.pick(&[0, 1, 2, 3, 4]))
            .map(|_| {
                let place = Kind::place(dice);
                Rule::random(dice, *family, place, false)
            })
            .collect();
        for rule in rules.iter().filter(|rule| rule.jumps()) {
            if chains.contains(&(rule.kind, rule.hook)) {
                continue;
            }
            chains.push((rule.kind, rule.hook));
            let chain = called_at(rule.hook);
            run(&format!("-t {} -N {chain}", rule.kind.table()));
            for _ in 0..=dice.pick(&[0, 1, 2]) {
                let place = (rule.kind, rule.hook);
                run(&Rule::random(dice, *family, place, true).iptables(Some(&chain)));
            }
        }
        for rule in &rules {
            run(&rule.iptables(None));
        }
        if dice.one_in(12) {
            let hook = dice.pick(&[Hook::Input, Hook::Forward, Hook::Output]);
            // Without these nobody finds the next hop.
            if *family == Family::V6 && !dice.one_in(4) {
                let which = dice.pick(&[
                    &["-p ipv6-icmp"][..],
                    &[
                        "-p icmpv6 --icmpv6-type 135",
                        "-p icmpv6 --icmpv6-type neighbour-advertisement",
                    ],
                ]);
                for of in which {
                    run(&format!("-A {} {of} -j ACCEPT", hook.as_str()));
                }
            }
            run(&format!("-P {} DROP", hook.as_str()));
        }
    }
    steps
}

/// Rules that only nft has, at a hook.
fn special(dice: &mut Dice, kind: Kind, hook: Hook, chain: &str) -> String {
    let of_kind: &[&str] = match kind {
        Kind::Raw | Kind::Filter => &[
            "tcp dport vmap { 80 : drop, 443 : accept, 8000-8010 : jump CHAIN }",
            "meta l4proto { tcp, udp } th dport vmap { 53 : goto CHAIN, 80 : accept }",
            "ip daddr . meta l4proto . th dport @closed drop",
            "ip6 daddr . tcp dport vmap { fd70::2 . 22 : drop, ::1 . 80 : drop, fd71::10 . 80 : accept }",
            "meta mark vmap { 0x1 : drop, 0x2 : accept }",
            "udp dport vmap { 53 : accept, 80 : drop, * : continue }",
            "ip saddr @some drop",
            "ip daddr != @some tcp dport 8080 drop",
        ],
        Kind::Mangle => &[
            "meta mark set meta mark xor 0x3",
            "meta mark set tcp dport map { 80 : 0x1, 443 : 0x2, 8080 : 0x10 }",
            "ct mark set ct mark or 0x10",
            "ct mark set meta mark and 0xff",
        ],
        Kind::Nat => match hook {
            Hook::Prerouting | Hook::Output => &[
                "meta l4proto tcp redirect to :tcp dport map { 80 : 8080, 443 : 9090, 8000 : 53 }",
                "dnat ip to tcp dport map { 80 : 10.71.0.10, 443 : 127.0.0.1, 22 : 10.70.0.2 }",
                "dnat ip6 to tcp dport map { 80 : fd71::10, 443 : ::1 }",
                "dnat ip to ip daddr map { 10.72.0.10 : 10.71.0.10, 10.73.0.53 : 10.74.0.53 }",
                "ip daddr 10.72.0.0/16 dnat to 10.71.0.10",
                "dnat ip to ip daddr . tcp dport map { 10.71.0.10 . 80 : 10.72.0.10 . 8080 }",
            ],
            _ => &["ip saddr 10.70.0.2 snat to 10.80.0.2", "meta mark 0x1 snat ip to 10.77.0.9"],
        },
    };
    let states = "ct state vmap { established : accept, related : accept, invalid : drop }";
    let inputs = "iifname vmap { \"lo\" : accept, \"eth0\" : jump CHAIN }";
    let text = match dice.pick(&[0, 0, 0, 1, 2]) {
        1 if kind == Kind::Filter => states,
        2 if kind == Kind::Filter && hook == Hook::Input => inputs,
        _ => dice.pick(of_kind),
    };
    text.replace("CHAIN", chain)
}

/// Whether a rule of nft is for packets of a table's family.
fn fits(rule: &str, table: &str) -> bool {
    let words: Vec<&str> = rule.split([' ', ',']).collect();
    let other = match table {
        "ip" => "ip6",
        "ip6" => "ip",
        _ => return true,
    };
    // Sets have addresses of IPv4.
    !(words.contains(&other) || table == "ip6" && rule.contains('@'))
}

fn native(dice: &mut Dice, number: usize) -> Step {
    let table = dice.pick(&["inet", "inet", "ip", "ip6"]);
    let family_of = |dice: &mut Dice| match table {
        "ip" => Family::V4,
        "ip6" => Family::V6,
        _ => dice.pick(&[Family::V4, Family::V6]),
    };
    let (mut called, mut bases) = (BTreeSet::new(), String::new());
    let mut helpers = String::new();
    for at in 0..=dice.pick(&[0, 1, 2, 3]) {
        let (kind, hook) = Kind::place(dice);
        let usual = match (kind, hook) {
            (Kind::Raw, _) => -300,
            (Kind::Mangle, _) => -150,
            (Kind::Nat, Hook::Prerouting | Hook::Output) => -100,
            (Kind::Nat, _) => 100,
            (Kind::Filter, _) => 0,
        };
        let priority = usual + dice.pick(&[0, 0, 0, -10, 10, 5]);
        let word = match (kind, hook) {
            (Kind::Nat, _) => "nat",
            (Kind::Mangle, Hook::Output) => "route",
            _ => "filter",
        };
        // A chain of its own for each, since what may stand in it follows from where it is called.
        let chain = format!("{}-{at}", called_at(hook));
        let mut lines = Vec::new();
        for _ in 0..=dice.pick(&[0, 1, 2]) {
            let family = family_of(dice);
            let rule = if dice.one_in(4) {
                special(dice, kind, hook, &chain)
            } else {
                let rule = Rule::random(dice, family, (kind, hook), false);
                rule.nft(table).replace(&called_at(hook), &chain)
            };
            lines.extend(Some(rule).filter(|rule| fits(rule, table)));
        }
        let jumps = lines.iter().any(|line| line.contains(&chain));
        if jumps && called.insert(chain.clone()) {
            let _infallible = writeln!(helpers, "    chain {chain} {{");
            for _ in 0..=dice.pick(&[0, 1, 2]) {
                let family = family_of(dice);
                let rule = Rule::random(dice, family, (kind, hook), true);
                let _infallible = writeln!(helpers, "        {}", rule.nft(table));
            }
            helpers.push_str("    }\n");
        }
        let policy = if word == "filter" && dice.one_in(16) { "drop" } else { "accept" };
        if policy == "drop" && table != "ip" && !dice.one_in(4) {
            lines.insert(
                0,
                dice.pick(&[
                    "meta l4proto ipv6-icmp accept",
                    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
                    "icmpv6 type 135-136 accept",
                ])
                .to_owned(),
            );
        }
        let _infallible = writeln!(
            bases,
            "    chain c{at} {{ type {word} hook {} priority {priority}; policy {policy}",
            hook.base_chain()
        );
        for line in lines {
            let _infallible = writeln!(bases, "        {line}");
        }
        bases.push_str("    }\n");
    }
    let sets = if table == "ip6" {
        ""
    } else {
        "    set closed { type ipv4_addr . inet_proto . inet_service; flags interval
        elements = { 10.0.0.0/8 . tcp . 8000-8005, 127.0.0.1 . udp . 53 }
    }
    set some { type ipv4_addr; flags interval
        elements = { 10.71.0.0/16, 10.70.0.1, 127.0.0.0/8 }
    }
"
    };
    let text = format!("table {table} foreign{number} {{\n{sets}{helpers}{bases}}}\n");
    Step::feed("nft", &["-f", "-"], text)
}
