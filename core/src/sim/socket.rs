//! The source of what a socket sends, and programs that choose sockets: where a connection is begun,
//! before anything is routed (`BPF_CGROUP_RUN_PROG_INET4_CONNECT`), and where the socket of what
//! arrives is looked up (`inet_lookup_run_sk_lookup()`).

use super::namespace::{LOOPBACK, somewhere};
use super::packet::{Packet, Value};
use super::program::{ChainId, family_index};
use super::question::{Direction, Known, Protocol};
use super::ranges::number;
use super::rule::Field;
use super::walk::{Halt, Walk};
use super::way::Route;
use super::witness::Witness;
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
        self.choose(Hook::Output, call, packet)?;
        if packet.meant.is_none() {
            return Ok(None);
        }
        self.connected = Some(packet.ends.to(packet.family));
        let to = packet.ends.to(packet.family).ip();
        match q.protocol {
            _ if q.source.is_some() => {}
            _ if !to.is_loopback() => {
                let there = self.route(packet);
                let source = self.chosen_source(packet, there);
                packet.ends.source = source.unwrap_or(Value::made(0));
            }
            // A datagram's source is that of its route, which leads to localhost now.
            Protocol::UDP => packet.ends.source = packet.ends.destination,
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
        self.choose(Hook::Input, "lookup of the socket", packet)?;
        self.deciding = deciding;
        Ok(())
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
                return Err(Halt::Unknown { rule: None, what: what.to_owned() });
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
