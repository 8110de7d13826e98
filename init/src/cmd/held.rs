//! What eBPF does in a pod: read back from the maps, or compiled from a configuration.

use std::path::Path;

use anyhow::{Context as _, Result};
use millrace_core::dialect::native;
use millrace_core::ebpf::{Entry, compile, read};
use millrace_core::policy::CapturePolicy;
use millrace_core::sim::{Listening, SourceTable, of_ebpf};
use millrace_core::value::Groups;
use millrace_host::ebpf::{EbpfError, Node, Target};

use super::ebpf::elsewhere;

/// What eBPF does in a pod.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) entry: Entry,
    pub(super) policy: CapturePolicy,
    pub(super) tables: Vec<SourceTable>,
}

impl Held {
    /// What eBPF would do by a policy, with a proxy that listens on all of its ports.
    pub(super) fn of_policy(policy: CapturePolicy, groups: &Groups) -> Result<Self> {
        let entry = compile(&policy, groups)?;
        let tables = of_ebpf(&policy, groups, Listening::ALL);
        Ok(Self { entry, policy, tables })
    }

    /// The same when the proxy listens.
    pub(super) fn listening(self) -> Self {
        let tables = of_ebpf(&self.policy, &Groups::new(), Listening::ALL);
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
        let tables = of_ebpf(&policy, &Groups::new(), listening);
        Ok(Some(Self { entry, policy, tables }))
    }
}

/// Why it can't be told what becomes of connections to a namespace, where that is up to eBPF programs
/// which are not known, and whether these are Millrace's, so that it can't of connections from it either.
pub(super) fn unknown(folder: &Path) -> Option<(String, bool)> {
    if let Some(why) = elsewhere(folder) {
        return Some((why, true));
    }
    let lookups = Target::current().ok()?.lookups();
    let why = format!("who accepts connections here is up to sk_lookup: {}", lookups.join(", "));
    (!lookups.is_empty()).then_some((why, false))
}
