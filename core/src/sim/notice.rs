//! Telling a sender that its packet is refused: an answer of its own, with a way of its own, on which it
//! can be lost (`nf_send_unreach()`, `nf_send_reset()` in `net/ipv4/netfilter/nf_reject_ipv4.c` and
//! their likes of IPv6; `__icmp_send()`).

use super::fate::{Fate, Outcome};
use super::flags::Flags;
use super::halt::Halt;
use super::namespace::index;
use super::packet::{Mark, Owner, Packet, Value};
use super::question::{Direction, Protocol};
use super::ranges::number;
use super::rule::{Field, Notice, States};
use super::walk::{End, Turn, Walk};
use super::witness::Witness;
use crate::value::Family;

/// What a rule has refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rejection<'a> {
    /// The packet, as it was there.
    pub(super) packet: Packet<'a>,
    /// How its sender is told.
    pub(super) notice: Notice,
}

impl<'a, W: Witness> Walk<'a, W> {
    /// The end of a way, with what becomes of the notice of a refusal.
    pub(super) fn with_notice(&mut self, found: Result<End, Halt>) -> Result<End, Halt> {
        let (Err(Halt::Refused(rule)), Some(refusal)) = (&found, self.refusal.take()) else {
            return found;
        };
        let (decided, deciding) = (self.decided.clone(), self.deciding);
        (self.deciding, self.turn) = (false, Turn::Answer);
        if W::LISTENS {
            self.witness.note("it is refused; the sender is told:".to_owned());
        }
        let reported = match refusal.notice {
            Notice::Unheard => Ok(()),
            _ => self.tell(&refusal),
        };
        (self.decided, self.deciding) = (decided, deciding);
        match reported {
            Ok(()) => found,
            Err(Halt::Dropped { why, .. }) => {
                let why = format!("it is refused, and the sender is not told: {why}");
                Err(Halt::Dropped { rule: Some(*rule), why })
            }
            Err(Halt::Refused(_)) => {
                let why = "it is refused, and what tells the sender is refused as well".to_owned();
                Err(Halt::Dropped { rule: Some(*rule), why })
            }
            Err(Halt::Unknown { rule, what }) => Err(Halt::Unknown { rule, what }),
        }
    }

    /// What becomes of a connection that has got to a port on which nobody listens: the kernel refuses it
    /// (`tcp_v4_send_reset()`, `udp_rcv()`), and what tells the sender has a way of its own.
    pub(super) fn without_listener(&mut self) -> Outcome {
        let _ends_at_the_port = self.first();
        let told = |packet: &Packet<'_>| matches!(packet.protocol, Protocol::TCP | Protocol::UDP);
        let Some(packet) = self.last.filter(told) else {
            let what = "whether the kernel tells the sender that nobody listens".to_owned();
            return Outcome::Unknown { what };
        };
        (self.deciding, self.turn) = (false, Turn::Answer);
        match self.tell(&Rejection { packet, notice: Notice::Unheard }) {
            Ok(()) => Outcome::Refused,
            Err(Halt::Dropped { why, .. }) => Outcome::Dropped {
                why: format!("the kernel refuses it, and the sender is not told: {why}"),
            },
            Err(Halt::Refused(_)) => {
                let why = "the kernel refuses it, and what tells the sender is refused as well";
                Outcome::Dropped { why: why.to_owned() }
            }
            Err(Halt::Unknown { what, .. }) => Outcome::Unknown { what },
        }
    }

