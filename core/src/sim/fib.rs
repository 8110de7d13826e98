//! Conditions that ask routing: what kind of address one is, and whether the way back to a source is by the
//! interface that a packet came in by.

use std::fmt;

use super::interface::Interface;
use super::namespace::{LOOPBACK, unicast};
use super::packet::{Mark, Owner, Packet, Value};
use super::ranges::{Ranges, number};
use super::rule::Field;
use super::test::{Truth, truth};
use super::walk::{Turn, Walk};
use super::way::{MULTIPATH, Route, Ways, narrow};
use super::witness::Witness;
use crate::ruleset::{Hook, Side};
use crate::value::Family;

/// Types of addresses as a set of bits (`RTN_*` of `linux/rtnetlink.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressTypes(u8);

impl AddressTypes {
    /// Of another host.
    pub const UNICAST: Self = Self(1);
    /// Of this host.
    pub const LOCAL: Self = Self(2);
    /// Of all hosts of a network.
    pub const BROADCAST: Self = Self(4);
    /// Of a group of hosts.
    pub const MULTICAST: Self = Self(8);

    const NAMES: [(Self, &'static str); 4] = [
        (Self::UNICAST, "unicast"),
        (Self::LOCAL, "local"),
        (Self::BROADCAST, "broadcast"),
        (Self::MULTICAST, "multicast"),
    ];

    /// The type called `name`, in either case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(t, _)| *t)
    }

    /// The type by its number (`enum` of `RTN_*` in `linux/rtnetlink.h`).
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::UNICAST,
            2 => Self::LOCAL,
            3 => Self::BROADCAST,
            5 => Self::MULTICAST,
            _ => return None,
        })
    }

    /// Types that are in either set.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
}

impl fmt::Display for AddressTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            Self::NAMES.iter().filter(|(t, _)| self.has(*t)).map(|(_, name)| *name).collect();
        f.write_str(&names.join(","))
    }
}

/// What is asked of the way back to a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReturnRoute {
    /// `!`: there is none such.
    pub negated: bool,
    /// Whether the packet's mark counts when routing is asked.
    pub mark: bool,
    /// Whether it may be by any interface, not only the one that the packet came in by.
    pub loose: bool,
    /// Whether a source that is this host's own has one.
    pub own: bool,
}

/// What is sent to all hosts or to this one before it has an address (`ipv4_is_zeronet()`,
/// `ipv4_is_lbcast()`).
fn broadcast() -> Ranges {
    Ranges::range(0, 0x00ff_ffff).or(&Ranges::one(0xffff_ffff))
}

/// Groups of IPv4 (`ipv4_is_multicast()`).
fn multicast() -> Ranges {
    Ranges::range(0xe000_0000, 0xefff_ffff)
}

