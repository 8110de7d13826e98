//! A packet on its way, and the connection that the kernel tracks for it.

use std::net::SocketAddr;

use super::flags::Flags;
use super::question::Protocol;
use super::ranges::address;
use super::rule::{Field, NOBODY, States};
use super::walk::Walk;
use super::witness::Witness;
use crate::ruleset::Masked;
use crate::value::Family;

/// A number of a packet, with the field of the question that it still is, if it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) number: u128,
    pub(super) origin: Option<Field>,
}

impl Value {
    pub(super) const fn asked(number: u128, field: Field) -> Self {
        Self { number, origin: Some(field) }
    }

    pub(super) const fn made(number: u128) -> Self {
        Self { number, origin: None }
    }
}

/// A mark as what became of the question's: `(asked & keep) ^ flip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) keep: u32,
    pub(super) flip: u32,
}

impl Mark {
    pub(super) const ASKED: Self = Self { keep: u32::MAX, flip: 0 };

    pub(super) const fn made(value: u32) -> Self {
        Self { keep: 0, flip: value }
    }

    pub(super) const fn number(self, asked: u32) -> u32 {
        asked & self.keep ^ self.flip
    }

    pub(super) const fn bits(self, mask: u32) -> Self {
        Self { keep: self.keep & mask, flip: self.flip & mask }
    }

    pub(super) const fn flipped(self, other: Self) -> Self {
        Self { keep: self.keep ^ other.keep, flip: self.flip ^ other.flip }
    }

    /// What has to hold of the question's mark for this one to match; none when that does not
    /// depend on it.
    pub(super) const fn condition(self, on: Masked) -> Option<Masked> {
        let mask = self.keep & on.mask;
        let value = on.value ^ (self.flip & on.mask);
        if mask == 0 || value & !mask != 0 { None } else { Some(Masked { value, mask }) }
    }
}

/// Both ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) source: Value,
    pub(super) source_port: Value,
    pub(super) destination: Value,
    pub(super) port: Value,
}

impl Ends {
    pub(super) const fn swapped(self) -> Self {
        Self {
            source: self.destination,
            source_port: self.port,
            destination: self.source,
            port: self.source_port,
        }
    }

    pub(super) const fn numbers(self) -> [u128; 4] {
        [self.source.number, self.source_port.number, self.destination.number, self.port.number]
    }

    pub(super) fn is(self, other: Self) -> bool {
        self.numbers() == other.numbers()
    }

    pub(super) fn from(self, family: Family) -> SocketAddr {
        end(family, self.source, self.source_port)
    }

    pub(super) fn to(self, family: Family) -> SocketAddr {
        end(family, self.destination, self.port)
    }
}

pub(super) fn end(family: Family, ip: Value, port: Value) -> SocketAddr {
    SocketAddr::new(address(family, ip.number), u16::try_from(port.number).unwrap_or(0))
}

/// A socket's owner, as rules can ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// There is a socket, of this user and group.
    Known { uid: Value, gid: Value },
    /// There is no socket.
    Nobody,
    /// There is one of the kernel's, which has no owner (`inet_ctl_sock_create()`).
    Kernel,
    /// One of these two.
    Unowned,
    /// There is one, and nothing is known of it.
    Unknown,
}

impl Owner {
    /// Whether rules that ask for a user or group find none.
    pub(super) const fn is_nobody(self) -> bool {
        matches!(self, Self::Nobody | Self::Kernel | Self::Unowned)
    }

    pub(super) const fn value(self, field: Field) -> Option<Value> {
        match (self, field) {
            (Self::Known { uid, .. }, Field::Uid) => Some(uid),
            (Self::Known { gid, .. }, _) => Some(gid),
            (Self::Nobody | Self::Kernel | Self::Unowned, _) => Some(Value::made(NOBODY)),
            (Self::Unknown, _) => None,
        }
    }
}

/// A packet as it is at this point of its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    pub(super) ends: Ends,
    pub(super) owner: Owner,
    pub(super) mark: Mark,
    pub(super) input: Option<&'a str>,
    pub(super) output: Option<&'a str>,
    /// The first packet of a TCP connection.
    pub(super) syn: bool,
    /// Flags of TCP, as far as they are known.
    pub(super) flags: Flags,
    /// The type of a message of ICMP, where that is known.
    pub(super) icmp: Option<u8>,
    /// The connection that a message of ICMP tells of, and whether it goes back in it, where tracking has
    /// yet to find that.
    pub(super) about: Option<(usize, bool)>,
    /// Whether a rule has set its type of service, which is none where nobody does.
    pub(super) tos: bool,
    /// The zone that it will be tracked in.
    pub(super) zone: u16,
    /// Whether a rule has said so: the first that does is heard.
    pub(super) zoned: bool,
    pub(super) state: States,
    /// Its connection, and whether it goes back in it.
    pub(super) connection: Option<(usize, bool)>,
    /// Whether tracking has seen it.
    pub(super) seen: bool,
    /// Whether it tells of a packet that is not tracked: CT of iptables leaves it as it is
    /// (`nf_conntrack_attach()`, `xt_ct_target()`).
    pub(super) attached: bool,
    /// The port of the transparent socket that has taken it.
    pub(super) taken: Option<Value>,
    /// The same, of a socket that need not be transparent.
    pub(super) handed: Option<Value>,
    /// Where it was meant to go, when its socket was connected elsewhere.
    pub(super) meant: Option<(Value, Value)>,
}

impl<W: Witness> Walk<'_, W> {
    /// The packet in one line.
    pub(super) fn text(&self, packet: &Packet<'_>) -> String {
        let ends = &packet.ends;
        let (from, to) = (ends.from(packet.family), ends.to(packet.family));
        let (from, to) = if packet.protocol.has_ports() {
            (from.to_string(), to.to_string())
        } else {
            (from.ip().to_string(), to.ip().to_string())
        };
        let mut text = format!("{} {from} -> {to}", packet.protocol);
        if let Some(name) = packet.input {
            text.push_str(&format!(" in by {name}"));
        }
        if let Some(name) = packet.output {
            text.push_str(&format!(" out by {name}"));
        }
        match packet.owner {
            Owner::Known { uid, gid } => {
                text.push_str(&format!(" uid {} gid {}", uid.number, gid.number));
            }
            Owner::Nobody | Owner::Kernel | Owner::Unowned | Owner::Unknown => {}
        }
        match packet.mark.number(self.asked_mark) {
            0 => {}
            mark => text.push_str(&format!(" mark {mark:#x}")),
        }
        text
    }
}

/// A connection as tracking remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) zone: u16,
    pub(super) protocol: Protocol,
    /// Addresses and ports of the first packet, before any translation.
    pub(super) ends: Ends,
    pub(super) mark: Mark,
    /// Destination address and port after translation; none where they stay.
    pub(super) to: Option<(Value, Value)>,
    /// Where it comes from instead.
    pub(super) from: Option<(Value, Value)>,
    /// Whether it is settled what becomes of its destination and source.
    pub(super) settled: [bool; 2],
    /// What the first packet's state is.
    pub(super) state: States,
    /// Whether an answer has been seen, so that all that follows is of an established one.
    pub(super) answered: bool,
}

impl Connection {
    /// An answer's ends as they are where the connection's last packet went.
    pub(super) fn answer(&self) -> Ends {
        let mut ends = self.ends;
        if let Some((address, port)) = self.to {
            (ends.destination, ends.port) = (address, port);
        }
        if let Some((address, port)) = self.from {
            (ends.source, ends.source_port) = (address, port);
        }
        ends.swapped()
    }
}
