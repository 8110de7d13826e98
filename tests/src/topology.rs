//! A pod and its neighbours.
//!
//! ```text
//!   outside                          pod                            side (where a case needs it)
//!   services, DNS server  <-eth0--eth0->  proxy, application  <-eth1--eth0->  a virtual machine
//! ```
//!
//! Addresses are the same in every topology, so that cases can name them: two topologies have no
//! namespace in common, and can't meet.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::netns::Namespace;
use crate::process::Listeners;
use crate::wire::{Identity, Listen, Proto, Serve};

/// How long a connection may take to end on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The application in the pod.
pub const APP: Identity = Identity { uid: 1000, gid: 1000 };
/// The proxy in the pod, as sidecar images have it.
pub const PROXY: Identity = Identity { uid: 1337, gid: 1337 };
/// Everybody outside the pod.
pub const ROOT: Identity = Identity { uid: 0, gid: 0 };

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which families a pod has addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Stack {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Dual];

    /// The families with addresses.
    pub const fn families(self) -> &'static [Family] {
        match self {
            Self::V4 => &[Family::V4],
            Self::V6 => &[Family::V6],
            Self::Dual => &[Family::V4, Family::V6],
        }
    }
}

/// An address that cases talk about, in either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// The pod's address on eth0: 10.70.0.2, `fd70::2`.
    Pod,
    /// The pod's address on eth1: 10.80.0.2, `fd80::2`.
    PodSide,
    /// The pod's neighbour on eth0: 10.70.0.1, `fd70::1`.
    Peer,
    /// The pod's neighbour on eth1: 10.80.0.1, `fd80::1`.
    Side,
    /// A service behind the neighbour: 10.71.0.10, `fd71::10`.
    Service,
    /// Another one, in another network: 10.72.0.10, `fd72::10`.
    Other,
    /// The DNS server of the pod's resolv.conf: 10.73.0.53, `fd73::53`.
    Dns,
    /// A DNS server that resolv.conf does not name: 10.74.0.53, `fd74::53`.
    OtherDns,
    /// 127.0.0.1, `::1`.
    Localhost,
    /// Localhost by another address: 127.0.0.2; IPv6 has none.
    Localhost2,
    /// A DNS cache on localhost: 127.0.0.53; IPv6 has none.
    LocalDns,
    /// The address that the proxy talks to the application from: 127.0.0.6, `::6`.
    Passthrough,
}

impl Spot {
    /// The address with a port.
    pub fn at(self, family: Family, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.ip(family).context("the family has it")?, port))
    }

    /// The address; none where the family has nothing of the kind.
    pub const fn ip(self, family: Family) -> Option<IpAddr> {
        let (v4, v6) = match self {
            Self::Pod => ([10, 70, 0, 2], (0xfd70, 2)),
            Self::PodSide => ([10, 80, 0, 2], (0xfd80, 2)),
            Self::Peer => ([10, 70, 0, 1], (0xfd70, 1)),
            Self::Side => ([10, 80, 0, 1], (0xfd80, 1)),
            Self::Service => ([10, 71, 0, 10], (0xfd71, 0x10)),
            Self::Other => ([10, 72, 0, 10], (0xfd72, 0x10)),
            Self::Dns => ([10, 73, 0, 53], (0xfd73, 0x53)),
            Self::OtherDns => ([10, 74, 0, 53], (0xfd74, 0x53)),
            Self::Localhost => ([127, 0, 0, 1], (0, 1)),
            Self::Localhost2 => ([127, 0, 0, 2], (0, 0)),
            Self::LocalDns => ([127, 0, 0, 53], (0, 0)),
            Self::Passthrough => ([127, 0, 0, 6], (0, 6)),
        };
        let [a, b, c, d] = v4;
        match (family, v6) {
            (Family::V4, _) => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
            (Family::V6, (_, 0)) => None,
            (Family::V6, (net, host)) => {
                Some(IpAddr::V6(Ipv6Addr::new(net, 0, 0, 0, 0, 0, 0, host)))
            }
        }
    }
}

/// Whether the proxy listens for inbound connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inbound {
    /// It does, as the layout says.
    #[default]
    There,
    /// It does not yet.
    Nobody,
    /// It does, but its socket is not transparent, whatever the layout says.
    Opaque,
}

/// What a topology has beside a pod with one interface.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// A second interface of the pod, eth1, with a neighbour that reaches everything through it.
    pub side: bool,
    /// The proxy's inbound listener is transparent, as TPROXY needs it, and the pod's localhost may
    /// answer somebody outside, as a proxy needs that keeps its client's address.
    pub transparent: bool,
    /// A DNS cache listens on 127.0.0.53 in the pod, and resolv.conf names it alone.
    pub local_dns: bool,
    /// Whether the proxy listens for inbound connections from the beginning.
    pub inbound: Inbound,
}

