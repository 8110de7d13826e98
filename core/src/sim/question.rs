//! What is asked: the first packet of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Serialize, Serializer};

use super::ranges::Ranges;
use crate::value::Family;

/// A protocol of the Internet Protocol, by its number (IANA, protocol numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP of IPv4 (RFC 792).
    pub const ICMP: Self = Self(1);
    /// TCP (RFC 9293), which has ports.
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768), which has ports.
    pub const UDP: Self = Self(17);
    /// ICMP of IPv6 (RFC 4443).
    pub const ICMPV6: Self = Self(58);

    const NAMES: [(Self, &'static str); 8] = [
        (Self::TCP, "tcp"),
        (Self::UDP, "udp"),
        (Self::ICMP, "icmp"),
        (Self::ICMPV6, "icmpv6"),
        (Self(132), "sctp"),
        (Self(50), "esp"),
        (Self(51), "ah"),
        (Self(47), "gre"),
    ];

    /// The protocol called `name`, which may be a number.
    pub fn from_name(name: &str) -> Option<Self> {
        let known = Self::NAMES.iter().find(|(_, known)| *known == name).map(|(p, _)| *p);
        let known = known.or((name == "ipv6-icmp" || name == "icmp6").then_some(Self::ICMPV6));
        known.or_else(|| name.parse().ok().map(Self))
    }

    /// Whether its packets have ports.
    pub const fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17 | 33 | 132 | 136)
    }

    /// The numbers of both protocols of ICMP.
    pub(super) fn icmp() -> Ranges {
        [Self::ICMP, Self::ICMPV6].map(|p| (p.0.into(), p.0.into())).into_iter().collect()
    }

    /// The numbers of all protocols whose packets have ports.
    pub(super) fn with_ports() -> Ranges {
        (0..=u8::MAX)
            .filter(|p| Self(*p).has_ports())
            .map(|p| (u128::from(p), u128::from(p)))
            .collect()
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(known, _)| known == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which way a connection goes, seen from the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// A process of the namespace makes it.
    Out,
    /// It arrives by an interface.
    In,
}

/// The user and group that a socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Identity {
    /// The user id of the socket; 0 is root.
    pub uid: u32,
    /// The group id of the socket, not a supplementary one.
    pub gid: u32,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid={},gid={}", self.uid, self.gid)
    }
}

/// What connection tracking knows of the packet when it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "mark")]
pub enum Known {
    /// Nothing: it starts a connection.
    #[default]
    New,
    /// It belongs to a connection with this mark, which was never translated.
    Established(u32),
    /// It starts a connection with the addresses and ports of an earlier one that is still tracked, was
    /// never translated, and whose sockets are gone.
    Reused,
    /// It starts a connection that another one, with this mark, announced.
    Related(u32),
    /// It can belong to no connection.
    Invalid,
}

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Question {
    /// Whether a process of the namespace sends it, or it arrives by an interface.
    pub direction: Direction,
    /// By its IP protocol number; not each has ports.
    pub protocol: Protocol,
    /// Where it comes from; none is what the kernel would choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The source port; 0 without ports.
    pub source_port: u16,
    /// The destination address before any rule has changed it.
    pub destination: IpAddr,
    /// The port it goes to; 0 without ports.
    pub port: u16,
    /// Who owns the socket it comes from; the kernel's own have no owner, nor has what arrives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Identity>,
    /// `SO_MARK` of its socket, 32 bits; 0 without.
    pub mark: u32,
    /// The interface it arrives by; none is the one that its source is behind. Of no meaning on
    /// the way out, where the destination decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// What connection tracking knows of it.
    pub known: Known,
}

/// The source port of a question that names none: the first that Linux gives to a socket that did
/// not ask for one (`ip_local_port_range`).
pub const EPHEMERAL: u16 = 32_768;

impl Question {
    /// A connection that a process of the namespace makes.
    pub const fn out(owner: Identity, protocol: Protocol, to: SocketAddr) -> Self {
        Self {
            direction: Direction::Out,
            protocol,
            source: None,
            source_port: EPHEMERAL,
            destination: to.ip(),
            port: to.port(),
            owner: Some(owner),
            mark: 0,
            interface: None,
            known: Known::New,
        }
    }

    /// A new connection that arrives by the interface that its source is behind.
    pub const fn inward(from: IpAddr, protocol: Protocol, to: SocketAddr) -> Self {
        Self {
            direction: Direction::In,
            protocol,
            source: Some(from),
            source_port: EPHEMERAL,
            destination: to.ip(),
            port: to.port(),
            owner: None,
            mark: 0,
            interface: None,
            known: Known::New,
        }
    }

    /// The IP version of its destination.
    pub const fn family(&self) -> Family {
        Family::of(self.destination)
    }

    /// Destination with its port; port 0 where the protocol has none.
    pub const fn to(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.port)
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.direction, self.owner) {
            (Direction::Out, Some(owner)) => write!(f, "from {owner}")?,
            (Direction::Out, None) => write!(f, "from the kernel")?,
            (Direction::In, _) => write!(f, "in")?,
        }
        if let Some(interface) = &self.interface {
            write!(f, " by {interface}")?;
        }
        if let Some(source) = self.source {
            write!(f, " src {}", end(source, self.source_port, self.protocol))?;
        }
        if self.mark != 0 {
            write!(f, " mark {:#x}", self.mark)?;
        }
        match self.known {
            Known::New => {}
            Known::Established(_) => f.write_str(" established")?,
            Known::Reused => f.write_str(" with an earlier connection's addresses and ports")?,
            Known::Related(_) => f.write_str(" related")?,
            Known::Invalid => f.write_str(" invalid")?,
        }
        write!(f, " to {}/{}", end(self.destination, self.port, self.protocol), self.protocol)
    }
}

/// An address, with its port where the protocol has ports.
pub(super) fn end(address: IpAddr, port: u16, protocol: Protocol) -> String {
    if protocol.has_ports() {
        SocketAddr::new(address, port).to_string()
    } else {
        address.to_string()
    }
}
