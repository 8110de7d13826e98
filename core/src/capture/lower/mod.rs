//! From the program to what a backend writes. Only spelling: families, the order of conditions,
//! chains and names. No decision is made here.

mod iptables;
mod nft;
mod ports;

use std::collections::{BTreeMap, BTreeSet};

pub use iptables::to_iptables;
pub use nft::to_nft;

use super::program::{Branch, Decision, Listener, Path, Program, Role, Verdict};
use crate::ruleset::{Chain, ChainName, Hook, Layout, Placement, Table};
use crate::value::Family;

/// The chain in which the decisions of a path stand.
fn chain(layout: &Layout, path: Path) -> Chain {
    match path {
        Path::Arriving => Chain::Builtin(Hook::Prerouting),
        Path::Leaving => Chain::Builtin(Hook::Output),
        Path::On(branch) => Chain::User(name(layout, branch)),
    }
}

/// The name of the chain in which the decisions of a branch stand.
fn name(layout: &Layout, branch: Branch) -> ChainName {
    match branch {
        Branch::Inbound => &layout.inbound,
        Branch::Outbound => &layout.output,
        Branch::Dns => &layout.output_dns,
        Branch::To(Listener::Inbound) => &layout.in_redirect,
        Branch::To(Listener::Outbound) => &layout.redirect,
        Branch::Divert => &layout.divert,
        Branch::Transparent => &layout.tproxy,
        Branch::Invalid => &layout.drop,
    }
    .clone()
}

/// The decisions as a style has them: those of branches that have no chain in the place of what leads to
/// them, and ports in as few as `multiport` has room for.
fn styled(program: &Program, layout: &Layout) -> Vec<Decision> {
    let style = &layout.style;
    let is_inlined = |branch| style.inlined.contains(&name(layout, branch));
    // Found once: as many as there are ports may lead to the same few.
    let is_inside = |d: &&Decision| matches!(d.path, Path::On(branch) if is_inlined(branch));
    let inside: Vec<&Decision> = program.decisions.iter().filter(is_inside).collect();
    let mut decisions = Vec::new();
    for decision in &program.decisions {
        match (decision.path, decision.verdict) {
            (Path::On(branch), _) if is_inlined(branch) => {}
            (_, Verdict::Ask(branch)) if is_inlined(branch) => {
                let there = inside.iter();
                let there = there.filter(|d| d.table == decision.table && d.path == branch.into());
                decisions.extend(there.map(|next| inlined(decision, next)));
            }
            _ => decisions.push(decision.clone()),
        }
    }
    let decisions = split(decisions);
    let mut decisions = ports::grouped(decisions, style);
    if style.sources_first {
        // Exclusions of one path stand in a row: who comes first means nothing.
        let last = |decision: &Decision| decision.role == Role::ExcludedInboundPort;
        let is_excluded = |d: &Decision| last(d) || d.role == Role::ExcludedSource;
        for row in decisions.chunk_by_mut(|a, b| is_excluded(a) && is_excluded(b)) {
            row.sort_by_key(last);
        }
    }
    arranged(decisions, layout)
}

/// The decisions as a style has them in whatever language: DNS queries in a chain of theirs, and those that
/// are put at the head of what is there by then behind all others.
fn arranged(decisions: Vec<Decision>, layout: &Layout) -> Vec<Decision> {
    let mut arranged = Vec::with_capacity(decisions.len());
    for mut decision in decisions {
        if layout.style.dns_chain && decision.role == Role::Dns && decision.path == Path::Leaving {
            arranged.push(Decision { path: Branch::Dns.into(), ..decision.clone() });
            decision.verdict = Verdict::Ask(Branch::Dns);
            decision.only = None;
        }
        arranged.push(decision);
    }
    placed(arranged, layout)
}

/// The decisions, with those behind all others that are put at the head of what is there by then.
fn placed(decisions: Vec<Decision>, layout: &Layout) -> Vec<Decision> {
    let roles = layout.style.at_head;
    let (mut heads, mut decisions): (Vec<Decision>, Vec<_>) =
        decisions.into_iter().partition(|decision| roles.contains(&decision.role));
    heads.sort_by_key(|head| roles.iter().position(|role| *role == head.role));
    for head in &mut heads {
        head.placement = Placement::Insert(1);
    }
    decisions.append(&mut heads);
    decisions
}

/// The decisions, each in as many as it takes for its ports. Those that stand in front of rules of others
/// move on behind one that became several.
fn split(decisions: Vec<Decision>) -> Vec<Decision> {
    let mut moved: BTreeMap<(Table, Path), u32> = BTreeMap::new();
    let mut all = Vec::with_capacity(decisions.len());
    for decision in decisions {
        let moved = moved.entry((decision.table, decision.path)).or_default();
        for (part, mut decision) in ports::split(decision).into_iter().enumerate() {
            *moved += u32::from(part > 0);
            if let Placement::Insert(position) = &mut decision.placement {
                *position += *moved;
            }
            all.push(decision);
        }
    }
    all
}

/// Whether a style leaves it to what leads to a decision to ask for TCP.
fn is_open(decision: &Decision, layout: &Layout) -> bool {
    layout.style.any_protocol.contains(&decision.role)
        && !matches!(decision.verdict, Verdict::Redirect(_) | Verdict::Translate { .. })
}

/// A decision in the place of one that leads to it. What captures is there for what leads to it.
fn inlined(from: &Decision, next: &Decision) -> Decision {
    let mut when = from.when.clone();
    when.extend(next.when.iter().filter(|condition| !from.when.contains(condition)).cloned());
    let reported = if next.role == Role::Deliver { from } else { next };
    let (role, reason) = (reported.role, reported.reason.clone());
    Decision { when, verdict: next.verdict, role, reason, ..from.clone() }
}

/// The paths on which anything is asked of packets of some families. Decisions that lead to others
/// are not written.
fn asked(
    program: &Program,
    decisions: &[Decision],
    families: &[Family],
) -> BTreeSet<(Table, Path)> {
    let any = |decision: &&Decision| families.iter().any(|f| program.concerns(decision, *f));
    decisions.iter().filter(any).map(|decision| (decision.table, decision.path)).collect()
}

/// Whether a decision leads to anything, or is written all the same.
fn leads(decision: &Decision, asked: &BTreeSet<(Table, Path)>, layout: &Layout) -> bool {
    match decision.verdict {
        Verdict::Ask(_) if layout.style.empty_jumps => true,
        Verdict::Ask(branch) => asked.contains(&(decision.table, branch.into())),
        _ => true,
    }
}
