//! The answer to a connection: the first packet that goes back.

use std::net::SocketAddr;

use super::fate::{Fate, Reply};
use super::packet::{Ends, Mark, Owner, Packet, Value};
use super::question::Direction;
use super::ranges::number;
use super::walk::{Halt, Walk};
use super::witness::Witness;

impl<'a, W: Witness> Walk<'a, W> {
    /// The answer that the receiver of the first packet sends.
    pub(super) fn reply(&mut self, fate: &Fate) -> Option<Reply> {
        self.deciding = false;
        let got = match fate {
            Fate::Delivered { port, destination, source, .. } => {
                self.answer_from_here(*port, *destination, *source)
            }
            Fate::Passed { interface, destination, source } => {
                // The interface's name is the namespace's, which lives as long as the walk.
                let name = self.namespace.interfaces().find(|i| i.name == *interface)?;
                self.answer_from_there(&name.name, *destination, *source)
            }
            _ => return None,
        };
        Some(got.unwrap_or_else(Halt::reply))
    }

    fn answer(&self, from: SocketAddr, to: SocketAddr) -> Packet<'a> {
        let value = |ip| Value::made(number(ip));
        let mut packet = self.packet(value(from.ip()), Owner::Nobody);
        packet.ends = Ends {
            source: value(from.ip()),
            source_port: Value::made(from.port().into()),
            destination: value(to.ip()),
            port: Value::made(to.port().into()),
        };
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
        let owner = self.namespace.listeners.get(&port);
        packet.owner = owner.map_or(Owner::Unknown, |owner| Owner::Known {
            uid: Value::made(owner.uid.into()),
            gid: Value::made(owner.gid.into()),
        });
        let route = self.route(&packet);
        let out = self.question.direction == Direction::Out;
        Ok(match self.send(&mut packet, route)?.0 {
            Fate::Delivered { source, destination, .. } if out => {
                self.back(&packet, source, destination)
            }
            Fate::Passed { source, destination, .. } if !out => {
                self.back(&packet, source, destination)
            }
            Fate::Passed { .. } => lost("it leaves the pod"),
            _ => lost("it stays in the pod"),
        })
    }

    /// Somebody outside answers.
    fn answer_from_there(
        &mut self,
        interface: &'a str,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Reply, Halt> {
        let mut packet = self.answer(from, to);
        packet.input = Some(interface);
        Ok(match self.receive(&mut packet)?.0 {
            Fate::Delivered { source, destination, .. } => self.back(&packet, source, destination),
            _ => lost("it is passed on"),
        })
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
        let port = self.question.source_port;
        if to.port() != port || self.question.source.is_some_and(|source| source != to.ip()) {
            return lost(format!("it goes to {to}, where nobody asked"));
        }
        Reply::Arrives
    }
}

fn lost(why: impl Into<String>) -> Reply {
    Reply::Lost { why: why.into() }
}
