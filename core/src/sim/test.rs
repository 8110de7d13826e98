//! Whether a condition holds for a packet, and if not, why.

use super::flags::Flags;
use super::packet::{Connection, Owner, Packet, Value};
use super::question::Protocol;
use super::ranges::Ranges;
use super::rule::{Field, States, Test, Way, numbers};
use super::walk::{Turn, Walk};
use super::witness::Witness;
use crate::ruleset::{Hook, Masked, Side};
use crate::value::{Family, InterfacePattern};

/// Whether a condition holds for a packet, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth<'t> {
    Yes,
    No,
    /// It can't be told; this is why.
    Unknown(&'t str),
}

pub(super) const fn truth(holds: bool, negated: bool) -> Truth<'static> {
    if holds == negated { Truth::No } else { Truth::Yes }
}

impl<W: Witness> Walk<'_, W> {
    pub(super) fn holds<'t>(
        &mut self,
        test: &'t Test,
        hook: Hook,
        packet: &Packet<'_>,
    ) -> Truth<'t> {
        match test {
            Test::Is { field, negated, set, family, socket } => {
                if family.is_some_and(|family| family != packet.family) {
                    // The other family has no such field at all.
                    return Truth::No;
                }
                self.is(*field, set, *negated, *socket, packet)
            }
            Test::EitherPort { negated, set } => {
                if !packet.protocol.has_ports() {
                    return Truth::No;
                }
                let either = [Field::SourcePort, Field::Port]
                    .into_iter()
                    .any(|field| self.is(field, set, false, false, packet) == Truth::Yes);
                truth(either, *negated)
            }
            Test::AtPort { side, negated, set } => self.at_port(*side, set, *negated, packet),
            Test::Family(family) => truth(*family == packet.family, false),
            Test::Interface { way, negated, names } => {
                let name = interface(*way, packet).unwrap_or_default();
                truth(names.iter().any(|n| n.matches(name)), *negated)
            }
            Test::Mark { connection, negated, mark } => {
                let subject = if *connection {
                    match packet.connection {
                        Some((at, _)) => self.connections[at].mark,
                        None => return Truth::No,
                    }
                } else {
                    packet.mark
                };
                truth(self.mark_is(subject, *mark), *negated)
            }
            Test::State { negated, states } => {
                if states.meets(States::SNAT.or(States::DNAT)) {
                    self.asks_translation(packet);
                }
                truth(states.meets(self.states(packet)), *negated)
            }
            Test::Local { side, negated } => {
                let (field, local) = (Field::address(*side), self.namespace.local(packet.family));
                // Of IPv4 the kernel asks its own table alone (`inet_dev_addr_type()`), of IPv6 all of routing.
                let elsewhere = &self.namespace.local_elsewhere;
                if packet.family == Family::V6
                    && self.is(field, local, false, false, packet) != Truth::Yes
                    && self.is(field, elsewhere, false, false, packet) == Truth::Yes
                {
                    return Truth::Unknown("whether a route outside of table local makes it local");
                }
                self.is(field, local, *negated, false, packet)
            }
            Test::AddressType { side, negated, types } => {
                self.address_type(*side, *types, *negated, packet)
            }
            Test::ForThisHost { negated } => self.for_this_host(!negated, packet),
            Test::Extension { .. } if EXTENSIONS.contains(&packet.protocol.0) => {
                Truth::Unknown("which headers are in front of its own")
            }
            Test::Extension { negated, .. } => truth(false, *negated),
            Test::ReturnRoute(asked) => self.return_route(*asked, hook, packet),
            Test::OriginalEnd { field, negated, set, family } => {
                self.original_end(*field, set, *negated, *family, packet)
            }
            Test::Original { negated } => match packet.connection {
                Some((_, back)) => truth(!back, *negated),
                None => Truth::No,
            },
            Test::Syn { negated } => truth(packet.syn, *negated),
            Test::TcpFlags { negated, mask, value } => {
                let are = match packet.protocol {
                    Protocol::TCP => packet.flags.are(*mask, *value),
                    _ => Some(false),
                };
                are.map_or(Truth::Unknown("which flags of TCP it has"), |are| truth(are, *negated))
            }
            Test::Socket { negated } => match packet.owner {
                Owner::Known { .. } | Owner::Kernel => truth(true, *negated),
                Owner::Nobody => truth(false, *negated),
                Owner::Unowned => Truth::Unknown("whether the kernel sends it by a socket"),
                Owner::Unknown => Truth::Unknown(RECEIVER),
            },
            Test::Icmp { negated, types } => match packet.icmp {
                Some(kind) => truth(types.contains(kind.into()), *negated),
                None => Truth::Unknown("which type of ICMP it is"),
            },
            Test::Unknown(what) => Truth::Unknown(what),
        }
    }

    pub(super) fn is(
        &mut self,
        field: Field,
        set: &Ranges,
        negated: bool,
        socket: bool,
        packet: &Packet<'_>,
    ) -> Truth<'static> {
        let ends = &packet.ends;
        let value = match field {
            Field::Protocol => {
                // Messages about a packet have another one.
                if packet.protocol == self.question.protocol {
                    self.witness.asked(Field::Protocol, set);
                }
                return truth(set.contains(packet.protocol.0.into()), negated);
            }
            Field::Source => ends.source,
            Field::Destination => ends.destination,
            Field::SourcePort | Field::Port if !packet.protocol.has_ports() => return Truth::No,
            Field::SourcePort => ends.source_port,
            Field::Port => ends.port,
            Field::Uid | Field::Gid => match packet.owner.value(field) {
                None => return Truth::Unknown(RECEIVER),
                Some(_) if socket && packet.owner.is_nobody() => return Truth::No,
                Some(value) => value,
            },
        };
        let translated = match self.turn {
            Turn::First | Turn::Later => Field::SourcePort,
            Turn::Answer => Field::Port,
        };
        if self.shuffled && field == translated && !Ranges::up_to(u16::MAX.into()).is_within(set) {
            return Truth::Unknown("which source port a random translation gives");
        }
        if let Some(origin) = value.origin {
            self.witness.asked(origin, set);
        }
        truth(set.contains(value.number), negated)
    }

    /// Whether an end of the packet's connection is one of these.
    fn original_end(
        &mut self,
        field: Field,
        set: &Ranges,
        negated: bool,
        family: Option<Family>,
        packet: &Packet<'_>,
    ) -> Truth<'static> {
        let Some((at, _)) = packet.connection else { return Truth::No };
        if family.is_some_and(|family| family != packet.family) {
            return Truth::No;
        }
        let Connection { ends, protocol, .. } = self.connections[at];
        let value = match field {
            Field::Source => ends.source,
            Field::Destination => ends.destination,
            Field::SourcePort if protocol.has_ports() => ends.source_port,
            Field::Port if protocol.has_ports() => ends.port,
            _ => return Truth::Unknown("what tracking has of a protocol without ports"),
        };
        if self.preset.is_some() {
            return Truth::Unknown("which ends the connection had before it was translated");
        }
        truth(self.is_in(value, set), negated)
    }

    /// Whether what stands where others have a port is one of these.
    fn at_port(
        &mut self,
        side: Side,
        set: &Ranges,
        negated: bool,
        packet: &Packet<'_>,
    ) -> Truth<'static> {
        /// So few of the 65536 checksums that there are no message about a packet of another
        /// protocol is taken to have.
        const FEW: u128 = 16;
        if packet.protocol.has_ports() {
            return self.is(Field::port(side), set, negated, false, packet);
        }
        let icmp = Protocol::icmp();
        if packet.protocol == self.question.protocol {
            self.witness.asked(Field::Protocol, &icmp);
        }
        let is_icmp = icmp.contains(packet.protocol.0.into());
        let all = Ranges::up_to(u16::MAX.into());
        let (possible, few) = match (side, packet.icmp) {
            // Its type and its code.
            (Side::Source, Some(kind)) => {
                let first = u128::from(kind) << 8;
                (Ranges::range(first, first | u128::from(u8::MAX)), 0)
            }
            // The checksum of a message about what was asked.
            (Side::Destination, _) if is_icmp && packet.protocol != self.question.protocol => {
                (all, FEW)
            }
            _ => (all, 0),
        };
        let size = |set: &Ranges| set.iter().map(|(first, last)| last - first + 1).sum::<u128>();
        if size(&possible.without(set)) <= few {
            truth(true, negated)
        } else if size(&possible.and(set)) <= few {
            truth(false, negated)
        } else {
            Truth::Unknown(AT_PORT)
        }
    }

    pub(super) fn mark_is(&mut self, subject: super::packet::Mark, mark: Masked) -> bool {
        if let Some(condition) = subject.condition(mark) {
            self.witness.asked_mark(condition);
        }
        subject.number(self.asked_mark) & mark.mask == mark.value
    }

    pub(super) fn states(&self, packet: &Packet<'_>) -> States {
        let translated = packet.connection.map_or(States(0), |(at, _)| {
            let connection = &self.connections[at];
            // What is led to where it goes anyway is not translated (`nf_nat_setup_info()`).
            let ends = connection.ends;
            let changed = |new: Option<(Value, Value)>, address: Value, port: Value| {
                new.is_some_and(|(to, at)| (to.number, at.number) != (address.number, port.number))
            };
            let to = changed(connection.to, ends.destination, ends.port);
            let from = changed(connection.from, ends.source, ends.source_port);
            let state = |is: bool, state: States| if is { state } else { States(0) };
            state(to, States::DNAT).or(state(from, States::SNAT))
        });
        packet.state.or(translated)
    }

    /// The way depends on whether the connection's translation changes anything.
    pub(super) fn asks_translation(&mut self, packet: &Packet<'_>) {
        let Some((at, _)) = packet.connection else { return };
        let connection = self.connections[at];
        let ends = connection.ends;
        let sides = [
            (connection.to, ends.destination, ends.port),
            (connection.from, ends.source, ends.source_port),
        ];
        for (new, address, port) in sides {
            let Some((to, at)) = new else { continue };
            for (value, new) in [(address, to), (port, at)] {
                if new.origin.is_none() {
                    let _asked = self.is_in(value, &Ranges::one(new.number));
                }
            }
        }
    }

    /// Why a condition that does not hold doesn't.
    pub(super) fn why_not(&self, test: &Test, packet: &Packet<'_>) -> String {
        let not = |negated: bool| if negated { "is" } else { "is not" };
        match test {
            Test::Is { family: Some(family), .. } if *family != packet.family => {
                format!("it is {}", packet.family)
            }
            Test::Is { field, negated, set, socket, .. } => {
                why_is_not(*field, *negated, set, *socket, packet)
            }
            Test::EitherPort { negated, set } => {
                let ports = Field::Port.values(set, packet.family);
                format!("neither port {} {ports}", not(*negated))
            }
            Test::AtPort { side, negated, set } if packet.protocol.has_ports() => {
                why_is_not(Field::port(*side), *negated, set, false, packet)
            }
            Test::AtPort { negated, set, .. } => {
                let values = Field::Port.values(set, packet.family);
                format!(
                    "what {} has in place of a port {} {values}",
                    packet.protocol,
                    not(*negated)
                )
            }
            Test::Family(_) => format!("it is {}", packet.family),
            Test::Interface { way, negated, names } => {
                let (what, by) = match way {
                    Way::In => ("comes in by", interface(Way::In, packet)),
                    Way::Out => ("goes out by", interface(Way::Out, packet)),
                };
                if names.is_empty() {
                    return "it asks for no interface at all".to_owned();
                }
                let names: Vec<&str> = names.iter().map(InterfacePattern::as_str).collect();
                let by = by.unwrap_or("nothing");
                let not = if *negated { "which is" } else { "not" };
                format!("it {what} {by}, {not} {}", names.join(" or "))
            }
            Test::Mark { connection, negated, mark } => {
                let own = packet.mark.number(self.asked_mark);
                let (what, is) = match (connection, packet.connection) {
                    (false, _) => ("mark", own),
                    (true, Some((at, _))) => {
                        ("connection's mark", self.connections[at].mark.number(self.asked_mark))
                    }
                    (true, None) => return "it belongs to no connection".to_owned(),
                };
                format!("the {what} {is:#x} {} {}", not(*negated), masked(*mark))
            }
            Test::State { negated, states } => {
                format!("its state {} {} {states}", self.states(packet), not(*negated))
            }
            Test::Local { side, negated } => {
                let what = match side {
                    Side::Source => "source",
                    Side::Destination => "destination",
                };
                format!("its {what} {} one of the pod's own addresses", not(*negated))
            }
            Test::AddressType { side, negated, types } => {
                let what = match side {
                    Side::Source => "source",
                    Side::Destination => "destination",
                };
                format!("its {what} {} {types}", not(*negated))
            }
            Test::ForThisHost { negated: false } => "it is for other hosts, too".to_owned(),
            Test::ForThisHost { negated: true } => "it is for this host alone".to_owned(),
            Test::Extension { number, .. } => {
                format!("it has no extension header {}", Protocol(*number))
            }
            Test::ReturnRoute(asked) => {
                let by = packet.input.filter(|_| !asked.loose);
                let by = by.map_or_else(String::new, |input| format!(" by {input}"));
                let is = if asked.negated { "a" } else { "no" };
                format!("there is {is} way back to its source{by}")
            }
            Test::OriginalEnd { field, negated, set, .. } => {
                let (what, set) = (field.name(), field.values(set, packet.family));
                format!("the {what} of its connection {} {set}", not(*negated))
            }
            Test::Original { negated } => {
                let way = if *negated { "first" } else { "other" };
                format!("it goes the {way} way of its connection")
            }
            Test::Syn { negated: false } => "it does not start a TCP connection".to_owned(),
            Test::Syn { negated: true } => "it starts a TCP connection".to_owned(),
            Test::TcpFlags { negated, mask, value } => {
                let (mask, value) = (Flags::names(*mask), Flags::names(*value));
                format!(
                    "of its flags {mask} {value} {} set",
                    if *negated { "are" } else { "are not" }
                )
            }
            Test::Socket { negated: false } => "no socket sends it".to_owned(),
            Test::Socket { negated: true } => "a socket sends it".to_owned(),
            Test::Icmp { negated, types } => {
                let kinds = numbers(types);
                format!("its type of ICMP {} {kinds}", not(*negated))
            }
            Test::Unknown(what) => what.clone(),
        }
    }
}

