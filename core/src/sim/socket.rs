//! The source of what a socket sends, and programs that choose sockets: where a connection is begun,
//! before anything is routed (`BPF_CGROUP_RUN_PROG_INET4_CONNECT`), and where the socket of what
//! arrives is looked up (`inet_lookup_run_sk_lookup()`).

use super::halt::Halt;
use super::namespace::{LOOPBACK, Namespace, loopback, somewhere};
use super::packet::{Packet, Value};
use super::program::{ChainId, family_index};
use super::question::{Direction, Known, Protocol};
use super::ranges::{Ranges, number};
use super::rule::{Field, States};
use super::walk::Walk;
use super::way::Route;
use super::witness::{Lookup, Witness};
use crate::ruleset::Hook;
use crate::value::Family;

impl<'a, W: Witness> Walk<'a, W> {
    /// A process connects, or sends a datagram: the route from there, if its socket is connected
    /// elsewhere.
    pub(super) fn connect(
        &mut self,
        packet: &mut Packet<'a>,
        route: Route<'a>,
    ) -> Result<Option<Route<'a>>, Halt> {
        let q = self.question;
        let begins = matches!(q.known, Known::New | Known::Related(_) | Known::Reused);
        if !begins || self.choosers(packet.family, Hook::Output).is_empty() {
            return Ok(None);
        }
        // There need not be a route.
        packet.ends.source = match q.source {
            Some(source) => Value::asked(number(source), Field::Source),
            None => self.chosen_source(packet, route).unwrap_or(Value::made(0)),
        };
        let call = if q.protocol == Protocol::UDP { "sendmsg()" } else { "connect()" };
        let (to, family) = (packet.ends.destination, packet.family);
        self.choose(Hook::Output, call, packet)?;
        // What goes to an own address comes from it: the programs ask the kernel whether it is one by
        // binding the socket to it.
        let stays = q.source.is_none()
            && q.protocol == Protocol::TCP
            && !self.is_in(to, &loopback(family))
            && self.is_in(to, self.namespace.local(family));
        if packet.meant.is_none() {
            if !stays {
                return Ok(None);
            }
            packet.ends.source = to;
            return Ok(Some(self.route(packet)));
        }
        self.connected = Some(packet.ends.to(packet.family));
        let leads = packet.ends.to(family).ip();
        match q.protocol {
            _ if q.source.is_some() => {}
            _ if !leads.is_loopback() => {
                let there = self.route(packet);
                let source = self.chosen_source(packet, there);
                packet.ends.source = source.unwrap_or(Value::made(0));
            }
            // A datagram's source is that of its route, which leads to localhost now.
            Protocol::UDP => packet.ends.source = packet.ends.destination,
            _ if stays => packet.ends.source = to,
            _ if route == Route::Local => {}
            _ => packet.ends.source = self.usual_source(packet.family)?,
        }
        Ok(Some(self.route(packet)))
    }

    /// Find the socket that something is for.
    pub(super) fn look_up(&mut self, packet: &mut Packet<'a>) -> Result<(), Halt> {
        // A transparent socket has been found already, and so has that of an answer.
        if packet.taken.is_some() || !(packet.syn || packet.protocol == Protocol::UDP) {
            return Ok(());
        }
        let deciding = self.deciding;
        self.deciding = self.question.direction == Direction::In && !self.acted;
        let input = packet.input;
        packet.input = self.arrived_by(packet);
        if self.question.direction == Direction::In {
            self.witness.looked_up(Lookup {
                source: packet.ends.from(packet.family).ip(),
                destination: packet.ends.to(packet.family),
                by_loopback: packet.input == Some(LOOPBACK),
            });
        }
        self.choose(Hook::Input, "lookup of the socket", packet)?;
        packet.input = input;
        self.deciding = deciding;
        Ok(())
    }

    /// The interface by which something arrived, as far as programs know: of what comes by `lo` for an
    /// address of another interface the kernel tells that one (`ip_route_output_key_hash_rcu()`,
    /// `ip6_rcv_core()`), and that it began here they know by its addresses, if nobody has translated
    /// them.
    fn arrived_by(&mut self, packet: &Packet<'a>) -> Option<&'a str> {
        let family = packet.family;
        if packet.input != Some(LOOPBACK) || self.choosers(family, Hook::Input).is_empty() {
            return packet.input;
        }
        self.asks_translation(packet);
        if !self.states(packet).meets(States::SNAT.or(States::DNAT)) {
            return packet.input;
        }
        let namespace: &'a Namespace = self.namespace;
        for interface in namespace.interfaces() {
            let own = interface.addresses.iter().filter(|own| own.family() == family);
            let own: Ranges =
                own.map(|own| (number(own.address()), number(own.address()))).collect();
            if self.is_in(packet.ends.destination, &own) {
                return Some(&interface.name);
            }
        }
        packet.input
    }

    /// The address that captured connections to elsewhere come from.
    fn usual_source(&mut self, family: Family) -> Result<Value, Halt> {
        let enrolled = self.namespace.enrolled.iter().find(|a| Family::of(**a) == family);
        if let Some(enrolled) = enrolled.map(|address| number(*address)) {
            if self.namespace.local(family).contains(enrolled) {
                return Ok(Value::made(enrolled));
            }
            // It is the one that a connection has come from since, or gone to, which no entry tells.
            let all = self.namespace.interfaces().flat_map(|interface| &interface.addresses);
            // Whatever is only the link's own is not chosen.
            let all = all.filter(|own| own.family() == family && own.scope == 0 && !own.elsewhere);
            if all.take(2).count() > 1 {
                let what = "from which address it comes, since the one of its enrolment is gone";
                return Err(Halt::unknown(what));
            }
        }
        let by = self.towards(Value::made(somewhere(family)), family);
        let names = self.namespace.interfaces().map(|interface| interface.name.as_str());
        let mut all = by.into_iter().chain(names).chain([LOOPBACK]);
        let first = all.find_map(|name| self.namespace.first_address(name, family));
        Ok(Value::made(first.unwrap_or(1)))
    }

    fn choosers(&self, family: Family, hook: Hook) -> &'a [ChainId] {
        let [sent, arriving] = &self.program.sockets[family_index(family)];
        if hook == Hook::Output { sent } else { arriving }
    }

    /// Ask each program, until one has chosen.
    fn choose(
        &mut self,
        hook: Hook,
        call: &'static str,
        packet: &mut Packet<'a>,
    ) -> Result<(), Halt> {
        for chain in self.choosers(packet.family, hook) {
            if W::LISTENS {
                let text = self.text(packet);
                self.witness.at(call, text);
            }
            self.base(*chain, hook, packet)?;
            if self.acted {
                break;
            }
        }
        Ok(())
    }
}
