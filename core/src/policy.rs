//! What is captured and what is not, without a word about any mesh or any backend.

mod sources;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ruleset::{Masked, Owner, Protocol};
use crate::source::{Source, Sourced};
use crate::value::{
    Cidr, Family, Gid, InterfacePattern, ListenPort, Mark, PortRange, RouteTable, Uid, UidRange,
};

/// The address that connections come from which the proxy passes on to the application. That of IPv4
/// is one of loopback addresses; that of IPv6 has to be added to `lo`.
pub const fn passthrough(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
    }
}

/// A pod's capture policy. Every part says where it came from, so that every rule can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturePolicy {
    /// Whether IPv6 is captured; IPv4 always is.
    pub ipv6: Sourced<bool>,
    /// How the proxy's own connections are told from the application's.
    pub proxy: ProxyIdentity,
    /// Connections that arrive at the pod: which are captured, and how they reach the proxy.
    pub inbound: Inbound,
    /// Connections that the pod makes: which are captured, and where they are led.
    pub outbound: Outbound,
    /// Interfaces that are treated differently.
    pub interfaces: Interfaces,
    /// The IPv4 addresses that mean «this pod itself» (127.0.0.1/32 to 127.0.0.0/8).
    pub localhost: Sourced<Cidr>,
    /// DNS queries, when they are captured.
    pub dns: Option<DnsCapture>,
    /// Whether packets that belong to no connection are dropped, and who said so.
    pub drop_invalid: Option<Source>,
    /// What the mesh takes for granted, and no user chooses.
    pub conventions: Conventions,
}

/// In what meshes differ that no setting says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conventions {
    /// Which connections count as staying in the pod, and are left to it.
    pub local: Local,
    /// What becomes of the proxy's connections to its own pod, other than to localhost.
    pub self_call: SelfCall,
    /// Whether the proxy passes connections on from an address of its own ([`passthrough`]).
    pub passthrough: bool,
    /// When excluded outbound ports are asked for, and of which protocols they are.
    pub except_ports: ExceptPorts,
    /// When excluded outbound networks are asked for.
    pub except_networks: Phase,
    /// When excluded users are asked for: last, what they send by TCP alone is left alone.
    pub except_users: Phase,
    /// Whether excluded interfaces are asked for among the other exclusions, and what arrives by them
    /// only if it is of TCP; otherwise before everything else.
    pub interfaces_last: bool,
    /// How DNS queries are captured.
    pub dns: DnsConvention,
}

impl Conventions {
    /// Those of Millrace's own settings.
    pub const OWN: Self = Self {
        local: Local::LoAndLocalhost,
        self_call: SelfCall::Inbound,
        passthrough: true,
        except_ports: ExceptPorts { phase: Phase::First, udp: true },
        except_networks: Phase::Last,
        except_users: Phase::First,
        interfaces_last: false,
        dns: DnsConvention::AMONG_OUTBOUND,
    };
}

/// Which connections count as staying in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Local {
    /// Those to localhost, and those that the application makes over `lo`.
    LoAndLocalhost,
    /// Those over `lo`, whoever makes them.
    Lo,
    /// Those to localhost. An application's connections to another address of its pod are captured.
    Localhost,
    /// Those to any address of the pod, as routing has it, whoever makes them. What arrives from one is left
    /// alone as well.
    Addresses,
}

impl Local {
    /// Whether it is asked whether what leaves goes over `lo`.
    pub const fn asks_lo(self) -> bool {
        matches!(self, Self::LoAndLocalhost | Self::Lo)
    }

    /// Whether connections to localhost are asked for by its address.
    pub const fn asks_localhost(self) -> bool {
        matches!(self, Self::LoAndLocalhost | Self::Localhost)
    }
}

/// What becomes of a proxy's connections to its own pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SelfCall {
    /// They come in by the inbound port, as if they came from outside.
    Inbound,
    /// They are left alone, like everything that the proxy sends.
    Pass,
}

/// How DNS queries are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DnsConvention {
    /// By UDP and TCP, among the decisions about outbound connections, which the proxy's own don't get
    /// to; with `zones` of connection tracking of their own.
    AmongOutbound {
        /// Whether DNS packets are tracked in conntrack zones of their own.
        zones: bool,
    },
    /// Before anything is asked about TCP, which alone is led to the other decisions.
    Ahead {
        /// What becomes of those by TCP.
        tcp: DnsTcp,
        /// Whether the proxy's own by UDP are left alone.
        spares_proxy: bool,
        /// Whether they are put in front of rules of others.
        in_front: bool,
        /// Whether DNS packets are tracked in conntrack zones of their own.
        zones: bool,
    },
}

impl DnsConvention {
    /// That of Millrace's own settings.
    pub const AMONG_OUTBOUND: Self = Self::AmongOutbound { zones: true };

