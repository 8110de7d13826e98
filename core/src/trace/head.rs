//! The beginning of a packet.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Serialize, Serializer};

use crate::sim::Protocol;
use crate::value::Family;

/// What is known of a packet by its first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// By the version in the first four bits of the IP header.
    pub family: Family,
    /// By the field `protocol` or `next header`, not by what is behind it.
    pub protocol: Protocol,
    /// Where it comes from; port 0 without ports.
    pub source: SocketAddr,
    /// Where it goes; port 0 without ports.
    pub destination: SocketAddr,
    /// What tells it from other packets of the same socket, whatever becomes of its addresses: the
    /// sequence number of TCP, the length of others.
    pub tag: u32,
    /// The interface it came in by.
    pub input: Option<String>,
    /// The interface it goes out by.
    pub output: Option<String>,
    /// `skb->mark` where the kernel saw it, 32 bits.
    pub mark: u32,
    /// Who made its socket, where that is told.
    pub uid: Option<u32>,
    /// The group of its socket, where that is told.
    pub gid: Option<u32>,
}

impl Head {
    /// Read an IP header (RFC 791 section 3.1, RFC 8200 section 3) and what follows it: the beginning
    /// of the transport header. Extension headers of IPv6 must not be in between.
    pub fn read(network: &[u8], transport: &[u8]) -> Option<Self> {
        let (family, protocol, length) = match network.first()? >> 4 {
            4 => (Family::V4, *network.get(9)?, u16_at(network, 2)?),
            6 => (Family::V6, *network.get(6)?, u16_at(network, 4)?),
            _ => return None,
        };
        let (source, destination) = match family {
            Family::V4 => (v4(network, 12)?, v4(network, 16)?),
            Family::V6 => (v6(network, 8)?, v6(network, 24)?),
        };
        let protocol = Protocol(protocol);
        let port = |at| if protocol.has_ports() { u16_at(transport, at) } else { None };
        let sequence = || Some(u32::from_be_bytes(transport.get(4..8)?.try_into().ok()?));
        let tag = (protocol == Protocol::TCP).then(sequence).flatten();
        Some(Self {
            family,
            protocol,
            source: SocketAddr::new(source, port(0).unwrap_or(0)),
            destination: SocketAddr::new(destination, port(2).unwrap_or(0)),
            tag: tag.unwrap_or_else(|| length.into()),
            input: None,
            output: None,
            mark: 0,
            uid: None,
            gid: None,
        })
    }

    /// Read a packet from its IP header on; none where it is cut off or of neither family.
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        let length = match packet.first()? {
            first if first >> 4 == 4 => usize::from(first & 15) * 4,
            _ => 40,
        };
        Self::read(packet, packet.get(length..)?)
    }

    /// Whether it is the same packet, with other addresses or not.
    pub(super) fn is(&self, other: &Self) -> bool {
        let ends = |head: &Self| (head.family, head.protocol, head.tag, head.source.port());
        let source = self.protocol == Protocol::TCP || self.source == other.source;
        ends(self) == ends(other) && source
    }

    /// Where it goes, without a port that it has not.
    pub fn to(&self) -> String {
        self.end(self.destination)
    }

    fn end(&self, end: SocketAddr) -> String {
        if self.protocol.has_ports() { end.to_string() } else { end.ip().to_string() }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.protocol, self.end(self.source), self.to())?;
        if let Some(name) = &self.input {
            write!(f, " in by {name}")?;
        }
        if let Some(name) = &self.output {
            write!(f, " out by {name}")?;
        }
        if let Some(uid) = self.uid {
            write!(f, " uid {uid}")?;
        }
        if let Some(gid) = self.gid {
            write!(f, " gid {gid}")?;
        }
        match self.mark {
            0 => Ok(()),
            mark => write!(f, " mark {mark:#x}"),
        }
    }
}

impl Serialize for Head {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("protocol", &self.protocol)?;
        map.serialize_entry("source", &self.end(self.source))?;
        map.serialize_entry("destination", &self.to())?;
        for (name, interface) in [("in", &self.input), ("out", &self.output)] {
            if let Some(interface) = interface {
                map.serialize_entry(name, interface)?;
            }
        }
        for (name, id) in [("uid", self.uid), ("gid", self.gid)] {
            if let Some(id) = id {
                map.serialize_entry(name, &id)?;
            }
        }
        if self.mark != 0 {
            map.serialize_entry("mark", &self.mark)?;
        }
        map.end()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?))
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?))
}
