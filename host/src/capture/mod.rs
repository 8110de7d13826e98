//! What every front end does with a network namespace: capture it, see whether it is captured so, and let
//! it go. eBPF is one of the ways, and a namespace that it captures never gets rules beside it, nor the
//! other way round, whatever the settings say. The calling thread is in the namespace.

mod check;
mod leave;

pub use check::{Checked, Difference, check};
pub use leave::{Farewell, Left, leave};

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace_core::desired::Desired;
use millrace_core::ebpf::{beside, compile, extended};
use millrace_core::ids::{Unmapped, mapped};
use millrace_core::nft::expr::NoGroup;
use millrace_core::observed::InterfaceAddress;
use millrace_core::plan::{NoBackend, PASSTHROUGH_V6, Preference};
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight::Backend;
use millrace_core::source::{Source, Sourced};
use millrace_core::status::holds_rules;
use millrace_core::value::Groups;

use crate::ebpf::{
    Attached, DEFAULT_FOLDER, EbpfError, Enrolled, Node, Target, is_hidden, lacking, unprivileged,
};
use crate::engine::{Drift, EngineError, Outcome, Request, Rules, Session};
use crate::exec;
use crate::netns::{Netns, NetnsError, own_ids};
use crate::observe::Depth;
use crate::sandbox::Sandbox;
use crate::sysctl::lo_has_no_ipv6;
use crate::tracked::Tracked;

/// A namespace as programs that are run see it.
const OWN: &str = "/proc/self/ns/net";

/// Whether rules or eBPF capture a namespace, or whichever the node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Rules, written with what is preferred here. A pod that eBPF captures leaves it once they are there.
    Rules(Preference),
    /// eBPF; where that can't be, an error and no rules.
    Ebpf,
    /// What captures already; else eBPF where the node's programs are loaded and can do it; else rules.
    Any,
}

impl By {
    /// How rules are written where it comes to these.
    const fn preference(self) -> Preference {
        match self {
            Self::Rules(preference) => preference,
            Self::Ebpf | Self::Any => Preference::Auto,
        }
    }
}

/// Where the programs of eBPF capture are.
#[derive(Clone, Copy, Debug)]
pub struct Pins<'a> {
    /// The folder of a bpffs that holds their pins.
    pub folder: &'a Path,
    /// Whether it is said where they are missing, though rules do.
    pub expected: bool,
}

/// What is to be done with a namespace.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// What is to capture the namespace, in the spelling of every backend.
    pub desired: &'a Desired,
    /// Rules, eBPF, or whichever the node has: see [`By`].
    pub by: By,
    /// What is preferred where programs of iptables were asked for that are not installed.
    pub instead: Option<Preference>,
    /// Where the programs are; none for who knows nothing of any, and writes rules.
    pub pins: Option<Pins<'a>>,
    /// The namespace, where the calling thread has entered it from outside: it may have users of its own.
    pub entered: Option<&'a Netns>,
    /// Group names and their numbers.
    pub groups: &'a Groups,
    /// What is done about rules of ours that differ.
    pub drift: Drift,
    /// Whether rules are written that are there already.
    pub everything: bool,
    /// Whether it is only decided, which needs no privilege.
    pub dry_run: bool,
    /// Whether effects have the text of the rules.
    pub text: bool,
    /// How long other runs that write rules are waited for.
    pub wait: Duration,
    /// When everything has to be done.
    pub deadline: Instant,
    /// Sandbox, variables and limits of iptables' binaries, where they are run.
    pub exec: exec::Options,
}

impl<'a> Order<'a> {
    /// That this captures the namespace which the calling thread is in, whatever is there, within a time: by
    /// rules beside no programs, since none are known.
    pub fn new(desired: &'a Desired, by: By, groups: &'a Groups, within: Duration) -> Self {
        Self {
            desired,
            by,
            instead: None,
            pins: None,
            entered: None,
            groups,
            drift: Drift::Replace,
            everything: false,
            dry_run: false,
            text: false,
            wait: within,
            deadline: Instant::now() + within,
            exec: exec::Options::default(),
        }
    }

