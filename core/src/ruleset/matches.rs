//! What a rule can ask of a packet.

use std::fmt;

use super::Comment;
use crate::value::{Cidr, Gid, GroupName, InterfacePattern, PortRange, Uid, UidRange};

/// A transport protocol that Millrace captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
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
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// Who made the socket a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The socket's user.
    Uid(Uid),
    /// The socket's user, one of several.
    Uids(UidRange),
    /// The socket's group.
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
    /// The whole value.
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

    /// The state called `name`.
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
        /// Source or destination.
        side: Side,
        /// `!`
        negated: bool,
        /// The network.
        cidr: Cidr,
    },
    /// `-i`: the interface the packet came in by.
    InInterface {
        /// `!`
        negated: bool,
        /// The interface.
        name: InterfacePattern,
    },
    /// `-o`: the interface the packet goes out by.
    OutInterface {
        /// `!`
        negated: bool,
        /// The interface.
        name: InterfacePattern,
    },
    /// `-p`: the transport protocol.
    Protocol(Protocol),
    /// `-m tcp` or `-m udp` without any option: every packet of the protocol matches. Only beside
    /// [`Match::Protocol`].
    Module(Protocol),
    /// `--sport` or `--dport`: a port or range. Only beside [`Match::Protocol`].
    Port {
        /// Source or destination.
        side: Side,
        /// `!`
        negated: bool,
        /// The ports.
        ports: PortRange,
    },
    /// `-m multiport --dports`: up to 15 destination ports. Only beside [`Match::Protocol`].
    DestinationPorts {
        /// `!`
        negated: bool,
        /// The ports.
        ports: Vec<PortRange>,
    },
    /// `--syn`: of FIN, SYN, RST and ACK only SYN is set: the packet starts a connection. Only beside
    /// [`Match::Protocol`].
    Syn {
        /// `!`
        negated: bool,
    },
    /// `-m owner`: who made the socket. Only on the way out.
    Owner {
        /// `!`
        negated: bool,
        /// The owner.
        owner: Owner,
    },
    /// `-m conntrack --ctstate`: the state of the connection.
    ConnState(Vec<ConnState>),
    /// `-m state --state`: the same by an older name, under which the kernel keeps it.
    OldState(Vec<ConnState>),
    /// `-m mark`: the packet's mark.
    Mark {
        /// `!`
        negated: bool,
        /// The mark.
        mark: Masked,
    },
    /// `-m connmark`: the connection's mark.
    Connmark {
        /// `!`
        negated: bool,
        /// The mark.
        mark: Masked,
    },
    /// `-m comment`: the comment that says a rule of a builtin chain is Millrace's; every packet
    /// matches.
    Ours,
    /// `-m comment`: any other; every packet matches.
    Comment(Comment),
}
