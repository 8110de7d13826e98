//! The interface that has the address that the proxy passes connections on from.

use std::net::Ipv6Addr;

use futures_util::stream::TryStreamExt as _;
use millrace_core::plan::{
    Change, PASSTHROUGH_LINK, PASSTHROUGH_PEER, PASSTHROUGH_READY, PASSTHROUGH_V6,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, CacheInfo};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteProtocol, RouteScope, RouteType};
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{KernelError, LinkError, Net, errno, request, settle};
use crate::sysctl::switch_ipv6_on;

/// The kernel's own routes, among them those of multicast (`RT_TABLE_LOCAL`).
const LOCAL: u32 = 255;

/// What has the name of the interface.
pub(super) enum Occupant {
    /// The interface: its index, and whether it was made to the end.
    Ours(u32, bool),
    /// An interface of this name that is no such pair, so somebody else's.
    Other,
}

impl Net {
    /// What is there by the name of the interface: ours is one end of a pair whose other end has its name
    /// here too.
    pub(super) async fn find_passthrough(&self) -> Result<Option<Occupant>, LinkError> {
        let Some(link) = self.named(PASSTHROUGH_LINK).await? else { return Ok(None) };
        let peer = self.named(PASSTHROUGH_PEER).await?;
        let is_pair = |link: &LinkMessage| {
            let mut infos = link.attributes.iter().filter_map(|a| match a {
                LinkAttribute::LinkInfo(infos) => Some(infos),
                _ => None,
            });
            infos.any(|infos| infos.contains(&LinkInfo::Kind(InfoKind::Veth)))
        };
        let leads_to = |link: &LinkMessage, other: &LinkMessage| {
            // The number of an interface elsewhere comes with that of its namespace.
            let elsewhere = |a: &LinkAttribute| matches!(a, LinkAttribute::LinkNetNsId(_));
            link.attributes.contains(&LinkAttribute::Link(other.header.index))
                && !link.attributes.iter().any(elsewhere)
        };
        if !is_pair(&link) || !peer.is_some_and(|peer| leads_to(&link, &peer)) {
            return Ok(Some(Occupant::Other));
        }
        let ready = LinkAttribute::IfAlias(PASSTHROUGH_READY.to_owned());
        Ok(Some(Occupant::Ours(link.header.index, link.attributes.contains(&ready))))
    }

    async fn named(&self, name: &str) -> Result<Option<LinkMessage>, LinkError> {
        let get = self.handle.link().get().match_name(name.to_owned());
        let get = get.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        match get.execute().try_next().await {
            Ok(link) => Ok(link),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(request(format!("interface {name} can't be looked for"))(error)),
        }
    }

    /// Whether the kernel makes pairs of interfaces. It is asked for one that it refuses for an address
    /// that is none, which it looks at last, so that none is made.
    ///
    /// # Errors
    /// What it says where it makes none.
    pub fn tries_pair(&self) -> Result<(), Errno> {
        let pair = LinkVeth::new(PASSTHROUGH_LINK, PASSTHROUGH_PEER);
        let pair = pair.append_extra_attribute(LinkAttribute::Address(vec![0; 2])).build();
        let made = self.runtime.block_on(self.handle.link().add(pair).execute());
        match made.map_err(|error| errno(&error)) {
            // `veth_validate()`
            Ok(()) | Err(Some(Errno::EINVAL)) => Ok(()),
            Err(why) => Err(why.unwrap_or(Errno::EIO)),
        }
    }

    /// Make the interface with its address, anew where something of it is there, or remove it.
    ///
    /// # Errors
    /// When another interface has its name, the kernel has no veth, or `NET_ADMIN` is missing.
    pub fn passthrough(&self, change: Change) -> Result<(), LinkError> {
        self.runtime.block_on(async {
            match (change, self.find_passthrough().await?) {
                (Change::Remove, None | Some(Occupant::Other)) => Ok(()),
                (Change::Remove, Some(Occupant::Ours(index, _))) => {
                    self.remove_passthrough(index).await
                }
                (Change::Add, Some(Occupant::Other)) => Err(failed(KernelError::Other(format!(
                    "an interface of this name is here that is not one end of a pair with \
                     {PASSTHROUGH_PEER}: somebody else made it; rename or remove it, or capture \
                     without IPv6"
                )))),
                (Change::Add, Some(Occupant::Ours(index, _))) => {
                    // An address whose route somebody took can't be added again.
                    self.remove_passthrough(index).await?;
                    self.make_passthrough().await
                }
                (Change::Add, None) => self.make_passthrough().await,
            }
        })
    }

