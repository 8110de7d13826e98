//! The answer to a connection: the first packet that goes back, and with TCP the one behind it.

use std::net::SocketAddr;

use super::fate::{Fate, How, Reply};
use super::halt::Halt;
use super::namespace::loopback;
use super::packet::{Ends, Mark, Owner, Packet, Value};
use super::question::{Direction, Protocol};
use super::ranges::number;
use super::rule::Field;
use super::walk::{Turn, Walk};
use super::witness::Witness;
use crate::value::Family;

/// Whether a socket is transparent (`IP_TRANSPARENT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transparent {
    Yes,
    No,
    Unknown,
}

/// A socket that a connection has in the namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    /// What comes to it has these.
    ends: Ends,
    transparent: Transparent,
}

impl<'a, W: Witness> Walk<'a, W> {
    /// The answer that the receiver of the first packet sends. A connection of TCP has come about when
    /// each has heard the other once more: tracking knows by then that it is established.
    pub(super) fn reply(&mut self, fate: &Fate) -> Option<Reply> {
        self.deciding = false;
        self.turn = Turn::Answer;
        let mut got = self.answered(fate)?;
        if got == Ok(Reply::Arrives) && self.question.protocol == Protocol::TCP {
            self.turn = Turn::Later;
            got = self.goes_on(fate);
            if got == Ok(Reply::Arrives) {
                self.note("what the receiver says then");
                got = match self.answered(fate)? {
                    Ok(Reply::Lost { why }) => {
                        Ok(Reply::Broken { why: format!("what the receiver says then: {why}") })
                    }
                    Err(Halt::Dropped { why, .. }) => {
                        let why = format!("what the receiver says then is dropped: {why}");
                        Ok(Reply::Broken { why })
                    }
                    Err(Halt::Refused(_)) => {
                        let why = "what the receiver says then is refused".to_owned();
                        Ok(Reply::Broken { why })
                    }
                    got => got,
                };
            }
        }
        if let (Ok(Reply::Arrives), Some(by)) = (&got, self.came_by) {
            let question = self.question;
            let source = question.source.map_or(0, number);
            got = self.is_found(Value::made(source), by).map(|()| Reply::Arrives);
        }
        Some(got.unwrap_or_else(Halt::reply))
    }

    pub(super) fn note(&mut self, what: &str) {
        if W::LISTENS {
            self.witness.note(what.to_owned());
        }
    }

    /// A packet of whoever has got the first one.
    fn answered(&mut self, fate: &Fate) -> Option<Result<Reply, Halt>> {
        if let Some(unable) = self.can_not_answer(fate) {
            return Some(Ok(unable));
        }
        Some(match fate {
            Fate::Delivered { port, destination, source, .. } => {
                self.answer_from_here(*port, *destination, *source)
            }
            Fate::Passed { interface, destination, source } => {
                // The interface's name is the namespace's, which lives as long as the walk.
                let name = self.namespace.interfaces().find(|i| i.name == *interface)?;
                self.answer_from_there(&name.name, *destination, *source)
            }
            _ => return None,
        })
    }

    /// Why who has got the first packet can't answer it: by IPv4 only a transparent socket sends from an
    /// address that is not the namespace's own (`ip_route_output_key_hash_rcu()`).
    fn can_not_answer(&self, fate: &Fate) -> Option<Reply> {
        let Fate::Delivered { destination, .. } = fate else { return None };
        let address = destination.ip();
        let own = self.namespace.local(Family::V4);
        if !address.is_ipv4() || own.contains(number(address)) {
            return None;
        }
        match self.socket_of(fate)?.transparent {
            Transparent::Yes => None,
            Transparent::No => Some(lost(format!(
                "it would come from {address}, which is no address of this pod, and the socket is not \
                 transparent"
            ))),
            Transparent::Unknown => Some(Reply::Unknown {
                rule: None,
                what: "whether a socket of it is transparent".to_owned(),
            }),
        }
    }

    /// What the sender sends when the answer has come: it has to arrive where the first packet did.
    fn goes_on(&mut self, first: &Fate) -> Result<Reply, Halt> {
        self.note("what the sender says then");
        self.own.extend(self.socket_of(first));
        let broken = |why: String| Ok(Reply::Broken { why });
        match self.way().map(|(fate, _)| fate) {
            Ok(fate) if arrives_like(&fate, first) => Ok(Reply::Arrives),
            Ok(_) => broken("what follows the first packet goes elsewhere".to_owned()),
            Err(Halt::Dropped { why, .. }) => broken(format!("what follows is dropped: {why}")),
            Err(Halt::Refused(_)) => broken("what follows is refused".to_owned()),
            Err(unknown @ Halt::Unknown { .. }) => Err(unknown),
        }
    }

    /// The socket that has accepted the connection.
    fn socket_of(&self, fate: &Fate) -> Option<Own> {
        let Fate::Delivered { destination, source, how, port, .. } = fate else { return None };
        let takes = |port| self.program.hands_to(port);
        let transparent = match how {
            How::Transparent => Transparent::Yes,
            _ if takes(*port) => Transparent::Unknown,
            _ => Transparent::No,
        };
        Some(Own { ends: ends(*source, *destination), transparent })
    }