    fn tell(&mut self, refusal: &Rejection<'a>) -> Result<(), Halt> {
        let lost = |why: &str| Err(Halt::Dropped { rule: None, why: why.to_owned() });
        let refused = &refusal.packet;
        let family = refused.family;
        let mut packet = Packet {
            ends: refused.ends.swapped(),
            // A message of ICMP has the kernel's own socket (`icmp_push_reply()`), and so has IPv4's reset
            // of a port on which nobody listens (`ip_send_unicast_reply()`), but neither that of IPv6
            // (`tcp_v6_send_response()`) nor that of a rule.
            owner: match (refusal.notice, refused.protocol, family) {
                (Notice::Reset, ..) | (Notice::Unheard, Protocol::TCP, Family::V6) => Owner::Nobody,
                _ => Owner::Kernel,
            },
            // `IP4_REPLY_MARK()`, `IP6_REPLY_MARK()`
            mark: if self.namespace.reflects_marks[index(family)] {
                refused.mark
            } else {
                Mark::made(0)
            },
            input: None,
            output: None,
            syn: false,
            flags: Flags::RESET,
            taken: None,
            handed: None,
            meant: None,
            ..*refused
        };
        // It goes with the connection that it tells of (`nf_conntrack_attach()`), if that has one.
        packet.attached = refused.connection.is_none() && refused.state == States::UNTRACKED;
        packet.seen = packet.connection.is_some();
        packet.state = if packet.seen { States::RELATED } else { States::INVALID };
        packet.connection = packet.connection.map(|(at, back)| (at, !back));
        let unheard = refusal.notice == Notice::Unheard;
        if unheard {
            // What was delivered has lost its connection (`ip_protocol_deliver_rcu()`), and tracking has to
            // find it again.
            packet.about = packet.connection.take();
            (packet.seen, packet.attached, packet.state) = (false, false, States::INVALID);
            (packet.zone, packet.zoned) = (0, false);
        }
        match refusal.notice {
            Notice::Reset if packet.protocol != Protocol::TCP => {
                return lost("only TCP connections are reset");
            }
            Notice::Reset => {}
            // It is the connection's own answer.
            Notice::Unheard if packet.protocol == Protocol::TCP => packet.about = None,
            Notice::Icmp | Notice::Unheard => {
                // Destination unreachable.
                (packet.protocol, packet.icmp) = match family {
                    Family::V4 => (Protocol::ICMP, Some(3)),
                    Family::V6 => (Protocol::ICMPV6, Some(1)),
                };
            }
        }
        let icmp = packet.icmp.is_some();
        let mut route = self.route(&packet);
        if icmp {
            // It comes from where the packet went, if that is here, or else from what is usual.
            let here = self.is_in(packet.ends.source, self.namespace.local(family));
            if !here {
                if family == Family::V4 && refused.taken.is_some() {
                    return lost("an ICMP message can't come from an address that is not its own");
                }
                packet.ends.source = Value::made(0);
                route = self.route(&packet);
                packet.ends.source = self.chosen_source(&packet, route)?;
            }
        }
        let told = self.send(&mut packet, route)?.0;
        // Its sender finds no socket by what translation has made of the packet that it tells of.
        let translated =
            refused.connection.is_some_and(|(at, _)| self.connections[at].to.is_some());
        let unknown = self.last.is_some_and(|packet| packet.connection.is_none());
        if icmp && unheard && translated && unknown {
            return lost("what tells the sender is about a connection that it doesn't know");
        }
        match told {
            Fate::Delivered { destination, source, .. }
                if self.question.direction == Direction::Out =>
            {
                let asker = self.sent.map_or(destination.ip(), |sender| sender.ip());
                let from_there = icmp || source == self.connected.unwrap_or(self.question.to());
                if destination.ip() == asker && from_there {
                    Ok(())
                } else {
                    lost("what tells the sender goes elsewhere")
                }
            }
            Fate::Passed { destination, interface, source }
                if self.question.direction == Direction::In =>
            {
                let from_there = icmp || source == self.question.to();
                if Some(destination.ip()) != self.question.source || !from_there {
                    lost("what tells the sender goes elsewhere")
                } else if let Some(by) = self.came_by.filter(|by| *by == interface) {
                    let sender = Value::asked(number(destination.ip()), Field::Source);
                    self.is_found(sender, by)
                } else {
                    let what = format!(
                        "whether the sender hears of it: what tells it leaves by {interface}"
                    );
                    Err(Halt::Unknown { rule: None, what })
                }
            }
            _ => lost("what tells the sender goes elsewhere"),
        }
    }
}
