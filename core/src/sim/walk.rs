//! The way of a packet through the hooks, as the kernel goes it (`net/netfilter`, `net/ipv4`,
//! `net/ipv6` of Linux 6.x).

use std::net::SocketAddr;

use super::effects::Effects;
use super::fate::{Fate, Outcome};
use super::flags::Flags;
use super::halt::Halt;
use super::namespace::{Exit, LOOPBACK, Namespace, loopback};
use super::notice::Rejection;
use super::packet::{Connection, Ends, Mark, Owner, Packet, Value};
use super::paths::Paths;
use super::program::{Call, ChainId, Kind, Policy, Program, RuleId, family_index, hook_index};
use super::question::{Direction, Known, Protocol, Question};
use super::ranges::{Ranges, number};
use super::reply::Own;
use super::rule::{Field, States};
use super::tracking::Tracked;
use super::way::Route;
use super::witness::Witness;
use crate::ruleset::Hook;
use crate::value::Family;

/// The end of a way, with and without the connection's own addresses.
pub(super) type End = (Fate, Outcome);

/// Everything that is said about a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where the first packet ends, with the connection's own addresses.
    pub fate: Fate,
    /// The same without its own addresses.
    pub outcome: Outcome,
    /// The rules that decided, in the order in which one led to the other; none if no rule did.
    pub decided: Vec<RuleId>,
    /// What else is done to it.
    pub(super) effects: Effects,
}

/// Whose turn it is in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Its first packet, which makes it.
    First,
    /// What answers it, or tells of an error.
    Answer,
    /// What follows the first packet and its answer.
    Later,
}

/// The walk of a connection's packets through rules, and what was met so far.
pub(super) struct Walk<'a, W> {
    pub(super) program: &'a Program,
    pub(super) namespace: &'a Namespace,
    pub(super) witness: &'a mut W,
    pub(super) question: &'a Question,
    pub(super) asked_mark: u32,
    pub(super) connections: Vec<Connection>,
    /// The rules whose jumps led here.
    pub(super) stack: Vec<RuleId>,
    pub(super) decided: Vec<RuleId>,
    /// Whether what decides next counts: it does until the packet has been routed.
    pub(super) deciding: bool,
    /// Whether a rule has given the connection to somebody else: what lets it past afterwards
    /// decides nothing.
    pub(super) acted: bool,
    /// Whether no transparent socket listens.
    pub(super) unheard: bool,
    /// Rules on the way so far, and how many of them were asked: others were passed over, since
    /// they ask for other values.
    pub(super) passed: usize,
    pub(super) asked: u64,
    /// Where the question's socket is connected, when that is not where it asked for.
    pub(super) connected: Option<SocketAddr>,
    /// The way out that the packet takes.
    pub(super) exit: Option<&'a Exit>,
    /// Where the question's packet was sent from.
    pub(super) sent: Option<SocketAddr>,
    /// The interface that it came in by.
    pub(super) came_by: Option<&'a str>,
    /// What a rule has refused.
    pub(super) refusal: Option<Rejection<'a>>,
    /// The mark that who has accepted the connection answers with.
    pub(super) accepted: Mark,
    /// Which packet of the connection it is.
    pub(super) turn: Turn,
    /// The sockets that the connection has here.
    pub(super) own: Vec<Own>,
    /// What rules have done that the way does not depend on.
    pub(super) did: Vec<String>,
    /// The packet as it is at the end of its way.
    pub(super) last: Option<Packet<'a>>,
    /// What tracking finds, where that does not follow from what was asked.
    pub(super) preset: Option<Tracked>,
    /// Whether a translation has given the connection a random source port.
    pub(super) shuffled: bool,
    /// Which paths are taken where a route has several.
    pub(super) paths: Paths,
}

impl<'a, W: Witness> Walk<'a, W> {
    pub(super) const fn new(
        program: &'a Program,
        namespace: &'a Namespace,
        question: &'a Question,
        witness: &'a mut W,
    ) -> Self {
        Self {
            program,
            namespace,
            witness,
            question,
            asked_mark: question.mark,
            connections: Vec::new(),
            stack: Vec::new(),
            decided: Vec::new(),
            deciding: true,
            acted: false,
            unheard: false,
            passed: 0,
            asked: 0,
            connected: None,
            exit: None,
            sent: None,
            came_by: None,
            refusal: None,
            accepted: Mark::made(0),
            turn: Turn::First,
            own: Vec::new(),
            did: Vec::new(),
            last: None,
            preset: None,
            shuffled: false,
            paths: Paths::FIRST,
        }
    }

