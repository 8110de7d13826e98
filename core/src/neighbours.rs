//! What others have put in the way of captured connections. Whether it matters depends on the
//! connection, so it is told, and no difference.

mod undoing;

use crate::nft::xtables::builtin_chain;
use crate::observed::{ForeignChain, Holding, Observed};
use crate::ownership::{Footprint, Owned, known_tables};
use crate::ruleset::{Hook, Table, Target};
use crate::value::Family;

/// The places where connections are captured.
const HOOKS: [Hook; 2] = [Hook::Prerouting, Hook::Output];

/// The priority of what comes before connections are tracked (`NF_IP_PRI_RAW`): of ours, only DNS capture
/// has rules there.
const RAW: i32 = -300;

/// A chain of ours that the kernel calls.
struct Own {
    family: Option<Family>,
    hook: u32,
    priority: i32,
    nat: bool,
}

/// Whether any rule of others is here that a packet can meet.
pub(crate) fn are_here(observed: &Observed, footprints: &[Footprint]) -> bool {
    let any = |holding: &Holding| {
        let owned = Owned::find(&holding.dump, footprints);
        holding.dump.tables.iter().any(|content| {
            let table = Table::from_name(&content.name);
            content.chains.iter().any(|chain| {
                let theirs = |at| table.is_none_or(|table| !owned.has_rule(table, &chain.name, at));
                chain.policy.as_deref() == Some("DROP") || (0..chain.rules.len()).any(theirs)
            })
        })
    };
    let elsewhere = observed.netdev || !observed.foreign.is_empty() || !observed.unread.is_empty();
    elsewhere || observed.holdings.iter().any(any)
}

/// Each neighbour in a sentence.
pub(crate) fn notes(observed: &Observed, footprints: &[Footprint]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut own: Vec<Own> = native(observed).collect();
    for holding in &observed.holdings {
        let owned = Owned::find(&holding.dump, footprints);
        for (table, content) in known_tables(&holding.dump) {
            for hook in HOOKS {
                let Some(chain) = content.chain(hook.as_str()) else { continue };
                let ours = |index: &usize| owned.has_rule(table, &chain.name, *index);
                let Some(last) = (0..chain.rules.len()).rev().find(ours) else { continue };
                let at = format!(
                    "chain {} of {} {table} ({})",
                    hook.as_str(),
                    holding.family,
                    holding.variant
                );
                if chain.policy.as_deref() == Some("DROP") {
                    notes.push(format!("the policy of {at} drops what no rule lets past"));
                }
                let before = chain.rules.iter().take(last).enumerate();
                let before = before.filter(|(index, _)| !ours(index)).map(|(_, rule)| rule);
                let mut deciding =
                    before.filter(|rule| !matches!(&rule.rule, Ok(rule) if passes(&rule.target)));
                if let Some(first) = deciding.next() {
                    let more = match deciding.count() {
                        0 => String::new(),
                        more => format!(", and {more} more"),
                    };
                    notes.push(format!(
                        "a rule of others comes before ours in {at}: {}{more}",
                        first.text
                    ));
                }
                own.extend(builtin_chain(table, hook).map(|(kind, priority)| Own {
                    family: Some(holding.family),
                    hook: hook.number(),
                    priority,
                    nat: kind == "nat",
                }));
            }
        }
    }
    let dns = own.iter().any(|own| own.priority == RAW);
    notes.extend(undoing::notes(observed, footprints, dns));
    let met = observed.foreign.iter().filter(|f| f.decides && own.iter().any(|own| meets(f, own)));
    notes.extend(met.map(|ForeignChain { table, name, base, .. }| {
        format!(
            "chain {name} of {table} (type {}, priority {}) is called before ours or at the same \
             priority, and may drop, redirect or leave untracked what is to be captured",
            base.kind, base.priority
        )
    }));
    notes.extend(at_interfaces(observed));
    notes
}

/// Each chain at an interface that may undo what eBPF or rules do, in a sentence.
pub(crate) fn at_interfaces(observed: &Observed) -> impl Iterator<Item = String> + '_ {
    observed.at_interfaces.iter().map(|chain| {
        format!("{chain} may drop, lead elsewhere, change or mark what is to be captured")
    })
}

/// The chains of native tables of ours.
fn native(observed: &Observed) -> impl Iterator<Item = Own> {
    let chains = observed.native.iter().flat_map(|(_, chains)| chains);
    chains.filter_map(|(_, chain)| chain.base.as_ref()).map(|base| Own {
        family: None,
        hook: base.hook,
        priority: base.priority,
        nat: base.kind == "nat",
    })
}

/// Whether packets meet a foreign chain in front of one of ours, and what it does matters to that.
fn meets(foreign: &ForeignChain, own: &Own) -> bool {
    let family = own.family.is_none_or(|family| foreign.table.family.is_none_or(|f| f == family));
    let hooks = HOOKS.iter().any(|hook| hook.number() == own.hook);
    let kinds = own.nat || foreign.base.kind != "nat";
    let base = &foreign.base;
    family && hooks && kinds && base.hook == own.hook && base.priority <= own.priority
}

/// Whether a packet goes on behind the rule in any case.
const fn passes(target: &Target) -> bool {
    matches!(target, Target::SetMark(_) | Target::SaveMark | Target::RestoreMark | Target::Zone(_))
}