    /// The socket that a process of the namespace has made.
    fn sender(&self, from: SocketAddr, to: SocketAddr) -> Own {
        let family = Family::of(from.ip());
        let own = self.namespace.local(family).contains(number(from.ip()));
        let transparent = match self.question.mark {
            _ if !own => Transparent::Yes,
            0 => Transparent::No,
            // So does a proxy that keeps the address of its client.
            _ => Transparent::Unknown,
        };
        Own { ends: ends(to, from), transparent }
    }

    /// Whether a packet is for a socket of its own, and not for one that listens.
    pub(super) fn holds_socket(&self, packet: &Packet<'_>) -> Option<Transparent> {
        let own = self.own.iter().find(|own| own.ends.is(packet.ends))?;
        Some(own.transparent)
    }

    fn answer(&self, from: SocketAddr, to: SocketAddr) -> Packet<'a> {
        let mut packet = self.packet(Value::made(number(from.ip())), Owner::Nobody);
        packet.ends = ends(from, to);
        // What nothing has translated is the port that was asked about.
        let asked = self.question.source_port;
        if asked != 0 && to.port() == asked {
            packet.ends.port = Value::asked(asked.into(), Field::SourcePort);
        }
        packet.mark = Mark::made(0);
        packet.syn = false;
        packet
    }

    /// A socket of the namespace answers.
    fn answer_from_here(
        &mut self,
        port: u16,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Reply, Halt> {
        let mut packet = self.answer(from, to);
        packet.mark = self.accepted;
        let owner = self.namespace.listeners.get(&port);
        packet.owner = owner.map_or(Owner::Unknown, |owner| Owner::Known {
            uid: Value::made(owner.uid.into()),
            gid: Value::made(owner.gid.into()),
        });
        let route = self.route(&packet);
        let out = self.question.direction == Direction::Out;
        if out {
            let asked = self.connected.unwrap_or(self.question.to());
            self.own.push(self.sender(self.sent.unwrap_or(to), asked));
        }
        Ok(match self.send(&mut packet, route)?.0 {
            Fate::Delivered { source, destination, .. } if out => {
                self.back(&packet, source, destination)
            }
            Fate::Passed { source, destination, interface } if !out => {
                self.back_by(&interface, &packet, source, destination)
            }
            Fate::Passed { .. } => lost("it leaves the pod"),
            _ => lost("it stays in the pod"),
        })
    }

    /// Somebody outside answers: the answer arrives by an interface.
    fn answer_from_there(
        &mut self,
        interface: &'a str,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Reply, Halt> {
        if loopback(Family::of(to.ip())).contains(number(to.ip())) {
            return Ok(lost(format!("nobody outside can answer to {to}")));
        }
        let out = self.question.direction == Direction::Out;
        if out {
            self.own.push(self.sender(self.sent.unwrap_or(to), self.question.to()));
        } else if self.came_by == Some(interface) && Some(to.ip()) == self.question.source {
            let what = "whether the answer comes by here: who answers is where the sender is";
            return Ok(Reply::Unknown { rule: None, what: what.to_owned() });
        }
        let mut packet = self.answer(from, to);
        packet.input = Some(interface);
        Ok(match self.receive(&mut packet)?.0 {
            Fate::Delivered { source, destination, .. } if out => {
                self.back(&packet, source, destination)
            }
            Fate::Passed { source, destination, interface } if !out => {
                self.back_by(&interface, &packet, source, destination)
            }
            Fate::Passed { .. } => lost("it is passed on"),
            _ => lost("it stays in the pod"),
        })
    }

    /// Whether an answer that leaves by an interface is one to who asked by one.
    fn back_by(
        &self,
        interface: &str,
        packet: &Packet<'_>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Reply {
        let found = self.back(packet, from, to);
        match self.came_by {
            Some(came_by) if came_by != interface && found == Reply::Arrives => {
                let what = format!(
                    "whether who asked by {came_by} hears the answer, which leaves by {interface}"
                );
                Reply::Unknown { rule: None, what }
            }
            _ => found,
        }
    }

    /// Whether an answer is one to the question.
    fn back(&self, packet: &Packet<'_>, from: SocketAddr, to: SocketAddr) -> Reply {
        if packet.taken.is_some() {
            return lost("a transparent socket takes it");
        }
        let asked = self.question.to();
        // A socket that was connected elsewhere does not see it.
        let from = if self.connected == Some(from) { asked } else { from };
        if from != asked {
            return lost(format!("it comes from {from}, and {asked} was asked"));
        }
        if self.sent.is_some_and(|sender| sender != to) {
            return lost(format!("it goes to {to}, where nobody asked"));
        }
        Reply::Arrives
    }
}

fn ends(from: SocketAddr, to: SocketAddr) -> Ends {
    let (ip, port) =
        (|a: SocketAddr| Value::made(number(a.ip())), |a: SocketAddr| Value::made(a.port().into()));
    Ends { source: ip(from), source_port: port(from), destination: ip(to), port: port(to) }
}

/// Whether a later packet ends where the first one did.
fn arrives_like(fate: &Fate, first: &Fate) -> bool {
    match (fate, first) {
        (
            // By now it has a socket of its own, and one that listens has nothing of it.
            Fate::Delivered { destination, source, how, .. },
            Fate::Delivered { destination: to, source: from, .. },
        ) => (destination, source) == (to, from) && *how != How::Transparent,
        (fate, first) => fate == first,
    }
}

fn lost(why: impl Into<String>) -> Reply {
    Reply::Lost { why: why.into() }
}
