//! The chain of outbound connections, read from its first rule to its last.

use super::Inferred;
use super::read::{Chains, tcp_to_port, to_port};
use crate::dialect::Mesh;
use crate::policy::{IdentityMatching, Phase, SelfCall};
use crate::ruleset::Layout;
use crate::ruleset::{Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::Cidr;

/// What one family's chain says.
#[derive(Default)]
struct Said {
    except_ports: Vec<String>,
    owners: Vec<Owner>,
    any: bool,
    /// Whether what stays in the pod is left alone.
    spares_own_pod: bool,
    /// Groups left alone, or the only ones captured.
    groups: Option<(bool, Vec<String>)>,
    localhost: Option<Cidr>,
    except_networks: Vec<String>,
    except_users: Vec<String>,
    ports: Vec<String>,
    networks: Vec<String>,
    everything: bool,
}

/// Read both families; lists of networks are put together.
pub(super) fn settings(
    v4: Option<&Chains>,
    v6: Option<&Chains>,
    (layout, mesh): (&Layout, &Mesh),
    found: &mut Inferred,
) {
    let said: Vec<(bool, Said)> = [(false, v4), (true, v6)]
        .into_iter()
        .filter_map(|(six, chains)| Some((six, read(chains?, layout, mesh, six))))
        .collect();
    let Some((six, main)) = said.first() else { return };
    let join = |found: &mut Inferred, flag, list: &[String]| {
        if !list.is_empty() {
            found.set(flag, list.join(","));
        }
    };
    join(found, "exclude-outbound-ports", &main.except_ports);
    join(found, "include-outbound-ports", &main.ports);
    join(found, "exclude-users", &main.except_users);
    owners(main, found);
    match &main.groups {
        Some((true, only)) => found.set("include-groups", only.join(",")),
        Some((false, except)) => join(found, "exclude-groups", except),
        None => {}
    }
    if let (false, Some(localhost)) = (*six, main.localhost) {
        found.set("localhost-cidr", localhost);
    }
    let list = |pick: fn(&Said) -> &Vec<String>| -> Vec<String> {
        said.iter().flat_map(|(_, s)| pick(s).clone()).collect()
    };
    join(found, "exclude-outbound-cidrs", &list(|s| &s.except_networks));
    // A redirect of everything is `*`, unless only one of two families has it.
    if said.iter().all(|(_, s)| s.everything && s.networks.len() == 1) {
        found.set("include-outbound-cidrs", "*");
    } else {
        let mut networks = list(|s| &s.networks);
        // Where calls to the own pod are captured, localhost is among the networks: that of a
        // family that is not captured has left no rule.
        let localhost = |n: &String| {
            n.parse().is_ok_and(|cidr: Cidr| cidr.address().to_canonical().is_loopback())
        };
        let spares = mesh.conventions.local.asks_lo();
        let loses = spares && !main.spares_own_pod && !main.owners.is_empty();
        if loses && said.len() == 1 && !networks.iter().any(localhost) {
            networks.push(if *six { "127.0.0.1/32" } else { "::1/128" }.to_owned());
        }
        found.set("include-outbound-cidrs", networks.join(","));
    }
}

fn owners(main: &Said, found: &mut Inferred) {
    let list = |uids: bool| -> String {
        let ids = main.owners.iter().filter_map(|o| match o {
            Owner::Uid(id) if uids => Some(id.to_string()),
            Owner::Gid(id) if !uids => Some(id.to_string()),
            _ => None,
        });
        ids.collect::<Vec<_>>().join(",")
    };
    found.set("proxy-uid", list(true));
    found.set("proxy-gid", list(false));
    found.matching =
        Some(if main.any { IdentityMatching::Any } else { IdentityMatching::OneByOne });
}

fn read(chains: &Chains, layout: &Layout, mesh: &Mesh, six: bool) -> Said {
    let mut said = Said::default();
    let mut rules = chains.user(Table::Nat, &layout.output);
    said.spares_own_pod = rules.iter().any(|rule| {
        let address = |m: &Match| matches!(m, Match::Address { .. });
        over_loopback(rule) && rule.target == Target::Return && !rule.matches.iter().any(address)
    });
    let conventions = &mesh.conventions;
    while let [rule, rest @ ..] = rules {
        let network =
            conventions.except_networks == Phase::First && except_network(rule, &mut said);
        let user = conventions.except_users == Phase::First && except_user(rule, &mut said);
        if !network && !user && !except_port(rule, &mut said) {
            break;
        }
        rules = rest;
    }
    if rules.first().is_some_and(|r| matches!(r.matches.as_slice(), [from, ..] if is_from(from))) {
        rules = &rules[1..];
    }
    rules = match conventions.self_call {
        SelfCall::Inbound => identity(rules, layout, &mut said),
        SelfCall::Pass => bypassed(rules, &mut said),
    };
    rules = groups(rules, &mut said);
    if rules.first().is_some_and(|r| r.target == Target::Jump(layout.output_dns.clone())) {
        rules = &rules[1..];
    }
    selection(rules, (layout, mesh), six, &mut said);
    said
}

const fn is_from(m: &Match) -> bool {
    matches!(m, Match::Address { side: Side::Source, .. })
}

/// Take in a rule that leaves a port alone. Where UDP is meant as well, a second one says so.
fn except_port(rule: &Rule, said: &mut Said) -> bool {
    if rule.target != Target::Return {
        return false;
    }
    if let Some(port) = tcp_to_port(rule) {
        said.except_ports.push(port.to_string());
        return true;
    }
    let port = to_port(rule, Protocol::Udp).map(|port| port.to_string());
    port.is_some() && port.as_ref() == said.except_ports.last()
}

/// Take in a rule that leaves a user alone.
fn except_user(rule: &Rule, said: &mut Said) -> bool {
    match (rule.matches.as_slice(), &rule.target) {
        ([Match::Owner { negated: false, owner: owner @ Owner::Uid(_) }], Target::Return) => {
            said.except_users.push(group(owner));
            true
        }
        _ => false,
    }
}

/// Take in a rule that leaves a network alone.
fn except_network(rule: &Rule, said: &mut Said) -> bool {
    match (rule.matches.as_slice(), &rule.target) {
        ([Match::Address { side: Side::Destination, negated: false, cidr }], Target::Return) => {
            said.except_networks.push(cidr.to_string());
        }
        _ => return false,
    }
    true
}

/// The rules that leave the proxy's connections alone, and those inside of the pod, where the proxy's
/// calls to its pod are nothing of their own.
fn bypassed<'r>(mut rules: &'r [Rule], said: &mut Said) -> &'r [Rule] {
    while let [rule, rest @ ..] = rules {
        match (rule.matches.as_slice(), &rule.target) {
            ([Match::Owner { negated: false, owner }], Target::Return) => {
                said.owners.push(owner.clone());
            }
            _ => break,
        }
        rules = rest;
    }
    said.any = true;
    match rules {
        [rule, rest @ ..] if over_loopback(rule) && rule.target == Target::Return => rest,
        _ => rules,
    }
}

