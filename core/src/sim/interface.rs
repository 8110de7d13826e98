//! Interfaces, their addresses and settings, and what the choice between addresses goes by.

use std::net::IpAddr;

use super::ranges::address;
use crate::value::{Cidr, Family};

/// The scope of what is on a link alone (`RT_SCOPE_LINK` in `linux/rtnetlink.h`).
pub(super) const SCOPE_LINK: u8 = 253;

/// An own address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    /// The address with the network around it.
    pub cidr: Cidr,
    /// Whether another one of the same network came first (IPv4).
    pub secondary: bool,
    /// Its scope: 0 is everywhere, 253 the link, 254 the host (`linux/rtnetlink.h`).
    pub scope: u8,
    /// Whether new connections should not come from it (IPv6).
    pub deprecated: bool,
    /// Whether it is one of those that change from time to time (IPv6, RFC 8981).
    pub temporary: bool,
    /// The other end of a point-to-point link, with the network around it (IPv4): the next hops that the
    /// address is beside are in there.
    pub peer: Option<Cidr>,
    /// Whether it is another interface's, by which nothing goes and which is not told of.
    pub elsewhere: bool,
}

impl OwnAddress {
    /// Without the network around it, as packets carry it.
    pub const fn address(&self) -> IpAddr {
        self.cidr.address()
    }

    /// The family that the address is of.
    pub const fn family(&self) -> Family {
        self.cidr.family()
    }

    /// Whether a next hop is in its network (`inet_ifa_match()` in `linux/inetdevice.h`).
    pub(super) fn is_beside(&self, hop: IpAddr) -> bool {
        self.peer.unwrap_or(self.cidr).contains(hop)
    }
}

impl From<Cidr> for OwnAddress {
    fn from(cidr: Cidr) -> Self {
        Self {
            cidr,
            secondary: false,
            scope: 0,
            deprecated: false,
            temporary: false,
            peer: None,
            elsewhere: false,
        }
    }
}

/// Settings of an interface (`net.ipv4.conf.*`, `net.ipv6.conf.*`), with those of `all` in them as the
/// kernel takes them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether it is up: by one that is down nothing comes in or goes out.
    pub up: bool,
    /// Whether it has a carrier: what goes out by one that has none is discarded, behind all rules.
    pub carrier: bool,
    /// `use_tempaddr` of 2 or more: temporary addresses of IPv6 are taken before others.
    pub prefer_temporary: bool,
    /// `use_oif_addrs_only`: what leaves here by IPv6 has an address of this interface.
    pub use_oif_addrs_only: bool,
    /// `forwarding` of IPv4: what comes in here for others is passed on.
    pub forwarding: bool,
    /// `force_forwarding` of IPv6: what comes in here is passed on whatever that of all says.
    pub force_forwarding: bool,
    /// `rp_filter`: 0 is none, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// `src_valid_mark`: the check of source addresses looks up the route with the packet's mark.
    pub src_valid_mark: bool,
    /// `accept_local`: what comes in with an own address as its source is accepted.
    pub accept_local: bool,
    /// `route_localnet`: addresses of `127.0.0.0/8` are routed here as others are.
    pub route_localnet: bool,
    /// `disable_ipv6`: no packet of IPv6 comes in or goes out here.
    pub disable_ipv6: bool,
    /// Of IPv4 and of IPv6, whether it is a bridge that gives packets to rules before they come to the
    /// namespace itself (`bridge-nf-call-iptables`, `bridge-nf-call-ip6tables`).
    pub bridge_calls: [bool; 2],
    /// Whether a route delivers by it what is for `::1`: Millrace's eBPF capture has such.
    pub localhost_v6: bool,
    /// What has packets that come in here first, and is not walked.
    pub aside_in: Option<Aside>,
    /// The same of what goes out here.
    pub aside_out: Option<Aside>,
}

/// What decides about packets at an interface, beside rules and routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// Another interface that it is a port of, such as a bridge or a VRF (`IFLA_MASTER`).
    Port,
    /// A program of XDP (`IFLA_XDP`).
    Program,
    /// Filters of traffic control (`tc-bpf(8)`).
    Filters,
}

impl Aside {
    /// What can't be told because of it; `goes` is what packets do at the interface.
    pub(super) fn text(self, goes: &str, interface: &str) -> String {
        let who = match self {
            Self::Port => "the interface that it is a port of makes",
            Self::Program => "a program of XDP makes",
            Self::Filters => "filters of traffic control (tc) make",
        };
        format!("what {who} of what {goes} {interface}")
    }
}

impl Default for Settings {
    /// Those of a pod: up, with everything else off.
    fn default() -> Self {
        Self {
            up: true,
            carrier: true,
            prefer_temporary: false,
            use_oif_addrs_only: false,
            forwarding: false,
            force_forwarding: false,
            rp_filter: 0,
            src_valid_mark: false,
            accept_local: false,
            route_localnet: false,
            disable_ipv6: false,
            bridge_calls: [false; 2],
            localhost_v6: false,
            aside_in: None,
            aside_out: None,
        }
    }
}

/// An interface with its addresses in the kernel's order. The first one of a family is the one
/// that a REDIRECT on the way in leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Up to 15 bytes (`IFNAMSIZ`), as rules match it.
    pub name: String,
    /// Those of both families, with what the kernel knows of each.
    pub addresses: Vec<OwnAddress>,
    /// Its sysctls, and whether it is up.
    pub settings: Settings,
}

impl Interface {
    /// An interface that is up, with these addresses.
    pub fn new(name: &str, addresses: impl IntoIterator<Item = Cidr>) -> Self {
        Self {
            name: name.to_owned(),
            addresses: addresses.into_iter().map(OwnAddress::from).collect(),
            settings: Settings::default(),
        }
    }
}

/// A label of addresses of IPv6, by which sources are chosen (RFC 6724 section 2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The addresses that have it.
    pub network: Cidr,
    /// The interface that it is for; none is any.
    pub interface: Option<String>,
    /// A source is better that has the destination's.
    pub label: u32,
}

impl Label {
    pub(super) fn is_of(&self, interface: &str) -> bool {
        self.interface.as_deref().is_none_or(|name| name == interface)
    }
}

/// The labels of every namespace, the narrowest first (`ip6addrlbl_init_table` in
/// `net/ipv6/addrlabel.c`).
const LABELS: [(u128, u8, u32); 10] = [
    (1, 128, 0),
    (0xffff << 32, 96, 4),
    (0, 96, 3),
    (0x2001_0000 << 96, 32, 6),
    (0x2001_0010 << 96, 28, 7),
    (0x3ffe << 112, 16, 12),
    (0x2002 << 112, 16, 2),
    (0xfec0 << 112, 10, 11),
    (0xfc << 120, 7, 5),
    (0, 0, 1),
];

pub(super) fn labels() -> Vec<Label> {
    let label = |(number, length, label): (u128, u8, u32)| {
        let network = Cidr::new(address(Family::V6, number), length)?;
        Some(Label { network, interface: None, label })
    };
    LABELS.into_iter().filter_map(label).collect()
}