    /// The same with zones of connection tracking, or without.
    #[must_use]
    pub const fn with_zones(self, zones: bool) -> Self {
        match self {
            Self::AmongOutbound { .. } => Self::AmongOutbound { zones },
            Self::Ahead { tcp, spares_proxy, in_front, .. } => {
                Self::Ahead { tcp, spares_proxy, in_front, zones }
            }
        }
    }

    /// Whether queries are asked for before anything about TCP.
    pub const fn is_ahead(self) -> bool {
        matches!(self, Self::Ahead { .. })
    }
}

/// What becomes of DNS queries by TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DnsTcp {
    /// They are captured as those by UDP are.
    Captured,
    /// Those of others than the proxy are left alone.
    Bypassed,
}

/// When exclusions are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Before everything else that is asked of what leaves the pod, of any protocol, and in front of rules
    /// of others.
    Ahead,
    /// Before DNS queries and before the proxy's connections to its own pod, which they win over.
    First,
    /// After these, and before what is captured.
    Last,
}

/// How excluded outbound ports are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExceptPorts {
    /// When they are asked for.
    pub phase: Phase,
    /// Whether ports of UDP are meant as well as those of TCP: it says whether DNS queries can be
    /// excluded by their port.
    pub udp: bool,
}

/// By what the proxy's own connections are known: the owner of the socket, or a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyIdentity {
    /// Users that proxies run as.
    pub uids: Vec<Sourced<Uid>>,
    /// Groups that proxies run as.
    pub gids: Vec<Sourced<Gid>>,
    /// How several of them go together.
    pub matching: IdentityMatching,
    /// The marks by which a proxy is known that is no process of the pod; none where it is one. What
    /// it sends is sent by sockets of the pod, whoever made them. With marks, inbound connections are
    /// redirected, and the proxy's calls to the pod are left alone.
    pub marks: Option<ProxyMarks>,
}

/// The marks of a proxy that serves many pods from outside of them, with sockets in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyMarks {
    /// What the proxy sends has this mark, in these bits.
    pub proxy: Masked,
    /// Connections of which a packet had it get this mark, in these bits, and packets of theirs
    /// that the pod sends get it as well: so answers to an address that the proxy took for its own come
    /// back to it.
    pub connection: Masked,
    /// Packets with the connection's mark are looked up in this table, whose only route delivers
    /// everything locally.
    pub table: RouteTable,
    /// The priority of the policy routing rule that says so.
    pub priority: u32,
}

/// From where the node probes the pod: what comes from there is let through to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// From an address that nobody has, to which the node translates its own: what the pod sends
    /// there is let through as well.
    Translated(IpAddr),
    /// From the node's own address: nothing has to be done on the node. What the pod sends there is
    /// captured as ever.
    Node(IpAddr),
}

impl Probe {
    /// Connections from here are let through to the application.
    pub const fn address(self) -> IpAddr {
        match self {
            Self::Translated(address) | Self::Node(address) => address,
        }
    }
}

/// How the rules of several proxy identities go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityMatching {
    /// Each identity brings the three rules of a proxy with it. What is not the first one counts
    /// as an application on loopback, so only the first one really works; this is what
    /// istio-iptables writes.
    OneByOne,
    /// A process is a proxy when any of the identities is its own.
    Any,
}

/// What is captured of connections that arrive at the pod, and how the proxy gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Where the proxy listens for them.
    pub port: Sourced<ListenPort>,
    /// Where the proxy listens for tunnels, which are never captured; none in meshes without them.
    pub tunnel_port: Option<Sourced<ListenPort>>,
    /// How they reach the proxy.
    pub mode: InboundMode,
    /// Which of them are captured.
    pub selection: InboundSelection,
    /// Networks from which they are left alone.
    pub except_sources: Vec<Sourced<Cidr>>,
    /// From where the node probes the pod.
    pub probes: Vec<Sourced<Probe>>,
}

/// How inbound connections reach the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundMode {
    /// By address translation: the proxy sees the client as the client's address only through
    /// its own means.
    Redirect,
    /// Untouched, to a transparent socket: the proxy sees the client's address.
    Tproxy {
        /// The mark that policy routing looks for.
        mark: Sourced<Mark>,
        /// The table it looks in.
        table: Sourced<RouteTable>,
        /// The setting that chose TPROXY instead of address translation.
        source: Source,
    },
}

/// Which inbound connections are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundSelection {
    /// No connection to the pod is captured: all reach the application as they are.
    Nothing,
    /// All, but not to these ports.
    AllExcept {
        /// Who chose to capture every port.
        source: Source,
        /// Ports that are left alone.
        except: Vec<Sourced<PortRange>>,
    },
    /// Those whose destination port is listed; all others reach the application as they are.
    Only {
        /// Destination ports that are captured, less those of `except`.
        ports: Vec<Sourced<PortRange>>,
        /// Ports among them that are left alone.
        except: Vec<Sourced<PortRange>>,
    },
}

impl InboundSelection {
    /// Whether any inbound port can be captured: true for all but [`Self::Nothing`].
    pub const fn captures(&self) -> bool {
        !matches!(self, Self::Nothing)
    }
}

