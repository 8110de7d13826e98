//! What the walk of a packet needs to know of the namespace beside its rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::interface::{Interface, Label, OwnAddress, SCOPE_LINK, Settings, labels};
use super::question::{Direction, Identity, Question};
use super::ranges::{Ranges, number};
use super::routing::{
    DEFAULT_TABLE, LOCAL_TABLE, MAIN_TABLE, RouteAction, RoutingRule, RoutingTables, RuleAction,
    Selector, TableRoute,
};
use crate::policy::{CapturePolicy, DnsCapture};
use crate::ruleset::{Home, Masked, Routing};
use crate::value::{Cidr, Family, Gid, Uid};

/// The name of the loopback interface, which every namespace has.
pub(super) const LOOPBACK: &str = "lo";

/// Where packets to a network leave by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Destinations of this network take this way.
    pub network: Cidr,
    /// The name of the interface that they leave by.
    pub interface: String,
}

/// Where a packet leaves the namespace, and with what source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Exit {
    /// The name of the interface that the packet leaves by.
    pub interface: String,
    /// The next hop, where there is one.
    pub gateway: Option<IpAddr>,
    /// The source that sockets get, where the route names one.
    pub source: Option<IpAddr>,
    /// The scope of the route (IPv4): only addresses of it or a wider one are taken for a source. 0 is
    /// everywhere, 253 the link, 254 the host.
    pub scope: u8,
}

impl Exit {
    /// By an interface, without a next hop or a source of its own.
    pub fn by(interface: &str) -> Self {
        let scope = SCOPE_LINK;
        Self { interface: interface.to_owned(), gateway: None, source: None, scope }
    }
}

/// Packets of this family with this mark are delivered here, wherever they go (`ip rule` to a
/// table whose only route is `local default`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkedLocal {
    /// IPv4 or IPv6: policy rules of the two are kept apart.
    pub family: Family,
    /// Packets that have it are delivered locally, whatever their destination.
    pub mark: Masked,
}

/// A network namespace, as far as the way of a packet depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    interfaces: Vec<Interface>,
    routing: RoutingTables,
    local: [Ranges; 2],
    /// Addresses of IPv6 that other tables deliver here.
    pub(super) local_elsewhere: Ranges,
    /// Whether all interfaces have the settings of a pod's.
    ordinary: bool,
    /// Whether interfaces, routes and settings are those of any pod, since nothing says which they are.
    pub(super) supposed: bool,
    /// The labels of addresses of IPv6, in the kernel's order.
    pub labels: Vec<Label>,
    /// `tcp_fwmark_accept`: who accepts a connection answers with the mark of its first packet.
    pub accepts_marks: bool,
    /// `fwmark_reflect` of IPv4 and of IPv6: what tells of an error has the mark of what it tells of.
    pub reflects_marks: [bool; 2],
    /// Whether IPv6 packets for others are passed on (`net.ipv6.conf.all.forwarding`).
    pub forwarding_v6: bool,
    /// Neighbours of IPv6 whose hardware addresses are known, by the interface; none if that is not
    /// known.
    pub neighbours: Option<Vec<(String, Ipv6Addr)>>,
    /// Who listens on which port, as far as it is known: who an answer comes from.
    pub listeners: BTreeMap<u16, Identity>,
    /// The addresses that eBPF lets captured connections to elsewhere come from, if it is known: those of
    /// the time when the pod was enrolled, as long as the pod has them.
    pub enrolled: Vec<IpAddr>,
    /// The first and the last port that the kernel gives to a socket that asks for none
    /// (`net.ipv4.ip_local_port_range`, of both families).
    pub ephemeral: (u16, u16),
    /// Whether there are policies of `IPsec` (`ip-xfrm(8)`), which are not walked.
    pub ipsec: bool,
    /// Addresses whose connections IPVS leads elsewhere, of IPv4 and of IPv6.
    pub(super) virtual_services: [Ranges; 2],
}

/// The kernel's own (`inet_init_net()` in `net/ipv4/af_inet.c`).
const EPHEMERAL_PORTS: (u16, u16) = (32_768, 60_999);

