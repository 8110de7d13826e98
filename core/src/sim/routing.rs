//! Policy routing: rules in the order of their priority, each with the table that it looks in, and
//! what the routes of a table say (`ip-rule(8)`, `ip-route(8)`; `net/core/fib_rules.c`,
//! `net/ipv4/fib_semantics.c`, `net/ipv6/route.c` of Linux 6.12).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::namespace::{Exit, unicast};
use super::question::Protocol;
use super::ranges::Ranges;
use crate::ruleset::Masked;
use crate::value::{Cidr, Family};

/// The tables that the kernel fills itself (`linux/rtnetlink.h`).
pub const LOCAL_TABLE: u32 = 255;
/// The table of ordinary routes.
pub const MAIN_TABLE: u32 = 254;
/// The table behind all others.
pub const DEFAULT_TABLE: u32 = 253;

/// A route of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRoute {
    /// Number of the routing table, 254 being `main` (rtnetlink(7), `RTA_TABLE`).
    pub table: u32,
    /// The destinations that it is for; length 0 is every one of the family.
    pub network: Cidr,
    /// Of routes to the same network the one with the lowest wins.
    pub metric: u32,
    /// What becomes of packets that go by it.
    pub action: RouteAction,
}

/// What a route does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteAction {
    /// It goes out; by one of these, where the kernel spreads connections over several.
    Out(Vec<Exit>),
    /// It is delivered here; the source that sockets get, where the route names one.
    Local(Option<IpAddr>),
    /// It is discarded, for this reason.
    Refuse(&'static str),
    /// The next rule is asked.
    Throw,
    /// It is for more than one host, and not walked.
    Group,
    /// What it does is not modelled.
    Unmodelled(String),
}

/// A rule of policy routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// IPv4 or IPv6: policy rules of the two are kept apart.
    pub family: Family,
    /// Its priority, low first.
    pub priority: u32,
    /// Which packets it is for.
    pub selector: Selector,
    /// What becomes of packets that it selects.
    pub action: RuleAction,
}

/// Which packets a rule is for: all that meet each condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Whether it is for all others instead.
    pub inverted: bool,
    /// The network of their source; none is any.
    pub from: Option<Cidr>,
    /// The network of their destination; none is any.
    pub to: Option<Cidr>,
    /// Their mark under a mask (`fwmark`); none is any.
    pub mark: Option<Masked>,
    /// The user whose socket sends them; root's, where there is none.
    pub uids: Option<(u32, u32)>,
    /// The interface they came in by; `lo` is this host itself.
    pub input: Option<String>,
    /// Their IP protocol (`ipproto`); none is any.
    pub protocol: Option<Protocol>,
    /// Their source port, from the first to the last.
    pub source_ports: Option<(u16, u16)>,
    /// Their destination port, from the first to the last; none is any.
    pub ports: Option<(u16, u16)>,
    /// Whether it is only for packets that no connection here has: with a type of service, or of a
    /// socket that is bound to an interface.
    pub never: bool,
    /// A condition that is not modelled.
    pub unmodelled: Option<String>,
}

impl Selector {
    /// All packets, as without any condition.
    pub(super) const ALL: Self = Self {
        inverted: false,
        from: None,
        to: None,
        mark: None,
        uids: None,
        input: None,
        protocol: None,
        source_ports: None,
        ports: None,
        never: false,
        unmodelled: None,
    };
}

/// What a rule of policy routing does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// It looks in this table.
    Table(u32),
    /// It looks in this table for routes whose prefix is longer than this
    /// (`suppress_prefixlength`).
    Longer(u32, u8),
    /// Packets are delivered here, wherever they go.
    Deliver,
    /// They are discarded, for this reason.
    Refuse(&'static str),
    /// What it does is not modelled.
    Unmodelled(String),
}

/// The routes of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    /// Destinations, none in two places, each with what becomes of them.
    routes: Vec<(RouteAction, Ranges)>,
    /// Those of which the table says where they go: of others the next rule is asked.
    covered: Ranges,
    /// The most paths that one of them spreads connections over.
    most_paths: usize,
}

impl Table {
    fn new(routes: Vec<(RouteAction, Ranges)>) -> Self {
        let says = |(action, _): &&(RouteAction, Ranges)| !matches!(action, RouteAction::Throw);
        let covered = routes.iter().filter(says).flat_map(|(_, ranges)| ranges.iter()).collect();
        let paths = routes.iter().map(|(action, _)| match action {
            RouteAction::Out(exits) => exits.len(),
            _ => 1,
        });
        let most_paths = paths.max().unwrap_or(1);
        Self { routes, covered, most_paths }
    }
}

