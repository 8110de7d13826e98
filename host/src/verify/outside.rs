//! Somebody outside the pod, for as long as a proof takes: a network namespace without a name, with
//! a link into the pod. The link belongs to that namespace, so the kernel removes both when this
//! process ends, however it ends.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::stream::TryStreamExt as _;
use millrace_core::sim::Protocol;
use millrace_core::value::Family;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::RouteType;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::listen::new_socket;
use crate::netlink::runtime;
use crate::sysctl::switch_ipv6_on;

/// The link's name in the pod.
pub(super) const LINK: &str = "millrace-verify";
/// How long it may take to come up.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long another proof in the pod, whose link has the same name and addresses, is waited for.
const TURN: Duration = Duration::from_mins(1);
/// Between two tries to make the link.
const PAUSE: Duration = Duration::from_millis(20);
/// The link's name in the namespace outside.
const PEER: &str = "eth0";

/// Both ends of a family's link, and how long the prefix of their network is.
type End = (IpAddr, IpAddr, u8);

/// The addresses of both ends, the pod's first: networks for measurements, which no network of its
/// own uses (RFC 2544, RFC 5180).
const ENDS: [End; 2] = [
    (
        IpAddr::V4(Ipv4Addr::new(198, 19, 255, 253)),
        IpAddr::V4(Ipv4Addr::new(198, 19, 255, 254)),
        30,
    ),
    (
        IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0xffff, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0xffff, 0, 0, 0, 2)),
        126,
    ),
];

/// A network namespace that stands for everybody outside, with a veth pair into the pod.
#[derive(Debug)]
pub(super) struct Outside {
    net: File,
    families: Vec<Family>,
}

impl Outside {
    /// Make it, with a link into the calling thread's namespace whose own addresses these are.
    pub(super) fn open(addresses: &[IpAddr]) -> Result<Self, String> {
        if addresses.is_empty() {
            return Err("the pod has no address at which others reach it".to_owned());
        }
        let pod = here()?;
        let mut families: Vec<Family> = addresses.iter().map(|a| Family::of(*a)).collect();
        families.sort();
        families.dedup();
        let (net, peers_mac) = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| {
                format!("a namespace outside can't be made: {errno}; it needs SYS_ADMIN")
            })?;
            let mac = in_runtime(async |handle| {
                peer(handle, &pod).await?;
                mac(handle, PEER).await
            })?;
            Ok((here()?, mac))
        })?;
        let outside = Self { net, families };
        let pods_mac = in_runtime(async |handle| {
            let (own, other) = (|end: &End| end.0, |end: &End| end.1);
            settle(handle, LINK, own, other, &peers_mac, &outside.families).await?;
            mac(handle, LINK).await
        })?;
        outside.enter(|| {
            in_runtime(async |handle| {
                let (own, other) = (|end: &End| end.1, |end: &End| end.0);
                settle(handle, PEER, own, other, &pods_mac, &outside.families).await?;
                route(handle, addresses).await?;
                carries(handle, PEER).await
            })
        })?;
        in_runtime(async |handle| carries(handle, LINK).await)?;
        Ok(outside)
    }

    /// Addresses of the end outside, one for each family of [`Self::open`].
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let ends = ENDS.iter().filter(|(_, peer, _)| self.families.contains(&Family::of(*peer)));
        ends.map(|(_, peer, _)| *peer).collect()
    }

    /// A socket of somebody outside.
    pub(super) fn socket(&self, family: Family, protocol: Protocol) -> Result<OwnedFd, String> {
        self.enter(|| new_socket(family, protocol).map_err(|errno| errno.to_string()))
    }

    fn enter<T: Send>(&self, f: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
        on_a_thread(|| {
            setns(&self.net, CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
            f()
        })
    }

    /// Remove the link, and wait until it is gone. Without this the kernel does it, a little later.
    pub(super) fn close(self) -> Result<(), String> {
        let Self { net, .. } = self;
        in_runtime(async |handle| {
            let index = link(handle, LINK).await?.header.index;
            handle.link().del(index).execute().await.map_err(|error| error.to_string())
        })?;
        drop(net);
        Ok(())
    }
}

fn here() -> Result<File, String> {
    File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())
}

/// A thread of its own: it is in another namespace afterwards.
fn on_a_thread<T: Send>(f: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, f).map_err(|e| e.to_string())?;
        thread.join().unwrap_or_else(|_panic| Err("a thread ended".to_owned()))
    })
}