    fn wait(&self) -> Duration {
        self.wait.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    fn node(&self) -> Result<Option<Node>, EbpfError> {
        let Some(pins) = self.pins else { return Ok(None) };
        Ok(Node::open_if_loaded(pins.folder)?.map(|node| node.until(self.deadline)))
    }
}

/// What [`apply`] did, or would have done in a dry run.
#[derive(Clone, Debug)]
pub struct Applied {
    /// What became of the pod's entry, and its cookie, where eBPF captures.
    pub enrolled: Option<(Enrolled, u64)>,
    /// What became of its rules, and all warnings.
    pub outcome: Outcome,
    /// Whether it left eBPF capture, since rules capture it.
    pub left: bool,
}

/// Why a namespace isn't captured as ordered. But for [`CaptureError::Rest`], all is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The eBPF programs could not be opened, or the pod not enrolled.
    #[error(transparent)]
    Ebpf(#[from] EbpfError),
    /// Rules could not be read or written; see [`EngineError`] for what is left then.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// eBPF captures the pod, and what it needs beside its entry can't be had.
    #[error("the pod is enrolled, but the rest of its setup, outside the eBPF maps, failed: {0}")]
    Rest(#[source] EngineError),
    /// The namespace's users can't be asked or joined.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// They don't have an id.
    #[error(transparent)]
    Unmapped(#[from] Unmapped),
    /// A group has no number.
    #[error(transparent)]
    NoGroup(#[from] NoGroup),
    /// eBPF can't be left from where the rules are written.
    #[error(
        "the pod has its own user namespace and is captured by eBPF, and it can't be removed from \
         eBPF capture from inside that: change to --backend nftables first"
    )]
    OwnUsers,
    /// eBPF captures the pod by programs that nobody has named.
    #[error("{}: rules beside that would capture it twice, so none were written", beyond(.0.as_deref()))]
    Twice(Option<PathBuf>),
}

impl CaptureError {
    /// Whether another run was in the way until the time was up.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Ebpf(error) => error.is_busy(),
            Self::Engine(error) | Self::Rest(error) => error.is_busy(),
            _ => false,
        }
    }
}

/// That eBPF captures a pod, by programs that a folder does not hold.
pub fn beyond(folder: Option<&Path>) -> String {
    match folder {
        Some(folder) => format!(
            "eBPF captures this pod, by programs that {} does not hold: name the folder of their pins \
             with --bpffs, as the one that enrolled it did",
            folder.display()
        ),
        None => "eBPF captures this pod: have it leave with `millrace cleanup` first, with --bpffs where its \
                 programs are in another folder than the usual one"
            .to_owned(),
    }
}

/// Both families, where both can be captured. Where IPv6 is switched off and no interface has an address
/// of it, there is none to capture, and the kernel would refuse its addresses and routes.
///
/// # Errors
/// When the addresses can't be listed.
pub fn fit(session: &mut Session, mut policy: CapturePolicy) -> Result<CapturePolicy, EngineError> {
    if lo_has_no_ipv6() && !has_v6(session)? {
        policy.ipv6 = Sourced::new(false, Source::Host("IPv6, which is off".to_owned()));
    }
    Ok(policy)
}

/// The policy as eBPF carries it out in this namespace, of which no more is asked than that takes.
fn by_ebpf<'p>(
    session: &mut Session,
    policy: &'p CapturePolicy,
) -> Result<Cow<'p, CapturePolicy>, EngineError> {
    let has_v6 = !policy.ipv6.value && has_v6(session)?;
    Ok(extended(policy, has_v6))
}

