//! Neighbour discovery of IPv6 (RFC 4861): messages of `ICMPv6` that rules see as all others, and without
//! which nothing gets from one host of a link to the next (`net/ipv6/ndisc.c`). Whether a host is known
//! already, so that none is needed, rules do not say.

use super::flags::Flags;
use super::halt::Halt;
use super::namespace::LOOPBACK;
use super::packet::{Ends, Mark, Owner, Packet, Value};
use super::program::{Call, RuleId, family_index, hook_index};
use super::question::{Direction, Protocol};
use super::ranges::{Ranges, number};
use super::rule::States;
use super::walk::Walk;
use super::witness::{Nobody, Witness};
use crate::ruleset::Hook;
use crate::value::Family;

/// `NDISC_NEIGHBOUR_SOLICITATION`, `NDISC_NEIGHBOUR_ADVERTISEMENT` (`net/ndisc.h`)
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// The group that hosts with an address listen to: `ff02::1:ff00:0/104` and its last 24 bits.
const fn group(address: u128) -> Value {
    Value::made(0xff02_0000_0000_0000_0000_0001_ff00_0000 | (address & 0x00ff_ffff))
}

/// A link-local address that stands for the one a neighbour has.
const LINK_LOCAL: Value = Value::made(0xfe80_0000_0000_0000_0000_0000_0000_0001);

/// What asks for a neighbour, or its answer, meets a rule that does not let it past, or may not.
struct Blocked {
    rule: Option<RuleId>,
    by: String,
    certain: bool,
}

impl Blocked {
    fn unclear(self, what: &str) -> Halt {
        Halt::Unknown { rule: self.rule, what: format!("{what}: {}", self.by) }
    }
}

impl<'a, W: Witness> Walk<'a, W> {
    /// Whether rules let past what asks for the next hop of a packet that leaves, and what answers.
    pub(super) fn finds_next_hop(
        &mut self,
        packet: &Packet<'a>,
        interface: &'a str,
    ) -> Result<(), Halt> {
        if packet.family == Family::V4 {
            let name = "whether the next hop's hardware address is found";
            return self.asks_arp(interface, name);
        }
        if interface == LOOPBACK || !self.sees_neighbours() {
            return Ok(());
        }
        let gateway = self.exit.and_then(|exit| exit.gateway);
        let hop = gateway.map_or(packet.ends.destination, |ip| Value::made(number(ip)));
        let own = self.own_at(interface, packet.ends.source);
        let known = self.namespace.neighbours.as_ref().map(|all| {
            let here = all.iter().filter(|(at, _)| at == interface);
            here.map(|(_, ip)| (ip.to_bits(), ip.to_bits())).collect::<Ranges>()
        });
        if known.as_ref().is_some_and(|known| self.is_in(hop, known)) {
            return Ok(());
        }
        let asks = [(SOLICITATION, own, group(hop.number)), (ADVERTISEMENT, hop, own)];
        match self.discovers(asks, Direction::Out, interface) {
            Ok(()) => Ok(()),
            // Who asks for this host says by that where it is.
            Err(Blocked { rule, by, certain: true })
                if known.is_some() && !self.can_ask(hop, own, interface) =>
            {
                let why = format!(
                    "the next hop's hardware address is not known, and what finds it does not get \
                     past: {by}"
                );
                Err(Halt::Dropped { rule, why })
            }
            Err(blocked) => {
                Err(blocked.unclear("whether the next hop's hardware address is known"))
            }
        }
    }

    /// Whether rules let past what asks for this host, and its answer: without them nothing comes in.
    pub(super) fn is_found(&mut self, sender: Value, interface: &'a str) -> Result<(), Halt> {
        if self.question.family() == Family::V4 {
            return self.asks_arp(interface, "whether who sends it finds this host");
        }
        if interface == LOOPBACK || !self.sees_neighbours() {
            return Ok(());
        }
        let own = self.namespace.first_address(interface, Family::V6).unwrap_or(1);
        // Who sends for somebody else asks from an address of the link alone.
        let beside = self.namespace.routing().beside(interface);
        let beside = self.is_in(sender, &beside);
        let from = if beside { sender } else { LINK_LOCAL };
        let asks = [(SOLICITATION, from, group(own)), (ADVERTISEMENT, Value::made(own), from)];
        let found = self.discovers(asks, Direction::In, interface);
        found.map_err(|blocked| blocked.unclear("whether who sends it knows this host"))
    }

