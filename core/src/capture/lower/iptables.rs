//! Rules of iptables: for each family its own.

use super::super::program::{Condition, Decision, Program, Verdict};
use super::super::{program, routing};
use super::{asked, chain, leads, name, to_nft};
use crate::nft::beside;
use crate::policy::CapturePolicy;
use crate::ruleset::{
    Chain, Emission, Layout, Masked, Match, Protocol, RedirectSpelling, Rule, Ruleset, Side, Target,
};
use crate::value::Family;

/// The rules of iptables that carry out `policy`, in chains with the names of `layout`.
pub fn to_iptables(policy: &CapturePolicy, layout: &Layout) -> Ruleset {
    let program = program(policy);
    let family = |family| {
        let asked = asked(&program, &[family]);
        let written = program
            .decisions
            .iter()
            .filter(|decision| program.concerns(decision, family) && leads(decision, &asked));
        written.map(|decision| emission(&program, decision, layout, family)).collect()
    };
    Ruleset {
        v4: family(Family::V4),
        v6: program.families.contains(&Family::V6).then(|| family(Family::V6)),
        routing: routing(policy, layout.passthrough),
        guard: layout.guard.and_then(|guard| beside(&to_nft(policy, guard, true))),
    }
}

fn emission(program: &Program, decision: &Decision, layout: &Layout, family: Family) -> Emission {
    let chain = chain(layout, decision.path);
    let target = target(decision, layout);
    let mut matches: Vec<Match> = asks(decision, layout)
        .filter_map(|condition| spelled(program, condition, family))
        .collect();
    let builtin = matches!(chain, Chain::Builtin(_));
    if layout.tagged && builtin && !matches!(target, Target::Jump(_)) {
        matches.push(Match::Ours);
    }
    Emission {
        table: decision.table,
        chain,
        placement: decision.placement,
        rule: Rule::new(matches, target),
        reason: decision.reason.clone(),
    }
}

/// The conditions that are written: where there is a guard, rules stay as another tool writes them.
fn asks<'d>(decision: &'d Decision, layout: &Layout) -> impl Iterator<Item = &'d Condition> {
    let guarded = layout.guard.is_some();
    decision.when.iter().filter(move |c| !(guarded && matches!(c, Condition::Starts { .. })))
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
        Condition::LeavesBy(name) => Match::OutInterface { negated: false, name },
        Condition::Starts { negated } => Match::Syn { negated },
        Condition::State(states) => Match::ConnState(states),
        Condition::Mark { negated, mark } => Match::Mark { negated, mark: Masked::exact(mark) },
        Condition::ConnectionMark(mark) => {
            Match::Connmark { negated: false, mark: Masked::exact(mark) }
        }
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
        Verdict::Transparent { mark, port } => {
            Target::Tproxy { mark: Masked::exact(mark.get()), port }
        }
        Verdict::SetMark(mark) => Target::SetMark(Masked::exact(mark)),
        Verdict::SaveMark => Target::SaveMark,
        Verdict::RestoreMark => Target::RestoreMark,
        Verdict::Zone(zone) => Target::Zone(zone),
    }
}
