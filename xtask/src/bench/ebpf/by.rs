//! What is measured side by side, and a pod of each.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use millrace_core::dialect::native;
use millrace_core::ebpf::{Entry, compile};
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight::Backend;
use millrace_host::ebpf::{Enrolled, Target};
use millrace_host::engine::Session;
use millrace_host::facts;

use super::node::BenchNode;
use crate::bench::many::Rulesets;
use crate::bench::pair::{OUTSIDE, POD, Pair};
use crate::bench::path::pin;

/// The proxy's ports, as they are without being named.
pub const OUTBOUND: u16 = 15_001;
const INBOUND: u16 = 15_006;
/// A port of the application, and of somebody outside.
const PORT: u16 = 8080;
/// The first excluded port, and how far the next one is: none of them is next to another.
const FIRST_PORT: u32 = 10_001;
const STEP: u32 = 2;

/// What captures a pod.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum By {
    /// Nothing, and nothing is loaded: connections go straight to the proxy's port.
    Nothing,
    /// The programs are loaded, and the pod is not enrolled.
    Loaded,
    /// eBPF.
    Ebpf,
    /// A native table.
    Nftables,
    /// The tables of iptables-nft.
    Iptables,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Nothing, Self::Loaded, Self::Ebpf, Self::Nftables, Self::Iptables];

    /// The name in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "no capture",
            Self::Loaded => "eBPF, other pods",
            Self::Ebpf => "eBPF",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables-nft",
        }
    }

    /// Whether connections come to the proxy by being captured.
    pub fn captures(self) -> bool {
        !matches!(self, Self::Nothing | Self::Loaded)
    }

    /// Whether threads of the pod meet the programs.
    pub fn meets_programs(self) -> bool {
        matches!(self, Self::Loaded | Self::Ebpf)
    }
}

/// Which way connections go.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Way {
    /// From the pod to somebody outside.
    Out,
    /// From somebody outside to the pod.
    In,
}

/// One pod.
#[derive(Debug)]
pub struct BenchPod {
    /// What captures it.
    pub by: By,
    /// How many networks, and how many ports, are excluded.
    pub exclusions: u32,
    /// The pod and somebody outside.
    pub pair: Pair,
}

impl BenchPod {
    /// Make and capture it.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(by: By, exclusions: u32, node: &BenchNode) -> Result<Self> {
        let pair = Pair::new()?;
        let flags = flags(exclusions);
        pair.in_pod(|| match by {
            By::Nothing | By::Loaded => Ok(()),
            By::Ebpf => enrol(node, &DesiredEntry::here(&flags)?.entry),
            By::Nftables => Rulesets::here(&flags)?.capture(Backend::Nftables),
            By::Iptables => Rulesets::here(&flags)?.capture(Backend::IptablesNft),
        })?;
        Ok(Self { by, exclusions, pair })
    }

    /// Do something in the pod, on a thread of the one processor that everything runs on.
    ///
    /// # Errors
    /// Those of the work.
    pub fn inside<T: Send>(
        &self,
        node: &BenchNode,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        self.pair.in_pod(|| {
            pin(0)?;
            if self.by.meets_programs() {
                node.enter()?;
            }
            work()
        })
    }

    /// Where the proxy listens for connections of a way.
    pub fn proxy_port(&self, way: Way) -> u16 {
        match way {
            Way::Out => OUTBOUND,
            Way::In if self.by.captures() => INBOUND,
            Way::In => PORT,
        }
    }

    /// Where a client connects to, so that the proxy gets it.
    pub fn destination(&self, way: Way) -> SocketAddrV4 {
        match way {
            Way::Out if self.by.captures() => SocketAddrV4::new(OUTSIDE, PORT),
            Way::Out => SocketAddrV4::new(Ipv4Addr::LOCALHOST, OUTBOUND),
            Way::In => SocketAddrV4::new(POD, PORT),
        }
    }
}

/// Flags that exclude so many networks and ports, none of which is used.
pub fn flags(exclusions: u32) -> Vec<(String, String)> {
    let networks = (0..exclusions).map(|n| format!("11.{}.{}.0/25", n / 250, n % 250));
    let ports = (0..exclusions).map(|n| (FIRST_PORT + STEP * n).to_string());
    let flag = |name: &str, values: Vec<String>| (name.to_owned(), values.join(","));
    let all = [
        flag("exclude-outbound-cidrs", networks.collect()),
        flag("exclude-outbound-ports", ports.collect()),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// What flags mean in the calling thread's namespace, for eBPF.
#[derive(Debug)]
pub struct DesiredEntry {
    /// Without what only the pod can tell.
    pub entry: Entry,
}

impl DesiredEntry {
    /// Look at the namespace.
    ///
    /// # Errors
    /// When that fails, or flags are wrong.
    pub fn here(flags: &[(String, String)]) -> Result<Self> {
        let facts = facts::gather(Session::open()?.net())?;
        let raw = native::Raw::new(BTreeMap::new(), flags.iter().cloned());
        let policy: CapturePolicy = native::resolve(&raw, &facts, true)?;
        Ok(Self { entry: compile(&policy, &facts.groups)? })
    }
}

/// Enrol the calling thread's namespace, which is a new one.
///
/// # Errors
/// When that fails.
pub fn enrol(node: &BenchNode, entry: &Entry) -> Result<()> {
    let target = Target::current()?;
    let (users, groups) = target.ids()?;
    let entry = entry.clone().for_pod(&Target::addresses()?, &users, &groups)?;
    let enrolled = node.node.enrol(&target, &entry)?;
    ensure!(enrolled == Enrolled::Added, "a new pod was {enrolled:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusions_are_networks_and_ports_that_are_not_used() {
        assert!(flags(0).is_empty());
        let [(_, networks), (_, ports)] = <[_; 2]>::try_from(flags(10_000)).unwrap();
        assert!(networks.starts_with("11.0.0.0/25,11.0.1.0/25,"), "{networks}");
        assert!(networks.ends_with(",11.39.249.0/25"));
        for used in [OUTBOUND, INBOUND, PORT] {
            let named = u32::from(used) >= FIRST_PORT
                && (u32::from(used) - FIRST_PORT).is_multiple_of(STEP);
            // The proxy's own ports are odd and among them, but nobody connects to those.
            assert_eq!(named, used == OUTBOUND, "{used}");
        }
        assert!(ports.ends_with(&(FIRST_PORT + STEP * 9_999).to_string()));
    }
}