/// Talk to the calling thread's namespace.
fn in_runtime<T>(f: impl AsyncFnOnce(&Handle) -> Result<T, String>) -> Result<T, String> {
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let opened = rtnetlink::new_connection();
        let (connection, handle, _) = opened.map_err(|error| error.to_string())?;
        let task = tokio::spawn(connection);
        let result = f(&handle).await;
        task.abort();
        result
    })
}

/// Both ends at once, one of them in the pod: no moment in which it is the pod's alone.
async fn peer(handle: &Handle, pod: &File) -> Result<(), String> {
    let mut other = LinkMessage::default();
    other.attributes =
        vec![LinkAttribute::IfName(LINK.to_owned()), LinkAttribute::NetNsFd(pod.as_raw_fd())];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(PEER.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    let deadline = Instant::now() + TURN;
    loop {
        match handle.link().add(link.clone()).execute().await {
            Ok(()) => return Ok(()),
            Err(rtnetlink::Error::NetlinkError(error))
                if error.raw_code() == -libc::EEXIST && Instant::now() < deadline =>
            {
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(format!("a link into the pod can't be made: {error}")),
        }
    }
}

async fn link(handle: &Handle, name: &str) -> Result<LinkMessage, String> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(Some(link)) => Ok(link),
        Ok(None) => Err(format!("there is no {name}")),
        Err(error) => Err(error.to_string()),
    }
}

/// An end's own address on the link.
async fn mac(handle: &Handle, name: &str) -> Result<Vec<u8>, String> {
    let attributes = link(handle, name).await?.attributes;
    let mac = attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => Some(mac),
        _ => None,
    });
    mac.ok_or_else(|| format!("{name} has no address"))
}

/// Wait until an end carries packets: the kernel drops them until it has seen that both ends are
/// up, which takes it a moment.
async fn carries(handle: &Handle, name: &str) -> Result<(), String> {
    let up = LinkAttribute::OperState(State::Up);
    let deadline = Instant::now() + PATIENCE;
    while !link(handle, name).await?.attributes.contains(&up) {
        if Instant::now() > deadline {
            return Err(format!("{name} does not come up"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Bring an end up, with its addresses usable at once and the other end's known: a question for them
/// may be lost on a link that has just come up, and is repeated only after a second.
async fn settle(
    handle: &Handle,
    name: &str,
    own: fn(&End) -> IpAddr,
    other: fn(&End) -> IpAddr,
    others_mac: &[u8],
    families: &[Family],
) -> Result<(), String> {
    let index = link(handle, name).await?.header.index;
    let mut up = LinkMessage::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    handle.link().set(up).execute().await.map_err(|error| error.to_string())?;
    for end in ENDS.iter().filter(|(pod, ..)| families.contains(&Family::of(*pod))) {
        let add = || async {
            let mut add = handle.address().add(index, own(end), end.2);
            let message = add.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            add.execute().await
        };
        let mut added = add().await;
        if let Err(rtnetlink::Error::NetlinkError(error)) = &added
            && error.raw_code() == -libc::EACCES
        {
            switch_ipv6_on(name)?;
            added = add().await;
        }
        added.map_err(|error| format!("address {}: {error}", own(end)))?;
        let neighbour = handle.neighbours().add(index, other(end)).link_layer_address(others_mac);
        let added = neighbour.execute().await;
        added.map_err(|error| format!("neighbour {}: {error}", other(end)))?;
        is_delivered(handle, own(end)).await?;
    }
    Ok(())
}

/// Wait until an own address is delivered here: with IPv6 the kernel adds that route a little later
/// (`addrconf_dad_work` in `net/ipv6/addrconf.c`).
async fn is_delivered(handle: &Handle, own: IpAddr) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = match own {
            IpAddr::V4(own) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(own, 32).build()
            }
            IpAddr::V6(own) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(own, 128).build()
            }
        };
        let route = handle.route().get(request).execute().try_next().await;
        if matches!(route, Ok(Some(route)) if route.header.kind == RouteType::Local) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("address {own} does not become usable"));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The pod's own addresses are behind its end of the link.
async fn route(handle: &Handle, addresses: &[IpAddr]) -> Result<(), String> {
    for address in addresses {
        let end = ENDS.iter().find(|(pod, ..)| Family::of(*pod) == Family::of(*address));
        let message = match (address, end.map(|(pod, ..)| *pod)) {
            (IpAddr::V4(to), Some(IpAddr::V4(by))) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(*to, 32)
                .gateway(by)
                .build(),
            (IpAddr::V6(to), Some(IpAddr::V6(by))) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(*to, 128)
                .gateway(by)
                .build(),
            _ => continue,
        };
        let added = handle.route().add(message).execute().await;
        added.map_err(|error| format!("a route to {address}: {error}"))?;
    }
    Ok(())
}
