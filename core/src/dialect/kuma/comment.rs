//! What each rule says of itself: the words by which kumactl knows its rules, and then Millrace's own.

use crate::ruleset::{Chain, Comment, Hook, Match, Rule, Side, Target};

/// What comments of Kuma's rules begin with: kumactl removes rules by it.
pub(super) const PREFIX: &str = "kuma/mesh/transparent/proxy/";

/// The comment of a rule in a chain.
pub(super) fn comment(chain: &Chain, rule: &Rule) -> Option<Comment> {
    format!("{PREFIX}{}", label(chain, rule)).parse().ok()
}

/// What a rule is there for, in one word.
fn label(chain: &Chain, rule: &Rule) -> String {
    let has = |is: fn(&Match) -> bool| rule.matches.iter().any(is);
    let jumps = matches!(rule.target, Target::Jump(_));
    let port = rule.matches.iter().find_map(|condition| match condition {
        Match::Port { side: Side::Destination, ports, .. } => Some(ports),
        _ => None,
    });
    let of_flow = has(|m| matches!(m, Match::DestinationPorts { .. }));
    let of_others = has(|m| matches!(m, Match::Owner { negated: true, .. }));
    let of_proxy = has(|m| matches!(m, Match::Owner { negated: false, .. }));
    let from = has(|m| matches!(m, Match::Address { side: Side::Source, .. }));
    let to = has(|m| matches!(m, Match::Address { side: Side::Destination, negated: false, .. }));
    let lo = has(|m| matches!(m, Match::OutInterface { .. }));
    let builtin = matches!(chain, Chain::Builtin(_));
    let word = match (&rule.target, chain) {
        (Target::Zone(zone), _) => return format!("dns-zone-{zone}"),
        (Target::Drop, _) => "invalid",
        (Target::Redirect { .. }, Chain::Builtin(_)) => "dns",
        (Target::Redirect { .. }, _) => "to-proxy",
        (Target::Jump(_), Chain::Builtin(Hook::Prerouting)) => "inbound",
        (Target::Jump(_), Chain::Builtin(_)) => "outbound",
        _ if of_flow => "excluded-flow",
        _ if builtin && of_others => "dns-by-tcp",
        _ if builtin && of_proxy => "dns-of-proxy",
        _ if builtin => "excluded-network",
        _ if lo && from => "passthrough",
        _ if lo && of_others => "stays-in-pod",
        _ if lo => "self-call",
        _ if of_proxy => "proxy",
        _ if from => "excluded-source",
        _ if to => "localhost",
        _ => {
            let what = if jumps { "captured" } else { "excluded" };
            return port.map_or_else(
                || format!("{what}-every-port"),
                |port| format!("{what}-port-{port}"),
            );
        }
    };
    word.to_owned()
}