/// A pod and its neighbours, with everybody listening.
pub struct Topology {
    /// The pod.
    pub pod: Namespace,
    /// Its neighbour on eth0, with the services and DNS servers.
    pub outside: Namespace,
    /// Its neighbour on eth1, if there is one.
    pub side: Option<Namespace>,
    /// Which families there are.
    pub stack: Stack,
    listeners: Vec<Listeners>,
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topology").field("stack", &self.stack).finish_non_exhaustive()
    }
}

impl Topology {
    /// Make the namespaces and links, and start all listeners.
    pub fn new(stack: Stack, layout: Layout) -> Result<Self> {
        let pod = Namespace::with_resolv_conf(Some(&resolv_conf(stack, layout)))?;
        let outside = Namespace::new()?;
        let side = if layout.side { Some(Namespace::new()?) } else { None };
        let mut topology = Self { pod, outside, side, stack, listeners: Vec::new() };
        topology.link()?;
        if layout.transparent {
            topology.pod.run("sysctl", &["-qw", "net.ipv4.conf.all.route_localnet=1"])?;
        }
        topology.listen(layout)?;
        Ok(topology)
    }

    /// Wait until the kernel has given each link of the pod its link-local address and the routes of
    /// that. It does so up to a second after both ends are up: who holds what is there against what was
    /// there would see them come.
    pub fn settled(self) -> Result<Self> {
        let devices = if self.side.is_some() { &["eth0", "eth1"][..] } else { &["eth0"] };
        self.pod.enter(|| are_settled(devices))??;
        Ok(self)
    }

