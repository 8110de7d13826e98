//! Connection tracking and address translation: what the kernel remembers of a connection, and what
//! holds for all of its packets.

use super::chains::{DESTINATION, SOURCE};
use super::halt::Halt;
use super::packet::{Connection, Mark, Packet};
use super::program::Call;
use super::question::{Known, Protocol};
use super::rule::States;
use super::walk::{Turn, Walk};
use super::witness::Witness;
use crate::ruleset::Hook;

/// What tracking finds of a packet that does not start its connection here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tracked {
    pub(super) state: States,
    /// Whether it goes back in its connection; none where it has none.
    pub(super) back: Option<bool>,
    /// The mark of its connection.
    pub(super) mark: Mark,
    /// Whether rules of translation are still asked.
    pub(super) asks: bool,
}

impl<'a, W: Witness> Walk<'a, W> {
    /// Give a packet the state and the connection that tracking finds.
    pub(super) fn found(&mut self, tracked: Tracked, packet: &mut Packet<'a>) {
        packet.seen = true;
        packet.state = tracked.state;
        let Some(back) = tracked.back else { return };
        packet.connection = Some((self.connections.len(), back));
        self.connections.push(Connection {
            zone: packet.zone,
            protocol: packet.protocol,
            ends: if back { packet.ends.swapped() } else { packet.ends },
            mark: tracked.mark,
            to: None,
            from: None,
            settled: [!tracked.asks; 2],
            state: tracked.state,
            answered: !tracked.asks,
        });
    }

    /// Find or begin the packet's connection.
    pub(super) fn track(&mut self, packet: &mut Packet<'a>) {
        // What comes back over loopback was seen on its way out.
        if packet.seen {
            return;
        }
        if let Some((at, back)) = packet.about {
            // In another zone it is found nowhere, and looked for again where it comes back over loopback.
            packet.seen = self.connections[at].zone == packet.zone;
            if packet.seen {
                (packet.connection, packet.state) = (Some((at, back)), States::RELATED);
            } else {
                (packet.state, packet.zone, packet.zoned) = (States::INVALID, 0, false);
            }
            return;
        }
        packet.seen = true;
        if let Some(tracked) = self.preset {
            self.found(tracked, packet);
            return;
        }
        let same = |c: &Connection| c.zone == packet.zone && c.protocol == packet.protocol;
        let known = self.connections.iter().enumerate().find_map(|(at, c)| {
            let there = same(c) && c.ends.is(packet.ends);
            let back = same(c) && c.answer().is(packet.ends);
            (there || back).then_some((at, back))
        });
        if let Some((at, back)) = known {
            packet.connection = Some((at, back));
            let connection = &mut self.connections[at];
            connection.answered |= back;
            // TCP goes on only where tracking has seen the answer.
            if self.turn == Turn::Later && packet.protocol == Protocol::TCP && !connection.answered
            {
                packet.connection = None;
                packet.state = States::INVALID;
                return;
            }
            packet.state = if connection.answered { States::ESTABLISHED } else { connection.state };
            return;
        }
        let (state, mark) = match self.question.known {
            // An answer without a question starts no connection of TCP, but what comes behind it
            // does (`nf_conntrack_tcp_loose`).
            _ if self.turn == Turn::Answer
                && matches!(packet.protocol, Protocol::TCP | Protocol::ICMP | Protocol::ICMPV6) =>
            {
                packet.state = States::INVALID;
                return;
            }
            _ if self.turn != Turn::First => (States::NEW, 0),
            Known::New => (States::NEW, 0),
            Known::Related(mark) => (States::RELATED, mark),
            Known::Established(mark) => (States::ESTABLISHED, mark),
            // `nf_conntrack_tcp_packet()` ignores it, but leaves it its connection.
            Known::Reused => (States::ESTABLISHED, 0),
            Known::Invalid => {
                packet.state = States::INVALID;
                return;
            }
        };
        packet.state = state;
        packet.connection = Some((self.connections.len(), false));
        self.connections.push(Connection {
            zone: packet.zone,
            protocol: packet.protocol,
            ends: packet.ends,
            mark: Mark::made(mark),
            to: None,
            from: None,
            settled: [state == States::ESTABLISHED; 2],
            state,
            answered: state == States::ESTABLISHED,
        });
    }

    /// Address translation at a hook: rules are asked once for each connection and side
    /// (`nf_nat_inet_fn()`), and what they said holds for all of its packets.
    pub(super) fn translate(
        &mut self,
        chains: &'a [Call],
        hook: Hook,
        packet: &mut Packet<'a>,
    ) -> Result<(), Halt> {
        let Some((at, back)) = packet.connection else { return Ok(()) };
        let side = match hook {
            Hook::Prerouting | Hook::Output => DESTINATION,
            _ => SOURCE,
        };
        // What tells of an error is led as its connection is, and asks no rule.
        let tells = packet.protocol != self.connections[at].protocol;
        if !self.connections[at].settled[side] && !tells {
            for call in chains {
                match call {
                    Call::Chain { chain, .. } => self.base(*chain, hook, packet)?,
                    Call::Unordered(calls) => {
                        self.in_any_order(calls, hook, packet, Some(side))?;
                    }
                    Call::Track | Call::Translate(_) => {}
                }
                if self.connections[at].settled[side] {
                    break;
                }
            }
            self.connections[at].settled[side] = true;
        } else if W::LISTENS && !chains.is_empty() {
            self.witness.note("nat is not asked again for this connection".to_owned());
        }
        let connection = self.connections[at];
        let before = packet.ends;
        let ends = &mut packet.ends;
        match (back, side) {
            (false, DESTINATION) => {
                if let Some(to) = connection.to {
                    (ends.destination, ends.port) = to;
                }
            }
            (false, _) => {
                if let Some(from) = connection.from {
                    (ends.source, ends.source_port) = from;
                }
            }
            // What goes back is translated back where the other side was.
            (true, DESTINATION) => {
                if connection.from.is_some() {
                    let first = connection.ends;
                    (ends.destination, ends.port) = (first.source, first.source_port);
                }
            }
            (true, _) => {
                if connection.to.is_some() {
                    let first = connection.ends;
                    (ends.source, ends.source_port) = (first.destination, first.port);
                }
            }
        }
        if W::LISTENS && !before.is(packet.ends) {
            let text = self.text(packet);
            self.witness.note(format!("it is translated: {text}"));
        }
        Ok(())
    }
}