/// Whether any interface has an address of IPv6.
fn has_v6(session: &mut Session) -> Result<bool, EngineError> {
    // `::6` may be there by capture alone, where IPv6 is off.
    let v6 = |a: &InterfaceAddress| a.address.is_ipv6() && a.address != PASSTHROUGH_V6;
    Ok(session.net().addresses()?.iter().any(v6))
}

/// Capture the namespace so, whatever is there; twice is once.
///
/// # Errors
/// See [`CaptureError`], which also says whether anything was changed.
pub fn apply(session: &mut Session, order: &Order<'_>) -> Result<Applied, CaptureError> {
    let mut warnings = Vec::new();
    let enrolled = match order.by {
        By::Rules(_) => None,
        By::Ebpf => Some(enrol(session, order)?),
        By::Any => perhaps(session, order, &mut warnings)?,
    };
    let mut applied = match enrolled {
        Some(applied) => applied,
        None => by_rules(session, order, &mut warnings)?,
    };
    warnings.append(&mut applied.outcome.warnings);
    applied.outcome.warnings = warnings;
    Ok(applied)
}

/// Have eBPF capture where nobody said what is to. None where rules are to do it.
fn perhaps(
    session: &mut Session,
    order: &Order<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<Applied>, CaptureError> {
    let Some(pins) = order.pins else { return Ok(None) };
    let mut unable = |why: &dyn std::fmt::Display| {
        let why = why.to_string().replace('\n', " ");
        warnings.push(format!("rules are written, since eBPF can't be used: {why}"));
        Ok(None)
    };
    let node = match order.node() {
        Ok(Some(node)) => node,
        Ok(None) if pins.expected || is_hidden(pins.folder) => {
            warnings.push(format!(
                "rules are written, since the node's eBPF programs are not loaded: {}",
                EbpfError::NotLoaded(pins.folder.to_owned())
            ));
            return Ok(None);
        }
        Ok(None) => return Ok(None),
        Err(error) if error.is_busy() => return Err(error.into()),
        Err(error) => {
            return match lacking(pins.folder) {
                Some(why) => unable(&why),
                None => unable(&error),
            };
        }
    };
    // Beside an entry, rules would capture the pod twice.
    match Target::current().and_then(|target| node.pod(target.cookie())) {
        Ok(Some(_)) => return enrol(session, order).map(Some),
        Ok(None) => {}
        Err(error) => return unable(&error),
    }
    if let Some(why) = unprivileged() {
        return unable(&why);
    }
    if holds_rules(&session.observe(&order.exec, Depth::Fast)?, order.groups) {
        return Ok(None);
    }
    if let Err(refusals) = compile(&order.desired.policy, order.groups) {
        return unable(&refusals);
    }
    match enrol(session, order) {
        Err(CaptureError::Ebpf(error)) if !error.is_busy() => unable(&error),
        done => done.map(Some),
    }
}

/// Enrol the pod, then take away rules of other backends: it is captured at every moment.
fn enrol(session: &mut Session, order: &Order<'_>) -> Result<Applied, CaptureError> {
    let policy = &*by_ebpf(session, &order.desired.policy)?;
    let target = Target::current()?;
    let entry = target.entry(policy, order.groups)?;
    let folder = order.pins.map_or(Path::new(DEFAULT_FOLDER), |pins| pins.folder);
    let node = Node::open(folder)?.until(order.deadline);
    let cookie = target.cookie();
    let enrolled = if order.dry_run {
        node.knows(&entry)?;
        match (node.pod(cookie)?, node.holds(cookie, &entry)?) {
            (_, true) => Enrolled::Unchanged,
            (Some(_), false) => Enrolled::Changed,
            (None, false) => Enrolled::Added,
        }
    } else {
        node.enrol(&target, &entry)?
    };
    let rest = beside(policy);
    let rules = Rules { iptables: &rest, native: None };
    let outcome = run(session, order, Some(rules), Preference::Auto, order.exec.clone());
    let outcome = outcome.map_err(CaptureError::Rest)?;
    Ok(Applied { enrolled: Some((enrolled, cookie)), outcome, left: false })
}

/// Have rules capture the pod, then let it leave eBPF capture.
fn by_rules(
    session: &mut Session,
    order: &Order<'_>,
    warnings: &mut Vec<String>,
) -> Result<Applied, CaptureError> {
    let desired = order.desired;
    let native = match &desired.native {
        Some(rules) if order.text => Some(rules.ready_with_text(order.groups)?),
        Some(rules) => Some(rules.ready(order.groups)?),
        None => None,
    };
    let mut node = order.node();
    let enrolled = match &node {
        Ok(Some(node)) => node.pod(Target::current()?.cookie())?.is_some(),
        _ => false,
    };
    let mut exec = order.exec.clone();
    if !enrolled {
        elsewhere(order, warnings)?;
    }
    if !order.dry_run {
        let (users, groups) = match order.entered {
            Some(netns) => netns.ids()?,
            None => own_ids(),
        };
        mapped(&desired.policy, order.groups, &users, &groups)?;
        if let Some(netns) = order.entered
            && netns.has_own_users()?
        {
            if !enrolled {
                // What a run that died left can't be reached from among the pod's users.
                if let Ok(there) = &mut node
                    && let Some(node) = there.take()
                {
                    node.leave(Target::current()?.cookie())?;
                }
                netns.enter_owner()?;
                exec.sandbox = Some(Sandbox { netns: Some(OWN.into()) });
            } else if order.by != By::Rules(Preference::Backend(Backend::Nftables)) {
                return Err(CaptureError::OwnUsers);
            }
        }
    }
    // What eBPF has captured is not seen by rules as it begins, and goes on as it was.
    let tracked = (enrolled && !order.dry_run).then(Tracked::begin);
    let _tracked = tracked.map(|tracked| {
        let reported =
            |error| warnings.push(format!("{error}: those that eBPF has captured may break"));
        tracked.map_err(reported)
    });
    let rules = Rules { iptables: &desired.iptables, native: native.as_ref() };
    let outcome = match (
        run(session, order, Some(rules), order.by.preference(), exec.clone()),
        order.instead,
    ) {
        (Err(EngineError::NoBackend(NoBackend::Forced(_))), Some(preference)) => {
            run(session, order, Some(rules), preference, exec)
        }
        (outcome, _) => outcome,
    }?;
    // The rules capture the pod now.
    let left = match node {
        Ok(None) => false,
        Ok(Some(node)) => {
            // Also what a run that died left of it.
            if !order.dry_run {
                node.leave(Target::current()?.cookie())?;
            }
            enrolled
        }
        Err(error) => {
            let why = error.to_string().replace('\n', " ");
            warnings.push(format!("whether eBPF captures the pod as well can't be seen: {why}"));
            false
        }
    };
    Ok(Applied { enrolled: None, outcome, left })
}

/// Refuse what would capture a pod twice that programs capture which nobody has named.
fn elsewhere(order: &Order<'_>, warnings: &mut Vec<String>) -> Result<(), CaptureError> {
    let folder = order.pins.map(|pins| pins.folder);
    match folder.map_or_else(Attached::here, Attached::beyond) {
        Attached::No => Ok(()),
        Attached::Yes => Err(CaptureError::Twice(folder.map(Path::to_owned))),
        Attached::Unclear => {
            warnings.push(Attached::UNCLEAR.to_owned());
            Ok(())
        }
    }
}

fn run(
    session: &mut Session,
    order: &Order<'_>,
    rules: Option<Rules<'_>>,
    preference: Preference,
    exec: exec::Options,
) -> Result<Outcome, EngineError> {
    session.run(&Request {
        rules,
        preference,
        drift: order.drift,
        everything: order.everything,
        dry_run: order.dry_run,
        wait: order.wait(),
        groups: order.groups,
        marks: order.desired.marks(),
        exec,
    })
}
