//! Where a packet is routed to, and which address what a socket sends comes from.

use super::halt::Halt;
use super::interface::{Interface, OwnAddress, SCOPE_LINK};
use super::namespace::{Exit, LOOPBACK, Namespace};
use super::packet::{Owner, Packet, Value};
use super::ranges::{Ranges, address, number};
use super::routing::{RouteAction, RuleAction, Selector};
use super::rule::Field;
use super::walk::Walk;
use super::witness::Witness;
use crate::value::{Cidr, Family};

/// Where policy routing sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// To this host: a route or a rule delivers it here.
    Local,
    /// Out by an interface, to a next hop where there is one.
    By(&'a Exit),
    /// Nowhere: no route, or one that refuses, as the reason says.
    Nowhere(&'static str),
    /// It can't be told, because of this.
    Unclear(&'a str),
}

impl Route<'_> {
    /// In words, as a note of the walk has it.
    pub(super) fn text(self) -> String {
        match self {
            Self::Local => "to this pod itself".to_owned(),
            Self::By(exit) => format!("out by {}", exit.interface),
            Self::Nowhere(why) => format!("nowhere: {why}"),
            Self::Unclear(what) => format!("can't be told: {what}"),
        }
    }
}

/// The ways that a route has.
#[derive(Clone, Copy)]
pub(super) enum Ways<'a> {
    One(Route<'a>),
    /// One of these: the kernel spreads connections over them.
    Several(&'a [Exit]),
}

/// Why there is no route.
pub(super) const NO_ROUTE: &str = "there is no route to where it goes";
/// What decides where a route has several paths.
pub(super) const MULTIPATH: &str = "which path of a multipath route is taken";
/// What can't be told where IPv4 finds no address: the kernel sends from `0.0.0.0` then.
const NO_SOURCE: &str =
    "what becomes of a connection from 0.0.0.0: no address here can be its source";

/// Whether a rule is for a packet.
enum Applies<'a> {
    Yes,
    No,
    Unknown(&'a str),
}

impl<'a, W: Witness> Walk<'a, W> {
    /// Where a packet goes, by one path where a route has several.
    pub(super) fn route(&mut self, packet: &Packet<'_>) -> Route<'a> {
        let ways = self.ways(packet);
        self.chosen(ways)
    }

    fn chosen(&mut self, ways: Ways<'a>) -> Route<'a> {
        match ways {
            Ways::One(route) => route,
            Ways::Several(exits) => {
                let exit = self.paths.next(exits.len()).and_then(|path| exits.get(path));
                exit.map_or(Route::Unclear(MULTIPATH), Route::By)
            }
        }
    }

    /// Ask the rules of policy routing, one after the other.
    pub(super) fn ways(&mut self, packet: &Packet<'_>) -> Ways<'a> {
        let namespace = self.namespace;
        let to = packet.ends.destination;
        for rule in namespace.routing().rules(packet.family) {
            if rule.selector != Selector::ALL {
                if self.witness.has_heard() {
                    return Ways::One(Route::Unclear(""));
                }
                self.asked += 1;
                // Whoever it is for: where its table says nothing, the next one is asked.
                let covered = namespace.routing().covered(packet.family, &rule.action);
                if covered.is_some_and(|covered| !self.is_in(to, covered)) {
                    continue;
                }
            }
            match self.applies(&rule.selector, packet) {
                Applies::No => continue,
                Applies::Unknown(what) => return Ways::One(Route::Unclear(what)),
                Applies::Yes => {}
            }
            return Ways::One(match &rule.action {
                RuleAction::Deliver => Route::Local,
                RuleAction::Refuse(why) => Route::Nowhere(why),
                RuleAction::Unmodelled(what) => Route::Unclear(what),
                RuleAction::Table(_) | RuleAction::Longer(..) => {
                    match self.in_table(&rule.action, to, packet.family) {
                        Some(ways) => return ways,
                        None => continue,
                    }
                }
            });
        }
        Ways::One(Route::Nowhere(NO_ROUTE))
    }

    /// Route what a rule has changed: by IPv4 for no user (`ip_route_me_harder()`), by IPv6 for the
    /// sender (`ip6_route_me_harder()`).
    pub(super) fn route_again(&mut self, packet: &Packet<'_>) -> Route<'a> {
        match packet.family {
            Family::V4 => self.route(&Packet { owner: Owner::Nobody, ..*packet }),
            Family::V6 => self.route(packet),
        }
    }

    fn applies(&mut self, selector: &'a Selector, packet: &Packet<'_>) -> Applies<'a> {
        if *selector == Selector::ALL {
            return Applies::Yes;
        }
        // What one condition has settled, no other one is asked for: each of them would cut classes.
        let mut all = !selector.never;
        for (network, value) in
            [(selector.from, packet.ends.source), (selector.to, packet.ends.destination)]
        {
            if let Some(network) = network {
                all = all && self.is_in_network(value, network);
            }
        }
        if let Some(mark) = selector.mark {
            all = all && self.mark_is(packet.mark, mark);
        }
        if let Some(protocol) = selector.protocol.filter(|_| all) {
            if packet.protocol == self.question.protocol {
                self.witness.asked(Field::Protocol, &Ranges::one(protocol.0.into()));
            }
            all = packet.protocol == protocol;
        }
        let sides =
            [(selector.source_ports, packet.ends.source_port), (selector.ports, packet.ends.port)];
        for (ports, port) in sides {
            if let Some((first, last)) = ports {
                let ports = Ranges::range(first.into(), last.into());
                all = all && packet.protocol.has_ports() && self.is_in(port, &ports);
            }
        }
        if let Some(input) = &selector.input {
            all &= packet.input.unwrap_or(LOOPBACK) == input;
        }
        if let Some((first, last)) = selector.uids {
            let uids = Ranges::range(first.into(), last.into());
            // Without a socket it is the namespace's root (`sock_net_uid`).
            all = all
                && match packet.owner {
                    Owner::Known { uid, .. } => self.is_in(uid, &uids),
                    Owner::Nobody | Owner::Kernel | Owner::Unowned => first == 0,
                    Owner::Unknown => return Applies::Unknown("whose socket it is"),
                };
        }
        match &selector.unmodelled {
            // Such a rule asks for a type of service, which nothing has before a rule sets it.
            _ if selector.never && packet.tos => {
                Applies::Unknown("whether its type of service, which a rule has set, is asked for")
            }
            Some(what) if all => Applies::Unknown(what),
            _ if all == selector.inverted => Applies::No,
            _ => Applies::Yes,
        }
    }

    fn is_in_network(&mut self, value: Value, network: Cidr) -> bool {
        match value.origin {
            Some(_) => self.is_in(value, &Ranges::network(network)),
            None => network.contains(address(network.family(), value.number)),
        }
    }

    /// What a table says of a destination; none where the next rule is asked.
    fn in_table(&mut self, of: &RuleAction, to: Value, family: Family) -> Option<Ways<'a>> {
        let namespace: &'a Namespace = self.namespace;
        for (action, destinations) in namespace.routing().looked_in(family, of) {
            if !self.is_in(to, destinations) {
                continue;
            }
            return Some(Ways::One(match action {
                RouteAction::Out(exits) => match exits.as_slice() {
                    [] => Route::Nowhere(NO_ROUTE),
                    [exit] => Route::By(exit),
                    exits => return Some(Ways::Several(exits)),
                },
                RouteAction::Local(_) => Route::Local,
                RouteAction::Refuse(why) => Route::Nowhere(why),
                RouteAction::Throw | RouteAction::Group => return None,
                RouteAction::Unmodelled(what) => Route::Unclear(what),
            }));
        }
        None
    }

    /// The way to an address by rules that ask for nothing else: what it is behind.
    pub(super) fn towards(&mut self, to: Value, family: Family) -> Option<&'a str> {
        let namespace: &'a Namespace = self.namespace;
        for rule in namespace.routing().rules(family) {
            if rule.selector != Selector::default() {
                continue;
            }
            let ways = self.in_table(&rule.action, to, family);
            match ways.map(|ways| self.chosen(ways)) {
                Some(Route::By(exit)) => return Some(&exit.interface),
                Some(_) => return None,
                None => {}
            }
        }
        None
    }

    /// Whether the kernel takes what comes in by an interface with this source
    /// (`fib_validate_source()` in `net/ipv4/fib_frontend.c`; IPv6 asks no such thing).
    pub(super) fn validate_source(&mut self, packet: &Packet<'_>) -> Result<(), Halt> {
        let Some(input) = packet.input else { return Ok(()) };
        let settings = self.namespace.settings(input);
        let own = self.namespace.local(Family::V4);
        let drop = |why: String| Err(Halt::Dropped { rule: None, why });
        if settings.rp_filter == 0 && !self.namespace.routing().is_custom(Family::V4) {
            if !settings.accept_local && self.is_in(packet.ends.source, own) {
                return drop("it comes from outside with an address of this pod".to_owned());
            }
            return Ok(());
        }
        let mut back = *packet;
        back.ends = packet.ends.swapped();
        back.input = None;
        back.owner = Owner::Nobody;
        if !settings.src_valid_mark {
            back.mark = super::packet::Mark::made(0);
        }
        let filter = settings.rp_filter;
        // By any of several paths (`fib_info_nh_uses_dev()`).
        let leads_back = |exit: &Exit| exit.interface == input;
        let route = match self.ways(&back) {
            Ways::Several(exits) if exits.iter().any(leads_back) => return Ok(()),
            Ways::Several(_) if filter == 1 => {
                let why = "and none of the ways back to its source is by it";
                return drop(format!("rp_filter of {input} is 1, {why}"));
            }
            Ways::Several(_) => return Ok(()),
            Ways::One(route) => route,
        };
        match route {
            Route::Unclear(what) => Err(Halt::unknown(what)),
            Route::Local if settings.accept_local => {
                // The route is by the interface that has the address, or by `lo`.
                let namespace: &'a Namespace = self.namespace;
                let own = namespace.interfaces().filter(|i| i.name == input);
                let own = own.flat_map(|i| &i.addresses).filter(|a| a.family() == Family::V4);
                let own: Ranges = own.map(|a| (number(a.address()), number(a.address()))).collect();
                if filter != 1 || self.is_in(packet.ends.source, &own) {
                    return Ok(());
                }
                drop(format!("rp_filter of {input} is 1, and the way back to its source is here"))
            }
            Route::Local if self.is_in(packet.ends.source, own) => {
                drop("it comes from outside with an address of this pod".to_owned())
            }
            Route::Local => drop(format!(
                "policy routing delivers its source's address here, so that {input} takes it for \
                 a forged one (src_valid_mark is {})",
                u8::from(settings.src_valid_mark)
            )),
            Route::By(exit) if leads_back(exit) => Ok(()),
            Route::By(exit) if filter == 1 => drop(format!(
                "rp_filter of {input} is 1, and the way back to its source is by {}",
                exit.interface
            )),
            Route::Nowhere(_) if filter == 0 => Ok(()),
            Route::Nowhere(_) => drop(format!(
                "rp_filter of {input} is {filter}, and there is no way back to its source"
            )),
            Route::By(_) => Ok(()),
        }
    }

    /// The kernel's choice of a source for a socket that is bound to none.
    pub(super) fn chosen_source(
        &mut self,
        packet: &Packet<'_>,
        route: Route<'a>,
    ) -> Result<Value, Halt> {
        let to = packet.ends.destination;
        let family = packet.family;
        let none = |why: &str| Halt::Dropped { rule: None, why: why.to_owned() };
        let unknown = || none("no address here can be its source");
        let exit = match route {
            Route::Local if self.is_in(to, self.namespace.local(family)) => {
                let namespace: &'a Namespace = self.namespace;
                for (source, destinations) in namespace.routing().local_sources(family) {
                    if self.is_in(to, destinations) {
                        return Ok(Value::made(number(*source)));
                    }
                }
                return Ok(to);
            }
            // Its source would be the destination, which is not this host's.
            Route::Local if family == Family::V4 => {
                return Err(none(
                    "the network is unreachable to a socket that is not transparent: no address here is its source",
                ));
            }
            Route::Local => return self.source_v6(to, LOOPBACK).ok_or_else(unknown),
            Route::By(exit) => exit,
            Route::Nowhere(why) => return Err(none(why)),
            Route::Unclear(what) => return Err(Halt::unknown(what)),
        };
        if let Some(source) = exit.source {
            return Ok(Value::made(number(source)));
        }
        match (self.source_at(exit, to, family), family) {
            (Some(source), _) => Ok(source),
            (None, Family::V4) => Err(Halt::Unknown { rule: None, what: NO_SOURCE.to_owned() }),
            (None, Family::V6) => Err(unknown()),
        }
    }

    /// The address of an exit that the kernel takes for what goes there.
    pub(super) fn source_at(&mut self, exit: &Exit, to: Value, family: Family) -> Option<Value> {
        match family {
            Family::V4 => self.source_v4(exit),
            Family::V6 => self.source_v6(to, &exit.interface),
        }
    }

    /// `inet_select_addr()` in `net/ipv4/devinet.c`: the first address of the interface's that the
    /// next hop is beside, else its first, else that of another interface.
    fn source_v4(&self, exit: &Exit) -> Option<Value> {
        let all = self.namespace.all_interfaces();
        let of = |interface: &'a Interface| {
            let own = interface.addresses.iter();
            own.filter(|own| own.family() == Family::V4 && !own.secondary)
        };
        // Where addresses of this host may leave, they are as good as those of the link.
        let localnet = self.namespace.settings(&exit.interface).route_localnet;
        let widest = if localnet { SCOPE_LINK } else { u8::MAX };
        let fits = |own: &&OwnAddress| own.scope.min(widest) <= exit.scope;
        let interface = all.iter().find(|i| i.name == exit.interface);
        let mut own = interface.into_iter().flat_map(of).filter(fits);
        let beside = |own: &&OwnAddress| exit.gateway.is_none_or(|hop| own.is_beside(hop));
        let wide = |own: &&OwnAddress| own.scope != SCOPE_LINK && own.scope <= exit.scope;
        let others = || all.iter().flat_map(of).find(wide);
        let first = own.clone().next();
        let chosen = own.find(beside).or(first).or_else(others);
        chosen.map(|own| Value::made(number(own.address())))
    }

    /// `ipv6_dev_get_saddr()` in `net/ipv6/addrconf.c` (RFC 6724 section 5), of all addresses that
    /// are there; without the rules for mobile and optimistic ones.
    fn source_v6(&mut self, to: Value, exit: &str) -> Option<Value> {
        let namespace: &'a Namespace = self.namespace;
        let mut best: Option<(Rank, u128)> = None;
        let of_link = self.is_in(to, &narrow()) || namespace.settings(exit).use_oif_addrs_only;
        for interface in namespace.all_interfaces() {
            if of_link && interface.name != exit {
                continue;
            }
            for own in interface.addresses.iter().filter(|own| own.family() == Family::V6) {
                let rank = self.rank(own, &interface.name, to, exit);
                if best.is_none_or(|(other, _)| rank > other) {
                    best = Some((rank, number(own.address())));
                }
            }
        }
        best.map(|(_, chosen)| Value::made(chosen))
    }

    fn rank(&mut self, own: &OwnAddress, interface: &str, to: Value, exit: &str) -> Rank {
        let number = number(own.address());
        // ::1 is of the link's scope as well (`__ipv6_addr_type()`), where it is not an own address.
        let is_narrow = self.is_in(to, &narrow()) || self.is_in(to, &Ranges::one(1));
        let wide = if is_narrow { 2 } else { 14 };
        let scope = if narrow().contains(number) || number == 1 { 2 } else { 14 };
        // Smaller than the destination's is worst, and the less above it the better.
        let fits = if scope >= wide { 100 - scope } else { scope - 100 };
        let namespace: &'a Namespace = self.namespace;
        let of_own = namespace.labels.iter().find(|label| {
            label.is_of(interface) && label.network.contains(address(Family::V6, number))
        });
        let mut of_exit = namespace.labels.iter().filter(|label| label.is_of(exit));
        let of_destination = of_exit.find(|label| self.is_in_network(to, label.network));
        let same_label = of_own.map(|l| l.label) == of_destination.map(|l| l.label);
        let temporary = namespace.settings(interface).prefer_temporary;
        let orchid = Ranges::range(ORCHID << 100, ((ORCHID + 1) << 100) - 1);
        let common = (number ^ to.number).leading_zeros().min(128);
        // What the destination shares with it, said so that others that share as much are like it.
        for length in [common, common + 1] {
            let length = u8::try_from(length.min(128)).unwrap_or(128);
            if let Some(network) = Cidr::new(own.address(), length) {
                let _shares = self.is_in(to, &Ranges::network(network.network()));
            }
        }
        Rank {
            same: number == to.number,
            scope: fits,
            preferred: !own.deprecated || is_always_preferred(number),
            outgoing: exit == interface && !own.elsewhere,
            same_label,
            private: own.temporary == temporary,
            orchid: orchid.contains(number) == self.is_in(to, &orchid),
            common: common.min(own.cidr.length().into()),
        }
    }
}

/// How good a source is, the first difference deciding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    same: bool,
    scope: i32,
    preferred: bool,
    outgoing: bool,
    same_label: bool,
    private: bool,
    orchid: bool,
    common: u32,
}

/// Addresses that are as good when they are deprecated (`ipv6_saddr_preferred()`): those with an address
/// of IPv4 in them, and `::1`.
const fn is_always_preferred(number: u128) -> bool {
    matches!(number >> 32, 0 | 0xffff)
}

/// Addresses of the link alone.
pub(super) fn narrow() -> Ranges {
    Ranges::range(0xfe80 << 112, (0xfec0 << 112) - 1)
}

/// The first 28 bits of keys in the form of addresses (RFC 4843).
const ORCHID: u128 = 0x200_1001;

#[cfg(test)]
mod tests;
