//! Decisions without a word about any backend's syntax, any mesh's names, or a family.

use std::net::{IpAddr, Ipv6Addr};

use crate::policy::{CapturePolicy, passthrough};
pub use crate::ruleset::Role;
use crate::ruleset::{ConnState, Masked, Owner, Placement, Protocol, Reason, Side, Table};
use crate::source::Source;
use crate::value::{Cidr, Family, InterfacePattern, ListenPort, Mark, Port, PortRange, Zone};

/// Decisions in the order in which they are written: the order in which a packet meets those of
/// one path, but for those that are placed in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Those of all tables and paths in one list.
    pub decisions: Vec<Decision>,
    /// The families that are captured; IPv4 always is.
    pub families: Vec<Family>,
    /// The IPv4 addresses that mean «this pod itself».
    localhost: Cidr,
}

/// One question, and what follows when all of it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When in the kernel it is asked: of each packet before tracking (`raw`), of each packet after
    /// it (`mangle`), or of the first packet of a connection (`nat`).
    pub table: Table,
    /// On which part of the way.
    pub path: Path,
    /// Behind the decisions of its path that are there, or in front of some.
    pub placement: Placement,
    /// What it is there for.
    pub role: Role,
    /// Conditions that must all hold; none where it is about every packet.
    pub when: Vec<Condition>,
    /// The one family that it is asked in; none for all that are captured.
    pub only: Option<Family>,
    /// What becomes of a packet for which all conditions hold.
    pub verdict: Verdict,
    /// The setting that asks for it, and its purpose in words.
    pub reason: Reason,
}

/// A part of the way of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Whatever arrives: where the kernel begins to ask.
    Arriving,
    /// Whatever the pod sends: the same.
    Leaving,
    /// What a decision leads to.
    On(Branch),
}

impl From<Branch> for Path {
    fn from(branch: Branch) -> Self {
        Self::On(branch)
    }
}

/// Decisions that another one leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Branch {
    /// About connections to the pod: the layout's chain `inbound`.
    Inbound,
    /// About connections from the pod: the layout's chain `output`.
    Outbound,
    /// DNS queries from the pod.
    Dns,
    /// What is captured, on its way to that listener.
    To(Listener),
    /// Packets of a connection that a transparent proxy has.
    Divert,
    /// Packets that a transparent proxy is to have.
    Transparent,
    /// Packets that belong to no connection.
    Invalid,
}

/// A port on which the proxy listens for captured connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listener {
    /// For those to the pod.
    Inbound,
    /// For those from the pod.
    Outbound,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Its transport protocol: `-p`, `meta l4proto`.
    Protocol(Protocol),
    /// The port that it goes to, which it has by its protocol.
    ToPorts {
        /// Whether it is none of these.
        negated: bool,
        /// Ports of which one is its destination.
        ports: Vec<PortRange>,
    },
    /// The port that it comes from.
    FromPort(PortRange),
    /// Its source or destination address is one of some, or none of them.
    Address {
        /// Whether the source or the destination address is compared.
        side: Side,
        /// Whether it is none of these.
        negated: bool,
        /// Addresses of which one is the packet's, in the family that is asked.
        of: Addresses,
    },
    /// Who made the socket that it comes from.
    Owner {
        /// Whether it was anybody else.
        negated: bool,
        /// Users or groups, by number or by name.
        owner: Owner,
    },
    /// The interface that it arrived by.
    ArrivedBy(InterfacePattern),
    /// The interface that it leaves by.
    LeavesBy {
        /// Whether it is any other.
        negated: bool,
        /// The interface, or the beginning of its name with `+` behind it.
        name: InterfacePattern,
    },
    /// Whether it starts a connection of TCP, whatever tracking holds.
    Starts {
        /// Whether packets that start no such connection are meant.
        negated: bool,
    },
    /// Its source or destination is an address of the pod, loopback included, as routing has it.
    Local {
        /// Whether the source or the destination address is asked for.
        side: Side,
        /// Whether it is of somebody else.
        negated: bool,
    },
    /// The state of its connection: one of these.
    State(Vec<ConnState>),
    /// Bits of the packet's mark: `-m mark`, `meta mark`.
    Mark {
        /// Whether they are any other.
        negated: bool,
        /// Value and mask: the bits under the mask are compared with the value.
        mark: Masked,
    },
    /// Bits of the mark of its connection.
    ConnectionMark(Masked),
}

/// Addresses. Which they are in a family is known when a backend spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Addresses {
    /// Those that mean «this pod itself».
    Localhost,
    /// That from which the proxy passes connections on to the application.
    Passthrough,
    /// A network, which is of one family.
    Network(Cidr),
}

/// What becomes of a packet that meets all conditions of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing more is asked on this path: it goes on as it is.
    Pass,
    /// Goes on as it is.
    Accept,
    /// Is discarded, and its sender is told nothing.
    Drop,
    /// The decisions of a branch are next.
    Ask(Branch),
    /// To a port of this pod.
    Redirect(ListenPort),
    /// To an address of this family, and to a port of it where one is given.
    Translate {
        /// The new destination. The decision is for packets of its family alone.
        address: IpAddr,
        /// The new destination port; none keeps the packet's own.
        port: Option<ListenPort>,
    },
    /// As it is to a transparent socket, and dropped where none listens.
    Transparent {
        /// The mark that policy routing looks for.
        mark: Mark,
        /// The port that the proxy's transparent socket listens on (`IP_TRANSPARENT`).
        port: ListenPort,
    },
    /// Gets this packet mark, all 32 bits of it.
    SetMark(u32),
    /// Its connection gets bits of a mark, and keeps the others.
    MarkConnection(Masked),
    /// Its connection gets its mark.
    SaveMark,
    /// It gets its connection's mark.
    RestoreMark,
    /// Is tracked in this zone.
    Zone(Zone),
}