impl<'a, W: Witness> Walk<'a, W> {
    /// Whether an address is of one of these types (`inet_dev_addr_type()` in `net/ipv4/fib_frontend.c`).
    pub(super) fn address_type(
        &mut self,
        side: Side,
        types: AddressTypes,
        negated: bool,
        packet: &Packet<'_>,
    ) -> Truth<'static> {
        let field = Field::address(side);
        let value = match side {
            Side::Source => packet.ends.source,
            Side::Destination => packet.ends.destination,
        };
        let routing = self.namespace.routing();
        let groups = routing.groups(packet.family);
        if packet.family == Family::V6 {
            // Of an address of one host it depends on routes which of the others it is of.
            let of_many = AddressTypes::BROADCAST.or(AddressTypes::MULTICAST);
            let one = unicast(Family::V6).without(&groups);
            if types.is_within(of_many) && self.is_in(value, &one) {
                return truth(false, negated);
            }
            return Truth::Unknown("of which type an address of IPv6 is");
        }
        let (broadcast, multicast) = (broadcast(), multicast());
        let local = self.namespace.local(Family::V4).without(&broadcast).without(&multicast);
        let of_hosts = Ranges::up_to(u32::MAX.into()).without(&broadcast).without(&multicast);
        let mut set = Ranges::default();
        if types.has(AddressTypes::UNICAST) {
            set = set.or(&of_hosts.without(&local).without(&groups));
        }
        if types.has(AddressTypes::LOCAL) {
            set = set.or(&local);
        }
        if types.has(AddressTypes::MULTICAST) {
            set = set.or(&multicast);
        }
        if types.has(AddressTypes::BROADCAST) {
            set = set.or(&broadcast).or(&groups);
        }
        self.is(field, &set, negated, false, packet)
    }

    /// Whether the link layer brought it to this host alone (`PACKET_HOST` of `linux/if_packet.h`).
    pub(super) fn for_this_host(&mut self, asked: bool, packet: &Packet<'_>) -> Truth<'static> {
        let routing = self.namespace.routing();
        let one = unicast(packet.family).without(&routing.groups(packet.family));
        if self.is_in(packet.ends.destination, &one) {
            truth(asked, false)
        } else {
            Truth::Unknown("whom the link layer brings it to")
        }
    }

    /// Whether the way back to the source is as a rule asks for (`nft_fib4_eval()` in
    /// `net/ipv4/netfilter/nft_fib_ipv4.c`, `rpfilter_mt()` in `net/ipv4/netfilter/ipt_rpfilter.c`, and
    /// those of IPv6).
    pub(super) fn return_route(
        &mut self,
        asked: ReturnRoute,
        hook: Hook,
        packet: &Packet<'_>,
    ) -> Truth<'static> {
        const ELSEWHERE: Truth<'static> =
            Truth::Unknown("the way back to a source, where it is not PREROUTING that asks for it");
        let (Hook::Prerouting, Some(input)) = (hook, packet.input) else { return ELSEWHERE };
        if input == LOOPBACK {
            return truth(true, asked.negated);
        }
        let routing = self.namespace.routing();
        let hosts = unicast(packet.family).without(&routing.groups(packet.family));
        let source = packet.ends.source;
        if !self.is_in(source, &hosts) {
            return Truth::Unknown("the way back to an address that is not of one host");
        }
        // Which of them ask routing for a protocol is not the same in all kernels.
        if routing.rules(packet.family).any(|rule| rule.selector.protocol.is_some()) {
            return Truth::Unknown("the way back to a source, where `ip rule` asks for a protocol");
        }
        let mut packet = *packet;
        if !self.is_in(packet.ends.destination, &hosts) {
            packet.ends.destination = Value::made(0);
        }
        match self.leads_back(asked, input, &packet) {
            // A packet that a socket has taken already may be passed.
            Ok(false) if self.turn != Turn::First || packet.taken.is_some() => {
                Truth::Unknown("the way back to the source of what has a socket")
            }
            Ok(back) => truth(back, asked.negated),
            Err(what) => Truth::Unknown(what),
        }
    }

    fn leads_back(
        &mut self,
        asked: ReturnRoute,
        input: &str,
        packet: &Packet<'_>,
    ) -> Result<bool, &'static str> {
        let source = packet.ends.source;
        let interface = |walk: &Self| -> Option<&'a Interface> {
            let namespace = walk.namespace;
            namespace.interfaces().find(|interface| interface.name == input)
        };
        // Asked for by the interface that it came in by.
        if packet.family == Family::V6 && self.is_in(source, &narrow()) {
            let own = interface(self).into_iter().flat_map(|own| &own.addresses);
            let mut own = own.map(|own| number(own.address()));
            let is_there = own.any(|own| narrow().contains(own));
            return is_there.then_some(true).ok_or("the way back to an address of the link");
        }
        let mut back = *packet;
        back.ends = packet.ends.swapped();
        (back.ends.port, back.ends.source_port) = (Value::made(0), Value::made(0));
        (back.input, back.output, back.owner) = (None, None, Owner::Nobody);
        if !asked.mark {
            back.mark = Mark::made(0);
        }
        Ok(match self.ways(&back) {
            Ways::Several(_) if asked.loose => true,
            Ways::Several(exits) => {
                let by_input = exits.iter().filter(|exit| exit.interface == input).count();
                // IPv6 takes one of them.
                if packet.family == Family::V6
                    && !matches!(by_input, n if n == 0 || n == exits.len())
                {
                    return Err(MULTIPATH);
                }
                by_input > 0
            }
            Ways::One(Route::By(exit)) => asked.loose || exit.interface == input,
            Ways::One(Route::Nowhere(_)) => false,
            Ways::One(Route::Local) if !asked.own => false,
            Ways::One(Route::Local) => {
                // By the interface that has the address, which is not asked of IPv6.
                let own = interface(self).into_iter().flat_map(|own| &own.addresses);
                let own: Ranges = own
                    .filter(|own| own.family() == packet.family)
                    .map(|own| (number(own.address()), number(own.address())))
                    .collect();
                asked.loose || packet.family == Family::V6 || self.is_in(source, &own)
            }
            Ways::One(Route::Unclear(_)) => return Err("where the way back to its source leads"),
        })
    }
}
