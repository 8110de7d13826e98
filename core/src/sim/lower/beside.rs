//! What a rule has beside all that its steps say: two rules that treat connections alike can log them in
//! other words, and one rule can ask about what no rule holds.

use serde_json::Value;

use super::super::program::Beside;
use super::options::words;
use super::text::NOTES;
use crate::nft::listed::{LogTo, Term};

/// Targets with options that the way of a packet does not depend on, beside those of [`NOTES`].
const HALF_READ: [&str; 6] = ["TOS", "DSCP", "SET", "TTL", "HL", "REJECT"];
/// How addresses and ports are chosen from those that there are.
const CHOSEN: [&str; 3] = ["--random", "--random-fully", "--persistent"];
/// What REJECT says when it is not told what to.
const USUAL: [&str; 2] = ["icmp-port-unreachable", "icmp6-port-unreachable"];

/// The same of a rule of iptables, from its text without `-A CHAIN`.
pub(super) fn of_text(text: &str) -> Beside {
    let words = words(text);
    let after = |option: &str, long: &str| {
        let at = words.iter().position(|word| word == option || word == long)?;
        words.get(at + 1..)
    };
    let has = |name: &str| words.iter().any(|word| word == name);
    let module = |name: &str| words.windows(2).any(|pair| pair[0] == "-m" && pair[1] == name);
    let noted = match after("-j", "--jump") {
        Some([name, options @ ..]) if NOTES.contains(&name.as_str()) => {
            [std::slice::from_ref(name), options].concat()
        }
        Some([_, with, usual]) if with == "--reject-with" && USUAL.contains(&usual.as_str()) => {
            Vec::new()
        }
        Some([name, options @ ..]) if HALF_READ.contains(&name.as_str()) => options.to_vec(),
        Some([_, options @ ..]) => {
            let chosen = options.iter().filter(|option| CHOSEN.contains(&option.as_str()));
            chosen.cloned().collect()
        }
        _ => Vec::new(),
    };
    // Sets of ipset, lists of recent addresses, and programs in a file system.
    let elsewhere =
        ["set", "recent"].into_iter().any(module) || has("--map-set") || has("--object-pinned");
    Beside { noted: noted.join(" "), elsewhere }
}

/// The same of a rule that was read from the kernel.
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
    Beside { noted: logs.collect::<Vec<_>>().join(" "), elsewhere: false }
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
    fn what_is_left_out_is_kept() {
        let noted = |text: &str| of_text(text).noted;
        assert_eq!(noted("-p tcp -j LOG --log-prefix \"a b\""), "LOG --log-prefix a b");
        assert_eq!(noted("-p tcp -j NFLOG --nflog-group 2"), "NFLOG --nflog-group 2");
        assert_eq!(noted("-j REDIRECT --to-ports 15001 --random"), "--random");
        assert_eq!(noted("-j REJECT --reject-with icmp-port-unreachable"), "");
        assert_eq!(
            noted("-j REJECT --reject-with icmp-host-prohibited"),
            "--reject-with icmp-host-prohibited"
        );
        assert_eq!(noted("-p tcp -j DNAT --to-destination 10.0.0.1:53"), "");
        assert_eq!(noted("-m comment --comment LOG"), "");
        assert!(of_text("-p tcp -m set --match-set bad dst -j DROP").elsewhere);
        assert!(!of_text("-p tcp -m comment --comment set -j DROP").elsewhere);
    }
}