    /// Wait until every connection has ended on both sides: on a busy machine, what is sent again of one is
    /// counted after its user has left it.
    pub fn quiet(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let around = [Some(&self.pod), Some(&self.outside), self.side.as_ref()];
        for namespace in around.into_iter().flatten() {
            while namespace.enter(has_connections)?? {
                ensure!(Instant::now() < end, "connections have not ended");
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// The listeners' processes in the pod and around it.
    pub fn listeners(&self) -> &[Listeners] {
        &self.listeners
    }

    /// End every listener: their ports are free afterwards.
    pub fn stop_listeners(&mut self) {
        self.listeners.clear();
    }

    /// The proxy, which did not, listens for inbound connections as its layout says.
    pub fn proxy_comes(&mut self, layout: Layout) -> Result<()> {
        if layout.inbound == Inbound::Opaque {
            self.listeners.pop();
        }
        self.proxy_listens(layout.transparent)
    }

    fn proxy_listens(&mut self, transparent: bool) -> Result<()> {
        let serve =
            Serve { name: "proxy".to_owned(), identity: PROXY, listen: inbound(transparent) };
        self.listeners.push(Listeners::start(&self.pod, &serve)?);
        Ok(())
    }

    fn link(&self) -> Result<()> {
        let services = [Spot::Service, Spot::Other, Spot::Dns, Spot::OtherDns];
        let mut lines = veth("eth0", &self.outside);
        lines.push_str(&self.addresses("eth0", &[Spot::Pod], 64));
        if let Some(side) = &self.side {
            lines.push_str(&veth("eth1", side));
            lines.push_str(&self.addresses("eth1", &[Spot::PodSide], 64));
        }
        self.pod.ip(&lines)?;
        self.outside.ip(&format!(
            "link set lo up\nlink set eth0 up\n{}{}",
            self.addresses("eth0", &[Spot::Peer], 64),
            self.addresses("lo", &services, 128),
        ))?;
        if let Some(side) = &self.side {
            let routes = self.default_routes(Spot::PodSide);
            side.ip(&format!(
                "link set lo up\nlink set eth0 up\n{}{routes}",
                self.addresses("eth0", &[Spot::Side], 64),
            ))?;
        }
        self.pod.ip(&self.default_routes(Spot::Peer))
    }

    fn addresses(&self, device: &str, spots: &[Spot], v6_length: u8) -> String {
        let mut lines = String::new();
        for &family in self.stack.families() {
            let (length, flags) = match family {
                Family::V4 => (if v6_length == 64 { 24 } else { 32 }, ""),
                Family::V6 => (v6_length, " nodad"),
            };
            for ip in spots.iter().filter_map(|s| s.ip(family)) {
                lines.push_str(&format!("addr add {ip}/{length} dev {device}{flags}\n"));
            }
        }
        lines
    }

    fn default_routes(&self, via: Spot) -> String {
        let mut lines = String::new();
        for ip in self.stack.families().iter().filter_map(|f| via.ip(*f)) {
            lines.push_str(&format!("route add default via {ip}\n"));
        }
        lines
    }

    fn listen(&mut self, layout: Layout) -> Result<()> {
        let both = [Proto::Tcp, Proto::Udp];
        let mut proxy = everywhere(&[15001, 15008, 15020, 15021, 15090, 15101, 15108]);
        if layout.inbound == Inbound::There {
            proxy.extend(inbound(layout.transparent));
        }
        let mut app = everywhere(&[80, 8080, 9090]);
        let mut cache = Vec::new();
        let mut outside = everywhere(&[53, 80, 443, 5353, 8080, 9999]);
        for &family in &[Family::V4, Family::V6] {
            proxy.extend(on(Spot::Localhost, family, 15053, &both));
            cache.extend(on(Spot::LocalDns, family, 53, &both));
        }
        for &family in self.stack.families() {
            app.extend(on(Spot::Pod, family, 9090, &[Proto::Udp]));
            outside.extend(on(Spot::Dns, family, 53, &[Proto::Udp]));
            outside.extend(on(Spot::OtherDns, family, 53, &[Proto::Udp]));
            outside.extend(on(Spot::Service, family, 9999, &[Proto::Udp]));
        }
        let start = |namespace: &Namespace, name: &str, identity: Identity, listen| {
            Listeners::start(namespace, &Serve { name: name.to_owned(), identity, listen })
        };
        let mut running = vec![
            start(&self.pod, "proxy", PROXY, proxy)?,
            start(&self.pod, "app", APP, app)?,
            start(&self.outside, "outside", ROOT, outside)?,
        ];
        if layout.local_dns {
            running.push(start(&self.pod, "cache", ROOT, cache)?);
        }
        if let Some(side) = &self.side {
            running.push(start(side, "side", ROOT, everywhere(&[80]))?);
        }
        self.listeners = running;
        if layout.inbound == Inbound::Opaque { self.proxy_listens(false) } else { Ok(()) }
    }
}

/// Wait until these links have link-local addresses.
fn are_settled(devices: &[&str]) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
        let has = |device: &str| {
            routes.lines().any(|line| {
                let whole = line.split_ascii_whitespace().nth(1) == Some("80");
                whole && line.starts_with("fe80") && line.ends_with(&format!(" {device}"))
            })
        };
        let late: Vec<&&str> = devices.iter().filter(|name| !has(name)).collect();
        if late.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "no link-local address on {late:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Text that makes a link from eth0 of a namespace to a device here, and sets both up. The hardware
/// addresses are given, so that link-local addresses are the same in every topology too.
fn veth(device: &str, peer: &Namespace) -> String {
    let net = if device == "eth0" { 70 } else { 80 };
    format!(
        "link set lo up\n\
         link add {device} address 02:00:00:00:{net}:02 type veth \
         peer name eth0 address 02:00:00:00:{net}:01 netns {}\n\
         link set {device} up\n",
        peer.path().display()
    )
}

/// TCP listeners on every address of both families.
fn everywhere(ports: &[u16]) -> Vec<Listen> {
    let anywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let addrs = ports.iter().flat_map(|port| anywhere.map(|ip| SocketAddr::new(ip, *port)));
    addrs.map(|addr| Listen { proto: Proto::Tcp, addr, transparent: false }).collect()
}

/// The proxy's listeners for inbound connections.
fn inbound(transparent: bool) -> Vec<Listen> {
    let all = everywhere(&[15006, 15106]).into_iter();
    all.map(|listen| Listen { transparent, ..listen }).collect()
}

/// Listeners on one address, if the family has it. A UDP listener must be on one address: from a
/// wildcard it would answer from an address that the client did not ask.
fn on(spot: Spot, family: Family, port: u16, protos: &[Proto]) -> Vec<Listen> {
    let Some(ip) = spot.ip(family) else { return Vec::new() };
    let addr = SocketAddr::new(ip, port);
    protos.iter().map(|&proto| Listen { proto, addr, transparent: false }).collect()
}

/// The pod's resolv.conf.
fn resolv_conf(stack: Stack, layout: Layout) -> String {
    let spot = if layout.local_dns { Spot::LocalDns } else { Spot::Dns };
    let mut text = "search svc.cluster.local\noptions ndots:5\n".to_owned();
    for ip in stack.families().iter().filter_map(|family| spot.ip(*family)) {
        text.push_str(&format!("nameserver {ip}\n"));
    }
    text
}

/// Whether there is a TCP socket in this namespace that can still send anything by itself.
fn has_connections() -> Result<bool> {
    // `TCP_TIME_WAIT` and `TCP_LISTEN` of the kernel's `include/net/tcp_states.h`.
    let at_rest = |line: &str| matches!(line.split_whitespace().nth(3), Some("06" | "0A"));
    for name in ["tcp", "tcp6"] {
        let path = format!("/proc/thread-self/net/{name}");
        let sockets = fs::read_to_string(&path).with_context(|| path)?;
        if sockets.lines().skip(1).any(|line| !at_rest(line)) {
            return Ok(true);
        }
    }
    Ok(false)
}
