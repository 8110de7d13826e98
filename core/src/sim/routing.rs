//! Policy routing: rules in the order of their priority, each with the table that it looks in, and
//! what the routes of a table say (`ip-rule(8)`, `ip-route(8)`; `net/core/fib_rules.c`,
//! `net/ipv4/fib_semantics.c`, `net/ipv6/route.c` of Linux 6.12).

use std::collections::BTreeMap;
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// The rules and the tables of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RoutingTables {
    rules: Vec<RoutingRule>,
    tables: BTreeMap<(Family, u32), Vec<(RouteAction, Ranges)>>,
    /// The same for rules that look for longer prefixes alone.
    longer: BTreeMap<(Family, u32, u8), Vec<(RouteAction, Ranges)>>,
    /// Sources that routes to this host name, where that is not the destination itself.
    sources: Vec<(IpAddr, Ranges)>,
    /// Addresses of more than one host.
    groups: Vec<(Family, Ranges)>,
}

impl RoutingTables {
    pub(super) fn new(mut rules: Vec<RoutingRule>, routes: Vec<TableRoute>) -> Self {
        // Of equal priorities the older one is first, as the kernel lists them.
        rules.sort_by_key(|rule| rule.priority);
        let mut by_table: BTreeMap<(Family, u32), Vec<TableRoute>> = BTreeMap::new();
        let (mut sources, mut groups) = (Vec::new(), Vec::new());
        for mut route in routes {
            if route.action == RouteAction::Group {
                groups.push((route.network.family(), Ranges::network(route.network)));
                continue;
            }
            if let RouteAction::Local(source) = &mut route.action
                && let Some(source) = source.take()
                && Cidr::host(source) != route.network
            {
                sources.push((source, Ranges::network(route.network)));
            }
            by_table.entry((route.network.family(), route.table)).or_default().push(route);
        }
        let mut longer = BTreeMap::new();
        for rule in &rules {
            if let RuleAction::Longer(table, length) = rule.action {
                let routes = by_table.get(&(rule.family, table)).into_iter().flatten();
                let routes = routes.filter(|route| route.network.length() > length);
                let routes = disjoint(routes.cloned().collect());
                longer.insert((rule.family, table, length), routes);
            }
        }
        let tables = by_table.into_iter().map(|(key, routes)| (key, disjoint(routes))).collect();
        Self { rules, tables, longer, sources, groups }
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
        self.tables.get(&(family, table)).map_or(&[], Vec::as_slice)
    }

    /// The same of routes whose prefix is longer than this.
    pub(super) fn longer(&self, family: Family, table: u32, than: u8) -> &[(RouteAction, Ranges)] {
        self.longer.get(&(family, table, than)).map_or(&[], Vec::as_slice)
    }

    /// The addresses that are delivered here by the kernel's own table.
    pub(super) fn local(&self, family: Family) -> Ranges {
        let routes = self.table(family, LOCAL_TABLE).iter();
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
        let tables = [LOCAL_TABLE, MAIN_TABLE, DEFAULT_TABLE];
        self.rules(family).any(|rule| {
            rule.selector != Selector::default()
                || !matches!(rule.action, RuleAction::Table(table) if tables.contains(&table))
        })
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
        all.tables.entry((family, MAIN_TABLE)).or_default().push((RouteAction::Out(exits), rest));
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
        let actions = self.tables.values().flatten().map(|(action, _)| action);
        let paths = actions.map(|action| match action {
            RouteAction::Out(exits) => exits.len(),
            _ => 1,
        });
        paths.max().unwrap_or(1)
    }
}

/// Routes with the destinations that are left for each: the longest prefix wins, then the lowest
/// metric, then the first.
fn disjoint(mut routes: Vec<TableRoute>) -> Vec<(RouteAction, Ranges)> {
    routes.sort_by_key(|route| (std::cmp::Reverse(route.network.length()), route.metric));
    let mut found: Vec<(RouteAction, Ranges)> = Vec::new();
    let mut taken = Ranges::default();
    for route in routes {
        let all = Ranges::network(route.network);
        let rest = all.without(&taken);
        if rest.is_empty() {
            continue;
        }
        taken = taken.or(&all);
        match found.iter_mut().find(|(action, _)| *action == route.action) {
            Some((_, ranges)) => *ranges = ranges.or(&rest),
            None => found.push((route.action, rest)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_then_the_metric() {
        let route = |network: &str, metric, action| TableRoute {
            table: MAIN_TABLE,
            network: network.parse().unwrap(),
            metric,
            action,
        };
        let by = |name: &str| RouteAction::Out(vec![Exit::by(name)]);
        let routes = vec![
            route("0.0.0.0/0", 200, by("b")),
            route("0.0.0.0/0", 100, by("a")),
            route("10.0.0.0/8", 0, RouteAction::Throw),
            route("10.1.0.0/16", 5, by("c")),
        ];
        let tables = RoutingTables::new(Vec::new(), routes);
        let of = |ip: &str| {
            let number = super::super::ranges::number(ip.parse().unwrap());
            let mut table = tables.table(Family::V4, MAIN_TABLE).iter();
            table.find(|(_, ranges)| ranges.contains(number)).map(|(action, _)| action.clone())
        };
        assert_eq!(of("9.9.9.9"), Some(by("a")));
        assert_eq!(of("10.2.0.1"), Some(RouteAction::Throw));
        assert_eq!(of("10.1.0.1"), Some(by("c")));
    }
}
