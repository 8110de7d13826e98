//! What a rule can ask of a packet.

use std::fmt;

use super::Comment;
use crate::value::{Cidr, Gid, GroupName, InterfacePattern, PortRange, Uid, UidRange};

/// A transport protocol that Millrace captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP: IP protocol 6 (RFC 9293).
    Tcp,
    /// UDP: IP protocol 17 (RFC 768).
    Udp,
}

impl Protocol {
    /// The name in a rule.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which end of a packet a match looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Where it comes from: the source address or port.
    Source,
    /// Where it goes: the destination address or port.
    Destination,
}

/// Who made the socket a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// `--uid-owner`, `skuid`: the user who opened the socket.
    Uid(Uid),
    /// The socket's user, one of several.
    Uids(UidRange),
    /// `--gid-owner`, `skgid`: the group of who opened the socket, not a supplementary one.
    Gid(Gid),
    /// The socket's group, by a name that is looked up when the rule is written.
    Group(GroupName),
}

impl Owner {
    /// The users of a range, as the kernel tells of them: one alone is no range.
    pub fn users(range: UidRange) -> Self {
        if range.first() == range.last() { Self::Uid(range.first()) } else { Self::Uids(range) }
    }
}

/// A value compared after masking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Masked {
    /// What the masked bits are compared with, or set to.
    pub value: u32,
    /// The bits that count; all ones is not written.
    pub mask: u32,
}

impl Masked {
    /// All 32 bits, which is written without a mask.
    pub const fn exact(value: u32) -> Self {
        Self { value, mask: u32::MAX }
    }
}

/// States of a connection (`iptables-extensions(8)`, conntrack).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnState {
    /// The packet belongs to no connection and can't start one.
    Invalid,
    /// The packet starts a connection.
    New,
    /// The packet starts a connection that an existing one announced.
    Related,
    /// The connection has seen packets both ways.
    Established,
}

impl ConnState {
    /// The name in a rule.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "INVALID",
            Self::New => "NEW",
            Self::Related => "RELATED",
            Self::Established => "ESTABLISHED",
        }
    }

    /// The state with this name in capitals; none for others, such as `UNTRACKED`.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Invalid, Self::New, Self::Related, Self::Established]
            .into_iter()
            .find(|s| s.as_str() == name)
    }
}

/// One condition of a rule. `negated` is iptables' `!`.
///
/// The order of the variants is the order in which `iptables-save` writes them, so that a sorted
/// rule reads like one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// `-s` or `-d`: an address in a network.
    Address {
        /// Source is `-s`, destination is `-d`.
        side: Side,
        /// `!`: addresses outside the network match.
        negated: bool,
        /// Host bits don't count; length 0 is every address of its family.
        cidr: Cidr,
    },
    /// `-i`: the interface the packet came in by.
    InInterface {
        /// `!`: packets that came in by any other interface match.
        negated: bool,
        /// The interface, or the beginning of its name with `+` behind it.
        name: InterfacePattern,
    },
    /// `-o`: the interface the packet goes out by.
    OutInterface {
        /// `!`: packets that go out by any other interface match.
        negated: bool,
        /// The interface, or the beginning of its name with `+` behind it.
        name: InterfacePattern,
    },
    /// `-p`: the transport protocol.
    Protocol(Protocol),
    /// `-m tcp` or `-m udp` without any option: every packet of the protocol matches. Only beside
    /// [`Match::Protocol`].
    Module(Protocol),
    /// `--sport` or `--dport`: a port or range. Only beside [`Match::Protocol`].
    Port {
        /// Source is `--sport`, destination is `--dport`.
        side: Side,
        /// `!`: ports outside the range match.
        negated: bool,
        /// Both ends included, 0 to 65535.
        ports: PortRange,
    },
    /// `-m multiport --dports`: up to 15 destination ports. Only beside [`Match::Protocol`].
    DestinationPorts {
        /// `!`: packets to none of these ports match.
        negated: bool,
        /// One of these is the packet's; a range takes the room of two of the 15.
        ports: Vec<PortRange>,
    },
    /// `--syn`: of FIN, SYN, RST and ACK only SYN is set: the packet starts a connection. Only beside
    /// [`Match::Protocol`].
    Syn {
        /// `! --syn`: packets with any other combination of the four flags match.
        negated: bool,
    },
    /// `-m owner`: who made the socket. Only on the way out.
    Owner {
        /// `!`: sockets of anybody else match, and packets without a socket.
        negated: bool,
        /// A user, users or a group. A range of users is `--uid-owner FIRST-LAST`.
        owner: Owner,
    },
    /// `-m addrtype --src-type LOCAL` or `--dst-type LOCAL`: an address that routing delivers to this
    /// namespace, loopback included.
    LocalAddress {
        /// Source is `--src-type`, destination is `--dst-type`.
        side: Side,
        /// `!`: addresses of others match.
        negated: bool,
    },
    /// `-m conntrack --ctstate`: the state of the connection.
    ConnState(Vec<ConnState>),
    /// `-m state --state`: the same by an older name, under which the kernel keeps it.
    OldState(Vec<ConnState>),
    /// `-m mark`: the packet's mark.
    Mark {
        /// `!`: packets match whose bits under the mask differ from the value.
        negated: bool,
        /// Value and mask: the bits under the mask are compared with the value.
        mark: Masked,
    },
    /// `-m connmark`: the connection's mark.
    Connmark {
        /// `!`: connections match whose bits under the mask differ from the value.
        negated: bool,
        /// Value and mask: the bits under the mask are compared with the value.
        mark: Masked,
    },
    /// `-m comment`: the comment that says a rule of a builtin chain is Millrace's; every packet
    /// matches.
    Ours,
    /// `-m comment`: any other; every packet matches.
    Comment(Comment),
}