    /// Walk the first packet from where it begins to its end.
    pub(super) fn first(&mut self) -> Answer {
        let found = match self.program.unanswerable(self.namespace, self.question) {
            Some(what) => Err(Halt::Unknown { rule: None, what }),
            None => self.way(),
        };
        let found = self.with_notice(found);
        let (fate, outcome) = found.unwrap_or_else(Halt::end);
        let mut decided = std::mem::take(&mut self.decided);
        // What no rule dropped, no rule decided about.
        if matches!(fate, Fate::Dropped { rule: None, .. }) {
            decided.clear();
        }
        let effects = match outcome {
            // Nothing is left of it.
            Outcome::Dropped { .. } | Outcome::Refused | Outcome::Unknown { .. } => {
                Effects::of(std::mem::take(&mut self.did))
            }
            _ => self.effects(),
        };
        Answer { fate, outcome, decided, effects }
    }

    /// The way of a packet of the question's sender.
    pub(super) fn way(&mut self) -> Result<End, Halt> {
        match self.question.direction {
            Direction::Out => self.out(),
            Direction::In => self.inward(),
        }
    }

    pub(super) fn packet(&self, source: Value, owner: Owner) -> Packet<'a> {
        let q = self.question;
        let port = |port: u16, field| Value::asked(port.into(), field);
        Packet {
            family: q.family(),
            protocol: q.protocol,
            ends: Ends {
                source,
                source_port: port(q.source_port, Field::SourcePort),
                destination: Value::asked(number(q.destination), Field::Destination),
                port: port(q.port, Field::Port),
            },
            owner,
            mark: Mark::ASKED,
            input: None,
            output: None,
            syn: self.turn == Turn::First
                && q.protocol == Protocol::TCP
                && matches!(q.known, Known::New | Known::Related(_) | Known::Reused),
            flags: self.flags(),
            icmp: None,
            about: None,
            tos: false,
            zone: 0,
            zoned: false,
            state: States::INVALID,
            connection: None,
            seen: false,
            attached: false,
            taken: None,
            handed: None,
            meant: None,
        }
    }

    /// The flags that a packet of TCP has at this point of its connection.
    pub(super) const fn flags(&self) -> Flags {
        match (self.turn, self.question.known) {
            (Turn::First, Known::New | Known::Related(_) | Known::Reused) => Flags::SYN,
            (Turn::First, _) => Flags::NONE_KNOWN,
            (Turn::Answer, _) => Flags::SYN_ACK,
            (Turn::Later, _) => Flags::LATER,
        }
    }

    /// A packet that a process of the namespace sends.
    fn out(&mut self) -> Result<End, Halt> {
        let q = self.question;
        let owner = q.owner.map_or(Owner::Nobody, |owner| Owner::Known {
            uid: Value::asked(owner.uid.into(), Field::Uid),
            gid: Value::asked(owner.gid.into(), Field::Gid),
        });
        let bound = q.source.map(|source| Value::asked(number(source), Field::Source));
        let mut packet = self.packet(bound.unwrap_or(Value::made(0)), owner);
        let mut route = self.route(&packet);
        if let Some(route) = self.connect(&mut packet, route)? {
            self.sent.get_or_insert(packet.ends.from(packet.family));
            return self.send(&mut packet, route);
        }
        packet.ends.source = match bound {
            Some(source) => source,
            None => self.chosen_source(&packet, route)?,
        };
        // `ip_route_connect()` asks again with the source that it chose.
        let (family, routing) = (packet.family, self.namespace.routing());
        let asks_source = routing.asks_source(family);
        if bound.is_none() && family == Family::V4 && (asks_source || routing.most_paths() > 1) {
            let again = self.route(&packet);
            if again != route && packet.protocol != Protocol::TCP && asks_source {
                let what = "whether its socket is connected, which decides the route".to_owned();
                return Err(Halt::Unknown { rule: None, what });
            }
            route = again;
        }
        self.sent.get_or_insert(packet.ends.from(family));
        self.send(&mut packet, route)
    }

    /// The way of what is sent; it goes out by `lo` where it is for this host.
    fn take(&mut self, packet: &mut Packet<'a>, route: Route<'a>) -> Result<(), Halt> {
        self.exit = None;
        let drop = |why: &str| Halt::Dropped { rule: None, why: why.to_owned() };
        let name = match route {
            Route::Local => LOOPBACK,
            Route::By(exit) => {
                self.exit = Some(exit);
                exit.interface.as_str()
            }
            Route::Nowhere(why) => return Err(drop(why)),
            Route::Unclear(what) => return Err(Halt::unknown(what)),
        };
        let settings = self.namespace.settings(name);
        if !settings.up {
            return Err(drop(&format!("{name} is down")));
        }
        // `ip_route_output_key_hash_rcu()`: such a socket can't even connect.
        if packet.family == Family::V4
            && matches!(route, Route::By(_))
            && !settings.route_localnet
            && self.is_in(packet.ends.source, &loopback(Family::V4))
        {
            return Err(martian());
        }
        packet.output = Some(name);
        Ok(())
    }

    /// OUTPUT and what comes behind it.
    pub(super) fn send(&mut self, packet: &mut Packet<'a>, route: Route<'a>) -> Result<End, Halt> {
        let mut route = route;
        self.is_beside_rules(packet)?;
        self.take(packet, route)?;
        self.at(Hook::Output, packet);
        for call in self.calls(packet.family, Hook::Output) {
            let before =
                (packet.mark.number(self.asked_mark), packet.ends.destination.number, packet.tos);
            self.call(call, Hook::Output, packet)?;
            let after =
                (packet.mark.number(self.asked_mark), packet.ends.destination.number, packet.tos);
            let routes = match call {
                Call::Chain { kind: Kind::Route, .. } => before != after,
                Call::Translate(_) => before.1 != after.1,
                _ => false,
            };
            if routes {
                let again = self.route_again(packet);
                let way = packet.output;
                self.take(packet, again)?;
                if again != route && W::LISTENS {
                    self.witness.note(format!("it is routed again: {}", again.text()));
                }
                packet.output = way;
                route = again;
            }
        }
        self.deciding = false;
        self.take(packet, route)?;
        self.go_out(packet)?;
        if let Route::By(exit) = route {
            return self.leave(packet, &exit.interface);
        }
        // The loopback device takes the socket off the packet; routing, tracking and mark stay.
        packet.input = Some(LOOPBACK);
        packet.output = None;
        packet.owner = Owner::Nobody;
        // What tracking could make nothing of it looks at again.
        if packet.state == States::INVALID {
            (packet.seen, packet.zone, packet.zoned) = (false, 0, false);
            // Of TCP it has no connection any more, not even none.
            packet.attached &= packet.protocol != Protocol::TCP;
        }
        self.hook(Hook::Prerouting, packet)?;
        self.deliver(packet)
    }

    /// Let a packet in by the interface that was asked for, or that its source is behind.
    fn inward(&mut self) -> Result<End, Halt> {
        let q = self.question;
        let source = q
            .source
            .ok_or_else(|| Halt::Unknown { rule: None, what: "where it comes from".to_owned() })?;
        let mut packet = self.packet(Value::asked(number(source), Field::Source), Owner::Nobody);
        let interface = match &q.interface {
            Some(name) => Some(name.as_str()),
            None => self.towards(packet.ends.source, packet.family),
        };
        let interface = interface.ok_or_else(|| Halt::Unknown {
            rule: None,
            what: "which interface it comes in by".to_owned(),
        })?;
        (packet.input, self.came_by) = (Some(interface), Some(interface));
        self.sent.get_or_insert(packet.ends.from(packet.family));
        self.receive(&mut packet)
    }

    /// PREROUTING and what comes behind it.
    pub(super) fn receive(&mut self, packet: &mut Packet<'a>) -> Result<End, Halt> {
        self.is_beside_rules(packet)?;
        let family = packet.family;
        let by_loopback = packet.input == Some(LOOPBACK);
        let loopback = loopback(family);
        let settings = self.namespace.settings(packet.input.unwrap_or(LOOPBACK));
        let name = packet.input.unwrap_or(LOOPBACK);
        if !settings.up {
            let why = format!("{name} is down: nothing comes in by it");
            return Err(Halt::Dropped { rule: None, why });
        }
        if !settings.carrier {
            let why = format!("{name} has no carrier: nothing comes in by it");
            return Err(Halt::Dropped { rule: None, why });
        }
        if let Some(aside) = settings.aside_in {
            return Err(Halt::unknown(&aside.text("comes in by", name)));
        }
        if family == Family::V6 && settings.disable_ipv6 {
            let why = format!("disable_ipv6 of {name} is set");
            return Err(Halt::Dropped { rule: None, why });
        }
        // IPv6 drops them before any hook (`ip6_rcv_core()`), IPv4 when it routes.
        if family == Family::V6 && !by_loopback {
            for value in [packet.ends.source, packet.ends.destination] {
                if self.is_in(value, &loopback) {
                    return Err(martian());
                }
            }
        }
        self.hook(Hook::Prerouting, packet)?;
        self.deciding = false;
        if family == Family::V4 && !by_loopback {
            for value in [packet.ends.destination, packet.ends.source] {
                if !settings.route_localnet && self.is_in(value, &loopback) {
                    return Err(martian());
                }
            }
            self.validate_source(packet)?;
        }
        // `ip6_route_input_lookup()` asks for a route of the interface it came in by.
        if family == Family::V6
            && !by_loopback
            && !settings.localhost_v6
            && self.is_in(packet.ends.destination, &loopback)
        {
            return Err(martian());
        }
        let forwards = match family {
            Family::V4 => settings.forwarding,
            Family::V6 => self.namespace.forwarding_v6 || settings.force_forwarding,
        };
        match self.route(packet) {
            Route::Local => self.deliver(packet),
            Route::Unclear(what) => Err(Halt::unknown(what)),
            _ if !forwards && self.namespace.supposed && self.is_led(packet) => {
                let what = "the routes: whether it is passed on from here, and by which interface";
                Err(Halt::unknown(what))
            }
            _ if !forwards => Err(Halt::Dropped {
                rule: None,
                why: "it is for somebody else, and nothing is passed on".to_owned(),
            }),
            // `ip_forward()`, `ip6_forward()`
            _ if packet.taken.is_some() => Err(Halt::Dropped {
                rule: None,
                why: "a transparent socket has it, and no route delivers it here".to_owned(),
            }),
            route => {
                self.take(packet, route)?;
                self.hook(Hook::Forward, packet)?;
                packet.input = None;
                self.go_out(packet)?;
                let exit = packet.output.unwrap_or(LOOPBACK);
                self.leave(packet, exit)
            }
        }
    }

    /// Whether a value is in a set, where the question may decide.
    pub(super) fn is_in(&mut self, value: Value, set: &Ranges) -> bool {
        if let Some(origin) = value.origin {
            self.witness.asked(origin, set);
        }
        set.contains(value.number)
    }

    fn calls(&self, family: Family, hook: Hook) -> &'a [Call] {
        &self.program.calls[family_index(family)][hook_index(hook)]
    }

    fn at(&mut self, hook: Hook, packet: &Packet<'a>) {
        if W::LISTENS {
            let text = self.text(packet);
            self.witness.at(hook.as_str(), text);
        }
    }

    pub(super) fn hook(&mut self, hook: Hook, packet: &mut Packet<'a>) -> Result<(), Halt> {
        self.at(hook, packet);
        self.calls(packet.family, hook).iter().try_for_each(|call| self.call(call, hook, packet))
    }

    pub(super) fn call(
        &mut self,
        call: &'a Call,
        hook: Hook,
        packet: &mut Packet<'a>,
    ) -> Result<(), Halt> {
        match call {
            Call::Track => {
                self.track(packet);
                Ok(())
            }
            Call::Chain { chain, priority, .. } => {
                // What only filters says nothing about capture.
                let deciding = self.deciding;
                self.deciding &= *priority < 0 && *priority > -200;
                let ended = self.base(*chain, hook, packet);
                self.deciding = deciding;
                ended
            }
            Call::Translate(chains) => self.translate(chains, hook, packet),
            Call::Unordered(calls) => self.in_any_order(calls, hook, packet, None),
        }
    }

    /// A chain that the kernel calls.
    pub(super) fn base(
        &mut self,
        chain: ChainId,
        hook: Hook,
        packet: &mut Packet<'a>,
    ) -> Result<(), Halt> {
        let ended = self.chain(chain, hook, packet)?;
        if !ended && self.program.chains[chain.0].policy == Policy::Drop {
            let info = self.program.chain(chain);
            let why = format!("the policy of {} {} is to drop", info.table, info.name);
            return Err(Halt::Dropped { rule: None, why });
        }
        Ok(())
    }
}

fn martian() -> Halt {
    let why = "a loopback address has no place on another interface".to_owned();
    Halt::Dropped { rule: None, why }
}