/// The rules and the tables of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RoutingTables {
    rules: Vec<RoutingRule>,
    tables: BTreeMap<(Family, u32), Table>,
    /// The same for rules that look for longer prefixes alone.
    longer: BTreeMap<(Family, u32, u8), Table>,
    /// The table that is not there.
    none: Table,
    /// Sources that routes to this host name, where that is not the destination itself.
    sources: Vec<(IpAddr, Ranges)>,
    /// Addresses of more than one host.
    groups: Vec<(Family, Ranges)>,
}

/// What can't be told where a route of this host lies around one of the main table.
const MERGED: &str = "which route is taken, one to this pod or a longer one of the main table: the kernel \
                      doesn't tell whether it still has both tables in one";
impl RoutingTables {
    /// Rules and routes, and whether IPv4 has its own table and the main one in one: it does until the
    /// first rule is added or deleted (`fib_unmerge()` in `net/ipv4/fib_trie.c`).
    pub(super) fn new(
        mut rules: Vec<RoutingRule>,
        routes: Vec<TableRoute>,
        merged: Option<bool>,
    ) -> Self {
        // Of equal priorities the older one is first, as the kernel lists them.
        rules.sort_by_key(|rule| rule.priority);
        let mut by_table: BTreeMap<(Family, u32), Vec<TableRoute>> = BTreeMap::new();
        let (mut sources, mut groups) = (Vec::new(), Vec::new());
        for mut route in routes {
            let family = route.network.family();
            match &mut route.action {
                RouteAction::Group => {
                    groups.push((family, Ranges::network(route.network)));
                    continue;
                }
                // Each of its paths is dead, and the next route is looked for.
                RouteAction::Out(exits) if exits.is_empty() => continue,
                RouteAction::Local(source) => {
                    sources.push((source.take(), route.network));
                }
                _ => {}
            }
            by_table.entry((family, route.table)).or_default().push(route);
        }
        let mut longer = BTreeMap::new();
        for rule in &rules {
            if let RuleAction::Longer(table, length) = rule.action {
                let routes = by_table.get(&(rule.family, table)).into_iter().flatten();
                let routes = routes.filter(|route| route.network.length() > length);
                let routes = disjoint(routes.cloned().collect());
                longer.insert((rule.family, table, length), Table::new(routes));
            }
        }
        let own = [LOCAL_TABLE, MAIN_TABLE].map(|table| by_table.get(&(Family::V4, table)));
        let joined = match (merged, own) {
            (None | Some(true), [Some(local), Some(main)]) if !is_custom(&rules, Family::V4) => {
                joined(local, main)
            }
            _ => None,
        };
        let tables = by_table.into_iter();
        let mut tables: BTreeMap<_, _> =
            tables.map(|(key, routes)| (key, Table::new(disjoint(routes)))).collect();
        if let (Some(joined), Some(local)) = (joined, tables.get_mut(&(Family::V4, LOCAL_TABLE))) {
            *local = match merged {
                Some(_) => Table::new(joined),
                None => Table::new(contested(&local.routes, &joined)),
            };
        }
        Self { rules, tables, longer, none: Table::default(), sources: named(sources), groups }
    }

    /// Addresses of a family that are of more than one host, as routes say.
    pub(super) fn groups(&self, family: Family) -> Ranges {
        let of_family = self.groups.iter().filter(|(of, _)| *of == family);
        of_family.flat_map(|(_, group)| group.iter()).collect()
    }

    /// Whether an address is of more than one host.
    pub(super) fn is_group(&self, family: Family, number: u128) -> bool {
        self.groups.iter().any(|(of, group)| *of == family && group.contains(number))
    }

    /// The sources that sockets get for destinations of this host, where these are not their own.
    pub(super) fn local_sources(&self, family: Family) -> impl Iterator<Item = &(IpAddr, Ranges)> {
        self.sources.iter().filter(move |(source, _)| Family::of(*source) == family)
    }

    pub(super) fn rules(&self, family: Family) -> impl Iterator<Item = &RoutingRule> {
        self.rules.iter().filter(move |rule| rule.family == family)
    }

    /// The destinations of a table, each with what becomes of them.
    pub(super) fn table(&self, family: Family, table: u32) -> &[(RouteAction, Ranges)] {
        &self.tables.get(&(family, table)).unwrap_or(&self.none).routes
    }

    /// The same of what a rule looks in; nothing where it looks in none.
    pub(super) fn looked_in(
        &self,
        family: Family,
        action: &RuleAction,
    ) -> &[(RouteAction, Ranges)] {
        self.of_rule(family, action).map_or(&[], |table| &table.routes)
    }

