//! Where a packet's way ends: outside, or at a socket of the namespace.

use super::fate::{Fate, How, Outcome};
use super::halt::Halt;
use super::namespace::{LOOPBACK, Namespace, index};
use super::packet::{Connection, Owner, Packet, Value, end};
use super::question::Protocol;
use super::ranges::Ranges;
use super::rule::States;
use super::walk::{End, Walk};
use super::witness::Witness;
use crate::ruleset::Hook;
use crate::value::Family;

/// What can't be told of what is for no address of this host, and leaves by `lo`.
const BY_LOOPBACK: &str = "what becomes of what a route sends by lo, to no address of this pod";

impl<'a, W: Witness> Walk<'a, W> {
    /// POSTROUTING, where the interface lets IPv6 past (`ip6_output()`).
    pub(super) fn go_out(&mut self, packet: &mut Packet<'a>) -> Result<(), Halt> {
        let name = packet.output.unwrap_or(LOOPBACK);
        if packet.family == Family::V6 && self.namespace.settings(name).disable_ipv6 {
            let why = format!("disable_ipv6 of {name} is set");
            return Err(Halt::Dropped { rule: None, why });
        }
        self.hook(Hook::Postrouting, packet)
    }

    /// Whether a rule has changed where a packet goes.
    pub(super) fn is_led(&self, packet: &Packet<'_>) -> bool {
        packet.connection.is_some_and(|(at, _)| self.connections[at].to.is_some())
            || packet.meant.is_some()
    }

    /// Policies of `IPsec` decide about what does not stay here (`xfrm_lookup()` in
    /// `net/xfrm/xfrm_policy.c`), and IPVS leads what is for a virtual service elsewhere (`ip_vs_in()` in
    /// `net/netfilter/ipvs/ip_vs_core.c`): neither is walked.
    pub(super) fn is_beside_rules(&mut self, packet: &Packet<'_>) -> Result<(), Halt> {
        let namespace: &'a Namespace = self.namespace;
        let to = packet.ends.destination;
        let family = packet.family;
        if namespace.ipsec
            && packet.input != Some(LOOPBACK)
            && (packet.input.is_some() || !self.is_in(to, namespace.local(family)))
        {
            return Err(Halt::unknown("what policies of IPsec make of it (`ip xfrm policy`)"));
        }
        let services = &namespace.virtual_services[index(family)];
        if !services.is_empty() && self.is_in(to, services) {
            return Err(Halt::unknown("where IPVS leads it (`ipvsadm -Ln`)"));
        }
        Ok(())
    }

    /// It has left by an interface.
    pub(super) fn leave(&mut self, packet: &Packet<'a>, interface: &'a str) -> Result<End, Halt> {
        // It comes in again, and nobody has it: what becomes of it then is not walked.
        if interface == LOOPBACK {
            return Err(Halt::Unknown { rule: None, what: BY_LOOPBACK.to_owned() });
        }
        if !self.namespace.settings(interface).carrier {
            let why = format!("{interface} has no carrier");
            return Err(Halt::Dropped { rule: None, why });
        }
        self.is_beside_rules(packet)?;
        if let Some(aside) = self.namespace.settings(interface).aside_out {
            return Err(Halt::unknown(&aside.text("goes out by", interface)));
        }
        self.finds_next_hop(packet, interface)?;
        self.last = Some(*packet);
        let family = packet.family;
        let fate = Fate::Passed {
            interface: interface.to_owned(),
            destination: packet.ends.to(family),
            source: packet.ends.from(family),
        };
        let connection = packet.connection.map(|(at, _)| &self.connections[at]);
        let ends = &packet.ends;
        let made = |value: Value| value.origin.is_none();
        let outcome = if connection.is_some_and(|c| c.to.is_some()) || packet.meant.is_some() {
            Outcome::Led {
                address: made(ends.destination).then(|| ends.to(family).ip()),
                port: made(ends.port).then(|| ends.to(family).port()),
            }
        } else {
            let masked = self.leaves_masked(packet);
            Outcome::Passed { interface: interface.to_owned(), masked }
        };
        Ok((fate, outcome))
    }

    /// Whether a translation has given it another source: one that it has anyway is none.
    fn leaves_masked(&mut self, packet: &Packet<'_>) -> bool {
        let Some((at, _)) = packet.connection else { return false };
        let Connection { from: Some((to, _)), ends, .. } = self.connections[at] else {
            return false;
        };
        if to.origin.is_none() {
            let _asked = self.is_in(ends.source, &Ranges::one(to.number));
        }
        to.number != ends.source.number
    }

    /// INPUT, and the socket behind it.
    pub(super) fn deliver(&mut self, packet: &mut Packet<'a>) -> Result<End, Halt> {
        if packet.taken.is_some() {
            packet.owner = Owner::Unknown;
        }
        self.is_beside_rules(packet)?;
        self.hook(Hook::Input, packet)?;
        self.look_up(packet)?;
        self.last = Some(*packet);
        let family = packet.family;
        let destination = packet.ends.to(family);
        let mut led = packet.meant;
        if led.is_some() {
            // The programs know a connection by the ends that they have led it to.
            self.asks_translation(packet);
            let changed = self.states(packet).meets(States::SNAT.or(States::DNAT));
            led = led.filter(|_| !changed);
        }
        let connection = packet.connection.filter(|(_, back)| !back);
        let connection = connection.map(|(at, _)| &self.connections[at]);
        // `getorigdst()` looks in no other zone; whoever gets a datagram has to look for it otherwise.
        // Where programs of eBPF answer in its place, they know what they have led alone.
        let asked = |c: &&Connection| {
            c.protocol != Protocol::TCP || (c.zone == 0 && !self.program.chooses_sockets())
        };
        let original = connection.filter(asked);
        let original = original.map_or(destination, |c| c.ends.to(family));
        let original = led.map_or(original, |(ip, port)| end(family, ip, port));
        let translated = connection.is_some_and(|c| c.to.is_some()) || packet.meant.is_some();
        let (port, how) = match (packet.taken, packet.handed) {
            (Some(port), _) => (port, How::Transparent),
            (None, Some(port)) => (port, How::Handed),
            (None, None) if translated => (packet.ends.port, How::Translated),
            (None, None) => (packet.ends.port, How::Unchanged),
        };
        let number = u16::try_from(port.number).unwrap_or(0);
        let fate = Fate::Delivered {
            port: number,
            how,
            destination,
            original,
            source: packet.ends.from(family),
        };
        let outcome = match how {
            How::Unchanged => Outcome::Delivered,
            _ => Outcome::Captured { port: port.origin.is_none().then_some(number), how },
        };
        Ok((fate, outcome))
    }
}