/// What is captured of connections that the pod makes, and where it is led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Where the proxy listens for them.
    pub port: Sourced<ListenPort>,
    /// Networks whose connections are captured.
    pub networks: NetworkSelection,
    /// Ports whose connections are captured wherever they go.
    pub ports: Vec<Sourced<PortRange>>,
    /// Ports that are left alone.
    pub except_ports: Vec<Sourced<PortRange>>,
    /// Networks that are left alone.
    pub except_networks: Vec<Sourced<Cidr>>,
    /// Users whose connections are left alone, though they are no proxies.
    pub except_users: Vec<Sourced<Uid>>,
    /// The pod's address to which the proxy's connections to IPv4's localhost are led, for applications
    /// that don't listen there.
    pub localhost_to: Option<Sourced<Ipv4Addr>>,
    /// What some users send to some ports is left alone, before anything else is asked.
    pub except_flows: Vec<Sourced<Flow>>,
    /// Groups whose processes are captured.
    pub groups: GroupSelection,
}

/// What some users send to some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// By which protocols; at least one.
    pub protocols: Vec<Protocol>,
    /// To which ports; at least one.
    pub ports: Vec<PortRange>,
    /// User ids of the sockets, both ends included.
    pub users: UidRange,
}

/// Which destination networks are captured, as far as no exclusion applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkSelection {
    /// Every destination; the source says who chose that.
    All(Source),
    /// These; an empty list is none.
    Only(Vec<Sourced<Cidr>>),
}

impl NetworkSelection {
    /// The networks of a family; none when all are meant.
    pub fn of(&self, family: Family) -> impl Iterator<Item = &Sourced<Cidr>> {
        let list: &[Sourced<Cidr>] = match self {
            Self::All(_) => &[],
            Self::Only(list) => list,
        };
        list.iter().filter(move |c| c.value.family() == family)
    }

    /// Whether loopback addresses are named as captured, so that an application's connection to
    /// itself may not be let past.
    pub fn names_loopback(&self) -> bool {
        match self {
            Self::All(_) => false,
            Self::Only(list) => list.iter().any(|c| c.value.address().to_canonical().is_loopback()),
        }
    }
}

/// Which processes' connections are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupSelection {
    /// Those of all groups but these.
    AllExcept(Vec<Sourced<Owner>>),
    /// Those of these groups only; with none, nothing is captured.
    Only {
        /// Groups of sockets, by number or by name.
        groups: Vec<Sourced<Owner>>,
        /// Who limited capture to them, also where the list is empty.
        source: Source,
    },
}

/// Interfaces that are treated differently.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Never captured in either direction.
    pub excluded: Vec<Sourced<InterfacePattern>>,
    /// What arrives on them is treated as if the pod had sent it: virtual machines behind the pod.
    pub rerouted: Vec<Sourced<InterfacePattern>>,
}

/// Capture of DNS: which queries to port 53, and who answers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsCapture {
    /// A port of the proxy, or addresses of other servers.
    pub to: DnsTarget,
    /// The setting that switched DNS capture on; rules name it as their reason.
    pub source: Source,
    /// All queries, or those to certain servers.
    pub scope: DnsScope,
}

/// Where captured DNS queries go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsTarget {
    /// To this port of the pod, where the proxy answers them.
    Listener(Sourced<ListenPort>),
    /// Those of a family to its address, which may be anywhere; those of others are left alone.
    Servers(Vec<Sourced<DnsServer>>),
}

/// A server to which DNS queries are sent instead of the one that they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsServer {
    /// Where queries of its family are sent; it need not be in the pod.
    pub address: IpAddr,
    /// Its port; that of the query when none is given.
    pub port: Option<ListenPort>,
}

impl DnsCapture {
    /// The port of the pod where the proxy answers queries; none where they go to an address.
    pub const fn listener(&self) -> Option<ListenPort> {
        match &self.to {
            DnsTarget::Listener(port) => Some(port.value),
            DnsTarget::Servers(_) => None,
        }
    }
}

/// Which DNS queries are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsScope {
    /// Every query to port 53, to whatever server; the source says who chose that.
    All(Source),
    /// Those to port 53 of these servers.
    Servers(Vec<Sourced<IpAddr>>),
}

impl DnsScope {
    /// The servers of a family; none when all queries are meant.
    pub fn servers(&self, family: Family) -> impl Iterator<Item = &Sourced<IpAddr>> {
        let list: &[Sourced<IpAddr>] = match self {
            Self::All(_) => &[],
            Self::Servers(list) => list,
        };
        list.iter().filter(move |s| Family::of(s.value) == family)
    }

    /// Whether there is no query that could be captured: no server is of a family that is.
    pub fn is_empty(&self, ipv6: bool) -> bool {
        let of = |family| self.servers(family).next().is_some();
        matches!(self, Self::Servers(_)) && !of(Family::V4) && !(ipv6 && of(Family::V6))
    }
}
