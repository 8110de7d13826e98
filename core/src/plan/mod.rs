//! From what is there and what is wanted to a list of effects, in an order in which every
//! connection is captured by the old rules or by the new ones at every moment.

mod choose;
mod effect;
mod obstacles;
mod rollback;
mod routing;
mod tables;
mod target;

pub use choose::{Choice, Method, NoBackend, Preference, choose};
pub use effect::{Change, Effect};
pub use rollback::rollback;
pub use routing::{
    LOCALHOST_PROTOCOL, PASSTHROUGH_LINK, PASSTHROUGH_PEER, PASSTHROUGH_READY, PASSTHROUGH_V6,
    RULE_PRIORITY, TakenTable, has_passthrough, localhost,
};
pub use tables::{TableEdit, TableStep};
pub use target::{Body, FamilyState};

use crate::nft::tables::{Native, NativeTables};
use crate::nft::{self, NftRuleset, render_transaction};
use crate::observed::{Logger, Observed, TableId, Variant};
use crate::ownership::Footprint;
use crate::ruleset::{Masked, Routing, Ruleset, Table};
use crate::value::{Family, Groups};
use routing::Known;
use tables::Style;

/// What is known besides what was seen.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// How rules of ours are known.
    pub footprints: &'a [Footprint],
    /// Group names and their numbers.
    pub groups: &'a Groups,
    /// Marks with their routing tables that belong to us whoever wrote the rule: the defaults,
    /// and those of the configuration.
    pub marks: Vec<(u32, u32)>,
    /// Whether rules of iptables-nft are written by netlink, not by its programs. The way back goes by
    /// netlink either way.
    pub netlink: bool,
}

/// Chains of others have the names of those that are wanted: to write these would empty them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} of somebody else has the name of one that is to be written; nothing was changed: capture by \
     Millrace's own rules (`millrace apply`), or remove that capture first",
    .0.join(", ")
)]
pub struct Clash(pub Vec<String>);

/// A list of effects, and what led to it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The effects, in order; empty when everything is as desired.
    pub effects: Vec<Effect>,
    /// Whether chains of ours were there before.
    pub residue: bool,
    /// Whether what was there could have been left by a run of the same configuration that did
    /// not finish.
    pub unfinished: bool,
    /// Whether a change was going on here that did not end: Millrace's own note says so, or
    /// istio-iptables' rules that drop everything while it works are still there.
    pub interrupted: bool,
    /// What stands in the way of all of it.
    pub taken: Option<TakenTable>,
    /// Chains of others that stand in the way.
    pub clash: Option<Clash>,
    /// What keeps the wanted rules from working, and is not ours to change: each in a sentence.
    pub obstacles: Vec<String>,
    /// Where nothing of ours is to be left: which rules go, and which stay, of which nothing tells whose
    /// they are, each in a sentence.
    pub untold: Vec<String>,
}

impl Plan {
    /// Whether nothing has to be done.
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }
}

/// What a namespace is to hold of ours.
#[derive(Clone, Copy, Debug)]
pub enum DesiredState<'a> {
    /// No rules, routes or addresses of ours, as after `cleanup`.
    Nothing,
    /// Rules of iptables, in this variant.
    Iptables(&'a Ruleset, Variant),
    /// Native nftables, with the routes and addresses that they need.
    Native(&'a Native),
}

impl<'a> DesiredState<'a> {
    /// What iptables of this variant is to hold.
    fn iptables(self, variant: Variant) -> Option<&'a Ruleset> {
        match self {
            Self::Iptables(ruleset, wanted) if wanted == variant => Some(ruleset),
            _ => None,
        }
    }

    /// The table of nftables beside rules of iptables.
    fn guard(self) -> Option<&'a NftRuleset> {
        match self {
            Self::Iptables(ruleset, _) => ruleset.guard.as_ref(),
            Self::Nothing | Self::Native(_) => None,
        }
    }

    /// The native tables, and their text.
    fn native(self) -> (NativeTables, String) {
        if let Self::Native(native) = self {
            return (native.tables.clone(), native.text.clone());
        }
        // It names no group.
        let tables = |guard: &NftRuleset| guard.native(&Groups::new()).ok();
        let guard =
            self.guard().and_then(|guard| Some((tables(guard)?, render_transaction(guard))));
        guard.unwrap_or_default()
    }

    fn routing(self) -> Option<&'a Routing> {
        match self {
            Self::Nothing => None,
            Self::Iptables(ruleset, _) => Some(&ruleset.routing),
            Self::Native(native) => Some(&native.routing),
        }
    }

    fn families(self) -> Vec<Family> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Iptables(ruleset, _) => ruleset.families().collect(),
            Self::Native(native) => native.families.clone(),
        }
    }

    /// The tables of `nf_tables` with wanted rules.
    fn tables(self, groups: &Groups) -> Vec<TableId> {
        let guards = self.guard().into_iter().filter_map(|guard| guard.layout.guard);
        let guards = guards.map(|name| TableId::inet(name.to_owned()));
        guards.chain(self.captures(groups)).collect()
    }

    /// Those of them that are no guard of others.
    fn captures(self, groups: &Groups) -> Vec<TableId> {
        match self {
            Self::Iptables(ruleset, Variant::Nft) => {
                let tables = |family: Family| {
                    let state = FamilyState::desired(ruleset, family, groups);
                    let tables: Vec<Table> = state.tables().collect();
                    tables.into_iter().map(move |t| TableId::ip(family, t.to_string()))
                };
                Family::ALL.into_iter().flat_map(tables).collect()
            }
            Self::Native(native) => {
                native.tables.iter().map(|(name, _)| TableId::inet(name.clone())).collect()
            }
            Self::Nothing | Self::Iptables(_, Variant::Legacy) => Vec::new(),
        }
    }
}

