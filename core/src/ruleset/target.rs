//! What a rule does with a packet.

use std::net::IpAddr;

use super::chain::ChainName;
use super::matches::Masked;
use crate::value::{Family, ListenPort, Zone};

/// How the port of a REDIRECT is spelled. Both mean the same to iptables; the reference writes
/// one for TCP and the other for UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RedirectSpelling {
    /// `--to-ports`, written for TCP.
    ToPorts,
    /// `--to-port`, written for UDP.
    ToPort,
}

/// The end of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Go on behind the rule that jumped here; in a builtin chain, leave it untouched.
    Return,
    /// Leave the table; later tables and hooks still see the packet.
    Accept,
    /// Discard the packet; the sender is not told.
    Drop,
    /// Discard the packet and tell the sender that nobody has the port (`icmp-port-unreachable`,
    /// `icmp6-port-unreachable`), which is what REJECT does when it is not told otherwise.
    Reject(Family),
    /// Go on in another chain.
    Jump(ChainName),
    /// Send the packet to a port of this host (destination NAT to the incoming interface's
    /// address, or to loopback for what the host itself sends).
    Redirect {
        /// A port of this host, 1 to 65535.
        port: ListenPort,
        /// `--to-ports` or `--to-port`, which iptables takes alike.
        spelling: RedirectSpelling,
    },
    /// Send the packet to an address, and to a port of it where one is given.
    Dnat {
        /// The new destination (`--to-destination`), of the rule's family.
        address: IpAddr,
        /// The new destination port; none keeps the packet's own.
        port: Option<ListenPort>,
    },
    /// Give the connection another source address (`--to-source`). Millrace never writes it, and knows it
    /// from older tools.
    Snat {
        /// The new source, of the rule's family; the port stays where it can.
        address: IpAddr,
    },
    /// Hand the packet to a transparent socket without touching its addresses
    /// (kernel `Documentation/networking/tproxy.rst`).
    Tproxy {
        /// The mark that policy routing looks for.
        mark: Masked,
        /// The port the socket listens on.
        port: ListenPort,
    },
    /// Set bits of the packet's mark (`-j MARK --set-mark`); the others stay.
    SetMark(Masked),
    /// Set bits of the connection's mark; the others stay.
    SetConnmark(Masked),
    /// Copy the packet's mark to its connection.
    SaveMark,
    /// Copy the connection's mark to the packet.
    RestoreMark,
    /// Track the packet in a conntrack zone of its own.
    Zone(Zone),
}
