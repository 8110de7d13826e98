//! Interfaces, addresses, routes and settings of a namespace, as far as the way of a packet depends
//! on them.

mod routes;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv6Addr;

use futures_util::stream::TryStreamExt as _;
use millrace_core::plan::{PASSTHROUGH_LINK, PASSTHROUGH_PEER};
use millrace_core::sim::{Aside, Interface, Label, Namespace, OwnAddress, Settings};
use millrace_core::value::{Cidr, Family};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::addrlabel::{AddrLabelAttribute, AddrLabelMessage};
use netlink_packet_route::link::{
    InfoData, InfoMacVlan, InfoMacVtap, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
    MacVlanMode, MacVtapMode, XdpAttached,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use rtnetlink::{AddrLabelHandle, Handle, IpVersion};

use crate::link::bridge::calls_rules;
use crate::link::ipsec::has_policies;
use crate::link::ipvs;
use crate::netlink::{own_address, runtime};

/// Interfaces, addresses, routes, policy routing rules or neighbours can't be listed.
#[derive(Debug, thiserror::Error)]
pub enum SurroundingsError {
    /// No netlink, or the kernel refuses.
    #[error("interfaces and routes can't be listed: {0}")]
    Netlink(#[from] rtnetlink::Error),
    /// The runtime or the netlink socket could not be made.
    #[error("netlink can't be used: {0}")]
    Open(#[from] std::io::Error),
}

/// Interfaces, policy routing, IPv6 neighbours and settings of the calling thread's namespace.
///
/// # Errors
/// When the kernel does not list something.
pub fn namespace() -> Result<Namespace, SurroundingsError> {
    let runtime = runtime()?;
    let mut namespace = runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        let links: Vec<_> = handle.link().get().execute().try_collect().await?;
        let names: BTreeMap<u32, String> =
            links.iter().filter_map(|link| Some((link.header.index, name(link)?))).collect();
        let (routes, localhost) = routes::routes(&handle, &names).await?;
        let rules = routes::rules(&handle).await?;
        let mut interfaces = interfaces(&handle, &links).await?;
        let filtered = filtered(&handle, &names).await?;
        let below: Vec<&String> =
            links.iter().filter_map(below).filter_map(|index| names.get(&index)).collect();
        for interface in &mut interfaces {
            filter(interface, &filtered);
            if below.contains(&&interface.name) {
                interface.settings.aside_in = Some(Aside::Port);
            }
            interface.settings.localhost_v6 = localhost.contains(&interface.name);
        }
        let neighbours = neighbours(&handle, &names).await?;
        let labels = labels(&handle, &names).await;
        task.abort();
        let mut namespace = Namespace::listed(interfaces, rules, routes, routes::merged());
        namespace.neighbours = Some(neighbours);
        namespace.labels = labels.unwrap_or(namespace.labels);
        Ok::<_, SurroundingsError>(namespace)
    })?;
    namespace.forwarding_v6 = number("ipv6", "all", "forwarding") != 0;
    let marks = ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"];
    let [accepts, v4, v6] = marks.map(|name| value(&format!("/proc/sys/net/{name}")) != 0);
    namespace.accepts_marks = accepts;
    namespace.reflects_marks = [v4, v6];
    namespace.ephemeral = ephemeral().unwrap_or(namespace.ephemeral);
    namespace.ipsec = has_policies();
    let (services, by_mark) = ipvs::services();
    namespace.serve_virtually(&services, by_mark);
    Ok(namespace)
}

/// The interfaces at which filters of traffic control can be, and whether for what goes out as well
/// (`tc-bpf(8)`: qdiscs `ingress` and `clsact`).
async fn filtered(
    handle: &Handle,
    names: &BTreeMap<u32, String>,
) -> Result<Vec<(String, bool)>, rtnetlink::Error> {
    let messages: Vec<TcMessage> = match handle.qdisc().get().execute().try_collect().await {
        Ok(messages) => messages,
        // A kernel without traffic control has no filters.
        Err(rtnetlink::Error::NetlinkError(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let kind = |message: &TcMessage| {
        message.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.clone()),
            _ => None,
        })
    };
    let one = |message: &TcMessage| {
        let kind = kind(message).filter(|kind| kind == "clsact" || kind == "ingress")?;
        let index = u32::try_from(message.header.index).ok()?;
        Some((names.get(&index)?.clone(), kind == "clsact"))
    };
    Ok(messages.iter().filter_map(one).collect())
}

fn filter(interface: &mut Interface, filtered: &[(String, bool)]) {
    for (_, out) in filtered.iter().filter(|(name, _)| *name == interface.name) {
        let settings = &mut interface.settings;
        settings.aside_in = settings.aside_in.or(Some(Aside::Filters));
        settings.aside_out = settings.aside_out.or(out.then_some(Aside::Filters));
    }
}

/// What has packets that come in by an interface before they come to the namespace itself.
fn aside(link: &LinkMessage) -> Option<Aside> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(master) if *master != 0 => Some(Aside::Port),
        LinkAttribute::Xdp(parts) => {
            let none = |part: &LinkXdp| matches!(part, LinkXdp::Attached(XdpAttached::None));
            (!parts.iter().any(none)).then_some(Aside::Program)
        }
        _ => None,
    })
}

