//! What a transparent proxy is to have and does not take is dropped: nft's `tproxy` lets it on to the
//! application while no transparent socket listens, where TPROXY of iptables drops. And a packet that
//! starts a connection is offered to the proxy once more where rules took it for one of an earlier
//! connection with the same addresses and ports, which tracking still holds and whose socket is gone:
//! it has the proxy's mark, no socket, and the application's listener would take it.

use super::{NftEmission, NftRuleset, Statement};
use crate::ruleset::{Chain, ConnState, Hook, Masked, Protocol, Routing, Table};
use crate::value::{InterfacePattern, ListenPort};

/// What becomes of a connection where there is no guard.
pub const UNGUARDED: &str = "with TPROXY, a new connection with the addresses and ports of an earlier one \
    that connection tracking still holds, and whose socket the proxy no longer has, reaches the \
    application";

/// Why the packets that are left are dropped.
pub fn untaken(port: ListenPort) -> String {
    format!("without a transparent listener on port {port} captured connections are dropped")
}

/// The same ruleset with its guard, where its layout has a table for one: a chain right behind that
/// of the marks, which lets past what that one lets past, and drops what it hands to the proxy. What
/// the proxy took has its mark, and is exempt like everything that has it, but for what starts a
/// connection.
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
        guard.extend(again(&handed));
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

/// The guard alone, beside rules of iptables that do what these do: only they give the proxy's mark to
/// what comes from outside, so that it says by itself what is captured. None where nothing is
/// transparent.
pub fn beside(ruleset: &NftRuleset) -> Option<NftRuleset> {
    let tproxy = Chain::User(ruleset.layout.chains.tproxy.clone());
    let mangle = ruleset.chains(Table::Mangle);
    let handed = &mangle.iter().find(|chain| chain.chain == tproxy)?.rules;
    let (emissions, families) = (again(handed), ruleset.families.clone());
    Some(NftRuleset { layout: ruleset.layout, emissions, routing: Routing::default(), families })
}

/// What starts a connection, came from outside and was taken for a packet of an earlier connection is
/// handed to the proxy, as every other one was.
fn again(handed: &[&NftEmission]) -> Vec<NftEmission> {
    let Some((first, mark)) = handed.iter().find_map(|hand| {
        let mark = |s: &Statement| match s {
            Statement::SetMark(mark) => {
                Some(Statement::Mark { negated: false, mark: Masked::exact(*mark) })
            }
            _ => None,
        };
        Some((hand, hand.rule.iter().find_map(mark)?))
    }) else {
        return Vec::new();
    };
    let within = vec![
        Statement::Protocol(Protocol::Tcp),
        Statement::InInterface(vec![InterfacePattern::loopback()]),
        mark.clone(),
        Statement::Counter,
        Statement::Return,
    ];
    let purpose = "what has the proxy's mark within the pod is not captured again".to_owned();
    let mut rules = vec![purposed(first, within, purpose)];
    let starts = [
        Statement::Syn { negated: false },
        Statement::State(vec![ConnState::Related, ConnState::Established]),
        mark,
    ];
    for hand in handed {
        let condition = asks(hand);
        let does = hand.rule.iter().skip(condition.len()).cloned();
        let Some(port) = port(hand) else { continue };
        let asked: Vec<Statement> = condition.into_iter().chain(starts.clone()).collect();
        let purpose = format!(
            "new connections go to transparent port {port}, also with the addresses and ports of an \
             earlier one"
        );
        rules.push(purposed(hand, asked.iter().cloned().chain(does).collect(), purpose));
        let drop = asked.into_iter().chain([Statement::Counter, Statement::Drop]).collect();
        rules.push(purposed(hand, drop, untaken(port)));
    }
    rules
}

/// The port that a rule hands to.
fn port(hand: &NftEmission) -> Option<ListenPort> {
    hand.rule.iter().find_map(|statement| match statement {
        Statement::Tproxy { port, .. } => Some(*port),
        _ => None,
    })
}

/// The conditions of a rule: its statements up to the counter or TPROXY.
fn asks(rule: &NftEmission) -> Vec<Statement> {
    let does = |s: &&Statement| matches!(s, Statement::Tproxy { .. } | Statement::Counter);
    rule.rule.iter().take_while(|s| !does(s)).cloned().collect()
}

/// The rule that drops what a rule sends to one that hands it to the proxy.
fn dropped(jump: &NftEmission, hand: &NftEmission) -> Option<NftEmission> {
    let port = port(hand)?;
    let mut rule = asks(jump);
    for statement in asks(hand) {
        if !rule.contains(&statement) {
            rule.push(statement);
        }
    }
    rule.extend([Statement::Counter, Statement::Drop]);
    Some(purposed(hand, rule, untaken(port)))
}

fn purposed(like: &NftEmission, rule: Vec<Statement>, purpose: String) -> NftEmission {
    let mut emission = of_guard(like, rule);
    emission.reason.purpose = purpose;
    emission
}

fn of_guard(like: &NftEmission, rule: Vec<Statement>) -> NftEmission {
    let chain = Chain::Builtin(Hook::Prerouting);
    NftEmission { table: Table::Filter, chain, before: None, rule, reason: like.reason.clone() }
}