/// What has to be done so that the namespace holds exactly `wanted` of ours, and nothing anywhere
/// else.
pub fn plan(
    observed: &Observed,
    wanted: DesiredState<'_>,
    everything: bool,
    context: &Context<'_>,
) -> Plan {
    let found = |variant, family| {
        observed
            .holding(variant, family)
            .map(|d| FamilyState::observed(d, context.footprints, context.groups))
            .unwrap_or_default()
    };
    let pairs = context.marks.iter().map(|(mark, table)| (Masked::exact(*mark), *table));
    let fixed = context.footprints.iter().filter_map(|footprint| footprint.route);
    let mut known = Known { marks: Vec::new(), pairs: pairs.chain(fixed).collect() };
    let mut residue = false;
    let mut unfinished = true;
    let mut interrupted = observed.interrupted;
    let mut replace = Vec::new();
    let mut remove = Vec::new();
    let mut edits = Vec::new();
    let mut clashes = Vec::new();
    for family in Family::ALL {
        for any in Variant::ALL {
            let found = found(any, family);
            known.marks.extend(found.marks());
            residue |= found.has_chains();
            interrupted |= found.drops_everything();
            let target = wanted
                .iptables(any)
                .map(|w| FamilyState::desired(w, family, context.groups))
                .unwrap_or_default();
            unfinished &= found.is_part_of(&target);
            let at = |(table, chain)| format!("chain {chain} of {family} {table} ({any})");
            clashes.extend(found.clashes(&target).into_iter().map(at));
            // Rules of ours in another place go when those in the right one are there.
            let right = wanted.iptables(any).is_some();
            let changes = table_edits(family, &found, &target, everything && right);
            if any == Variant::Nft && context.netlink {
                edits.extend(changes);
                continue;
            }
            let list = if right { &mut replace } else { &mut remove };
            list.extend(restore(any, family, &changes, false));
        }
    }
    known.marks.extend(nft::tables::marks(&observed.native));
    residue |= !observed.native.is_empty();
    let (target, text) = wanted.native();
    unfinished &= observed.native.is_empty() || observed.native == target;
    // The guard of legacy rules comes behind them: what it takes the place of may still capture.
    let comes = match wanted {
        DesiredState::Native(native) => !native.tables.is_empty(),
        _ => wanted.iptables(Variant::Nft).is_some(),
    };
    let list = if comes { &mut replace } else { &mut remove };
    list.extend(native(observed, target, text, everything, edits));
    let families = wanted.families();
    let routing = routing::changes(observed, &known, wanted.routing(), &families);
    let transparent = wanted.routing().and_then(|r| r.marked).is_some_and(|r| r.transparent);
    let foreign = routing.foreign;
    let taken = (!foreign.is_empty()).then_some(TakenTable { routes: foreign, transparent });
    let mut effects = Vec::new();
    if observed.lo_down && !families.is_empty() {
        effects.push(Effect::Loopback { change: Change::Add });
    }
    effects.extend(routing.before);
    effects.extend(replace);
    effects.extend(remove);
    effects.extend(routing.after);
    // Last, so that the kernel never calls rules that are not those that are wanted.
    let dormant = wanted.tables(context.groups).into_iter();
    let dormant = dormant.filter(|table| observed.dormant.contains(table));
    effects.extend(dormant.map(|table| Effect::Dormant { change: Change::Remove, table }));
    // Nothing of ours is to be left; beside other changes, a trace is none of their business.
    if matches!(wanted, DesiredState::Nothing) {
        let logger = |logger: &Logger| Effect::Logger { logger: logger.clone() };
        effects.extend(observed.loggers.iter().map(logger));
    }
    let effects = with_marker(effects, observed.interrupted);
    let obstacles = obstacles::obstacles(observed, wanted);
    let clash = (!clashes.is_empty()).then_some(Clash(clashes));
    let untold = match wanted {
        DesiredState::Nothing => obstacles::untold(observed, context.footprints),
        DesiredState::Iptables(..) | DesiredState::Native(_) => Vec::new(),
    };
    Plan { effects, residue, unfinished, interrupted, taken, clash, obstacles, untold }
}

