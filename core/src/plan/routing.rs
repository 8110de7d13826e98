//! Policy routing and addresses: what is there of ours, and what has to change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::effect::{Change, Effect};
use crate::observed::{IpRule, Observed, Route, Way};
use crate::policy::passthrough;
pub use crate::ruleset::TPROXY_PRIORITY as RULE_PRIORITY;
use crate::ruleset::{Home, Masked, Routing};
use crate::value::Family;

/// The interface that has [`PASSTHROUGH_V6`] where `lo` must not. It is one end of a pair of which the
/// other end is never up: nothing arrives by it, and what is sent to its address goes by `lo`. Pairs
/// are what pods' own networks are made of; an interface of kind dummy is simpler, and not every kernel
/// that runs pods has it. An address of the pod's own interface would be taken by applications that
/// look for the first one.
pub const PASSTHROUGH_LINK: &str = "millrace0";
/// The other end of that pair, which is never up.
pub const PASSTHROUGH_PEER: &str = "millrace1";

/// Its alias (`ip-link(8)`) once everything about it is as it has to be.
pub const PASSTHROUGH_READY: &str = "the address that a mesh proxy passes connections on from";

/// The IPv6 address that the proxy passes connections on from, `::6`.
pub const PASSTHROUGH_V6: IpAddr = passthrough(Family::V6);

/// The protocol (`ip-route(8)`, `proto`) of Millrace's routes to localhost, by which they are known again:
/// one that no routing daemon has.
pub const LOCALHOST_PROTOCOL: u8 = 109;

/// The address of this host that a family's routes to localhost lead to.
pub const fn localhost(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Marks and tables that are ours whoever wrote the rule.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Marks that our rules set.
    pub(super) marks: Vec<Masked>,
    /// Marks with their tables that a configuration names, or that a dialect has fixed.
    pub(super) pairs: Vec<(Masked, u32)>,
}

/// Changes before and after the rules are written.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    pub(super) before: Vec<Effect>,
    pub(super) after: Vec<Effect>,
    /// Routes of others in the table that is wanted.
    pub(super) foreign: Vec<Route>,
}

/// The routing table that marked packets need is used by somebody else: they could go by a route of
/// somebody's, and what looks those up would go by ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the routing table that {} holds routes of somebody else ({}); nothing was changed: {}",
    self.needed_by(), self.routes(), self.remedy()
)]
pub struct TakenTable {
    /// Routes of others in that table.
    pub routes: Vec<Route>,
    /// Whether it is for TPROXY; else it is for answers to a proxy of the node.
    pub transparent: bool,
}

impl TakenTable {
    /// Who needs the table, in words.
    pub const fn needed_by(&self) -> &'static str {
        if self.transparent { "TPROXY needs" } else { "answers to the node's proxy need" }
    }

    const fn remedy(&self) -> &'static str {
        if self.transparent {
            "give TPROXY another table (--tproxy-table, or -r where a mesh's own command line is \
             given), or remove these routes"
        } else {
            "remove these routes, since the proxy has this one"
        }
    }

    /// The routes with their tables.
    pub fn routes(&self) -> String {
        let named = |r: &Route| format!("{} {} table {}", r.family, r.text, r.table);
        self.routes.iter().map(named).collect::<Vec<_>>().join("; ")
    }
}

/// Whether a table has no route but `local default dev lo`.
fn only_local(observed: &Observed, family: Family, table: u32) -> bool {
    observed
        .routes
        .iter()
        .filter(|r| r.family == family && r.table == table)
        .all(|r| r.local_default)
}

fn is_ours(observed: &Observed, known: &Known, rule: &IpRule) -> bool {
    let Some((value, mask)) = rule.fwmark else { return false };
    let mark = Masked { value, mask };
    let used = known.marks.contains(&mark) || known.pairs.contains(&(mark, rule.table));
    let priority = rule.priority == RULE_PRIORITY;
    // An interrupted run may have removed the rules that told which mark was used.
    let named = used || mask == u32::MAX && (priority || observed.interrupted);
    // Whatever others do in the table that a rule of ours looks up, the rule is ours.
    let sure = (priority && used) || only_local(observed, rule.family, rule.table);
    rule.mark_only && named && sure
}

/// The rules that are ours.
pub(super) fn observed_rules<'o>(observed: &'o Observed, known: &Known) -> Vec<&'o IpRule> {
    observed.ip_rules.iter().filter(|r| is_ours(observed, known, r)).collect()
}

