//! Capture by the node's eBPF programs, where they are loaded.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use millrace_core::ebpf::{beside, sources};
use millrace_core::plan::Wish;
use millrace_core::policy::CapturePolicy;
use millrace_core::status::{holds_rules, judge_beside};
use millrace_host::ebpf::{EbpfError, Enrolled, Node, Target};
use millrace_host::engine::{EngineError, Rules};
use millrace_host::observe::Look;

use crate::capture::{Applied, Pod, told};

/// The pod was not enrolled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    /// The policy can't be carried out, or the programs' maps or the kernel say no.
    #[error(transparent)]
    Ebpf(#[from] EbpfError),
    /// The rest of it failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Whether ADD with these programs would work.
///
/// # Errors
/// Why not.
pub(crate) fn works(folder: &Path) -> Result<(), String> {
    let node = Node::open(folder).map_err(|error| error.to_string())?;
    match node.faults().map_err(|error| error.to_string())?.told() {
        None => Ok(()),
        Some(faults) => Err(format!("the node's programs are not whole: {faults}")),
    }
}

impl Pod {
    /// Whether rules of an earlier run capture this namespace.
    ///
    /// # Errors
    /// When it can't be seen.
    pub(crate) fn holds_rules(&mut self) -> Result<bool, EngineError> {
        let observed = self.session.observe(&self.exec, Look::Fast)?;
        Ok(holds_rules(&observed, &self.groups))
    }

    /// Capture this namespace so; twice is once.
    ///
    /// # Errors
    /// Why not. Where that is not due to eBPF, the pod is enrolled all the same, until DEL.
    pub(crate) fn enrol(
        &mut self,
        node: &Node,
        policy: CapturePolicy,
        wait: Duration,
    ) -> Result<Applied, EnrolError> {
        let policy = self.fit(policy)?;
        let target = Target::current()?;
        let entry = target.entry(&policy, &self.groups)?;
        let enrolled = node.enrol(&target, &entry)?;
        let rest = beside(&policy);
        let rules = Rules { iptables: &rest, native: None };
        let outcome = self.run(Some(rules), Wish::Auto, Vec::new(), wait)?;
        Ok(Applied {
            by: "eBPF".to_owned(),
            changed: enrolled != Enrolled::Unchanged || !outcome.effects.is_empty(),
            processes: outcome.processes,
            warnings: outcome.warnings,
        })
    }

    /// What is wrong with the pod's entry, or with what it needs beside it; none when all is as wanted.
    ///
    /// # Errors
    /// When it can't be seen.
    pub(crate) fn check_entry(
        &mut self,
        node: &Node,
        policy: CapturePolicy,
    ) -> Result<Option<String>, EnrolError> {
        let policy = self.fit(policy)?;
        let target = Target::current()?;
        let entry = target.entry(&policy, &self.groups)?;
        let cookie = target.cookie();
        let faults = node.faults()?.told();
        Ok(match node.pod(cookie)? {
            None => Some("the pod has no entry in the maps of the node's programs".to_owned()),
            Some(found) if found.fault().is_some() => found.fault().map(str::to_owned),
            Some(_) if faults.is_some() => {
                faults.map(|faults| format!("the node's programs are not whole: {faults}"))
            }
            Some(_) if !node.holds(cookie, &entry)? => {
                Some("its entry differs from what is wanted".to_owned())
            }
            Some(found) => self.check_beside(&policy, &sources(&found.pod).collect::<Vec<_>>())?,
        })
    }

    fn check_beside(
        &mut self,
        policy: &CapturePolicy,
        sources: &[IpAddr],
    ) -> Result<Option<String>, EngineError> {
        let observed = self.session.observe(&self.exec, Look::Ways)?;
        let found = judge_beside(&observed, &beside(policy), sources, &self.groups);
        let list = found.differences.iter().map(told).chain(found.notes);
        let list: Vec<String> = list.collect();
        Ok((!found.whole).then(|| {
            format!("what it needs beside its entry differs; to be whole: {}", list.join("; "))
        }))
    }
}

/// The cookie of the calling thread's namespace, if that is enrolled.
///
/// # Errors
/// When it can't be seen.
pub(crate) fn enrolled(node: &Node) -> Result<Option<u64>, EbpfError> {
    let cookie = Target::current()?.cookie();
    Ok(node.pod(cookie)?.map(|_| cookie))
}

/// Let the calling thread's namespace leave. False if it was not enrolled.
///
/// # Errors
/// When something can't be removed.
pub(crate) fn leave(node: &Node) -> Result<bool, EbpfError> {
    node.leave(Target::current()?.cookie())
}
