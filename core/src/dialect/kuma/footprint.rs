//! How Kuma's rules are known: by its chains, by its comments, and those of DNS without comments by what
//! they ask for.

use super::{LAYOUT, comment};
use crate::iptables::{Dump, DumpRule};
use crate::ownership::{Footprint, Owned, known_tables};
use crate::ruleset::{Chain, Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::{Port, Uid};

/// What kumactl left, with comments and without.
pub(super) const FOOTPRINT: Footprint = Footprint { layout: &LAYOUT, rival: None, unmarked };

/// Rules of builtin chains that lead to none of Kuma's.
fn unmarked(dump: &Dump, owned: &mut Owned) {
    let mut says = Vec::new();
    let mut asks = Vec::new();
    let proxy = proxy(dump);
    for (table, content) in known_tables(dump) {
        let builtin = |name: &str| matches!(name.parse(), Ok(Chain::Builtin(_)));
        for chain in content.chains.iter().filter(|chain| builtin(&chain.name)) {
            for (index, rule) in chain.rules.iter().enumerate() {
                let place = (table, chain.name.clone(), index);
                if is_said(rule) {
                    says.push(place);
                } else if let (Some(proxy), Ok(rule)) = (proxy, &rule.rule)
                    && is_of_dns(table, rule, proxy)
                {
                    asks.push(place);
                }
            }
        }
    }
    // Where comments are, they tell: what has none is somebody else's.
    let found = if says.is_empty() { asks } else { says };
    for (table, chain, index) in found {
        owned.add_rule(table, &chain, index);
    }
}

/// Whether a rule says that it is Kuma's.
fn is_said(rule: &DumpRule) -> bool {
    match &rule.rule {
        Ok(rule) => rule
            .matches
            .iter()
            .any(|m| matches!(m, Match::Comment(c) if c.as_str().starts_with(comment::PREFIX))),
        Err(_) => rule.text.contains(&format!("--comment \"{}", comment::PREFIX)),
    }
}

/// The proxy's user, as the rules of Kuma's own chain name it.
fn proxy(dump: &Dump) -> Option<Uid> {
    let (_, nat) = known_tables(dump).find(|(table, _)| *table == Table::Nat)?;
    let rules = &nat.chain(LAYOUT.output.as_str())?.rules;
    rules.iter().find_map(|rule| match rule.rule.as_ref().ok()? {
        Rule { matches, target: Target::Return } => matches.iter().find_map(|m| match m {
            Match::Owner { negated: false, owner: Owner::Uid(uid) } => Some(*uid),
            _ => None,
        }),
        _ => None,
    })
}

/// Whether a rule is one of those that capture DNS queries for a proxy, or track them.
fn is_of_dns(table: Table, rule: &Rule, proxy: Uid) -> bool {
    let asks = |m: Match| rule.matches.contains(&m);
    let dns = |side| Match::Port { side, negated: false, ports: Port::new(53).into() };
    let to_dns = asks(dns(Side::Destination));
    let by = |protocol| asks(Match::Protocol(protocol));
    let of_proxy = |negated| asks(Match::Owner { negated, owner: Owner::Uid(proxy) });
    match (table, &rule.target) {
        (Table::Nat, Target::Return) => {
            to_dns && (by(Protocol::Udp) && of_proxy(false) || by(Protocol::Tcp) && of_proxy(true))
        }
        (Table::Nat, Target::Redirect { .. }) => to_dns && by(Protocol::Udp),
        (Table::Raw, Target::Zone(_)) => {
            by(Protocol::Udp) && (to_dns || of_proxy(false) || asks(dns(Side::Source)))
        }
        _ => false,
    }
}
