//! Interfaces, addresses, routes and settings of a namespace, as far as the way of a packet depends
//! on them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::stream::TryStreamExt as _;
use millrace_core::observed::Observed;
use millrace_core::plan::{PASSTHROUGH_LINK, PASSTHROUGH_PEER};
use millrace_core::ruleset::Masked;
use millrace_core::sim::{Interface, MarkedLocal, Namespace, Path};
use millrace_core::value::{Cidr, Family};
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteType};
use rtnetlink::RouteMessageBuilder;

use crate::netlink::own_address;

/// Something can't be seen.
#[derive(Debug, thiserror::Error)]
pub enum SurroundingsError {
    /// No netlink, or the kernel refuses.
    #[error("interfaces and routes can't be listed: {0}")]
    Netlink(#[from] rtnetlink::Error),
    /// No socket.
    #[error("netlink can't be used: {0}")]
    Open(#[from] std::io::Error),
}

/// The calling thread's namespace. What `observed` found of policy routing goes with it.
///
/// # Errors
/// When the kernel does not list something.
pub fn namespace(observed: &Observed) -> Result<Namespace, SurroundingsError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (interfaces, paths) = runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        let links = links(&handle).await?;
        let paths = paths(&handle, &links).await?;
        let interfaces = interfaces(&handle, links).await?;
        task.abort();
        Ok::<_, SurroundingsError>((interfaces, paths))
    })?;
    let mut namespace = Namespace::new(interfaces, paths, marked(observed));
    namespace.forwarding = is_on("ipv4/ip_forward");
    namespace.route_localnet = is_on("ipv4/conf/all/route_localnet");
    Ok(namespace)
}

/// Marks with which packets are delivered here.
fn marked(observed: &Observed) -> Vec<MarkedLocal> {
    let leads = |family, table| {
        let mut routes = observed.routes.iter().filter(|r| r.family == family && r.table == table);
        // Where others have routes beside it, these may lead elsewhere.
        routes.next().is_some_and(|r| r.local_default) && routes.all(|r| r.local_default)
    };
    let rules = observed.ip_rules.iter().filter(|rule| rule.mark_only);
    rules
        .filter_map(|rule| {
            let (value, mask) = rule.fwmark?;
            let mark = Masked { value: value & mask, mask };
            leads(rule.family, rule.table).then_some(MarkedLocal { family: rule.family, mark })
        })
        .collect()
}

fn is_on(name: &str) -> bool {
    let path = format!("/proc/sys/net/{name}");
    fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
}

async fn links(handle: &rtnetlink::Handle) -> Result<BTreeMap<u32, String>, rtnetlink::Error> {
    let links: Vec<_> = handle.link().get().execute().try_collect().await?;
    let name = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    };
    let named = |link: netlink_packet_route::link::LinkMessage| {
        Some((link.header.index, link.attributes.iter().find_map(name)?))
    };
    Ok(links.into_iter().filter_map(named).collect())
}

async fn interfaces(
    handle: &rtnetlink::Handle,
    links: BTreeMap<u32, String>,
) -> Result<Vec<Interface>, rtnetlink::Error> {
    let messages: Vec<_> = handle.address().get().execute().try_collect().await?;
    let ours = |index: &u32| links.get(index).is_some_and(|name| name == PASSTHROUGH_LINK);
    let interface = |(index, name): (&u32, &String)| {
        let own = messages.iter().filter(|message| {
            let at = message.header.index;
            // What is sent to that address goes by `lo`, and by its interface nothing.
            at == *index || (name == "lo" && ours(&at))
        });
        let addresses =
            own.filter_map(|message| Cidr::new(own_address(message)?, message.header.prefix_len));
        Interface { name: name.clone(), addresses: addresses.collect() }
    };
    let shown = links
        .iter()
        .filter(|(_, name)| ![PASSTHROUGH_LINK, PASSTHROUGH_PEER].contains(&name.as_str()));
    Ok(shown.map(interface).collect())
}

/// The routes of table `main`.
async fn paths(
    handle: &rtnetlink::Handle,
    links: &BTreeMap<u32, String>,
) -> Result<Vec<Path>, rtnetlink::Error> {
    let requests = [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ];
    let mut paths = Vec::new();
    for (request, unspecified) in requests
        .into_iter()
        .zip([IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)])
    {
        let messages: Vec<_> = handle.route().get(request).execute().try_collect().await?;
        for message in messages {
            let header = &message.header;
            if header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN {
                continue;
            }
            let destination = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::V4(*to)),
                RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::V6(*to)),
                _ => None,
            });
            let interface = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => links.get(index).cloned(),
                _ => None,
            });
            let to = destination.unwrap_or(unspecified);
            if Family::of(to) != Family::of(unspecified) {
                continue;
            }
            let network = Cidr::new(to, header.destination_prefix_length);
            paths.extend(
                network.zip(interface).map(|(network, interface)| Path { network, interface }),
            );
        }
    }
    Ok(paths)
}