/// Hop-by-hop options, routing, fragment and destination options (IANA protocol numbers).
const EXTENSIONS: [u8; 4] = [0, 43, 44, 60];
const AT_PORT: &str = "what a protocol without ports has where others have a port";
const RECEIVER: &str = "who the receiving socket belongs to";

fn interface<'a>(way: Way, packet: &Packet<'a>) -> Option<&'a str> {
    match way {
        Way::In => packet.input,
        Way::Out => packet.output,
    }
}

fn why_is_not(
    field: Field,
    negated: bool,
    set: &Ranges,
    socket: bool,
    packet: &Packet<'_>,
) -> String {
    let family = packet.family;
    let not = if negated { "is" } else { "is not" };
    let ends = &packet.ends;
    let value = match field {
        Field::Protocol => {
            return format!("{} {not} {}", packet.protocol, field.values(set, family));
        }
        Field::SourcePort | Field::Port if !packet.protocol.has_ports() => {
            return format!("{} has no ports", packet.protocol);
        }
        Field::Source => ends.source.number,
        Field::SourcePort => ends.source_port.number,
        Field::Destination => ends.destination.number,
        Field::Port => ends.port.number,
        Field::Uid | Field::Gid => match packet.owner.value(field) {
            Some(_) if packet.owner.is_nobody() && (socket || !negated) => {
                return "no socket with an owner sends it".to_owned();
            }
            Some(value) => value.number,
            None => return RECEIVER.to_owned(),
        },
    };
    let values = field.values(set, family);
    format!("{} {} {not} {values}", field.name(), field.value(value, family))
}

/// A mark as rules write it.
pub(super) fn masked(mark: Masked) -> String {
    match mark.mask {
        u32::MAX => format!("{:#x}", mark.value),
        mask => format!("{:#x}/{mask:#x}", mark.value),
    }
}