    /// The destinations for which a rule can mean anything, if it looks in a table.
    pub(super) fn covered(&self, family: Family, action: &RuleAction) -> Option<&Ranges> {
        self.of_rule(family, action).map(|table| &table.covered)
    }

    fn of_rule(&self, family: Family, action: &RuleAction) -> Option<&Table> {
        let table = match *action {
            RuleAction::Table(table) => self.tables.get(&(family, table)),
            RuleAction::Longer(table, than) => self.longer.get(&(family, table, than)),
            RuleAction::Deliver | RuleAction::Refuse(_) | RuleAction::Unmodelled(_) => return None,
        };
        Some(table.unwrap_or(&self.none))
    }

    /// The addresses that are delivered here by the kernel's own table.
    pub(super) fn local(&self, family: Family) -> Ranges {
        let routes = self.table(family, LOCAL_TABLE).iter();
        let local = routes.filter(|(action, _)| matches!(action, RouteAction::Local(_)));
        local.flat_map(|(_, ranges)| ranges.iter()).collect()
    }

    /// The addresses of IPv6 that routes of other tables than the kernel's own deliver here, where no mark is asked
    /// for.
    pub(super) fn local_elsewhere(&self) -> Ranges {
        let unmarked = self.rules(Family::V6).filter(|rule| rule.selector.mark.is_none());
        let tables = unmarked.filter_map(|rule| match rule.action {
            RuleAction::Table(table) | RuleAction::Longer(table, _) if table != LOCAL_TABLE => {
                Some(table)
            }
            _ => None,
        });
        let routes = tables.flat_map(|table| self.table(Family::V6, table));
        let local = routes.filter(|(action, _)| matches!(action, RouteAction::Local(_)));
        local.flat_map(|(_, ranges)| ranges.iter()).collect()
    }

    /// The addresses of IPv6 on the link of an interface, with nobody in between.
    pub(super) fn beside(&self, interface: &str) -> Ranges {
        let by = |exit: &Exit| exit.interface == interface && exit.gateway.is_none();
        let routes = self.table(Family::V6, MAIN_TABLE).iter();
        let beside = routes.filter(
            |(action, _)| matches!(action, RouteAction::Out(exits) if exits.iter().any(by)),
        );
        beside.flat_map(|(_, destinations)| destinations.iter()).collect()
    }

    /// Whether a rule asks where a packet comes from, so that the choice of a source matters.
    pub(super) fn asks_source(&self, family: Family) -> bool {
        self.rules(family).any(|rule| rule.selector.from.is_some())
    }

    /// Whether there are other rules than the kernel's own, or other routes in its own table than
    /// those of addresses: then it looks closer at where packets come from.
    pub(super) fn is_custom(&self, family: Family) -> bool {
        is_custom(&self.rules, family)
    }

    /// These with the rules of another one that deliver by a mark.
    pub(super) fn with_marks_of(&self, other: &Self) -> Self {
        let by_mark = |all: &Self, rule: &RoutingRule| {
            let alone = Selector { mark: rule.selector.mark, ..Selector::default() };
            rule.selector.mark.is_some() && rule.selector == alone && all.delivers(rule)
        };
        let kept = self.rules.iter().filter(|rule| !by_mark(self, rule)).cloned();
        let added = other.rules.iter().filter(|rule| by_mark(other, rule)).cloned();
        let added = added.map(|rule| RoutingRule { action: RuleAction::Deliver, ..rule });
        let mut rules: Vec<RoutingRule> = added.chain(kept).collect();
        rules.sort_by_key(|rule| rule.priority);
        Self { rules, ..self.clone() }
    }

    /// These where what no route of the main table is for leaves by an interface.
    pub(super) fn with_way_out(&self, family: Family, interface: &str) -> Self {
        let known = self.table(family, MAIN_TABLE).iter().flat_map(|(_, known)| known.iter());
        let rest = unicast(family).without(&known.collect());
        let mut all = self.clone();
        let exits = vec![Exit::by(interface)];
        let main = all.tables.entry((family, MAIN_TABLE)).or_default();
        main.covered = main.covered.or(&rest);
        main.routes.push((RouteAction::Out(exits), rest));
        all
    }

    /// Whether a rule delivers everything here.
    fn delivers(&self, rule: &RoutingRule) -> bool {
        match rule.action {
            RuleAction::Deliver => true,
            RuleAction::Table(table) => {
                matches!(self.table(rule.family, table), [(RouteAction::Local(_), _)])
            }
            _ => false,
        }
    }

    /// The most paths that one route spreads connections over.
    pub(super) fn most_paths(&self) -> usize {
        self.tables.values().map(|table| table.most_paths).max().unwrap_or(1)
    }
}

