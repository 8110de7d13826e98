//! What a rule has beside all that its steps say, and what its steps do that the way of a packet does not
//! depend on: in words that are the same for the same, whatever language the rule is in.

use serde_json::Value;

use super::super::program::Beside;
use super::super::rule::Action;
use crate::nft::listed::{LogTo, Term};
use crate::value::Family;

/// Messages of ICMP that say that a packet is refused, by their codes (`linux/icmp.h`, `linux/icmpv6.h`;
/// `nft_reject_icmpx_code` in `linux/netfilter/nf_tables.h` for both).
const REFUSALS: [(&str, &[(&str, u8)]); 3] = [
    (
        "icmp",
        &[
            ("net-unreachable", 0),
            ("host-unreachable", 1),
            ("proto-unreachable", 2),
            ("prot-unreachable", 2),
            ("port-unreachable", 3),
            ("net-prohibited", 9),
            ("host-prohibited", 10),
            ("admin-prohibited", 13),
        ],
    ),
    (
        "icmpv6",
        &[
            ("no-route", 0),
            ("admin-prohibited", 1),
            ("adm-prohibited", 1),
            ("addr-unreachable", 3),
            ("port-unreachable", 4),
            ("policy-fail", 5),
            ("reject-route", 6),
        ],
    ),
    (
        "icmpx",
        &[
            ("no-route", 0),
            ("port-unreachable", 1),
            ("host-unreachable", 2),
            ("admin-prohibited", 3),
        ],
    ),
];

/// What is said to who is refused, where it is not what is said when nobody asks for anything else: that
/// nobody listens on the port.
pub(super) fn refused(kind: &str, code: u8) -> Option<Action> {
    let usual = matches!((kind, code), ("icmp", 3) | ("icmpv6", 4) | ("icmpx", 1));
    let known = REFUSALS.iter().find(|(name, _)| *name == kind);
    let known = known.and_then(|(_, codes)| codes.iter().find(|(_, known)| *known == code));
    let name = known.map_or_else(|| code.to_string(), |(name, _)| (*name).to_owned());
    (!usual).then(|| Action::Effect(format!("reject with {kind} {name}")))
}

/// The same of what nft's JSON names.
pub(super) fn refused_as(kind: &str, name: &str) -> Option<Action> {
    let codes = REFUSALS.iter().find(|(known, _)| *known == kind);
    let code = codes.and_then(|(_, codes)| codes.iter().find(|(known, _)| *known == name));
    match code.map(|(_, code)| *code).or_else(|| name.parse().ok()) {
        Some(code) => refused(kind, code),
        None => Some(Action::Effect(format!("reject with {kind} {name}"))),
    }
}

/// The same of what iptables is asked for with `--reject-with`.
pub(super) fn rejection(with: &str, family: Family) -> Option<Action> {
    /// Names of `ip6tables` and `iptables` that are short for one.
    const SHORT: [(&str, &str); 7] = [
        ("net-unreach", "net-unreachable"),
        ("host-unreach", "host-unreachable"),
        ("proto-unreach", "proto-unreachable"),
        ("port-unreach", "port-unreachable"),
        ("net-prohib", "net-prohibited"),
        ("host-prohib", "host-prohibited"),
        ("admin-prohib", "admin-prohibited"),
    ];
    let (kind, starts) = match family {
        Family::V4 => ("icmp", "icmp-"),
        Family::V6 => ("icmpv6", "icmp6-"),
    };
    let name = with.strip_prefix(starts).unwrap_or(with);
    let name = SHORT.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| *long);
    refused_as(kind, name)
}

/// What an effect begins with that says how they are chosen.
pub(in crate::sim) const CHOSEN: &str = "chosen ";

/// How an address and a port are chosen of those that there are; none where nobody asks for any way.
pub(super) fn choice(ways: &[&str]) -> Option<Action> {
    // iptables has another name for it.
    let mut ways: Vec<&str> =
        ways.iter().map(|way| if *way == "random-fully" { "fully-random" } else { way }).collect();
    ways.sort_unstable();
    ways.dedup();
    (!ways.is_empty()).then(|| Action::Effect(format!("{CHOSEN}{}", ways.join(" "))))
}

/// The same, of flags (`NF_NAT_RANGE_*` in `linux/netfilter/nf_nat.h`).
pub(super) fn choice_of(flags: u32) -> Option<Action> {
    const FLAGS: [(u32, &str); 3] = [(4, "random"), (8, "persistent"), (16, "fully-random")];
    let set = FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name);
    choice(&set.collect::<Vec<_>>())
}

/// What a rule logs that was read from the kernel.
pub(super) fn of_terms(terms: &[Term]) -> Beside {
    let logs = terms.iter().filter_map(|term| match term {
        Term::Log(to) => Some(format!("{to:?}")),
        _ => None,
    });
    Beside { noted: logs.collect::<Vec<_>>().join(" "), elsewhere: false }
}