/// The transaction that puts native tables in the place of those that are there, if it has to, and
/// edits tables of iptables-nft in the same moment.
fn native(
    observed: &Observed,
    tables: NativeTables,
    text: String,
    everything: bool,
    edits: Vec<TableEdit>,
) -> Option<Effect> {
    let same = observed.native == tables && (tables.is_empty() || !everything);
    if same && edits.is_empty() {
        return None;
    }
    let (names, tables, mut text) = if same {
        (Vec::new(), NativeTables::new(), String::new())
    } else {
        (observed.native.iter().map(|(name, _)| name.clone()).collect(), tables, text)
    };
    let mut last = None;
    for edit in &edits {
        if last.replace(edit.family) != Some(edit.family) {
            text.push_str(&format!("# {}\n", edit.family));
        }
        text.push_str(&edit.text(false));
    }
    Some(Effect::Native { names, tables, edits, text })
}

/// The edits that turn a family's tables into what is wanted, in the order in which they are
/// committed.
fn table_edits(
    family: Family,
    found: &FamilyState,
    wanted: &FamilyState,
    everything: bool,
) -> Vec<TableEdit> {
    let empty = target::TableState::default();
    let edit = |table| {
        let found = found.tables.get(&table).unwrap_or(&empty);
        let wanted = wanted.tables.get(&table).unwrap_or(&empty);
        let style = Style { everything: everything && !wanted.is_empty() };
        tables::edit(family, table, found, wanted, style)
    };
    commit_order(found, wanted).into_iter().filter_map(edit).collect()
}

/// The restore that makes edits, if there are any.
fn restore(
    variant: Variant,
    family: Family,
    edits: &[TableEdit],
    counters: bool,
) -> Option<Effect> {
    let input: String = edits.iter().map(|edit| edit.text(counters)).collect();
    (!input.is_empty()).then_some(Effect::Restore { variant, family, input, counters })
}

/// The order in which tables are committed. Each commit stands alone, so between two of them
/// both old and new rules are at work: a table that starts to capture inbound connections comes
/// before the one that stops, and conntrack zones are there as long as DNS is captured.
fn commit_order(found: &FamilyState, wanted: &FamilyState) -> Vec<Table> {
    let nat_takes_over = found.captures_inbound(Table::Mangle)
        && !wanted.captures_inbound(Table::Mangle)
        && wanted.captures_inbound(Table::Nat);
    let zones_go = !found.tables.get(&Table::Raw).is_none_or(target::TableState::is_empty)
        && wanted.tables.get(&Table::Raw).is_none_or(target::TableState::is_empty);
    let mut order = Vec::new();
    if !zones_go {
        order.push(Table::Raw);
    }
    if nat_takes_over {
        order.extend([Table::Nat, Table::Mangle]);
    } else {
        order.extend([Table::Mangle, Table::Nat]);
    }
    if zones_go {
        order.push(Table::Raw);
    }
    // Rules of an interrupted istio-iptables drop everything: they go when the pod is captured.
    order.push(Table::Filter);
    order
}

/// Frame effects with the note that a run has begun, unless there is a single commit, which
/// can't be interrupted.
fn with_marker(effects: Vec<Effect>, interrupted: bool) -> Vec<Effect> {
    let commits: usize = effects
        .iter()
        .map(|e| match e {
            Effect::Restore { input, .. } => input.lines().filter(|l| *l == "COMMIT").count(),
            // Nothing has to be taken up again where that alone was done.
            Effect::Loopback { .. } => 0,
            _ => 1,
        })
        .sum();
    if commits < 2 && !interrupted {
        return effects;
    }
    let mut framed = Vec::new();
    if commits > 0 && !interrupted {
        framed.push(Effect::Marker { change: Change::Add });
    }
    framed.extend(effects);
    framed.push(Effect::Marker { change: Change::Remove });
    framed
}
