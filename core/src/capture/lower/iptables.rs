//! Rules of iptables: for each family its own.

use std::collections::BTreeMap;

use super::super::program::{Condition, Decision, Path, Program, Role, Verdict};
use super::super::{program, routing};
use super::ports::listed;
use super::{asked, chain, is_open, leads, name, styled, to_nft};
use crate::nft::beside;
use crate::policy::CapturePolicy;
use crate::ruleset::{
    Chain, Emission, Layout, Masked, Match, Placement, Protocol, RedirectSpelling, Rule, Ruleset,
    Side, Table, Target,
};
use crate::value::Family;

/// The rules of iptables that carry out `policy`, in chains with the names of `layout`.
pub fn to_iptables(policy: &CapturePolicy, layout: &Layout) -> Ruleset {
    let program = program(policy);
    let decisions = styled(&program, layout);
    let family = |family| {
        let asked = asked(&program, &decisions, &[family]);
        let written =
            decisions.iter().filter(|d| program.concerns(d, family) && leads(d, &asked, layout));
        let mut written: Vec<Emission> =
            written.map(|decision| emission(&program, decision, layout, family)).collect();
        without_gaps(&mut written);
        written
    };
    Ruleset {
        v4: family(Family::V4),
        v6: program.families.contains(&Family::V6).then(|| family(Family::V6)),
        made: Vec::from_iter(layout.style.dns_chain.then(|| layout.output_dns.clone())),
        routing: routing(policy, layout.passthrough),
        guard: layout.guard.and_then(|guard| beside(&to_nft(policy, guard, true))),
    }
}

/// Positions in front of rules of others count what is written in a family alone.
fn without_gaps(emissions: &mut [Emission]) {
    let mut places: BTreeMap<(Table, Chain), BTreeMap<u32, u32>> = BTreeMap::new();
    for Emission { table, chain, placement, .. } in emissions.iter() {
        if let Placement::Insert(position) = placement {
            places.entry((*table, chain.clone())).or_default().insert(*position, 0);
        }
    }
    for all in places.values_mut() {
        all.values_mut().zip(1..).for_each(|(place, number)| *place = number);
    }
    for Emission { table, chain, placement, .. } in emissions {
        if let Placement::Insert(position) = placement
            && let Some(place) = places.get(&(*table, chain.clone())).and_then(|p| p.get(position))
        {
            *position = *place;
        }
    }
}

fn emission(program: &Program, decision: &Decision, layout: &Layout, family: Family) -> Emission {
    let chain = chain(layout, decision.path);
    let target = target(decision, layout);
    let in_a_list =
        decision.role == Role::ExcludedFlow || listed(decision, &layout.style).is_some();
    let mut matches: Vec<Match> = asks(decision, layout)
        .filter_map(|condition| match condition {
            Condition::ToPorts { negated, ports } if in_a_list => {
                Some(Match::DestinationPorts { negated: *negated, ports: ports.clone() })
            }
            _ => spelled(program, condition, family),
        })
        .collect();
    let builtin = matches!(chain, Chain::Builtin(_));
    if layout.tagged && builtin && !matches!(target, Target::Jump(_)) {
        matches.push(Match::Ours);
    }
    let mut rule = Rule::new(matches, target);
    let comment = layout.style.comment.and_then(|comment| comment(&chain, &rule));
    rule.matches.extend(comment.map(Match::Comment));
    Emission {
        table: decision.table,
        chain,
        placement: decision.placement,
        rule,
        reason: decision.reason.clone(),
    }
}

/// The conditions that are written: where there is a guard, rules stay as another tool writes them, and
/// they ask for TCP where that tool's do.
fn asks<'d>(decision: &'d Decision, layout: &Layout) -> impl Iterator<Item = &'d Condition> {
    const TCP: &Condition = &Condition::Protocol(Protocol::Tcp);
    let guarded = layout.guard.is_some();
    let style = &layout.style;
    let jumps = decision.role == Role::Enter && decision.table != Table::Raw;
    let open =
        jumps && decision.path == Path::Arriving && !style.tcp_jump || is_open(decision, layout);
    let narrow = style.tcp.contains(&decision.role) && !decision.when.contains(TCP);
    let written = decision.when.iter().filter(move |condition| {
        !(guarded && matches!(condition, Condition::Starts { .. }) || open && *condition == TCP)
    });
    narrow.then_some(TCP).into_iter().chain(written)
}

/// A condition; none if it can't hold in this family.
fn spelled(program: &Program, condition: &Condition, family: Family) -> Option<Match> {
    Some(match condition.clone() {
        Condition::Protocol(protocol) => Match::Protocol(protocol),
        Condition::ToPorts { negated, ports } => match ports.as_slice() {
            [ports] => Match::Port { side: Side::Destination, negated, ports: *ports },
            _ => Match::DestinationPorts { negated, ports },
        },
        Condition::FromPort(ports) => Match::Port { side: Side::Source, negated: false, ports },
        Condition::Address { side, negated, of } => {
            Match::Address { side, negated, cidr: program.network(of, family)? }
        }
        Condition::Owner { negated, owner } => Match::Owner { negated, owner },
        Condition::ArrivedBy(name) => Match::InInterface { negated: false, name },
        Condition::LeavesBy { negated, name } => Match::OutInterface { negated, name },
        Condition::Starts { negated } => Match::Syn { negated },
        Condition::Local { side, negated } => Match::LocalAddress { side, negated },
        Condition::State(states) => Match::ConnState(states),
        Condition::Mark { negated, mark } => Match::Mark { negated, mark },
        Condition::ConnectionMark(mark) => Match::Connmark { negated: false, mark },
    })
}

fn target(decision: &Decision, layout: &Layout) -> Target {
    match decision.verdict {
        Verdict::Pass => Target::Return,
        Verdict::Accept => Target::Accept,
        Verdict::Drop => Target::Drop,
        Verdict::Ask(branch) => Target::Jump(name(layout, branch)),
        Verdict::Redirect(port) => {
            // Both mean the same to iptables; the reference writes one for TCP, the other for UDP.
            let udp = decision.when.contains(&Condition::Protocol(Protocol::Udp));
            let spelling = if udp { RedirectSpelling::ToPort } else { RedirectSpelling::ToPorts };
            Target::Redirect { port, spelling }
        }
        Verdict::Translate { address, port } => Target::Dnat { address, port },
        Verdict::Transparent { mark, port } => {
            Target::Tproxy { mark: Masked::exact(mark.get()), port }
        }
        Verdict::SetMark(mark) => Target::SetMark(Masked::exact(mark)),
        Verdict::MarkConnection(mark) => Target::SetConnmark(mark),
        Verdict::SaveMark => Target::SaveMark,
        Verdict::RestoreMark => Target::RestoreMark,
        Verdict::Zone(zone) => Target::Zone(zone),
    }
}
