//! Rules as the walk carries them out, whoever wrote them and in whatever language.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::fib::{AddressTypes, ReturnRoute};
use super::question::Protocol;
use super::ranges::{Ranges, address};
use crate::ruleset::{Masked, Side};
use crate::value::{Cidr, Family, InterfacePattern};

/// A number that a packet carries, or that its socket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The IP protocol number, 0 to 255.
    Protocol,
    /// The source address, a number of 32 or 128 bits.
    Source,
    /// The source port; of protocols that have ports.
    SourcePort,
    /// The destination address, a number of 32 or 128 bits.
    Destination,
    /// The destination port; of protocols that have ports.
    Port,
    /// The user of the socket it comes from.
    Uid,
    /// The group of the socket it comes from.
    Gid,
}

impl Field {
    /// All fields, in the order in which connections are told apart by them.
    pub const ALL: [Self; 7] = [
        Self::Uid,
        Self::Gid,
        Self::Protocol,
        Self::Source,
        Self::SourcePort,
        Self::Destination,
        Self::Port,
    ];

    pub(super) const fn address(side: Side) -> Self {
        match side {
            Side::Source => Self::Source,
            Side::Destination => Self::Destination,
        }
    }

    pub(super) const fn port(side: Side) -> Self {
        match side {
            Side::Source => Self::SourcePort,
            Side::Destination => Self::Port,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Source => "source",
            Self::SourcePort => "source port",
            Self::Destination => "destination",
            Self::Port => "port",
            Self::Uid => "uid",
            Self::Gid => "gid",
        }
    }

    /// A value of the field as people write it.
    pub(super) fn value(self, value: u128, family: Family) -> String {
        match self {
            Self::Source | Self::Destination => address(family, value).to_string(),
            Self::Protocol => Protocol(u8::try_from(value).unwrap_or(u8::MAX)).to_string(),
            Self::Uid | Self::Gid if value == NOBODY => "none".to_owned(),
            _ => value.to_string(),
        }
    }

    /// A set of values as people write it, cut short where it is long.
    pub fn values(self, set: &Ranges, family: Family) -> String {
        const MOST: usize = 4;
        let mut words: Vec<String> =
            set.iter().take(MOST).map(|(first, last)| self.range(first, last, family)).collect();
        let more = set.iter().count().saturating_sub(MOST);
        if more > 0 {
            words.push(format!("and {more} more"));
        }
        words.join(",")
    }

    fn range(self, first: u128, last: u128, family: Family) -> String {
        if first == last {
            return self.value(first, family);
        }
        if matches!(self, Self::Source | Self::Destination) {
            let size = last - first;
            let low = size.count_ones();
            let length = u32::from(family.bits()).saturating_sub(low);
            let is_network = size == u128::MAX || (size & (size + 1) == 0 && first & size == 0);
            let cidr = u8::try_from(length).ok().and_then(|l| Cidr::new(address(family, first), l));
            if let Some(cidr) = cidr.filter(|_| is_network) {
                return cidr.to_string();
            }
        }
        format!("{}-{}", self.value(first, family), self.value(last, family))
    }
}

/// Numbers and ranges of them, with commas between.
pub(super) fn numbers(set: &Ranges) -> String {
    let one = |(first, last): (u128, u128)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    set.iter().map(one).collect::<Vec<_>>().join(",")
}

/// The user or group of a packet that comes from no socket: the number that is nobody's.
pub(super) const NOBODY: u128 = u32::MAX as u128;

/// Which interface of a packet is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// The one that it came in by.
    In,
    /// The one that it goes out by.
    Out,
}

/// States of connections as a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct States(pub u8);

impl States {
    /// The packet belongs to no connection and can't start one.
    pub const INVALID: Self = Self(1);
    /// The packet starts a connection.
    pub const NEW: Self = Self(2);
    /// Starts one that another one announced.
    pub const RELATED: Self = Self(4);
    /// The packet's connection has seen packets both ways.
    pub const ESTABLISHED: Self = Self(8);
    /// Tracking leaves the packet out (NOTRACK).
    pub const UNTRACKED: Self = Self(16);
    /// The connection's source was translated (`--ctstate SNAT`).
    pub const SNAT: Self = Self(32);
    /// The connection's destination was translated (`--ctstate DNAT`).
    pub const DNAT: Self = Self(64);
    /// Those of packets that have no connection.
    pub const WITHOUT: Self = Self::INVALID.or(Self::UNTRACKED);

