//! New IPv6 addresses: the kernel gives packets to them a little after it has answered who added them, in
//! a work of its own (`addrconf_dad_work()` of its `net/ipv6/addrconf.c`). On a busy machine the first
//! connections from such an address would fail.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use futures_util::StreamExt as _;
use millrace_core::value::Family;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::MulticastGroup;

use super::{LinkError, Net, Refusal};

/// How long the kernel may take. Mostly it has done it by the time it is asked.
const PATIENCE: Duration = Duration::from_secs(5);

impl Net {
    /// Add an address, and wait until the kernel routes it. With IPv4 it does so at once.
    pub(super) async fn add_routed(
        &self,
        address: IpAddr,
        add: impl Future<Output = Result<(), LinkError>>,
    ) -> Result<(), LinkError> {
        let IpAddr::V6(address) = address else { return add.await };
        // What it says from now on is kept until somebody reads it. The connection ends with its handle.
        let (connection, _handle, mut told) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Ipv6Route])?;
        self.runtime.spawn(connection);
        add.await?;
        if self.route_messages(Family::V6).await?.iter().any(|route| leads_to(route, address)) {
            return Ok(());
        }
        let routed = async {
            while let Some((message, _)) = told.next().await {
                if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) =
                    message.payload
                    && leads_to(&route, address)
                {
                    return true;
                }
            }
            false
        };
        if tokio::time::timeout(PATIENCE, routed).await == Ok(true) {
            return Ok(());
        }
        let why = Refusal::Other(format!(
            "the kernel has not done that for {} s; try again when it is less busy",
            PATIENCE.as_secs()
        ));
        Err(LinkError::Request { what: format!("address {address} is added but not routed"), why })
    }
}

/// Whether a route is by which the kernel gives packets to an address to its own sockets.
fn leads_to(route: &RouteMessage, address: Ipv6Addr) -> bool {
    let to = RouteAttribute::Destination(RouteAddress::Inet6(address));
    route.header.kind == RouteType::Local && route.attributes.contains(&to)
}