    async fn remove_passthrough(&self, index: u32) -> Result<(), LinkError> {
        let removed = self.handle.link().del(index).execute().await;
        settle(removed, Change::Remove, || format!("interface {PASSTHROUGH_LINK}"))
    }

    async fn make_passthrough(&self) -> Result<(), LinkError> {
        let pair = LinkVeth::new(PASSTHROUGH_LINK, PASSTHROUGH_PEER).build();
        let made = self.handle.link().add(pair).execute().await;
        if let Err(error) = &made
            && errno(error) == Some(Errno::EOPNOTSUPP)
        {
            return Err(failed(KernelError::Other(
                "the kernel has no interfaces of kind veth: load the module veth (CONFIG_VETH), or \
                 capture without IPv6"
                    .to_owned(),
            )));
        }
        let what = || format!("interface {PASSTHROUGH_LINK}");
        settle(made, Change::Add, what)?;
        let Some(Occupant::Ours(index, _)) = self.find_passthrough().await? else {
            return Err(failed(KernelError::Errno(Errno::ENODEV)));
        };
        let set = self.handle.link();
        // No address of its own, and nothing that asks for neighbours or groups.
        let plain = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let plain = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![plain])]);
        let plain = LinkUnspec::new_with_index(index).append_extra_attribute(plain).build();
        settle(set.set(plain).execute().await, Change::Add, what)?;
        let mut up = LinkUnspec::new_with_index(index).build();
        up.header.flags = LinkFlags::Up | LinkFlags::Noarp;
        up.header.change_mask = LinkFlags::Up | LinkFlags::Noarp | LinkFlags::Multicast;
        settle(set.set(up).execute().await, Change::Add, what)?;
        self.add_routed(PASSTHROUGH_V6, self.add_passthrough(index)).await?;
        // What is sent to a group without a word on the interface goes by the first one that takes it.
        let mut groups = RouteMessageBuilder::<Ipv6Addr>::new()
            .kind(RouteType::Multicast)
            .destination_prefix(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)
            .output_interface(index)
            .table_id(LOCAL)
            .build();
        groups.header.protocol = RouteProtocol::Unspec;
        groups.header.scope = RouteScope::NoWhere;
        let removed = self.handle.route().del(groups).execute().await;
        settle(removed, Change::Remove, || format!("multicast by {PASSTHROUGH_LINK}"))?;
        let alias = LinkAttribute::IfAlias(PASSTHROUGH_READY.to_owned());
        let ready = LinkUnspec::new_with_index(index).append_extra_attribute(alias).build();
        settle(self.handle.link().set(ready).execute().await, Change::Add, what)
    }

    async fn add_passthrough(&self, index: u32) -> Result<(), LinkError> {
        let add = || async {
            let mut add = self.handle.address().add(index, PASSTHROUGH_V6, 128);
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            // Never taken for the source of a socket that does not ask for it (RFC 6724 rule 3).
            let mut old = CacheInfo::default();
            (old.ifa_preferred, old.ifa_valid) = (0, u32::MAX);
            let attributes = &mut add.message_mut().attributes;
            attributes.push(AddressAttribute::Flags(flags));
            attributes.push(AddressAttribute::CacheInfo(old));
            add.execute().await
        };
        let mut added = add().await;
        if added.as_ref().is_err_and(|error| errno(error) == Some(Errno::EACCES)) {
            switch_ipv6_on(PASSTHROUGH_LINK).map_err(|why| failed(KernelError::Other(why)))?;
            added = add().await;
        }
        settle(added, Change::Add, || format!("address {PASSTHROUGH_V6} of {PASSTHROUGH_LINK}"))
    }
}

fn failed(why: KernelError) -> LinkError {
    let what = format!(
        "interface {PASSTHROUGH_LINK}, from whose address {PASSTHROUGH_V6} the proxy passes \
         connections on, can't be added"
    );
    LinkError::Request { what, why }
}
