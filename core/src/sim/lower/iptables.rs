//! iptables: Millrace's typed rules, and dumps of whoever's.

use super::super::program::{Base, Beside, Kind, Policy, SourceChain, SourceRule, SourceTable};
use super::super::question::Protocol;
use super::super::ranges::Ranges;
use super::super::rule::{Action, Field, MarkChange, Notice, States, Step, Test, Translation, Way};
use super::{addresses, is, ports, protocol, text};
use crate::iptables::{Dump, render_rule};
use crate::ruleset::{
    self, Chain, ConnState, Hook, Match, Owner, Reason, Rule, Ruleset, Table, Target,
};
use crate::value::{Family, GroupName, Groups};

/// What holds the tables of a dump or of a configuration, where it is not known better.
pub(super) const HOLDER: &str = "iptables";

/// The rules of a configuration. `groups` are the numbers of groups that rules name.
pub fn of_ruleset(ruleset: &Ruleset, groups: &Groups) -> Vec<SourceTable> {
    let mut tables = Vec::new();
    for family in ruleset.families() {
        let mut last: Option<SourceTable> = None;
        for ((table, chain), emissions) in ruleset.chains(family) {
            let name = table.as_str();
            if last.as_ref().is_none_or(|t| t.name != name) {
                tables.extend(last.take());
            }
            let base = match chain {
                Chain::Builtin(hook) => base(table.as_str(), hook, Policy::Accept),
                Chain::User(_) => None,
            };
            let rules = emissions.iter().map(|e| SourceRule {
                text: render_rule(&e.rule),
                reason: Some(e.reason.clone()),
                counters: None,
                vague: false,
                beside: Beside::default(),
                steps: steps(&e.rule, groups),
            });
            let name = chain.as_str().to_owned();
            let chain = SourceChain { name, base, rules: rules.collect() };
            last.get_or_insert_with(|| empty(HOLDER, table.as_str(), family)).chains.push(chain);
        }
        tables.extend(last);
    }
    tables.extend(ruleset.guard.iter().flat_map(|guard| super::of_nft(guard, groups)));
    tables
}

/// What was dumped of a family. `reason` knows why a rule of a chain of a table is there.
pub fn of_dump(
    dump: &Dump,
    family: Family,
    holder: &str,
    groups: &Groups,
    reason: &mut dyn FnMut(Table, &str, &Rule) -> Option<Reason>,
) -> Vec<SourceTable> {
    let mut tables = Vec::new();
    for content in &dump.tables {
        let mut table = empty(holder, &content.name, family);
        for chain in &content.chains {
            let policy = match chain.policy.as_deref() {
                Some("DROP") => Policy::Drop,
                _ => Policy::Accept,
            };
            let hook = Hook::from_name(&chain.name);
            let rules = chain.rules.iter().map(|rule| {
                let known = Table::from_name(&content.name).zip(rule.rule.as_ref().ok());
                let (steps, beside) = match &rule.rule {
                    Ok(rule) => (steps(rule, groups), Beside::default()),
                    Err(_) => text::read(&rule.text, family, groups),
                };
                SourceRule {
                    text: rule.text.clone(),
                    reason: known.and_then(|(table, rule)| reason(table, &chain.name, rule)),
                    counters: rule.counters,
                    vague: false,
                    beside,
                    steps,
                }
            });
            table.chains.push(SourceChain {
                name: chain.name.clone(),
                base: hook.and_then(|hook| base(&content.name, hook, policy)),
                rules: rules.collect(),
            });
        }
        tables.push(table);
    }
    tables
}

fn empty(holder: &str, name: &str, family: Family) -> SourceTable {
    SourceTable {
        holder: holder.to_owned(),
        name: name.to_owned(),
        families: vec![family],
        chains: Vec::new(),
    }
}

/// How the kernel calls a builtin chain (`linux/netfilter_ipv4.h`, `enum nf_ip_hook_priorities`).
fn base(table: &str, hook: Hook, policy: Policy) -> Option<Base> {
    let (kind, priority) = match (table, hook) {
        ("raw", Hook::Prerouting | Hook::Output) => (Kind::Filter, -300),
        ("mangle", Hook::Output) => (Kind::Route, -150),
        ("mangle", _) => (Kind::Filter, -150),
        ("nat", Hook::Prerouting | Hook::Output) => (Kind::Nat, -100),
        ("nat", Hook::Input | Hook::Postrouting) => (Kind::Nat, 100),
        ("filter", Hook::Input | Hook::Forward | Hook::Output) => (Kind::Filter, 0),
        ("security", Hook::Input | Hook::Forward | Hook::Output) => (Kind::Filter, 50),
        _ => return None,
    };
    Some(Base { hook, kind, priority, policy })
}

/// Whether the kernel calls a chain of this name in a table of iptables.
pub(in super::super) fn is_called(table: &str, chain: &str) -> bool {
    Hook::from_name(chain).is_some_and(|hook| base(table, hook, Policy::Accept).is_some())
}

