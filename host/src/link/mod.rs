//! Addresses, policy routing and the note of a change in progress, by netlink (`rtnetlink(7)`).

mod arrival;
pub(crate) mod bridge;
pub(crate) mod ipsec;
pub(crate) mod ipvs;
mod passthrough;
mod routing;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use futures_util::stream::TryStreamExt as _;
use millrace_core::observed::{InterfaceAddress, IpRule, Logger, Route, Way};
use millrace_core::plan::{Change, PASSTHROUGH_V6};
use millrace_core::value::Family;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, Prop};
use nix::errno::Errno;
use rtnetlink::{Handle, LinkUnspec};

use self::passthrough::Occupant;
use crate::netlink::{own_address, runtime};
use crate::privilege::Hint;

/// The index of `lo` in every namespace (`LOOPBACK_IFINDEX` in the kernel's `net/flow.h`).
const LO: u32 = 1;

/// An alternative name that `lo` has while a change is going on, so that the next run knows when
/// one did not end (`ip-link(8)`, property altname). It affects no packet.
pub const MARKER: &str = "millrace-change-in-progress";

/// What alternative names of `lo` begin with that note who logged packets before a trace.
pub const LOGGER: &str = "millrace-trace-log";

/// A request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection to the kernel.
    #[error("netlink can't be used: {0}")]
    Open(#[from] std::io::Error),
    /// The kernel refused a request, or what it did shows no effect.
    #[error("{what}: {why}")]
    Request {
        /// The request in words, with the interface, address or table.
        what: String,
        /// The kernel's errno, or what else was wrong.
        why: KernelError,
    },
}

/// What the kernel says when it refuses.
#[derive(Debug)]
pub enum KernelError {
    /// The errno of its answer, such as `EPERM` without `NET_ADMIN`.
    Errno(Errno),
    /// Without one: an answer that can't be read, or a reason in words.
    Other(String),
}

/// Whether the kernel has IPv6 at all; without it there are no settings of it either.
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/thread-self/net/if_inet6").exists()
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno @ Errno::EPERM) => write!(
                f,
                "{errno}; this needs the capability NET_ADMIN in the user namespace that owns the \
                 network namespace{}",
                Hint::look()
            ),
            // What rtnetlink says of IPv6 on an interface that has it switched off.
            Self::Errno(errno @ Errno::EACCES) => write!(
                f,
                "{errno}; IPv6 is switched off on lo: set the sysctl net.ipv6.conf.lo.disable_ipv6 \
                 to 0, or switch it off in the whole pod"
            ),
            Self::Errno(errno @ (Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) if !has_ipv6() => {
                write!(
                    f,
                    "{errno}; this kernel has no IPv6 (ipv6.disable=1 on its command line, or no CONFIG_IPV6): \
                 capture IPv4 alone (--ipv6 off)"
                )
            }
            Self::Errno(errno) => errno.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl From<rtnetlink::Error> for KernelError {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => match message.code {
                Some(code) => Self::Errno(Errno::from_raw(-code.get())),
                None => Self::Other("the kernel refused without saying why".to_owned()),
            },
            other => Self::Other(other.to_string()),
        }
    }
}

/// What is seen of a namespace's links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Policy routing rules of both families.
    pub ip_rules: Vec<IpRule>,
    /// Those that ask for nothing; one that ends a packet's way has table 0.
    pub catch_alls: Vec<IpRule>,
    /// Routes of tables other than the kernel's own.
    pub routes: Vec<Route>,
    /// Addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
    /// Whether the interface of the address that the proxy passes connections on from has it; none
    /// where it is not there.
    pub passthrough_link: Option<bool>,
    /// The interfaces that are up, without `lo` and that one, in each family, with its addresses; none
    /// where nobody asks for them.
    pub ways: BTreeMap<Way, Vec<IpAddr>>,
    /// Those of them by which Millrace has localhost reached.
    pub localhost_ways: Vec<Way>,
    /// Whether `lo` lacks `IFF_UP`, as in a namespace that was just made.
    pub lo_down: bool,
    /// Whether a change is noted as in progress.
    pub marked: bool,
    /// Who logged packets before a trace.
    pub loggers: Vec<Logger>,
}