fn owner(rule: &Rule) -> Option<(bool, &Owner)> {
    rule.matches.iter().find_map(|m| match m {
        Match::Owner { negated, owner } => Some((*negated, owner)),
        _ => None,
    })
}

fn over_loopback(rule: &Rule) -> bool {
    rule.matches
        .iter()
        .any(|m| matches!(m, Match::OutInterface { negated: false, name } if name.as_str() == "lo"))
}

/// The rules that tell the proxy from the application: a self-call, what stays in the pod, and
/// what leaves from the proxy, for each identity.
fn identity<'r>(mut rules: &'r [Rule], layout: &Layout, said: &mut Said) -> &'r [Rule] {
    let self_call = Target::Jump(layout.in_redirect.clone());
    let mut left: Vec<&Owner> = Vec::new();
    let mut last_was_self_call = false;
    let mut negated = false;
    let mut stays = false;
    while let [rule, rest @ ..] = rules {
        match owner(rule) {
            Some((false, owner)) if rule.target == self_call => {
                said.any |= last_was_self_call;
                said.owners.push(owner.clone());
                last_was_self_call = true;
            }
            Some((true, _)) if over_loopback(rule) => {
                negated = true;
                last_was_self_call = false;
            }
            None if over_loopback(rule)
                && rule.target == Target::Return
                && !said.owners.is_empty() =>
            {
                stays = true;
                last_was_self_call = false;
            }
            Some((false, owner))
                if rule.matches.len() == 1
                    && rule.target == Target::Return
                    && said.owners.iter().filter(|o| *o == owner).count()
                        > left.iter().filter(|o| **o == owner).count() =>
            {
                left.push(owner);
                last_was_self_call = false;
            }
            _ => break,
        }
        rules = rest;
    }
    said.any |= stays && !negated;
    rules
}