/// The same of a rule of nft's JSON.
pub(super) fn of_json(exprs: &[Value]) -> Beside {
    let logs = exprs.iter().filter_map(|expr| expr.get("log")).map(|log| format!("{:?}", to(log)));
    let elsewhere = exprs.iter().any(|expr| is_by_name(expr) || asks_others(expr));
    Beside { noted: logs.collect::<Vec<_>>().join(" "), elsewhere }
}

/// Objects of a table that rules name.
pub(super) const NAMED: [&str; 8] = [
    "limit",
    "quota",
    "ct helper",
    "ct timeout",
    "ct expectation",
    "secmark",
    "synproxy",
    "tunnel",
];

/// Whether a statement names an object of the table that says what is done (`libnftables-json(5)`): of two
/// that are called alike it isn't known whether they are the same.
fn is_by_name(expr: &Value) -> bool {
    let named = |content: &Value| !content.is_object() || content.get("map").is_some();
    NAMED.iter().filter_map(|kind| expr.get(kind)).any(named)
}

/// Whether it leaves to a program what becomes of a packet, or asks for policies of `IPsec` or for marks of
/// operating systems, which no list of rules has.
fn asks_others(value: &Value) -> bool {
    match value {
        Value::Array(all) => all.iter().any(asks_others),
        Value::Object(members) => members.iter().any(|(key, value)| {
            matches!(key.as_str(), "queue" | "ipsec" | "osf") || asks_others(value)
        }),
        other => other == "queue",
    }
}

/// Where a `log` of nft's JSON goes.
fn to(log: &Value) -> LogTo {
    /// As `NF_LOG_*` counts them (`linux/netfilter/nf_log.h`).
    const FLAGS: [(&str, u32); 6] = [
        ("tcp sequence", 1),
        ("tcp options", 2),
        ("ip options", 4),
        ("skuid", 8),
        ("ether", 0x20),
        ("all", 0x2f),
    ];
    /// As `syslog(3)` counts them, and behind them `NFT_LOGLEVEL_AUDIT`.
    const LEVELS: [&str; 9] =
        ["emerg", "alert", "crit", "err", "warn", "notice", "info", "debug", "audit"];
    let number = |key: &str| log.get(key)?.as_u64()?.try_into().ok();
    let flag = |word: &Value| {
        let known = FLAGS.iter().find(|(name, _)| word.as_str() == Some(*name));
        known.map_or(0, |(_, bit)| *bit)
    };
    let level = log.get("level").and_then(Value::as_str);
    let level = level.and_then(|level| LEVELS.iter().position(|known| *known == level));
    LogTo {
        prefix: log.get("prefix").and_then(Value::as_str).unwrap_or_default().to_owned(),
        group: number("group"),
        snaplen: number("snaplen").unwrap_or(0),
        threshold: number("queue-threshold").unwrap_or(0),
        level: level.and_then(|level| level.try_into().ok()).filter(|level| *level != LogTo::WARN),
        flags: match log.get("flags") {
            Some(Value::Array(flags)) => flags.iter().map(flag).fold(0, |all, bit| all | bit),
            Some(one) => flag(one),
            None => 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_one_name_in_all_languages() {
        let said = |with, family| rejection(with, family);
        assert_eq!(said("icmp-port-unreachable", Family::V4), None);
        assert_eq!(said("icmp6-port-unreachable", Family::V6), None);
        assert_eq!(said("icmp-host-prohibited", Family::V4), refused("icmp", 10));
        assert_eq!(
            said("icmp6-adm-prohibited", Family::V6),
            refused_as("icmpv6", "admin-prohibited")
        );
        assert_ne!(refused("icmp", 10), refused("icmp", 9));
        assert_eq!(refused_as("icmpx", "port-unreachable"), None);
    }

    #[test]
    fn objects_that_are_named_are_elsewhere() {
        let of = |text: &str| of_json(&[serde_json::from_str(text).unwrap()]).elsewhere;
        assert!(of(r#"{"limit": "l"}"#) && of(r#"{"ct helper": "l"}"#));
        assert!(of(r#"{"quota": {"map": {"key": 1, "data": "@m"}}}"#));
        assert!(!of(r#"{"limit": {"rate": 5, "per": "second"}}"#) && !of(r#"{"counter": "c"}"#));
    }

    #[test]
    fn choices_have_one_name_in_all_languages() {
        assert_eq!(choice(&["random", "persistent"]), choice_of(12));
        assert_eq!(choice(&["random-fully"]), choice_of(16));
        assert_eq!(choice(&[]), None);
        assert_eq!(choice_of(3), None);
    }
}