/// A connection to the kernel, for the namespace that the thread was in when it was opened.
pub struct Net {
    runtime: tokio::runtime::Runtime,
    handle: Handle,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

impl Net {
    /// Open an rtnetlink connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn open() -> Result<Self, LinkError> {
        let runtime = runtime()?;
        let inside = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        runtime.spawn(connection);
        drop(inside);
        Ok(Self { runtime, handle })
    }

    /// All addresses of all interfaces.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn addresses(&self) -> Result<Vec<InterfaceAddress>, LinkError> {
        let addresses = self.runtime.block_on(self.list_addresses())?;
        Ok(addresses.into_iter().map(|(_, address)| address).collect())
    }

    /// Everything that is seen, with the interfaces that are up only if these are asked for.
    ///
    /// # Errors
    /// When the kernel does not list something.
    pub fn observe(&self, ways: bool) -> Result<Links, LinkError> {
        self.runtime.block_on(async {
            let addresses = self.list_addresses().await?;
            let (names, lo_down) = self.lo().await?;
            let marked = names.iter().any(|name| name == MARKER);
            let loggers = names.iter().filter_map(|name| logger_of(name)).collect();
            let passthrough_link = match self.find_passthrough().await? {
                Some(Occupant::Ours(index, ready)) => {
                    let its = |(at, a): &(u32, InterfaceAddress)| {
                        *at == index && a.address == PASSTHROUGH_V6
                    };
                    // Where somebody took its route, nothing is sent from it.
                    let is_routed = || arrival::is_routed_within(arrival::SETTLED, PASSTHROUGH_V6);
                    Some(ready && addresses.iter().any(its) && is_routed())
                }
                Some(Occupant::Other) | None => None,
            };
            let addresses = addresses.into_iter().map(|(_, address)| address).collect();
            let mut links =
                Links { addresses, passthrough_link, lo_down, marked, loggers, ..Links::default() };
            for family in Family::ALL {
                for (rule, message) in self.ip_rules(family).await? {
                    links.catch_alls.extend(routing::catch_all(&rule, &message));
                    links.ip_rules.push(rule);
                }
                let messages = self.route_messages(family).await?;
                links.routes.extend(routing::routes(family, &messages));
                links.localhost_ways.extend(routing::localhost_ways(family, &messages));
            }
            if ways {
                links.ways = routing::ways();
            }
            Ok(links)
        })
    }

    /// Addresses with the indices of their interfaces.
    async fn list_addresses(&self) -> Result<Vec<(u32, InterfaceAddress)>, LinkError> {
        let failed = request("the addresses can't be listed");
        let messages: Vec<_> =
            self.handle.address().get().execute().try_collect().await.map_err(failed)?;
        let addresses = messages.into_iter().filter_map(|message| {
            let index = message.header.index;
            let address = InterfaceAddress {
                loopback: index == LO,
                address: own_address(&message)?,
                prefix: message.header.prefix_len,
            };
            Some((index, address))
        });
        Ok(addresses.collect())
    }

    /// Who logged packets before a trace, as it is noted.
    ///
    /// # Errors
    /// When `lo` can't be looked at.
    pub fn loggers(&self) -> Result<Vec<Logger>, LinkError> {
        let (names, _) = self.runtime.block_on(self.lo())?;
        Ok(names.iter().filter_map(|name| logger_of(name)).collect())
    }

    /// The alternative names of `lo`, and whether it is down.
    async fn lo(&self) -> Result<(Vec<String>, bool), LinkError> {
        let failed = request("lo can't be looked at");
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .match_index(LO)
            // Two thirds of the answer are counters.
            .set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats])
            .execute()
            .try_collect()
            .await
            .map_err(failed)?;
        let down = links.iter().any(|link| !link.header.flags.contains(LinkFlags::Up));
        let attributes = links.into_iter().flat_map(|link| link.attributes);
        let names = attributes.flat_map(|attribute| match attribute {
            LinkAttribute::PropList(props) => props,
            _ => Vec::new(),
        });
        let names = names.filter_map(|prop| match prop {
            Prop::AltIfName(name) => Some(name),
            _ => None,
        });
        Ok((names.collect(), down))
    }

    /// Note that a change begins, or that it is done.
    ///
    /// # Errors
    /// `EPERM` without `NET_ADMIN`; a note that is there already, or gone, is no error.
    pub fn mark(&self, change: Change) -> Result<(), LinkError> {
        self.name(change, MARKER)
    }

    /// Note who logs packets, or forget it.
    ///
    /// # Errors
    /// `EPERM` without `NET_ADMIN`; a note that is there already, or gone, is no error.
    pub fn logger(&self, change: Change, logger: &Logger) -> Result<(), LinkError> {
        self.name(change, &logger_name(logger))
    }

    /// Give `lo` an alternative name, or take it away.
    fn name(&self, change: Change, name: &str) -> Result<(), LinkError> {
        let link = self.handle.link();
        let result = self.runtime.block_on(async {
            match change {
                Change::Add => link.property_add(LO).alt_ifname(&[name]).execute().await,
                Change::Remove => link.property_del(LO).alt_ifname(&[name]).execute().await,
            }
        });
        settle(result, change, || format!("altname {name} of lo"))
    }

    /// Set `lo` up, or down.
    ///
    /// # Errors
    /// `EPERM` without `NET_ADMIN`; that it is so already is no error.
    pub fn loopback(&self, change: Change) -> Result<(), LinkError> {
        let lo = LinkUnspec::new_with_index(LO);
        let lo = match change {
            Change::Add => lo.up(),
            Change::Remove => lo.down(),
        };
        let result = self.runtime.block_on(self.handle.link().set(lo.build()).execute());
        result.map_err(request("lo can't be set up or down"))
    }

    /// Add an address to `lo`, or remove it.
    ///
    /// # Errors
    /// `EPERM` without `NET_ADMIN`; for IPv6 `EACCES` where that is switched off on `lo`.
    pub fn address(&self, change: Change, address: IpAddr) -> Result<(), LinkError> {
        let prefix = Family::of(address).bits();
        let result = async {
            let mut add = self.handle.address().add(LO, address, prefix);
            let result = match change {
                Change::Add => add.execute().await,
                Change::Remove => {
                    let message = add.message_mut().clone();
                    self.handle.address().del(message).execute().await
                }
            };
            settle(result, change, || format!("address {address} of lo"))
        };
        self.runtime.block_on(async {
            match change {
                Change::Add => self.add_routed(address, result).await,
                Change::Remove => result.await,
            }
        })
    }
}