/// The interface that a macvlan or macvtap has all that comes in by, if it is one of this namespace
/// (`macvlan_handle_frame()` in `drivers/net/macvlan.c`).
fn below(link: &LinkMessage) -> Option<u32> {
    let all = &link.attributes;
    let passes = |info: &LinkInfo| match info {
        LinkInfo::Data(InfoData::MacVlan(parts)) => {
            parts.iter().any(|part| matches!(part, InfoMacVlan::Mode(MacVlanMode::Passthrough)))
        }
        LinkInfo::Data(InfoData::MacVtap(parts)) => {
            parts.iter().any(|part| matches!(part, InfoMacVtap::Mode(MacVtapMode::Passthrough)))
        }
        _ => false,
    };
    let has_all = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(passes),
        _ => false,
    };
    let is_elsewhere =
        |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    if !all.iter().any(has_all) || all.iter().any(is_elsewhere) {
        return None;
    }
    all.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

/// The labels of addresses of IPv6, in the kernel's order; none where it lists none, as one without IPv6
/// does.
async fn labels(handle: &Handle, names: &BTreeMap<u32, String>) -> Option<Vec<Label>> {
    let request = AddrLabelHandle::new(handle.clone()).get(IpVersion::V6);
    let messages: Vec<AddrLabelMessage> = request.execute().try_collect().await.ok()?;
    let label = |message: &AddrLabelMessage| {
        let (mut ip, mut label) = (Ipv6Addr::UNSPECIFIED.into(), None);
        for attribute in &message.attributes {
            match attribute {
                AddrLabelAttribute::Address(of) => ip = *of,
                AddrLabelAttribute::Label(of) => label = Some(*of),
                _ => {}
            }
        }
        let interface = match message.header.index {
            0 => None,
            index => Some(names.get(&index)?.clone()),
        };
        let network = Cidr::new(ip, message.header.prefix_len)?;
        Some(Label { network, interface, label: label? })
    };
    Some(messages.iter().filter_map(label).collect())
}

/// The neighbours of IPv6 that packets can be sent to without asking for them first.
async fn neighbours(
    handle: &Handle,
    names: &BTreeMap<u32, String>,
) -> Result<Vec<(String, Ipv6Addr)>, rtnetlink::Error> {
    let request = handle.neighbours().get().set_address_family(AddressFamily::Inet6);
    let messages: Vec<NeighbourMessage> = request.execute().try_collect().await?;
    let known = |message: &NeighbourMessage| {
        let unknown = [NeighbourState::None, NeighbourState::Incomplete, NeighbourState::Failed];
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(*ip),
            _ => None,
        })?;
        let name = names.get(&message.header.ifindex)?;
        (!unknown.contains(&message.header.state)).then(|| (name.clone(), address))
    };
    Ok(messages.iter().filter_map(known).collect())
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// The ports that sockets get which ask for none; none where that can't be read.
fn ephemeral() -> Option<(u16, u16)> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ports = text.split_ascii_whitespace().map(|port| port.parse().ok());
    Some((ports.next()??, ports.next()??))
}

