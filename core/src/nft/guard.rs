//! What a transparent proxy is to have and does not take is dropped: nft's `tproxy` lets it on to the
//! application while no transparent socket listens, where TPROXY of iptables drops.

use super::{NftEmission, NftRuleset, Statement};
use crate::ruleset::{Chain, Hook, Table};
use crate::value::ListenPort;

/// Why the packets that are left are dropped.
pub fn untaken(port: ListenPort) -> String {
    format!("without a transparent listener on port {port} captured connections are dropped")
}

/// The same ruleset with its guard, where its layout has a table for one: a chain right behind that
/// of the marks, which lets past what that one lets past, and drops what it hands to the proxy. What
/// the proxy took has its mark, and is let past like everything that has it.
#[must_use]
pub fn guarded(ruleset: NftRuleset) -> NftRuleset {
    let mut guard = Vec::new();
    if ruleset.layout.guard.is_some() {
        let mangle = ruleset.chains(Table::Mangle);
        let rules = |chain: &Chain| {
            let chain = mangle.iter().find(|c| c.chain == *chain);
            chain.map(|c| c.rules.clone()).unwrap_or_default()
        };
        let names = &ruleset.layout.chains;
        let inbound = Statement::Jump(names.inbound.clone());
        let entered = rules(&Chain::Builtin(Hook::Prerouting)).into_iter().flat_map(|rule| {
            // Nothing behind this jump lets a packet past or drops it.
            let jumps = rule.rule.ends_with(std::slice::from_ref(&inbound));
            if jumps { rules(&Chain::User(names.inbound.clone())) } else { vec![rule] }
        });
        let handed = rules(&Chain::User(names.tproxy.clone()));
        for rule in entered {
            match rule.rule.last() {
                Some(Statement::Return) => guard.push(of_guard(rule, rule.rule.clone())),
                Some(Statement::Jump(chain)) if *chain == names.tproxy => {
                    guard.extend(handed.iter().filter_map(|hand| dropped(rule, hand)));
                }
                _ => {}
            }
        }
    }
    let NftRuleset { mut emissions, layout, routing, families } = ruleset;
    emissions.extend(guard);
    NftRuleset { layout, emissions, routing, families }
}

/// The rule that drops what a rule sends to one that hands it to the proxy.
fn dropped(jump: &NftEmission, hand: &NftEmission) -> Option<NftEmission> {
    let port = hand.rule.iter().find_map(|statement| match statement {
        Statement::Tproxy { port, .. } => Some(*port),
        _ => None,
    })?;
    let asks = |rule: &NftEmission| -> Vec<Statement> {
        let does = |s: &&Statement| matches!(s, Statement::Tproxy { .. } | Statement::Counter);
        rule.rule.iter().take_while(|s| !does(s)).cloned().collect()
    };
    let mut rule = asks(jump);
    for statement in asks(hand) {
        if !rule.contains(&statement) {
            rule.push(statement);
        }
    }
    rule.extend([Statement::Counter, Statement::Drop]);
    let mut emission = of_guard(hand, rule);
    emission.reason.purpose = untaken(port);
    Some(emission)
}

fn of_guard(like: &NftEmission, rule: Vec<Statement>) -> NftEmission {
    let chain = Chain::Builtin(Hook::Prerouting);
    NftEmission { table: Table::Filter, chain, before: None, rule, reason: like.reason.clone() }
}
