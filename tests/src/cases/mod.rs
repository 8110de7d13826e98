//! The table of cases: configurations, connections, and what must become of each.
//!
//! The fates are those of the rules that istio-iptables 1.32 writes, measured with real packets.
//! Where Millrace's own commands mean more than istio-iptables can do, a case says so. The same
//! table is good for any backend: none of it names iptables.

pub mod dns;
pub mod identity;
pub mod inbound;
pub mod interfaces;
pub mod listener;
pub mod outbound;
pub mod tproxy;

use crate::topology::{APP, Layout, PROXY, ROOT, Spot};
use crate::wire::Identity;

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub enum Config {
    /// A command line of istio-iptables, with its environment.
    Istio {
        /// The flags.
        flags: Vec<&'static str>,
        /// The variables.
        env: Vec<(&'static str, &'static str)>,
    },
    /// Flags of `millrace apply`.
    Apply {
        /// The flags.
        flags: Vec<&'static str>,
    },
}

impl Config {
    /// The flags as typed.
    pub fn flags(&self) -> &[&'static str] {
        match self {
            Self::Istio { flags, .. } | Self::Apply { flags } => flags,
        }
    }

    /// The variables beside them.
    pub fn env(&self) -> &[(&'static str, &'static str)] {
        match self {
            Self::Istio { env, .. } => env,
            Self::Apply { .. } => &[],
        }
    }
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// In the pod.
    Pod,
    /// Behind the pod's eth0.
    Outside,
    /// Behind the pod's eth1.
    Side,
}

/// Who connects, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The namespace.
    pub place: Site,
    /// The user and group.
    pub identity: Identity,
    /// The source address, if not the kernel's choice.
    pub from: Option<Spot>,
    /// The source port, if not the kernel's choice.
    pub from_port: Option<u16>,
    /// Dial from an address of somebody else and with this mark.
    pub transparent_mark: Option<u32>,
}

const fn client(place: Site, identity: Identity) -> Client {
    Client { place, identity, from: None, from_port: None, transparent_mark: None }
}

/// The application.
pub const fn app() -> Client {
    client(Site::Pod, APP)
}

/// The proxy.
pub const fn proxy() -> Client {
    client(Site::Pod, PROXY)
}

/// Somebody in the pod.
pub const fn user(uid: u32, gid: u32) -> Client {
    client(Site::Pod, Identity { uid, gid })
}

/// Somebody behind eth0.
pub const fn outside() -> Client {
    client(Site::Outside, ROOT)
}

/// Somebody behind eth1.
pub const fn side() -> Client {
    client(Site::Side, ROOT)
}

impl Client {
    /// From this address.
    #[must_use]
    pub const fn from(self, spot: Spot) -> Self {
        Self { from: Some(spot), ..self }
    }

    /// From this port.
    #[must_use]
    pub const fn from_port(self, port: u16) -> Self {
        Self { from_port: Some(port), ..self }
    }

    /// From an address that is not the pod's, with this mark.
    #[must_use]
    pub const fn posing_as(self, spot: Spot, mark: u32) -> Self {
        Self { from: Some(spot), transparent_mark: Some(mark), ..self }
    }

    /// A TCP connection.
    pub const fn tcp(self, to: Spot, port: u16) -> Attempt {
        Attempt { client: self, kind: Kind::Tcp, to, port }
    }

    /// A UDP datagram and its answer.
    pub const fn udp(self, to: Spot, port: u16) -> Attempt {
        Attempt { client: self, kind: Kind::Udp, to, port }
    }

    /// A TCP packet that belongs to no connection.
    pub const fn stray(self, to: Spot, port: u16) -> Attempt {
        Attempt { client: self, kind: Kind::Stray, to, port }
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// A SYN+ACK of no connection.
    Stray,
}

/// A connection to be made.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Who makes it.
    pub client: Client,
    /// What is sent.
    pub kind: Kind,
    /// Where to.
    pub to: Spot,
    /// To which port.
    pub port: u16,
}

impl Attempt {
    /// What must become of it.
    pub const fn gets(self, fate: Fate) -> Probe {
        Probe { attempt: self, fate }
    }
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The one it was meant for answers, and sees the client's address.
    Direct,
    /// The proxy's outbound port answers, and knows the original destination.
    Outbound,
    /// The proxy's inbound port answers, and knows the original destination.
    Inbound,
    /// The proxy's inbound port answers under the address that was dialled: nothing was translated.
    InboundUntranslated,
    /// The proxy's DNS port answers, under the address that was asked.
    Dns,
    /// Nobody answers, and the client is told at once.
    Reset,
    /// Nobody listens, and the kernel says so.
    Refused,
    /// Nobody answers.
    TimedOut,
}

/// A connection and what must become of it.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// The connection.
    pub attempt: Attempt,
    /// Its fate.
    pub fate: Fate,
}

/// The proxy's ports.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// For captured outbound connections.
    pub outbound: u16,
    /// For captured inbound connections.
    pub inbound: u16,
    /// For captured DNS queries.
    pub dns: u16,
}

/// A configuration with connections and their fates.
#[derive(Clone, Debug)]
pub struct Case {
    /// What the case is about, for messages.
    pub name: &'static str,
    /// The configuration.
    pub config: Config,
    /// What the pod needs.
    pub layout: Layout,
    /// The ports that the configuration names.
    pub ports: Ports,
    /// The connections, made one after the other.
    pub probes: Vec<Probe>,
    /// Connections that are made once the proxy, which was not there for the others, listens.
    pub later: Vec<Probe>,
}

const PORTS: Ports = Ports { outbound: 15001, inbound: 15006, dns: 15053 };

/// A case of istio-iptables with these flags.
fn istio(name: &'static str, flags: &[&'static str], probes: Vec<Probe>) -> Case {
    let config = Config::Istio { flags: flags.to_vec(), env: Vec::new() };
    Case { name, config, layout: Layout::default(), ports: PORTS, probes, later: Vec::new() }
}

/// A case of `millrace apply` with these flags.
fn own(name: &'static str, flags: &[&'static str], probes: Vec<Probe>) -> Case {
    let config = Config::Apply { flags: flags.to_vec() };
    Case { name, config, layout: Layout::default(), ports: PORTS, probes, later: Vec::new() }
}

impl Case {
    fn env(mut self, name: &'static str, value: &'static str) -> Self {
        if let Config::Istio { env, .. } = &mut self.config {
            env.push((name, value));
        }
        self
    }

    fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    fn later(self, later: Vec<Probe>) -> Self {
        Self { later, ..self }
    }
}

/// Every case.
pub fn all() -> Vec<Case> {
    [
        outbound::cases(),
        inbound::cases(),
        identity::cases(),
        interfaces::cases(),
        dns::cases(),
        tproxy::cases(),
        listener::cases(),
    ]
    .concat()
}