/// Routes that are ours: those that rules of ours look up, and those of tables that nothing looks
/// up and a configuration names.
fn found_routes<'o>(observed: &'o Observed, known: &Known, rules: &[&IpRule]) -> Vec<&'o Route> {
    let looked_up_by_others = |route: &Route| {
        observed
            .ip_rules
            .iter()
            .any(|r| r.family == route.family && r.table == route.table && !rules.contains(&r))
    };
    let named = |route: &Route| {
        rules.iter().any(|r| r.family == route.family && r.table == route.table)
            || known.pairs.iter().any(|(_, table)| *table == route.table)
            || observed.interrupted
    };
    observed
        .routes
        .iter()
        .filter(|r| r.local_default && named(r) && !looked_up_by_others(r))
        .collect()
}

/// What has to change for `wanted`, in the given families.
pub(super) fn changes(
    observed: &Observed,
    known: &Known,
    wanted: Option<&Routing>,
    families: &[Family],
) -> Changes {
    let mut changes = Changes::default();
    let old_rules = observed_rules(observed, known);
    let old_routes = found_routes(observed, known, &old_rules);
    let marked = wanted.and_then(|w| w.marked);
    let mut new_rules = Vec::new();
    let mut new_routes = Vec::new();
    for family in families {
        let Some(marked) = marked else { continue };
        new_routes.push(Route::local_default(*family, marked.table.get()));
        new_rules.push(IpRule {
            family: *family,
            priority: marked.priority,
            fwmark: Some((marked.mark.value, marked.mark.mask)),
            table: marked.table.get(),
            mark_only: true,
        });
    }
    let shares = |other: &&Route| {
        let same = |r: &Route| (r.family, r.table) == (other.family, other.table);
        !other.local_default && new_routes.iter().any(same)
    };
    changes.foreign = observed.routes.iter().filter(shares).cloned().collect();
    for route in new_routes.iter().filter(|r| !observed.routes.contains(r)) {
        let (family, table) = (route.family, route.table);
        changes.before.push(Effect::Route { change: Change::Add, family, table });
    }
    for rule in new_rules.iter().filter(|r| !observed.ip_rules.contains(r)) {
        changes.before.push(Effect::IpRule { change: Change::Add, rule: rule.clone() });
    }
    for rule in old_rules.into_iter().filter(|r| !new_rules.contains(r)) {
        changes.after.push(Effect::IpRule { change: Change::Remove, rule: rule.clone() });
    }
    for route in old_routes.into_iter().filter(|r| !new_routes.contains(r)) {
        let (family, table) = (route.family, route.table);
        changes.after.push(Effect::Route { change: Change::Remove, family, table });
    }
    let everywhere = wanted.map(|w| w.localhost_everywhere.as_slice()).unwrap_or_default();
    let is_wanted = |way: &&Way| everywhere.contains(&way.family) && families.contains(&way.family);
    let (ways, there) = (&observed.ways, &observed.localhost_ways);
    for way in ways.keys().filter(is_wanted).filter(|way| !there.contains(way)) {
        changes.before.push(Effect::Localhost { change: Change::Add, way: way.clone() });
    }
    for way in there.iter().filter(|way| !is_wanted(way)) {
        changes.after.push(Effect::Localhost { change: Change::Remove, way: way.clone() });
    }
    let home = wanted.and_then(|w| w.passthrough_v6);
    let address = PASSTHROUGH_V6;
    match (has_passthrough(observed), home == Some(Home::Loopback)) {
        (false, true) => changes.before.push(Effect::Address { change: Change::Add, address }),
        (true, false) => changes.after.push(Effect::Address { change: Change::Remove, address }),
        _ => {}
    }
    match (observed.passthrough_link, home == Some(Home::Own)) {
        (None | Some(false), true) => {
            changes.before.push(Effect::Passthrough { change: Change::Add });
        }
        (Some(_), false) => changes.after.push(Effect::Passthrough { change: Change::Remove }),
        _ => {}
    }
    changes
}

/// Whether `lo` has `::6/128`.
pub fn has_passthrough(observed: &Observed) -> bool {
    observed.addresses.iter().any(|a| a.loopback && a.address == PASSTHROUGH_V6 && a.prefix == 128)
}