    const NAMES: [(Self, &'static str); 7] = [
        (Self::INVALID, "INVALID"),
        (Self::NEW, "NEW"),
        (Self::RELATED, "RELATED"),
        (Self::ESTABLISHED, "ESTABLISHED"),
        (Self::UNTRACKED, "UNTRACKED"),
        (Self::SNAT, "SNAT"),
        (Self::DNAT, "DNAT"),
    ];

    /// The state called `name`, in either case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(s, _)| *s)
    }

    /// States that are in either set.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether they have one in common.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            Self::NAMES.iter().filter(|(s, _)| self.meets(*s)).map(|(_, n)| *n).collect();
        f.write_str(&names.join(","))
    }
}

/// A condition on a packet, its socket or its connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    /// A field has one of these values. Addresses are of the family; a packet of the other one has
    /// none of them.
    Is {
        /// The number that is asked for.
        field: Field,
        /// `!`: any value outside the set.
        negated: bool,
        /// Values of which one has to be the packet's.
        set: Ranges,
        /// The IP version that a packet must have, negated or not; none is either.
        family: Option<Family>,
        /// Whether a packet without a socket fails, even when the test is negated: so it is with
        /// `nf_tables`, and not with the owner match of iptables.
        socket: bool,
    },
    /// Either port is one of these.
    EitherPort {
        /// `!`: neither port is one of these.
        negated: bool,
        /// Ports of which one has to be either end's.
        set: Ranges,
    },
    /// The two bytes of the transport header where TCP and UDP have a port, whatever the protocol is and
    /// whatever it has there.
    AtPort {
        /// Where the source port is, or the destination port.
        side: Side,
        /// `!`: any value outside the set.
        negated: bool,
        /// Values of which one has to stand there.
        set: Ranges,
    },
    /// The packet is of this IP version.
    Family(Family),
    /// The interface is one of these.
    Interface {
        /// The interface that it came in by, or that it goes out by.
        way: Way,
        /// `!`: any interface that is none of these.
        negated: bool,
        /// Names, or beginnings of names with `+` behind them.
        names: Arc<[InterfacePattern]>,
    },
    /// The mark of the packet or of its connection.
    Mark {
        /// Whether the connection's is meant.
        connection: bool,
        /// `!`: the bits under the mask differ from the value.
        negated: bool,
        /// Value and mask: the bits under the mask are compared with the value.
        mark: Masked,
    },
    /// The state of the connection.
    State {
        /// `!`: the connection is in none of these states.
        negated: bool,
        /// States of which it has to be in one at least.
        states: States,
    },
    /// An address is one of the namespace's own.
    Local {
        /// The source address or the destination address.
        side: Side,
        /// `!`: the address is somebody else's.
        negated: bool,
    },
    /// An address is of one of these types.
    AddressType {
        /// The source address or the destination address.
        side: Side,
        /// `!`: it is of another type.
        negated: bool,
        /// Types of which it has to be one.
        types: AddressTypes,
    },
    /// The link layer brought it to this host alone, not to several, nor to another one.
    ForThisHost {
        /// `!`: to several hosts, or to another one.
        negated: bool,
    },
    /// It has an extension header of IPv6, which no connection's packets have of themselves
    /// (RFC 8200 section 4).
    Extension {
        /// `!`: it has none.
        negated: bool,
        /// The header's number (IANA protocol numbers), such as 43 for routing.
        number: u8,
    },
    /// The way back to its source.
    ReturnRoute(ReturnRoute),
    /// An end of its connection, as it was before any translation.
    OriginalEnd {
        /// An address or a port.
        field: Field,
        /// `!`: any value outside the set.
        negated: bool,
        /// Values of which one has to be the end's.
        set: Ranges,
        /// The IP version that the connection must have, negated or not; none is either.
        family: Option<Family>,
    },
    /// The packet goes the way in which its connection was made.
    Original {
        /// `!`: it goes the other way.
        negated: bool,
    },
    /// It is the first packet of a TCP connection.
    Syn {
        /// `!`: it is any other packet.
        negated: bool,
    },
    /// Of these flags of TCP exactly those are set, as bits of the header's byte 13 (RFC 9293 section 3.1).
    TcpFlags {
        /// `!`: others are, or it is not TCP's.
        negated: bool,
        /// The flags that are looked at.
        mask: u8,
        /// Those of them that are set.
        value: u8,
    },
    /// There is a socket that the packet comes from.
    Socket {
        /// `!`: it comes from no socket.
        negated: bool,
    },
    /// It is a message of ICMP of one of these types.
    Icmp {
        /// `!`: its type is none of these.
        negated: bool,
        /// The types, each a number up to 255.
        types: Ranges,
    },
    /// Something that is not known here, as it is written.
    Unknown(String),
}