/// Groups that are left alone, one a rule, or the only ones that are captured, all in one rule.
fn groups<'r>(mut rules: &'r [Rule], said: &mut Said) -> &'r [Rule] {
    let mut except = Vec::new();
    while let [rule, rest @ ..] = rules {
        match (rule.matches.as_slice(), &rule.target) {
            // A user is none of a group.
            ([Match::Owner { owner: Owner::Uid(_) | Owner::Uids(_), .. }], _) => break,
            ([Match::Owner { negated: false, owner }], Target::Return) => {
                except.push(group(owner));
                rules = rest;
            }
            _ => break,
        }
    }
    if !except.is_empty() {
        said.groups = Some((false, except));
        return rules;
    }
    if let [rule, rest @ ..] = rules {
        let only: Option<Vec<String>> = rule
            .matches
            .iter()
            .map(|m| match m {
                Match::Owner { negated: true, owner } => Some(group(owner)),
                _ => None,
            })
            .collect();
        if let (Some(only), Target::Return) = (only, &rule.target) {
            said.groups = Some((true, only));
            return rest;
        }
    }
    rules
}

fn group(owner: &Owner) -> String {
    match owner {
        Owner::Uid(id) => id.to_string(),
        Owner::Uids(ids) => ids.to_string(),
        Owner::Gid(id) => id.to_string(),
        Owner::Group(name) => name.to_string(),
    }
}

/// Localhost, excluded networks, included ports, included networks.
fn selection(rules: &[Rule], (layout, mesh): (&Layout, &Mesh), six: bool, said: &mut Said) {
    let has_localhost = mesh.conventions.local.asks_localhost();
    let redirect = Target::Jump(layout.redirect.clone());
    let all = if six { "::/0" } else { "0.0.0.0/0" };
    for rule in rules {
        match (rule.matches.as_slice(), &rule.target) {
            ([Match::Address { side: Side::Destination, negated: false, cidr }], target) => {
                if *target == Target::Return && has_localhost && said.localhost.is_none() {
                    said.localhost = Some(*cidr);
                } else if *target == Target::Return {
                    said.except_networks.push(cidr.to_string());
                } else if *target == redirect {
                    said.networks.push(cidr.to_string());
                }
            }
            ([], Target::Return) => said.except_networks.push(all.to_owned()),
            ([], target) if *target == redirect => {
                said.everything = true;
                said.networks.push(all.to_owned());
            }
            (
                [Match::Protocol(Protocol::Tcp), Match::Owner { negated: false, owner }]
                | [Match::Owner { negated: false, owner }],
                Target::Return,
            ) => said.except_users.push(group(owner)),
            _ => {
                if let (Some(port), true) = (tcp_to_port(rule), rule.target == redirect) {
                    said.ports.push(port.to_string());
                } else {
                    except_port(rule, said);
                }
            }
        }
    }
}
