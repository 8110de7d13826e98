//! What becomes of a connection.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;

use super::program::RuleId;

/// How a connection reaches a socket of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// At its own destination: nothing translated it or handed it on.
    Unchanged,
    /// Its destination was changed, by translation (NAT) or by eBPF at its socket.
    Translated,
    /// Its addresses are as they were, but another socket has it, which is transparent.
    Transparent,
    /// Its addresses are as they were, but another socket has it, which may be any.
    Handed,
}

/// The end of a connection's first packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase", tag = "fate")]
pub enum Fate {
    /// A socket of the namespace gets it.
    Delivered {
        /// The port that the socket listens on.
        port: u16,
        /// Untouched, translated, or handed to another socket.
        how: How,
        /// Where the packet goes when it gets there: the address of the accepted socket.
        destination: SocketAddr,
        /// Where it was meant to go, as the receiver can ask for it.
        original: SocketAddr,
        /// Where it comes from, as the receiver sees it; the unspecified address where the path that
        /// a route takes decides.
        source: SocketAddr,
    },
    /// It leaves the namespace by an interface, for another host.
    Passed {
        /// The interface it leaves by; those of a route's paths, as `eth0 or eth1`, where each has it leave.
        interface: String,
        /// Destination address and port of the packet as it leaves.
        destination: SocketAddr,
        /// Where it comes from, likewise.
        source: SocketAddr,
    },
    /// It is discarded without a word.
    Dropped {
        /// By this rule, if it is one.
        rule: Option<RuleId>,
        /// In words: what in rules, routes or the kernel discards it.
        why: String,
    },
    /// It is discarded, and the sender is told.
    Refused {
        /// The rule that refuses it.
        rule: RuleId,
    },
    /// It can't be told, because of something that is not known.
    Unknown {
        /// In this rule, if it is one.
        rule: Option<RuleId>,
        /// In words: what would have to be known to tell.
        what: String,
    },
}

impl Fate {
    /// Where it comes from, as who gets it sees it; none where nobody does.
    pub(super) const fn source(&self) -> Option<SocketAddr> {
        match self {
            Self::Delivered { source, .. } | Self::Passed { source, .. } => Some(*source),
            Self::Dropped { .. } | Self::Refused { .. } | Self::Unknown { .. } => None,
        }
    }

    /// The port that it comes from can't be told.
    pub(super) const fn forget_source_port(&mut self) {
        if let Self::Delivered { source, .. } | Self::Passed { source, .. } = self {
            source.set_port(0);
        }
    }

    /// Where it comes from can't be told.
    pub(super) const fn forget_source(&mut self) {
        if let Self::Delivered { source, .. } | Self::Passed { source, .. } = self {
            source.set_ip(match source {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            });
        }
    }
}

/// What becomes of connections, without their own addresses: connections of one class have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum Outcome {
    /// Another socket of the namespace than the one it was meant for gets it.
    Captured {
        /// The port that the socket listens on; none if it is the connection's own.
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// Translated, or handed to the socket as it was.
        how: How,
    },
    /// It is led to somebody outside who was not asked.
    Led {
        /// The address; none if it is the connection's own.
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
        /// The port; none if it is the connection's own.
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// The socket that it was meant for gets it.
    Delivered,
    /// It leaves by this interface.
    Passed {
        /// The name of the interface, such as `eth0`; of several, as `eth0 or eth1`, where a route's paths
        /// all have it leave.
        interface: String,
        /// Whether it leaves from another address.
        masked: bool,
    },
    /// It is discarded, and the sender is not told.
    Dropped {
        /// In words: what in rules, routes or the kernel discards it.
        why: String,
    },
    /// It is discarded, and the sender is told.
    Refused,
    /// It can't be told: something about a rule, route or interface is not known.
    Unknown {
        /// In words: what would have to be known to tell.
        what: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Captured { port: None, .. } => f.write_str("taken by this pod, same port"),
            Self::Captured { port: Some(port), how: How::Transparent | How::Handed } => {
                write!(f, "handed to port {port}, addresses untouched")
            }
            Self::Captured { port: Some(port), .. } => write!(f, "redirected to port {port}"),
            Self::Led { address: Some(address), port: Some(port) } => {
                write!(f, "led to {}", SocketAddr::new(*address, *port))
            }
            Self::Led { address: Some(address), port: None } => write!(f, "led to {address}"),
            Self::Led { address: None, port: Some(port) } => write!(f, "led to port {port}"),
            Self::Led { .. } => f.write_str("led elsewhere"),
            Self::Delivered => f.write_str("delivered as it is"),
            Self::Passed { interface, masked: false } => write!(f, "leaves by {interface}"),
            Self::Passed { interface, masked: true } => {
                write!(f, "leaves by {interface} from another address")
            }
            Self::Dropped { why } => write!(f, "dropped: {why}"),
            Self::Refused => f.write_str("refused"),
            Self::Unknown { what } => write!(f, "can't be told: {what}"),
        }
    }
}

/// What becomes of a captured connection while nobody listens where it is led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unheard {
    /// The port that nobody listens on.
    pub port: u16,
    /// Whether only a transparent socket counts as a listener.
    pub transparent: bool,
    /// What becomes of the connection while nobody listens there.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl fmt::Display for Unheard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, transparent, outcome } = self;
        let kind = if *transparent { "transparent " } else { "" };
        write!(f, "without a {kind}listener on port {port}: {outcome}")
    }
}

/// What becomes of the answer to a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase", tag = "reply")]
pub enum Reply {
    /// It comes back to who asked, from whom was asked.
    Arrives,
    /// It comes to somebody else, from somebody else, or not at all.
    Lost {
        /// In words: where it ends, or what discards it.
        why: String,
    },
    /// It does, and the connection does not come about all the same.
    Broken {
        /// In words: what keeps the connection from coming about.
        why: String,
    },
    /// Whether the answer arrives can't be told.
    Unknown {
        /// In this rule, if it is one.
        rule: Option<RuleId>,
        /// In words: what would have to be known to tell.
        what: String,
    },
}
