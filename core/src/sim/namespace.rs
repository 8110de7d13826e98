//! What the walk of a packet needs to know of the namespace beside its rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::question::{Direction, Identity, Question};
use super::ranges::{Ranges, number};
use crate::policy::CapturePolicy;
use crate::ruleset::{Masked, Routing};
use crate::value::{Cidr, Family, Gid, Uid};

/// The loopback interface.
pub(super) const LOOPBACK: &str = "lo";

/// An interface with its addresses in the kernel's order. The first one of a family is the one
/// that a REDIRECT on the way in leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its addresses with the networks around them.
    pub addresses: Vec<Cidr>,
}

/// Where packets to a network leave by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The network.
    pub network: Cidr,
    /// The interface.
    pub interface: String,
}

/// Packets of this family with this mark are delivered here, wherever they go (`ip rule` to a
/// table whose only route is `local default`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkedLocal {
    /// The family.
    pub family: Family,
    /// The mark.
    pub mark: Masked,
}

/// A network namespace, as far as the way of a packet depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    interfaces: Vec<Interface>,
    paths: Vec<Path>,
    marked: Vec<MarkedLocal>,
    local: [Ranges; 2],
    behind: Vec<(String, [Ranges; 2])>,
    /// Whether packets for others are passed on (`ip_forward`).
    pub forwarding: bool,
    /// Whether what arrives may be led to 127.0.0.0/8 (`route_localnet`).
    pub route_localnet: bool,
    /// Who listens on which port, as far as it is known: who an answer comes from.
    pub listeners: BTreeMap<u16, Identity>,
}

const fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// Addresses that are every host's own.
pub(super) fn loopback(family: Family) -> Ranges {
    match family {
        Family::V4 => Ranges::range(0x7f00_0000, 0x7fff_ffff),
        Family::V6 => Ranges::one(1),
    }
}

/// An address that says «somewhere»: no pod has it (RFC 5737, RFC 3849).
pub(super) const fn somewhere(family: Family) -> u128 {
    match family {
        Family::V4 => 0xc633_6401,
        Family::V6 => 0x2001_0db8_0000_0000_0000_0000_0000_0001,
    }
}

/// The addresses of a family that one host can have: no multicast, broadcast, reserved or
/// unspecified ones (RFC 6890, RFC 4291 section 2.4).
pub(super) fn unicast(family: Family) -> Ranges {
    match family {
        Family::V4 => Ranges::range(0x0100_0000, 0xdfff_ffff),
        Family::V6 => Ranges::range(1, 0xfeff_ffff_ffff_ffff_ffff_ffff_ffff_ffff),
    }
}

impl Namespace {
    /// A namespace with these interfaces beside `lo`, and these routes beside those to the
    /// interfaces' own networks. The more specific route wins, the first of equal ones.
    pub fn new(interfaces: Vec<Interface>, paths: Vec<Path>, marked: Vec<MarkedLocal>) -> Self {
        let mut local = Family::ALL.map(loopback);
        for cidr in interfaces.iter().flat_map(|i| &i.addresses) {
            let own = Ranges::one(number(cidr.address()));
            let at = index(cidr.family());
            local[at] = local[at].or(&own);
        }
        let mut namespace = Self {
            interfaces,
            paths,
            marked,
            local,
            behind: Vec::new(),
            forwarding: false,
            route_localnet: false,
            listeners: BTreeMap::new(),
        };
        namespace.behind = namespace.networks_behind();
        namespace
    }

