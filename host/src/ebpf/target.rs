//! The pod that is enrolled: its network namespace, its addresses, its user namespace.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};

use millrace_core::ebpf::{Addresses, Entry, IdMap, compile};
use millrace_core::ids::mapped;
use millrace_core::policy::CapturePolicy;
use millrace_core::value::Groups;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::error::EbpfError;
use super::{sys_bpf, sys_sockets};
use crate::netns::ids_of;

/// Addresses that no pod has (RFC 5737, RFC 3849): which of the pod's own would they be reached
/// from?
const ELSEWHERE: [&str; 2] = ["198.51.100.1:9", "[2001:db8::1]:9"];

/// A network namespace, as the programs know it.
#[derive(Debug)]
pub struct Target {
    pub(super) cookie: u64,
    pub(super) netns: File,
}

impl Target {
    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// When the kernel gives network namespaces no cookies.
    pub fn current() -> Result<Self, EbpfError> {
        let path = "/proc/thread-self/ns/net";
        let netns = File::open(path).map_err(|e| EbpfError::io(path, e))?;
        let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let cookie = sys_sockets::netns_cookie(&any).map_err(|source| EbpfError::Kernel {
            what: "cookies of network namespaces (SO_NETNS_COOKIE)",
            since: "5.14",
            source,
        })?;
        Ok(Self { cookie, netns })
    }

    /// What the kernel knows the namespace by, as long as the machine runs.
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// What the `sk_lookup` programs are called that the kernel asks here, whoever attached them (their
    /// numbers where the names can't be read). None also where the kernel does not tell.
    pub fn lookups(&self) -> Vec<String> {
        let ids = sys_bpf::lookups_of(self.netns.as_fd()).unwrap_or_default();
        let name = |id: u32| sys_bpf::program_name(id).unwrap_or_else(|_unseen| id.to_string());
        ids.into_iter().map(name).collect()
    }

    /// A policy's entry for the pod that the calling thread is in, with what only the pod can
    /// tell. The policy's names of groups are looked up in `known`.
    ///
    /// # Errors
    /// When programs can't carry the policy out, the pod can't be asked, or its ids or addresses
    /// don't fit.
    pub fn entry(&self, policy: &CapturePolicy, known: &Groups) -> Result<Entry, EbpfError> {
        let entry = compile(policy, known)?;
        let (users, groups) = self.ids()?;
        mapped(policy, known, &users, &groups)?;
        Ok(entry.for_pod(&Self::addresses()?, &users, &groups)?)
    }

    /// The addresses of the namespace that the calling thread is in.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn addresses() -> Result<Addresses, EbpfError> {
        let failed = |e| EbpfError::io("the addresses of a pod", e);
        // A name of an interface need not be UTF-8, and does not matter here.
        let listed = getifaddrs().map_err(|errno| failed(errno.into()))?;
        let own: Vec<IpAddr> = listed.filter_map(|one| address(&one.address?)).collect();
        let sources: Vec<IpAddr> = ELSEWHERE.iter().filter_map(|to| source(to)).collect();
        // Without a route to elsewhere it is the first address that is good for others.
        let fallback = [true, false].into_iter().filter_map(|v4| {
            let known = sources.iter().any(|ip| ip.is_ipv4() == v4);
            let first = own.iter().find(|ip| ip.is_ipv4() == v4 && is_for_others(**ip));
            first.filter(|_| !known).copied()
        });
        let sources = sources.iter().copied().chain(fallback).collect();
        Ok(Addresses { own, sources })
    }

    /// The users and groups of the namespace's user namespace.
    ///
    /// # Errors
    /// When it may not be asked.
    pub fn ids(&self) -> Result<(IdMap, IdMap), EbpfError> {
        let failed = |e| EbpfError::io("the user namespace of a pod", e);
        ids_of(&self.netns).map_err(failed)
    }
}

/// What the kernel would choose; nothing is sent.
fn source(to: &str) -> Option<IpAddr> {
    let to: SocketAddr = to.parse().ok()?;
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let any = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    connect(any.as_raw_fd(), &SockaddrStorage::from(to)).ok()?;
    let chosen = UdpSocket::from(any).local_addr().ok()?.ip();
    Some(chosen).filter(|ip| !ip.is_unspecified())
}

fn address(of: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = of.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| of.as_sockaddr_in6().map(|address| address.ip().into()))
}

fn is_for_others(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && ip.segments()[0] != 0,
    }
}
