//! What this backend can't do, and why.

use std::fmt;
use std::net::IpAddr;

use millrace_ebpf_common::{MAX_FLOWS, MAX_IDENTITIES};

use super::{MAX_GROUPS, MAX_NETWORKS};
use crate::source::Source;
use crate::value::GroupName;

/// A part of a policy that eBPF can't carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Inbound connections to a transparent socket.
    Tproxy(Source),
    /// Packets of no connection are to be dropped.
    DropInvalid(Source),
    /// An interface is left alone.
    ExcludedInterface(Source),
    /// An interface has virtual machines behind it.
    ReroutedInterface(Source),
    /// The proxy is no process of the pod.
    Marks,
    /// Connections to the pod's own addresses are left alone before anything else is asked, where something
    /// else is asked of some of them by the programs.
    OwnAddresses,
    /// Connections are led to an address that means something else to who connects there.
    Translated(IpAddr, Source),
    /// More proxies than a pod's entry has room for.
    Identities(Source),
    /// More networks than a pod may have.
    Networks(usize),
    /// More groups than a pod may have.
    Groups(usize),
    /// More excluded users than a pod may have.
    Users(usize),
    /// More ranges of users than a pod may have of which something is left alone.
    Flows(usize),
    /// A group has no number here.
    UnknownGroup(GroupName, Source),
    /// A user where a group must be.
    UserForGroup(Source),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tproxy(source) => write!(
                f,
                "inbound mode tproxy ({source}): answers are brought back to the proxy by packet \
                 marks, and eBPF capture marks no packets; mode redirect shows the proxy the \
                 client's address and the original destination as well"
            ),
            Self::DropInvalid(source) => write!(
                f,
                "packets of no connection can't be dropped ({source}): eBPF capture tracks no \
                 connections, so it knows of none"
            ),
            Self::ExcludedInterface(source) => write!(
                f,
                "interfaces can't be left alone ({source}): when a connection begins, it is not \
                 known yet which interface it will leave by"
            ),
            Self::ReroutedInterface(source) => write!(
                f,
                "what comes from virtual machines behind an interface can't be captured \
                 ({source}): it belongs to no socket of the pod"
            ),
            Self::Marks => f.write_str(
                "packets of the proxy are known by a mark, since it is no process of the pod: the \
                 programs know who asks for a connection by user and group, and see no packets of it",
            ),
            Self::OwnAddresses => f.write_str(
                "connections to the pod's own addresses can't be left alone before anything else: the \
                 programs ask about the proxy, DNS and networks of loopback first",
            ),
            Self::Translated(address, source) => write!(
                f,
                "connections can't be led to {address} ({source}): sockets are connected there as to any \
                 other address, and this one means another to the kernel; of localhost's, 127.0.0.1 and \
                 ::1 can be"
            ),
            Self::Identities(source) => write!(
                f,
                "more than {MAX_IDENTITIES} proxy users or groups ({source}): a pod's entry has \
                 room for {MAX_IDENTITIES} of each"
            ),
            Self::Networks(count) => {
                write!(f, "{count} networks: a pod can have {MAX_NETWORKS} with eBPF capture")
            }
            Self::Groups(count) => {
                write!(f, "{count} groups: a pod can have {MAX_GROUPS} with eBPF capture")
            }
            Self::Users(count) => {
                write!(f, "{count} excluded users: a pod can have {MAX_GROUPS} with eBPF capture")
            }
            Self::Flows(count) => write!(
                f,
                "ports that are left alone for {count} ranges of users: a pod can have {MAX_FLOWS} with \
                 eBPF capture"
            ),
            Self::UnknownGroup(name, source) => {
                write!(f, "there is no group {} ({source}); give its number", name.as_str())
            }
            Self::UserForGroup(source) => write!(f, "a user where a group must be ({source})"),
        }
    }
}

/// Everything about a policy that this backend can't do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedParts(pub Vec<Unsupported>);

impl fmt::Display for UnsupportedParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("eBPF can't carry this configuration out; nftables and iptables can")?;
        for unsupported in &self.0 {
            write!(f, "\n  {unsupported}")?;
        }
        Ok(())
    }
}

impl std::error::Error for UnsupportedParts {}