    /// A pod with one interface, `eth0`, that everything else is behind, and with the routing that
    /// rules need.
    pub fn pod(addresses: &[IpAddr], routing: &Routing) -> Self {
        let length = |family| match family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        let network = |a: &IpAddr| Cidr::new(*a, length(Family::of(*a)));
        let eth0 = Interface {
            name: "eth0".to_owned(),
            addresses: addresses.iter().filter_map(network).collect(),
        };
        let mut interfaces = vec![eth0];
        if routing.passthrough_v6.is_some() {
            let passed = Cidr::host(IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)));
            interfaces.push(Interface { name: LOOPBACK.to_owned(), addresses: vec![passed] });
        }
        let mut families: Vec<Family> = addresses.iter().map(|a| Family::of(*a)).collect();
        families.sort();
        families.dedup();
        let paths = families
            .iter()
            .map(|family| everything(*family))
            .map(|network| Path { network, interface: "eth0".to_owned() });
        let paths = paths.collect();
        let marked = routing.tproxy.iter().flat_map(|(mark, _)| {
            let mark = Masked::exact(mark.get());
            Family::ALL.map(|family| MarkedLocal { family, mark })
        });
        let marked = marked.collect();
        Self::new(interfaces, paths, marked)
    }

    /// The same with the proxy of a policy listening on its ports.
    #[must_use]
    pub fn with_proxy(mut self, policy: &CapturePolicy) -> Self {
        let uid = policy.proxy.uids.first().map(|u| u.value);
        let gid = policy.proxy.gids.first().map(|g| g.value);
        let gid = gid.map(Gid::get).or(uid.map(Uid::get));
        let Some((uid, gid)) = uid.map(Uid::get).or(gid).zip(gid) else { return self };
        let proxy = Identity { uid, gid };
        let mut ports = vec![
            policy.outbound.port.value,
            policy.inbound.port.value,
            policy.inbound.tunnel_port.value,
        ];
        ports.extend(policy.dns.as_ref().map(|dns| dns.port.value));
        self.listeners.extend(ports.into_iter().map(|port| (port.get(), proxy)));
        self
    }

    /// This namespace with the policy routing of another one.
    #[must_use]
    pub fn with_marks_of(&self, other: &Self) -> Self {
        Self { marked: other.marked.clone(), ..self.clone() }
    }

    /// Its interfaces beside `lo`, by name.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().filter(|i| i.name != LOOPBACK)
    }

    /// Its own addresses.
    pub const fn local(&self, family: Family) -> &Ranges {
        &self.local[index(family)]
    }

    /// Whether a connection stays here: it goes to an address of the namespace's own, or arrives at
    /// `lo`.
    pub fn keeps(&self, question: &Question) -> bool {
        match question.direction {
            Direction::Out => {
                let destination = question.destination;
                self.local(Family::of(destination)).contains(number(destination))
            }
            Direction::In => question.interface.as_deref() == Some(LOOPBACK),
        }
    }

    /// Marks with which packets of a family are delivered here.
    pub(super) fn marked(&self, family: Family) -> impl Iterator<Item = Masked> {
        self.marked.iter().filter(move |m| m.family == family).map(|m| m.mark)
    }

    /// The networks behind each interface.
    pub(super) fn behind(&self, family: Family) -> impl Iterator<Item = (&str, &Ranges)> {
        self.behind.iter().map(move |(name, networks)| (name.as_str(), &networks[index(family)]))
    }

    /// The first address of an interface, or one on the way to its network for the kernel to take
    /// as a source.
    pub(super) fn first_address(&self, interface: &str, family: Family) -> Option<u128> {
        if interface == LOOPBACK {
            return Some(match family {
                Family::V4 => Ipv4Addr::LOCALHOST.to_bits().into(),
                Family::V6 => 1,
            });
        }
        let interface = self.interfaces.iter().find(|i| i.name == interface)?;
        let own = interface.addresses.iter().map(|c| c.address());
        let mut own = own.filter(|a| Family::of(*a) == family);
        let first = own.next()?;
        Some(number(first))
    }

    /// Addresses behind each interface: the longest prefix wins, as in the kernel's tables.
    fn networks_behind(&self) -> Vec<(String, [Ranges; 2])> {
        let mut paths: Vec<(Cidr, &str)> =
            self.paths.iter().map(|p| (p.network, p.interface.as_str())).collect();
        for interface in self.interfaces() {
            paths.extend(interface.addresses.iter().map(|c| (*c, interface.name.as_str())));
        }
        paths.sort_by_key(|(network, _)| std::cmp::Reverse(network.length()));
        let mut behind: Vec<(String, [Ranges; 2])> =
            self.interfaces().map(|i| (i.name.clone(), <[Ranges; 2]>::default())).collect();
        let mut taken = <[Ranges; 2]>::default();
        for (network, name) in paths {
            let at = index(network.family());
            let all = Ranges::network(network);
            if !behind.iter().any(|(known, _)| known == name) {
                behind.push((name.to_owned(), <[Ranges; 2]>::default()));
            }
            let found = behind.iter_mut().find(|(known, _)| known == name);
            if let Some((_, networks)) = found {
                networks[at] = networks[at].or(&all.without(&taken[at]));
            }
            taken[at] = taken[at].or(&all);
        }
        behind
    }
}

/// `0.0.0.0/0` or `::/0`
const fn everything(family: Family) -> Cidr {
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // A length of 0 is good for every family.
    match Cidr::new(address, 0) {
        Some(cidr) => cidr,
        None => Cidr::host(address),
    }
}