/// Whether there are other rules than the kernel's own.
fn is_custom(rules: &[RoutingRule], family: Family) -> bool {
    let tables = [LOCAL_TABLE, MAIN_TABLE, DEFAULT_TABLE];
    rules.iter().filter(|rule| rule.family == family).any(|rule| {
        rule.selector != Selector::default()
            || !matches!(rule.action, RuleAction::Table(table) if tables.contains(&table))
    })
}

/// Two tables as one, if that is another one than the first in front of the second.
fn joined(local: &[TableRoute], main: &[TableRoute]) -> Option<Vec<(RouteAction, Ranges)>> {
    let around = |wide: &TableRoute| {
        let wide = wide.network;
        let within = |route: &TableRoute| {
            route.network.length() > wide.length() && wide.contains(route.network.address())
        };
        wide.length() < wide.family().bits() && main.iter().any(within)
    };
    local.iter().any(around).then(|| disjoint([local, main].concat()))
}

/// The routes of this host's own table, where it can't be told whether it is one with the main one.
fn contested(
    own: &[(RouteAction, Ranges)],
    joined: &[(RouteAction, Ranges)],
) -> Vec<(RouteAction, Ranges)> {
    let here = |routes: &[(RouteAction, Ranges)]| -> Ranges {
        let here = routes.iter().filter(|(action, _)| matches!(action, RouteAction::Local(_)));
        here.flat_map(|(_, ranges)| ranges.iter()).collect()
    };
    let unclear = here(own).without(&here(joined));
    let left = own.iter().map(|(action, ranges)| (action.clone(), ranges.without(&unclear)));
    let mut routes: Vec<_> = left.filter(|(_, ranges)| !ranges.is_empty()).collect();
    if !unclear.is_empty() {
        routes.push((RouteAction::Unmodelled(MERGED.to_owned()), unclear));
    }
    routes
}

/// The sources that routes to this host name, each with the destinations for which it is another address
/// and no longer route names its own.
fn named(mut routes: Vec<(Option<IpAddr>, Cidr)>) -> Vec<(IpAddr, Ranges)> {
    routes.sort_by_key(|(_, network)| Reverse(network.length()));
    let mut taken: BTreeMap<Family, Vec<(u128, u128)>> = BTreeMap::new();
    let mut found = Vec::new();
    for (source, network) in routes {
        let all = Ranges::network(network);
        let taken = taken.entry(network.family()).or_default();
        if let Some(source) = source.filter(|source| Cidr::host(*source) != network) {
            found.push((source, all.without(&taken.iter().copied().collect())));
        }
        taken.extend(all.iter());
    }
    found
}

/// Routes with the destinations that are left for each: the longest prefix wins, then the table of this
/// host, then the lowest metric, then the first.
fn disjoint(mut routes: Vec<TableRoute>) -> Vec<(RouteAction, Ranges)> {
    routes
        .sort_by_key(|route| (Reverse(route.network.length()), Reverse(route.table), route.metric));
    let (mut places, mut seen) = (HashMap::new(), HashSet::new());
    let mut found: Vec<(RouteAction, Vec<(u128, u128)>)> = Vec::new();
    // Networks lie in each other or apart, so a walk over their ends is enough.
    let mut networks = Vec::with_capacity(routes.len());
    for route in routes {
        let all = Ranges::network(route.network);
        for (first, last) in all.iter().filter(|ends| seen.insert(*ends)) {
            let place = *places.entry(route.action.clone()).or_insert_with(|| {
                found.push((route.action.clone(), Vec::new()));
                found.len() - 1
            });
            networks.push((first, Reverse(last), place));
        }
    }
    networks.sort_unstable();
    let mut give = |place: usize, first: u128, last: u128| {
        if first <= last {
            found[place].1.push((first, last));
        }
    };
    let mut around: Vec<(u128, usize)> = Vec::new();
    // What is before it has been given away.
    let mut from = 0;
    for (first, Reverse(last), place) in networks {
        while let Some((end, of)) = around.pop_if(|(end, _)| *end < first) {
            give(of, from, end);
            from = from.max(end + 1);
        }
        if let (Some((_, of)), Some(before)) = (around.last(), first.checked_sub(1)) {
            give(*of, from, before);
        }
        from = first;
        around.push((last, place));
    }
    while let Some((end, of)) = around.pop() {
        give(of, from, end);
        let Some(next) = end.checked_add(1) else { break };
        from = from.max(next);
    }
    let found = found.into_iter().map(|(action, ranges)| (action, ranges.into_iter().collect()));
    found.filter(|(_, ranges): &(_, Ranges)| !ranges.is_empty()).collect()
}

#[cfg(test)]
mod tests;