/// A setting of an interface; 0 where there is none.
fn number(family: &str, interface: &str, setting: &str) -> u8 {
    value(&format!("/proc/sys/net/{family}/conf/{interface}/{setting}"))
}

fn value(path: &str) -> u8 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// An interface's settings, as the kernel takes them together with those of `all`
/// (`IN_DEV_ORCONF`, `IN_DEV_MAXCONF`, `IN_DEV_CONF_GET` in `linux/inetdevice.h`).
fn settings(name: &str, link: &LinkMessage) -> Settings {
    let has = |flag| link.header.flags.contains(flag);
    let own = |setting| number("ipv4", name, setting);
    let all = |setting| number("ipv4", "all", setting);
    let either = |setting| own(setting) != 0 || all(setting) != 0;
    Settings {
        up: has(LinkFlags::Up),
        // One that is down has none either, and is told of as such.
        carrier: has(LinkFlags::LowerUp) || !has(LinkFlags::Up),
        prefer_temporary: number("ipv6", name, "use_tempaddr") >= 2,
        use_oif_addrs_only: number("ipv6", name, "use_oif_addrs_only") != 0,
        forwarding: own("forwarding") != 0,
        force_forwarding: number("ipv6", name, "force_forwarding") != 0,
        rp_filter: own("rp_filter").max(all("rp_filter")),
        src_valid_mark: either("src_valid_mark"),
        accept_local: either("accept_local"),
        route_localnet: either("route_localnet"),
        disable_ipv6: number("ipv6", name, "disable_ipv6") != 0,
        bridge_calls: calls_rules(link),
        localhost_v6: false,
        aside_in: aside(link),
        aside_out: None,
    }
}

async fn interfaces(
    handle: &Handle,
    links: &[LinkMessage],
) -> Result<Vec<Interface>, rtnetlink::Error> {
    let messages: Vec<_> = handle.address().get().execute().try_collect().await?;
    let index_of = |of: &str| {
        let found = links.iter().find(|link| name(link).as_deref() == Some(of));
        found.map(|link| link.header.index)
    };
    let passthrough = index_of(PASSTHROUGH_LINK);
    let interface = |link: &LinkMessage| {
        let name =
            name(link).filter(|name| name != PASSTHROUGH_LINK && name != PASSTHROUGH_PEER)?;
        let own = messages.iter().filter_map(|message| {
            let at = message.header.index;
            // What is sent to that address goes by `lo`, and by its interface nothing.
            let elsewhere = name == "lo" && Some(at) == passthrough;
            let own = address(message).filter(|_| elsewhere || at == link.header.index)?;
            Some(OwnAddress { elsewhere, ..own })
        });
        let addresses = own.collect();
        let settings = settings(&name, link);
        Some(Interface { name, addresses, settings })
    };
    Ok(links.iter().filter_map(interface).collect())
}

/// An own address; none where it can't be used (yet).
fn address(message: &AddressMessage) -> Option<OwnAddress> {
    let header = &message.header;
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or_else(|| AddressFlags::from_bits_retain(header.flags.bits().into()));
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) {
        return None;
    }
    let cidr = Cidr::new(own_address(message)?, header.prefix_len)?;
    let is_v4 = cidr.family() == Family::V4;
    let peer = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(peer) => Cidr::new(*peer, header.prefix_len),
        _ => None,
    });
    // Of the two families one flag means one thing each.
    let secondary = flags.contains(AddressFlags::Secondary);
    Some(OwnAddress {
        cidr,
        secondary: is_v4 && secondary,
        temporary: !is_v4 && secondary,
        peer: peer.filter(|peer| is_v4 && *peer != cidr),
        scope: header.scope.into(),
        deprecated: flags.contains(AddressFlags::Deprecated),
        elsewhere: false,
    })
}