pub(super) const fn index(family: Family) -> usize {
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

/// The priorities of the kernel's own rules (`fib_default_rules_init` in `net/ipv4/fib_rules.c`), and
/// the one that a rule for a mark gets if it names none.
const PRIORITIES: [(u32, u32); 3] =
    [(0, LOCAL_TABLE), (32_766, MAIN_TABLE), (32_767, DEFAULT_TABLE)];
const MARK_PRIORITY: u32 = 32_765;

impl Namespace {
    /// A namespace with these interfaces beside `lo`, and these routes beside those to the
    /// interfaces' own networks. The more specific route wins, the first of equal ones.
    pub fn new(interfaces: Vec<Interface>, paths: Vec<Path>, marked: Vec<MarkedLocal>) -> Self {
        let mut routes = Vec::new();
        let mut add = |table, network, action| {
            routes.push(TableRoute { table, network, metric: 0, action });
        };
        for network in
            ["127.0.0.0/8", "::1/128"].iter().filter_map(|text| text.parse::<Cidr>().ok())
        {
            let source = first_loopback(network.family());
            add(LOCAL_TABLE, network, RouteAction::Local(Some(source)));
        }
        for own in interfaces.iter().flat_map(|interface| &interface.addresses) {
            let action = RouteAction::Local(Some(own.address()));
            add(LOCAL_TABLE, Cidr::host(own.address()), action);
        }
        for Path { network, interface } in paths {
            add(MAIN_TABLE, network.network(), RouteAction::Out(vec![Exit::by(&interface)]));
        }
        for interface in interfaces.iter().filter(|interface| interface.name != LOOPBACK) {
            for own in &interface.addresses {
                let action = RouteAction::Out(vec![Exit::by(&interface.name)]);
                add(MAIN_TABLE, own.cidr.network(), action);
            }
        }
        let of_kernel = Family::ALL.into_iter().flat_map(|family| {
            PRIORITIES.map(|(priority, table)| RoutingRule {
                family,
                priority,
                selector: Selector::default(),
                action: RuleAction::Table(table),
            })
        });
        let of_marks = marked.into_iter().map(|MarkedLocal { family, mark }| RoutingRule {
            family,
            priority: MARK_PRIORITY,
            selector: Selector { mark: Some(mark), ..Selector::default() },
            action: RuleAction::Deliver,
        });
        Self::routed(interfaces, of_kernel.chain(of_marks).collect(), routes)
    }

    /// A namespace with the rules and routes of all tables that the kernel lists, those to the
    /// interfaces' own networks and addresses among them.
    pub fn routed(
        interfaces: Vec<Interface>,
        rules: Vec<RoutingRule>,
        routes: Vec<TableRoute>,
    ) -> Self {
        Self::listed(interfaces, rules, routes, None)
    }

    /// The same where it is known whether IPv4 has its own table and the main one in one, so that the
    /// longest prefix of both wins: it has until a rule of policy routing is added or deleted.
    pub fn listed(
        interfaces: Vec<Interface>,
        rules: Vec<RoutingRule>,
        routes: Vec<TableRoute>,
        merged: Option<bool>,
    ) -> Self {
        let routing = RoutingTables::new(rules, routes, merged);
        let local = Family::ALL.map(|family| routing.local(family));
        let local_elsewhere = routing.local_elsewhere();
        let ordinary = interfaces.iter().all(|i| i.settings == Settings::default());
        Self {
            interfaces,
            routing,
            local,
            local_elsewhere,
            ordinary,
            supposed: false,
            labels: labels(),
            accepts_marks: false,
            reflects_marks: [false; 2],
            forwarding_v6: false,
            neighbours: None,
            listeners: BTreeMap::new(),
            enrolled: Vec::new(),
            ephemeral: EPHEMERAL_PORTS,
            ipsec: false,
            virtual_services: [Ranges::default(), Ranges::default()],
        }
    }

    /// A pod with one interface, `eth0`, that everything else is behind, and with the routing that
    /// rules need.
    pub fn pod(addresses: &[IpAddr], routing: &Routing) -> Self {
        let length = |family| match family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        let network = |a: &IpAddr| Cidr::new(*a, length(Family::of(*a)));
        let mut interfaces = vec![Interface::new("eth0", addresses.iter().filter_map(network))];
        if let Some(home) = routing.passthrough_v6 {
            let passed = Cidr::host(IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)));
            let mut lo = Interface::new(LOOPBACK, [passed]);
            for own in &mut lo.addresses {
                own.elsewhere = home == Home::Own;
                own.deprecated = own.elsewhere;
            }
            interfaces.push(lo);
        }
        let mut families: Vec<Family> = addresses.iter().map(|a| Family::of(*a)).collect();
        families.sort();
        families.dedup();
        let paths = families
            .iter()
            .map(|family| everything(*family))
            .map(|network| Path { network, interface: "eth0".to_owned() });
        let paths = paths.collect();
        let marked = routing.marked.iter().flat_map(|route| {
            let mark = route.mark;
            let families = Family::ALL.into_iter().filter(|f| *f == Family::V4 || route.ipv6);
            families.map(move |family| MarkedLocal { family, mark })
        });
        let marked = marked.collect();
        Self { supposed: true, ..Self::new(interfaces, paths, marked) }
    }

    /// The same with the proxy of a policy listening on its ports.
    #[must_use]
    pub fn with_proxy(mut self, policy: &CapturePolicy) -> Self {
        let uid = policy.proxy.uids.first().map(|u| u.value);
        let gid = policy.proxy.gids.first().map(|g| g.value);
        let gid = gid.map(Gid::get).or(uid.map(Uid::get));
        let Some((uid, gid)) = uid.map(Uid::get).or(gid).zip(gid) else { return self };
        let proxy = Identity { uid, gid };
        let mut ports = vec![policy.outbound.port.value, policy.inbound.port.value];
        ports.extend(policy.inbound.tunnel_port.as_ref().map(|port| port.value));
        ports.extend(policy.dns.as_ref().and_then(DnsCapture::listener));
        self.listeners.extend(ports.into_iter().map(|port| (port.get(), proxy)));
        self
    }

    /// This namespace with the policy routing of another one by marks.
    #[must_use]
    pub fn with_marks_of(&self, other: &Self) -> Self {
        Self { routing: self.routing.with_marks_of(&other.routing), ..self.clone() }
    }

    /// This namespace where nothing is without a route or a carrier: what no route is for leaves by an
    /// interface that has an address which others can reach. So it is told what rules do, whichever routes
    /// come later.
    #[must_use]
    pub fn with_ways_out(&self) -> Self {
        let reached = |own: &OwnAddress| match own.address() {
            IpAddr::V4(_) => true,
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        };
        let mut all = self.clone();
        for interface in &mut all.interfaces {
            interface.settings.carrier = true;
        }
        for family in Family::ALL {
            let of_family = |own: &OwnAddress| own.family() == family && reached(own);
            let has = |interface: &&Interface| interface.addresses.iter().any(of_family);
            let interface = self.interfaces().filter(|i| i.settings.up).find(has);
            if let Some(interface) = interface {
                all.routing = all.routing.with_way_out(family, &interface.name);
            }
        }
        all
    }

    /// Connections to these addresses are led elsewhere by IPVS, which is not walked; with `by_mark`, any may
    /// be.
    pub fn serve_virtually(&mut self, addresses: &[IpAddr], by_mark: bool) {
        for family in Family::ALL {
            let of_family = addresses.iter().filter(|address| Family::of(**address) == family);
            let own = of_family.map(|address| (number(*address), number(*address)));
            let all = u128::MAX >> (128 - u32::from(family.bits()));
            self.virtual_services[index(family)] =
                if by_mark { Ranges::up_to(all) } else { own.collect() };
        }
    }

    /// Its interfaces beside `lo`, by name.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().filter(|i| i.name != LOOPBACK)
    }

    /// Whether there is an interface of this name.
    pub fn lists(&self, name: &str) -> bool {
        self.interfaces.iter().any(|interface| interface.name == name)
    }

    /// Whether an address is one of its interfaces' own, those of `lo` too.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let mut own = self.interfaces.iter().flat_map(|interface| &interface.addresses);
        own.any(|own| own.address() == address)
    }

    /// All of them that can be the source's own, in the kernel's order.
    pub(super) fn all_interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// What is known of an interface; of one that is not listed, what a pod's has.
    pub(super) fn settings(&self, interface: &str) -> Settings {
        if self.ordinary {
            return Settings::default();
        }
        let found = self.interfaces.iter().find(|i| i.name == interface);
        found.map_or_else(Settings::default, |interface| interface.settings)
    }

    /// Addresses of a family that packets are delivered here for.
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

    /// Its policy routing rules and routing tables, for both families.
    pub(super) const fn routing(&self) -> &RoutingTables {
        &self.routing
    }

    /// The first address of an interface: the one that a redirect leads to.
    pub(super) fn first_address(&self, interface: &str, family: Family) -> Option<u128> {
        if interface == LOOPBACK {
            return Some(number(first_loopback(family)));
        }
        let interface = self.interfaces.iter().find(|i| i.name == interface)?;
        let own = interface.addresses.iter().map(OwnAddress::address);
        let mut own = own.filter(|a| Family::of(*a) == family);
        own.next().map(number)
    }
}

/// The first address of `lo`: `127.0.0.1` or `::1`.
pub(super) const fn first_loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// The network of every address: `0.0.0.0/0` or `::/0`.
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
