//! Where a packet is routed to, and which address what a socket sends comes from.

use super::namespace::{Exit, Interface, LOOPBACK, Namespace, OwnAddress};
use super::packet::{Owner, Packet, Value};
use super::ranges::{Ranges, address, number};
use super::routing::{RouteAction, RuleAction, Selector};
use super::rule::Field;
use super::walk::{Halt, Walk};
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

/// Why there is no route.
pub(super) const NO_ROUTE: &str = "there is no route to where it goes";
/// What decides where a route has several paths.
pub(super) const MULTIPATH: &str = "which path of a multipath route is taken";
/// The scopes of addresses: `RT_SCOPE_LINK` (`linux/rtnetlink.h`).
const SCOPE_LINK: u8 = 253;

/// Whether a rule is for a packet.
enum Applies<'a> {
    Yes,
    No,
    Unknown(&'a str),
}

impl<'a, W: Witness> Walk<'a, W> {
    /// Ask the rules of policy routing, one after the other.
    pub(super) fn route(&mut self, packet: &Packet<'_>) -> Route<'a> {
        let namespace = self.namespace;
        for rule in namespace.routing().rules(packet.family) {
            match self.applies(&rule.selector, packet) {
                Applies::No => continue,
                Applies::Unknown(what) => return Route::Unclear(what),
                Applies::Yes => {}
            }
            match &rule.action {
                RuleAction::Deliver => return Route::Local,
                RuleAction::Refuse(why) => return Route::Nowhere(why),
                RuleAction::Unmodelled(what) => return Route::Unclear(what),
                RuleAction::Table(_) | RuleAction::Longer(..) => {
                    let to = packet.ends.destination;
                    if let Some(route) = self.in_table(&rule.action, to, packet.family) {
                        return route;
                    }
                }
            }
        }
        Route::Nowhere(NO_ROUTE)
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
        let is_for = |networks: Option<Cidr>| networks.map(Ranges::network);
        let mut all = !selector.never;
        if let Some(from) = is_for(selector.from) {
            all &= self.is_in(packet.ends.source, &from);
        }
        if let Some(to) = is_for(selector.to) {
            all &= self.is_in(packet.ends.destination, &to);
        }
        if let Some(mark) = selector.mark {
            all &= self.mark_is(packet.mark, mark);
        }
        if let Some(protocol) = selector.protocol {
            if packet.protocol == self.question.protocol {
                self.witness.asked(Field::Protocol, &Ranges::one(protocol.0.into()));
            }
            all &= packet.protocol == protocol;
        }
        let sides =
            [(selector.source_ports, packet.ends.source_port), (selector.ports, packet.ends.port)];
        for (ports, port) in sides {
            if let Some((first, last)) = ports {
                let ports = Ranges::range(first.into(), last.into());
                all &= packet.protocol.has_ports() && self.is_in(port, &ports);
            }
        }
        if let Some(input) = &selector.input {
            all &= packet.input.unwrap_or(LOOPBACK) == input;
        }
        if let Some((first, last)) = selector.uids {
            let uids = Ranges::range(first.into(), last.into());
            // Without a socket it is the namespace's root (`sock_net_uid`).
            all &= match packet.owner {
                Owner::Known { uid, .. } => self.is_in(uid, &uids),
                Owner::Nobody => first == 0,
                Owner::Unknown if all => return Applies::Unknown("whose socket it is"),
                Owner::Unknown => false,
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

    /// What a table says of a destination; none where the next rule is asked.
    fn in_table(&mut self, of: &RuleAction, to: Value, family: Family) -> Option<Route<'a>> {
        let namespace: &'a Namespace = self.namespace;
        let table = match *of {
            RuleAction::Table(table) => namespace.routing().table(family, table),
            RuleAction::Longer(table, than) => namespace.routing().longer(family, table, than),
            _ => &[],
        };
        for (action, destinations) in table {
            if !self.is_in(to, destinations) {
                continue;
            }
            return match action {
                RouteAction::Out(exits) => match (exits.as_slice(), namespace.path) {
                    ([], _) => Some(Route::Nowhere(NO_ROUTE)),
                    ([exit], _) => Some(Route::By(exit)),
                    (_, None) => Some(Route::Unclear(MULTIPATH)),
                    (exits, Some(path)) => exits.get(path % exits.len()).map(Route::By),
                },
                RouteAction::Local(_) => Some(Route::Local),
                RouteAction::Refuse(why) => Some(Route::Nowhere(why)),
                RouteAction::Throw | RouteAction::Group => None,
                RouteAction::Unmodelled(what) => Some(Route::Unclear(what)),
            };
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
            match self.in_table(&rule.action, to, family) {
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
        match self.route(&back) {
            Route::Unclear(what) => Err(Halt::Unknown { rule: None, what: what.to_owned() }),
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
            Route::By(exit) if exit.interface == input => Ok(()),
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
            Route::Unclear(what) => {
                return Err(Halt::Unknown { rule: None, what: what.to_owned() });
            }
        };
        if let Some(source) = exit.source {
            return Ok(Value::made(number(source)));
        }
        self.source_at(exit, to, family).ok_or_else(unknown)
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
        let scope = if exit.gateway.is_some() { 0 } else { SCOPE_LINK };
        let all = self.namespace.all_interfaces();
        let of = |interface: &'a Interface, scope: u8| {
            let own = interface.addresses.iter();
            own.filter(move |own| own.family() == Family::V4 && own.scope <= scope)
        };
        let interface = all.iter().find(|i| i.name == exit.interface);
        let primary = |own: &&OwnAddress| !own.secondary;
        let mut own = interface.into_iter().flat_map(|i| of(i, scope)).filter(primary);
        let beside = |own: &&OwnAddress| exit.gateway.is_none_or(|hop| own.cidr.contains(hop));
        let wide = scope.min(SCOPE_LINK - 1);
        let others = || all.iter().flat_map(|i| of(i, wide)).find(primary);
        let first = own.clone().next();
        let chosen = own.find(beside).or(first).or_else(others);
        chosen.map(|own| Value::made(number(own.address())))
    }

    /// `ipv6_dev_get_saddr()` in `net/ipv6/addrconf.c` (RFC 6724 section 5), of all addresses that
    /// are there; without the rules for mobile, temporary and optimistic ones.
    fn source_v6(&mut self, to: Value, exit: &str) -> Option<Value> {
        let namespace: &'a Namespace = self.namespace;
        let mut best: Option<(Rank, u128)> = None;
        let of_link = self.is_in(to, &narrow());
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
        let label = label(number);
        let same_label = LABELS.iter().rev().find(|(network, length, _)| {
            let network = Cidr::new(address(Family::V6, *network), *length).map(Ranges::network);
            network.is_some_and(|network| self.is_in(to, &network))
        });
        let same_label = same_label.is_some_and(|(.., of)| *of == label);
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
    common: u32,
}

/// Addresses that are as good when they are deprecated (`ipv6_saddr_preferred()`): those with an address
/// of IPv4 in them, and `::1`.
const fn is_always_preferred(number: u128) -> bool {
    matches!(number >> 32, 0 | 0xffff)
}

/// Addresses of the link alone.
fn narrow() -> Ranges {
    Ranges::range(0xfe80 << 112, (0xfec0 << 112) - 1)
}

/// The labels of networks, the widest first (`ip6addrlbl_init_table` in `net/ipv6/addrlabel.c`).
const LABELS: [(u128, u8, u32); 10] = [
    (0, 0, 1),
    (0xfc << 120, 7, 5),
    (0xfec0 << 112, 10, 11),
    (0x2002 << 112, 16, 2),
    (0x3ffe << 112, 16, 12),
    (0x2001_0010 << 96, 28, 7),
    (0x2001_0000 << 96, 32, 6),
    (0, 96, 3),
    (0xffff << 32, 96, 4),
    (1, 128, 0),
];

fn label(number: u128) -> u32 {
    let of = LABELS.iter().rev().find(|(network, length, _)| {
        let free = 128 - u32::from(*length);
        number.checked_shr(free).unwrap_or(0) == network.checked_shr(free).unwrap_or(0)
    });
    of.map_or(1, |(.., label)| *label)
}