fn steps(rule: &Rule, groups: &Groups) -> Vec<Step> {
    let tests = rule.matches.iter().filter_map(|m| test(m, groups)).map(Step::Test);
    tests.chain(actions(&rule.target).into_iter().map(Step::Do)).collect()
}

fn test(m: &Match, groups: &Groups) -> Option<Test> {
    Some(match m {
        Match::Address { side, negated, cidr } => {
            addresses(*side, *negated, &[*cidr], cidr.family())
        }
        Match::InInterface { negated, name } => {
            Test::Interface { way: Way::In, negated: *negated, names: [name.clone()].into() }
        }
        Match::OutInterface { negated, name } => {
            Test::Interface { way: Way::Out, negated: *negated, names: [name.clone()].into() }
        }
        Match::Protocol(asked) => protocol(number(*asked), false),
        Match::Port { side, negated, ports: range } => {
            ports(*side, *negated, Ranges::ports([range]))
        }
        Match::DestinationPorts { negated, ports: list } => {
            ports(ruleset::Side::Destination, *negated, Ranges::ports(list))
        }
        Match::Syn { negated } => Test::Syn { negated: *negated },
        Match::Owner { negated, owner } => owned(owner, *negated, false, groups),
        Match::LocalAddress { side, negated } => Test::Local { side: *side, negated: *negated },
        Match::ConnState(asked) | Match::OldState(asked) => {
            Test::State { negated: false, states: states(asked) }
        }
        Match::Mark { negated, mark } => {
            Test::Mark { connection: false, negated: *negated, mark: *mark }
        }
        Match::Connmark { negated, mark } => {
            Test::Mark { connection: true, negated: *negated, mark: *mark }
        }
        // Its protocol is asked for as well.
        Match::Module(_) | Match::Ours | Match::Comment(_) => return None,
    })
}

pub(super) const fn number(protocol: ruleset::Protocol) -> Protocol {
    match protocol {
        ruleset::Protocol::Tcp => Protocol::TCP,
        ruleset::Protocol::Udp => Protocol::UDP,
    }
}

/// Who made the socket; with `socket`, a packet without one never holds.
pub(super) fn owned(owner: &Owner, negated: bool, socket: bool, groups: &Groups) -> Test {
    let one = |id: u32| Ranges::one(id.into());
    let (field, ids) = match owner {
        Owner::Uid(uid) => (Field::Uid, one(uid.get())),
        Owner::Uids(uids) => {
            let ends = (uids.first().get().into(), uids.last().get().into());
            (Field::Uid, std::iter::once(ends).collect())
        }
        Owner::Gid(gid) => (Field::Gid, one(gid.get())),
        Owner::Group(name) => match groups.get(name) {
            Some(gid) => (Field::Gid, one(gid.get())),
            None => return no_group(name),
        },
    };
    match is(field, negated, ids) {
        Test::Is { field, negated, set, family, .. } => {
            Test::Is { field, negated, set, family, socket }
        }
        other => other,
    }
}

pub(super) fn no_group(name: &GroupName) -> Test {
    Test::Unknown(format!("the number of the group {name}"))
}

pub(super) fn states(states: &[ConnState]) -> States {
    let one = |state: &ConnState| match state {
        ConnState::Invalid => States::INVALID,
        ConnState::New => States::NEW,
        ConnState::Related => States::RELATED,
        ConnState::Established => States::ESTABLISHED,
    };
    states.iter().map(one).fold(States(0), States::or)
}

fn actions(target: &Target) -> Vec<Action> {
    match target {
        Target::Return => vec![Action::Return],
        Target::Accept => vec![Action::Accept],
        Target::Drop => vec![Action::Drop],
        Target::Reject(_) => vec![Action::Reject(Notice::Icmp)],
        Target::Jump(chain) => vec![Action::Jump(chain.as_str().to_owned())],
        Target::Redirect { port, .. } => vec![Action::Redirect(Some((port.get(), port.get())))],
        Target::Dnat { address, port } => vec![Action::Dnat(Translation {
            address: Some(*address),
            ports: port.map(|port| (port.get(), port.get())),
        })],
        Target::Snat { address } => {
            vec![Action::Snat(Translation { address: Some(*address), ports: None })]
        }
        Target::Tproxy { mark, port } => vec![
            Action::Tproxy { port: Some(port.get()), address: None, family: None, drops: true },
            Action::Mark(MarkChange::exchange(*mark)),
            Action::Accept,
        ],
        Target::SetMark(mark) => vec![Action::Mark(MarkChange::set(*mark))],
        Target::SetConnmark(mark) => vec![Action::Connmark(MarkChange::exchange(*mark))],
        Target::SaveMark => vec![Action::Save { packet: u32::MAX, connection: u32::MAX }],
        Target::RestoreMark => vec![Action::Restore { packet: u32::MAX, connection: u32::MAX }],
        Target::Zone(zone) => vec![Action::Zone(zone.0)],
    }
}