impl Test {
    pub(super) fn address_type(side: Side, negated: bool, types: AddressTypes) -> Self {
        if types == AddressTypes::LOCAL {
            Self::Local { side, negated }
        } else {
            Self::AddressType { side, negated, types }
        }
    }
}

/// How a sender is told that a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// By a message of ICMP.
    Icmp,
    /// By a packet that resets a TCP connection; who sends anything else is not told.
    Reset,
    /// As the kernel tells by itself who asks where nobody listens.
    Unheard,
}

/// An address and ports to translate to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Translation {
    /// The address; none leaves it.
    pub address: Option<IpAddr>,
    /// The first and the last port; none leaves it.
    pub ports: Option<(u16, u16)>,
}

/// How a mark is changed: `(mark & keep) ^ flip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MarkChange {
    /// Bits of the old mark that are kept; the others become 0 first.
    pub keep: u32,
    /// The bits that are flipped then.
    pub flip: u32,
}

impl MarkChange {
    /// Set these bits and clear the others of the mask.
    pub const fn set(mark: Masked) -> Self {
        Self { keep: !(mark.mask | mark.value), flip: mark.value }
    }

    /// Clear the bits of the mask, then flip those of the value.
    pub const fn exchange(mark: Masked) -> Self {
        Self { keep: !mark.mask, flip: mark.value }
    }
}

/// What a rule does with a packet or its connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Leave the chain that the kernel called.
    Accept,
    /// Discard the packet; the sender is not told.
    Drop,
    /// Discard and tell the sender.
    Reject(Notice),
    /// Go on behind the rule that jumped here.
    Return,
    /// Go on in another chain, and come back.
    Jump(String),
    /// Go on in another chain, and come back to where this one would.
    Goto(String),
    /// Send to this host, to a port from the first to the last; none keeps the port.
    Redirect(Option<(u16, u16)>),
    /// Change the destination, for the whole connection.
    Dnat(Translation),
    /// Change the source, for the whole connection.
    Snat(Translation),
    /// Change the source to the address of the interface it goes out by.
    Masquerade(Option<(u16, u16)>),
    /// Hand to a transparent socket.
    Tproxy {
        /// The port; none is the packet's own.
        port: Option<u16>,
        /// The socket's address, where it is given.
        address: Option<IpAddr>,
        /// The family, where only one is meant.
        family: Option<Family>,
        /// Whether a packet that no transparent socket takes is dropped, as iptables does
        /// (`tproxy_tg4()`), and not let on to the next rule (`nft_tproxy_eval_v4()`).
        drops: bool,
    },
    /// Connect the socket elsewhere instead.
    Connect {
        /// The address; none is localhost of the same family.
        address: Option<IpAddr>,
        /// The port; none leaves it.
        port: Option<u16>,
    },
    /// Give it to the socket that listens on this port.
    Hand(u16),
    /// Change the packet's mark (`-j MARK`, `meta mark set`).
    Mark(MarkChange),
    /// Change the connection's mark (`-j CONNMARK`, `ct mark set`).
    Connmark(MarkChange),
    /// Copy the packet's mark to its connection: bits of the packet's, bits of the connection's
    /// that they replace.
    Save {
        /// Bits of the packet's mark.
        packet: u32,
        /// Bits of the connection's mark.
        connection: u32,
    },
    /// Copy the connection's mark to the packet.
    Restore {
        /// Bits of the packet's mark.
        packet: u32,
        /// Bits of the connection's mark.
        connection: u32,
    },
    /// Track in this conntrack zone (`-j CT --zone`, `ct zone set`).
    Zone(u16),
    /// Keep the packet out of connection tracking.
    Notrack,
    /// Change the type of service, which routing can ask for.
    Tos,
    /// Nothing that the way of a packet depends on: a counter, a line in a log.
    Note,
    /// Something that is done to a packet or because of it, and that its way does not depend on, in
    /// words that are the same for the same.
    Effect(String),
    /// Something that is not known here, as it is written.
    Unknown(String),
}

/// A part of a rule; they are carried out from left to right, up to the first condition that does
/// not hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A condition, at which the rule ends where it does not hold.
    Test(Test),
    /// An action, carried out when all conditions before it hold.
    Do(Action),
}

impl Step {
    /// Whether it is not known here.
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Test(Test::Unknown(_)) | Self::Do(Action::Unknown(_)))
    }
}

impl From<Test> for Step {
    fn from(test: Test) -> Self {
        Self::Test(test)
    }
}

impl From<Action> for Step {
    fn from(action: Action) -> Self {
        Self::Do(action)
    }
}