    /// Rules of ARP are not walked: where there are some that could hinder it, what is found is not known.
    fn asks_arp(&self, interface: &str, what: &str) -> Result<(), Halt> {
        match self.program.untold.arp.first().filter(|_| interface != LOOPBACK) {
            Some(table) => Err(Halt::Unknown { rule: None, what: format!("{what}: {table}") }),
            None => Ok(()),
        }
    }

    /// Whether rules let past what another host asks for this one with.
    fn can_ask(&mut self, hop: Value, own: Value, interface: &'a str) -> bool {
        let asks = (SOLICITATION, hop, group(own.number));
        self.discovers([asks, asks], Direction::In, interface).is_ok()
    }

    /// Whether a rule could see such messages at all.
    fn sees_neighbours(&self) -> bool {
        let hooks = [Hook::Prerouting, Hook::Input, Hook::Output, Hook::Postrouting];
        let filters = |call: &Call| !matches!(call, Call::Track | Call::Translate(_));
        hooks.iter().any(|hook| {
            self.program.calls[family_index(Family::V6)][hook_index(*hook)].iter().any(filters)
        })
    }

    /// The source of what asks: that of the packet if the interface has it, or an address of the link.
    fn own_at(&mut self, interface: &str, source: Value) -> Value {
        let all = self.namespace.all_interfaces().iter();
        let own = all.filter(|i| i.name == interface).flat_map(|i| &i.addresses);
        let own = own.filter(|own| own.family() == Family::V6).map(|own| number(own.address()));
        let own: Vec<u128> = own.collect();
        if self.is_in(source, &own.iter().map(|own| (*own, *own)).collect()) {
            return source;
        }
        let of_link = own.into_iter().find(|own| own >> 118 == 0xfe80 >> 6);
        of_link.map_or(LINK_LOCAL, Value::made)
    }

    fn discovers(
        &mut self,
        [first, second]: [(u8, Value, Value); 2],
        asks: Direction,
        interface: &'a str,
    ) -> Result<(), Blocked> {
        let back = if asks == Direction::Out { Direction::In } else { Direction::Out };
        // What asks goes the first way, and what answers the other.
        let way = |message: (u8, Value, Value)| {
            if message.0 == SOLICITATION { (message, asks) } else { (message, back) }
        };
        let both = [way(first), way(second)];
        if W::LISTENS {
            // What comes in between is not told of.
            let mut nobody = Nobody;
            let mut walk = Walk::new(self.program, self.namespace, self.question, &mut nobody);
            walk.paths = self.paths;
            return walk.pass_all(both, interface);
        }
        let before = (self.decided.clone(), self.acted, self.deciding, self.refusal.take());
        self.deciding = false;
        let found = self.pass_all(both, interface);
        if found.is_ok() {
            self.decided = before.0;
        }
        (self.acted, self.deciding, self.refusal) = (before.1, before.2, before.3);
        found
    }

    fn pass_all(
        &mut self,
        messages: [((u8, Value, Value), Direction); 2],
        interface: &'a str,
    ) -> Result<(), Blocked> {
        for ((kind, source, destination), way) in messages {
            let none = Value::made(0);
            let mut packet = Packet {
                family: Family::V6,
                protocol: Protocol::ICMPV6,
                ends: Ends { source, source_port: none, destination, port: none },
                // `ndisc_alloc_skb()`
                owner: if way == Direction::Out { Owner::Kernel } else { Owner::Nobody },
                mark: Mark::made(0),
                input: None,
                output: None,
                syn: false,
                flags: Flags::NONE_KNOWN,
                icmp: Some(kind),
                about: None,
                tos: false,
                zone: 0,
                zoned: false,
                state: States::UNTRACKED,
                connection: None,
                seen: true,
                attached: false,
                taken: None,
                handed: None,
                meant: None,
            };
            let hooks = match way {
                Direction::Out => {
                    packet.output = Some(interface);
                    [Hook::Output, Hook::Postrouting]
                }
                Direction::In => {
                    packet.input = Some(interface);
                    [Hook::Prerouting, Hook::Input]
                }
            };
            for hook in hooks {
                let (rule, by, certain) = match self.hook(hook, &mut packet) {
                    Ok(()) => continue,
                    Err(Halt::Dropped { rule, why }) => (rule, why, true),
                    Err(Halt::Refused(rule)) => (Some(rule), String::new(), true),
                    Err(Halt::Unknown { rule, what }) => (rule, what, false),
                };
                let name = if kind == SOLICITATION { "solicitation" } else { "advertisement" };
                let by = rule.map_or(by, |rule| self.program.line(rule));
                return Err(Blocked { rule, by: format!("neighbour {name} meets {by}"), certain });
            }
        }
        Ok(())
    }
}