/// The name that notes who logs.
fn logger_name(logger: &Logger) -> String {
    let family = match logger.family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("{LOGGER}-{family}-{}", logger.name)
}

/// Who a name says that logs.
fn logger_of(name: &str) -> Option<Logger> {
    let (family, name) = name.strip_prefix(LOGGER)?.strip_prefix('-')?.split_once('-')?;
    let family = match family {
        "ipv4" => Family::V4,
        "ipv6" => Family::V6,
        _ => return None,
    };
    Some(Logger { family, name: name.to_owned() })
}

fn request(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    let what = what.into();
    move |error| LinkError::Request { what, why: error.into() }
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            message.code.map(|code| Errno::from_raw(-code.get()))
        }
        _ => None,
    }
}

/// Whether a family is not there at all.
fn is_absent(error: &rtnetlink::Error) -> bool {
    matches!(errno(error), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP))
}

/// What is there already has been added, what is gone already has been removed.
fn settle(
    result: Result<(), rtnetlink::Error>,
    change: Change,
    what: impl FnOnce() -> String,
) -> Result<(), LinkError> {
    let Err(error) = result else { return Ok(()) };
    match (change, errno(&error)) {
        (Change::Add, Some(Errno::EEXIST))
        | (
            Change::Remove,
            Some(Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::ENODEV),
        ) => Ok(()),
        _ => {
            let verb = match change {
                Change::Add => "added",
                Change::Remove => "removed",
            };
            Err(request(format!("{} can't be {verb}", what()))(error))
        }
    }
}