impl Decision {
    /// The family that it is asked in or its verdict is for; none for both.
    pub fn family(&self) -> Option<Family> {
        match self.verdict {
            Verdict::Translate { address, .. } => Some(Family::of(address)),
            _ => self.only,
        }
    }
}

impl Program {
    pub(super) fn new(policy: &CapturePolicy) -> Self {
        let families = super::families(policy).collect();
        Self { decisions: Vec::new(), families, localhost: policy.localhost.value }
    }

    /// The network of addresses in a family; none if they are of another one.
    pub fn network(&self, addresses: Addresses, family: Family) -> Option<Cidr> {
        match (addresses, family) {
            (Addresses::Localhost, Family::V4) => Some(self.localhost),
            (Addresses::Localhost, Family::V6) => Some(Cidr::host(IpAddr::V6(Ipv6Addr::LOCALHOST))),
            (Addresses::Passthrough, _) => Some(Cidr::host(passthrough(family))),
            (Addresses::Network(network), _) => (network.family() == family).then_some(network),
        }
    }

    /// Whether a decision can hold for packets of a family.
    pub fn concerns(&self, decision: &Decision, family: Family) -> bool {
        let asked = decision.when.iter().all(|condition| match condition {
            Condition::Address { of, .. } => self.network(*of, family).is_some(),
            _ => true,
        });
        asked && decision.family().is_none_or(|only| only == family)
    }

    /// Ask one more question on a path, behind those that are there.
    pub(super) fn add(
        &mut self,
        (table, path, role): (Table, impl Into<Path>, Role),
        when: impl Into<Vec<Condition>>,
        verdict: Verdict,
        reason: Reason,
    ) {
        self.put((table, path, role), Placement::Append, when, verdict, reason);
    }

    /// Ask one more question on a path, in front of rules of others and behind what was put there before.
    pub(super) fn put_in_front(
        &mut self,
        (table, path, role): (Table, impl Into<Path>, Role),
        when: impl Into<Vec<Condition>>,
        verdict: Verdict,
        reason: Reason,
    ) {
        let path = path.into();
        // They come in a row: the last one is near the end.
        let last = self.decisions.iter().rev().find_map(|d| match d.placement {
            Placement::Insert(position) if (d.table, d.path) == (table, path) => Some(position),
            _ => None,
        });
        let placement = Placement::Insert(last.unwrap_or(0).saturating_add(1));
        self.put((table, path, role), placement, when, verdict, reason);
    }

    /// Ask one more question on a path.
    pub(super) fn put(
        &mut self,
        (table, path, role): (Table, impl Into<Path>, Role),
        placement: Placement,
        when: impl Into<Vec<Condition>>,
        verdict: Verdict,
        reason: Reason,
    ) {
        let (path, when) = (path.into(), when.into());
        let only = None;
        self.decisions.push(Decision { table, path, placement, role, when, only, verdict, reason });
    }
}

pub(super) fn why(source: &Source, purpose: impl Into<String>) -> Reason {
    Reason { source: source.clone(), purpose: purpose.into() }
}

/// The port of DNS (RFC 1035, 4.2).
pub(super) const DNS: Port = Port::new(53);

pub(super) const fn tcp() -> Condition {
    Condition::Protocol(Protocol::Tcp)
}

pub(super) const fn udp() -> Condition {
    Condition::Protocol(Protocol::Udp)
}

pub(super) fn to_port(ports: impl Into<PortRange>) -> Condition {
    Condition::ToPorts { negated: false, ports: vec![ports.into()] }
}

pub(super) const fn not_to_ports(ports: Vec<PortRange>) -> Condition {
    Condition::ToPorts { negated: true, ports }
}

pub(super) fn from_port(ports: impl Into<PortRange>) -> Condition {
    Condition::FromPort(ports.into())
}

pub(super) const fn to(of: Addresses) -> Condition {
    Condition::Address { side: Side::Destination, negated: false, of }
}

pub(super) const fn not_to_localhost() -> Condition {
    Condition::Address { side: Side::Destination, negated: true, of: Addresses::Localhost }
}

pub(super) const fn from(of: Addresses) -> Condition {
    Condition::Address { side: Side::Source, negated: false, of }
}

pub(super) fn arrived_by(name: &InterfacePattern) -> Condition {
    Condition::ArrivedBy(name.clone())
}

pub(super) fn leaves_by(name: &InterfacePattern) -> Condition {
    Condition::LeavesBy { negated: false, name: name.clone() }
}

pub(super) const fn of_others(side: Side) -> Condition {
    Condition::Local { side, negated: true }
}

pub(super) fn over_lo() -> Condition {
    leaves_by(&InterfacePattern::loopback())
}

pub(super) fn of(owner: &Owner) -> Condition {
    Condition::Owner { negated: false, owner: owner.clone() }
}

pub(super) fn not_of(owner: &Owner) -> Condition {
    Condition::Owner { negated: true, owner: owner.clone() }
}

pub(super) const fn marked(mark: Masked) -> Condition {
    Condition::Mark { negated: false, mark }
}

/// The proxies' identities, users first, each with who named it.
pub(super) fn owners(policy: &CapturePolicy) -> impl Iterator<Item = (Owner, &Source)> {
    let uids = policy.proxy.uids.iter().map(|u| (Owner::Uid(u.value), &u.source));
    uids.chain(policy.proxy.gids.iter().map(|g| (Owner::Gid(g.value), &g.source)))
}
