//! Millrace's typed rules of native nftables.

use super::super::program::{Base, Beside, Kind, Policy, SourceChain, SourceRule, SourceTable};
use super::super::question::Protocol;
use super::super::ranges::Ranges;
use super::super::rule::{Action, Field, MarkChange, Step, Test, Translation, Way};
use super::iptables::{no_group, number, owned, states};
use super::{addresses, is, ports, protocol};
use crate::nft::{NftLayout, NftRuleset, Statement, base_chain, rule_text};
use crate::ruleset::{Chain, Masked, Owner, Table};
use crate::value::{Family, Groups};

/// The `holder` of these tables, the same however they were read.
pub(super) const HOLDER: &str = super::NATIVE;

/// The rules of a configuration. `groups` are the numbers of groups that rules name.
pub fn of_nft(ruleset: &NftRuleset, groups: &Groups) -> Vec<SourceTable> {
    let mut tables: Vec<SourceTable> = Vec::new();
    for table in ruleset.tables() {
        let Some(name) = ruleset.layout.table(table) else { continue };
        if tables.last().is_none_or(|last| last.name != name) {
            tables.push(SourceTable {
                holder: HOLDER.to_owned(),
                name: name.to_owned(),
                families: Family::ALL.to_vec(),
                chains: Vec::new(),
            });
        }
        let Some(into) = tables.last_mut() else { continue };
        for chain in ruleset.chains(table) {
            let base = match chain.chain {
                Chain::User(_) => None,
                Chain::Builtin(hook) => {
                    let (kind, priority) = base_chain(table, hook);
                    Some(Base { hook, kind: self::kind(kind), priority, policy: Policy::Accept })
                }
            };
            let rules = chain.rules.iter().map(|emission| SourceRule {
                text: rule_text(ruleset.layout, table, &emission.rule),
                reason: Some(emission.reason.clone()),
                counters: None,
                vague: false,
                beside: Beside::default(),
                steps: steps(&emission.rule, ruleset.layout, table, groups),
            });
            let name = ruleset.layout.chain(table, &chain.chain);
            into.chains.push(SourceChain { name, base, rules: rules.collect() });
        }
    }
    tables
}

/// The kind of base chain that nft calls so.
pub(super) fn kind(name: &str) -> Kind {
    match name {
        "nat" => Kind::Nat,
        "route" => Kind::Route,
        _ => Kind::Filter,
    }
}

fn steps(rule: &[Statement], layout: &NftLayout, table: Table, groups: &Groups) -> Vec<Step> {
    let mut steps = Vec::new();
    for statement in rule {
        match statement {
            Statement::Family(family) => steps.push(Test::Family(*family).into()),
            Statement::InInterface(names) => {
                let names = names.clone();
                steps.push(
                    Test::Interface { way: Way::In, negated: false, names: names.into() }.into(),
                );
            }
            Statement::OutInterface(names) => {
                let names = names.clone();
                steps.push(
                    Test::Interface { way: Way::Out, negated: false, names: names.into() }.into(),
                );
            }
            Statement::NotOutInterface(name) => {
                let names = vec![name.clone()];
                steps.push(
                    Test::Interface { way: Way::Out, negated: true, names: names.into() }.into(),
                );
            }
            Statement::Protocol(asked) => steps.push(protocol(number(*asked), false).into()),
            Statement::Address { side, negated, cidrs } => {
                let family = cidrs.first().map_or(Family::V4, |cidr| cidr.family());
                steps.push(addresses(*side, *negated, cidrs, family).into());
            }
            Statement::Ports { protocol: asked, side, negated, ports: list } => {
                steps.push(protocol(number(*asked), false).into());
                steps.push(ports(*side, *negated, Ranges::ports(list)).into());
            }
            Statement::Owner { negated, owners: list, .. } => {
                steps.push(owners(list, *negated, groups).into());
            }
            Statement::Syn { negated } => {
                steps.push(protocol(Protocol::TCP, false).into());
                steps.push(Test::Syn { negated: *negated }.into());
            }
            Statement::Local { side, negated } => {
                steps.push(Test::Local { side: *side, negated: *negated }.into());
            }
            Statement::State(asked) => {
                steps.push(Test::State { negated: false, states: states(asked) }.into());
            }
            Statement::Mark { negated, mark } => {
                let (negated, mark) = (*negated, *mark);
                steps.push(Test::Mark { connection: false, negated, mark }.into());
            }
            Statement::Connmark(mark) => {
                let (negated, mark) = (false, *mark);
                steps.push(Test::Mark { connection: true, negated, mark }.into());
            }
            action => steps.push(self::action(action, layout, table).into()),
        }
    }
    steps
}

/// One of several owners. A packet without a socket has none: even `!=` does not hold
/// (`nft_meta_get_eval_skugid()`).
fn owners(list: &[Owner], negated: bool, groups: &Groups) -> Test {
    let mut set = Ranges::default();
    let mut which = Field::Gid;
    for owner in list {
        if let Owner::Group(name) = owner
            && !groups.contains_key(name)
        {
            return no_group(name);
        }
        if let Test::Is { field, set: one, .. } = owned(owner, negated, true, groups) {
            which = field;
            set = set.or(&one);
        }
    }
    match is(which, negated, set) {
        Test::Is { field, negated, set, family, .. } => {
            Test::Is { field, negated, set, family, socket: true }
        }
        other => other,
    }
}

fn action(statement: &Statement, layout: &NftLayout, table: Table) -> Action {
    match statement {
        Statement::SetMark(mark) => Action::Mark(MarkChange::set(Masked::exact(*mark))),
        Statement::SetConnmark(mark) => Action::Connmark(MarkChange::exchange(*mark)),
        Statement::SaveMark => Action::Save { packet: u32::MAX, connection: u32::MAX },
        Statement::RestoreMark => Action::Restore { packet: u32::MAX, connection: u32::MAX },
        Statement::Zone(zone) => Action::Zone(zone.0),
        Statement::Redirect(port) => Action::Redirect(Some((port.get(), port.get()))),
        Statement::Dnat { address, port } => Action::Dnat(Translation {
            address: Some(*address),
            ports: port.map(|port| (port.get(), port.get())),
        }),
        Statement::Tproxy { family, port } => {
            let (port, family) = (Some(port.get()), Some(*family));
            Action::Tproxy { port, address: None, family, drops: false }
        }
        Statement::Return => Action::Return,
        Statement::Accept => Action::Accept,
        Statement::Drop => Action::Drop,
        Statement::Jump(chain) => Action::Jump(layout.chain(table, &Chain::User(chain.clone()))),
        _ => Action::Note,
    }
}
