//! What eBPF does in a pod: read back from the maps, or compiled from a configuration.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use millrace_core::dialect::native;
use millrace_core::ebpf::{Addresses, Entry, IdMap, compile, read};
use millrace_core::plan::Groups;
use millrace_core::policy::CapturePolicy;
use millrace_core::sim::{Listening, SourceTable, of_ebpf};
use millrace_host::ebpf::{EbpfError, Node, Target};

/// What eBPF does in a pod.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) entry: Entry,
    pub(super) policy: CapturePolicy,
    pub(super) tables: Vec<SourceTable>,
    groups: Groups,
}

impl Held {
    /// Of a policy, in a pod with these addresses.
    pub(super) fn of_policy(
        policy: CapturePolicy,
        groups: &Groups,
        addresses: &[IpAddr],
    ) -> Result<Self> {
        let own = Addresses { own: addresses.to_vec(), sources: addresses.to_vec() };
        let ids = IdMap::identity();
        let entry = compile(&policy, groups)?.for_pod(&own, &ids, &ids)?;
        let tables = of_ebpf(&policy, &entry.own(), groups, Listening::ALL);
        Ok(Self { entry, policy, tables, groups: groups.clone() })
    }

    /// The same policy in a pod with these addresses.
    pub(super) fn at(&self, addresses: &[IpAddr]) -> Result<Self> {
        Self::of_policy(self.policy.clone(), &self.groups, addresses)
    }

    /// The same when the proxy listens.
    pub(super) fn listening(self) -> Self {
        let tables = of_ebpf(&self.policy, &self.entry.own(), &self.groups, Listening::ALL);
        Self { tables, ..self }
    }

    /// Of the pod that this program is in; none if it is not enrolled.
    pub(super) fn here(folder: &Path) -> Result<Option<Self>> {
        let found = || -> Result<_, EbpfError> {
            let Some(node) = Node::open_if_loaded(folder)? else { return Ok(None) };
            let target = Target::current()?;
            let Some(entry) = node.entry(&target)? else { return Ok(None) };
            let listening = node.listening(&target, entry.pod.inbound_port)?;
            Ok(Some((entry, listening)))
        };
        let found = found().context("whether eBPF captures here can't be seen")?;
        let Some((entry, listening)) = found else { return Ok(None) };
        let policy = read(&entry, &native::DIALECT)?;
        let groups = Groups::new();
        let tables = of_ebpf(&policy, &entry.own(), &groups, listening);
        Ok(Some(Self { entry, policy, tables, groups }))
    }
}
