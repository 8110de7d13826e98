//! Letting a namespace go.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_core::ebpf::beside_observed;
use millrace_core::observed::Observed;
use millrace_core::plan::Preference;
use millrace_core::value::Groups;

use super::CaptureError;
use crate::ebpf::{Attached, EbpfError, Node, Target};
use crate::engine::{Drift, EngineError, Outcome, Request, Rules, Session};
use crate::exec;
use crate::netns::Netns;
use crate::observe::Depth;
use crate::sandbox::Sandbox;

/// Whether rules go, by what is seen of them and whether their namespace had an entry.
type Chosen<'a> = &'a dyn Fn(&Observed, bool) -> bool;

/// What is to be let go.
#[derive(Clone)]
pub struct Farewell<'a> {
    /// The folder of a bpffs that holds the pins of the programs; none for who knows nothing of any.
    pub folder: Option<&'a Path>,
    /// The namespace, where the calling thread has entered it from outside: it may have users of its own.
    pub entered: Option<&'a Netns>,
    /// Which rules go; none for all.
    pub chosen: Option<Chosen<'a>>,
    /// Marks with their routing tables that belong to what captures it.
    pub marks: Vec<(u32, u32)>,
    /// Group names and their numbers.
    pub groups: &'a Groups,
    /// Whether it is only decided.
    pub dry_run: bool,
    /// How long other runs are waited for.
    pub wait: Duration,
    /// Sandbox, variables and limits of iptables' binaries, where they are run.
    pub exec: exec::Options,
}

/// What was let go. One way to capture that can't be looked at does not keep the other from being taken
/// back.
#[derive(Debug)]
pub struct Left {
    /// Whether the pod was enrolled.
    pub enrolled: Result<bool, EbpfError>,
    /// What became of its rules; none where they stay.
    pub outcome: Option<Outcome>,
    /// Whether programs capture it still that nobody has named. What belongs to that stays.
    pub beyond: Attached,
}

/// Let the namespace go, whatever captures it.
///
/// # Errors
/// When its rules can't be seen or taken away, or its users can't be joined.
pub fn leave(session: &mut Session, farewell: &Farewell<'_>) -> Result<Left, CaptureError> {
    let until = Instant::now() + farewell.wait;
    let enrolled = farewell.folder.map_or(Ok(false), |folder| leave_ebpf(folder, until, farewell));
    let had_entry = *enrolled.as_ref().unwrap_or(&false);
    let mut exec = farewell.exec.clone();
    if let Some(netns) = farewell.entered.filter(|_| !farewell.dry_run)
        && netns.enter_owner()?
    {
        exec.sandbox = Some(Sandbox { netns: Some(super::OWN.into()) });
    }
    if let Some(chosen) = farewell.chosen
        && !chosen(&see(session, &exec)?, had_entry)
    {
        return Ok(Left { enrolled, outcome: None, beyond: Attached::No });
    }
    let beyond = match (had_entry, farewell.folder) {
        (true, _) => Attached::No,
        (false, Some(folder)) => Attached::beyond(folder),
        (false, None) => Attached::here(),
    };
    let kept = match beyond {
        Attached::No => None,
        Attached::Yes | Attached::Unclear => Some(beside_observed(&see(session, &exec)?)),
    };
    let outcome = session.run(&Request {
        rules: kept.as_ref().map(|kept| Rules { iptables: kept, native: None }),
        preference: Preference::Auto,
        drift: Drift::Replace,
        everything: false,
        dry_run: farewell.dry_run,
        wait: until.saturating_duration_since(Instant::now()),
        groups: farewell.groups,
        marks: farewell.marks.clone(),
        exec,
    })?;
    Ok(Left { enrolled, outcome: Some(outcome), beyond })
}

/// Whose chains they are tells enough: rules are read once, by the run.
fn see(session: &mut Session, exec: &exec::Options) -> Result<Observed, EngineError> {
    session.observe(exec, Depth::Chains)
}

/// Whether there was an eBPF capture to leave.
fn leave_ebpf(folder: &Path, until: Instant, farewell: &Farewell<'_>) -> Result<bool, EbpfError> {
    let Some(node) = Node::open_if_loaded(folder)? else { return Ok(false) };
    let node = node.until(until);
    let cookie = Target::current()?.cookie();
    let enrolled = node.pod(cookie)?.is_some();
    // Also what a run that died left of it.
    if !farewell.dry_run {
        node.leave(cookie)?;
    }
    Ok(enrolled)
}
