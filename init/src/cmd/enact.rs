//! What the command of a mesh's tool has in common with that of any other: its end, and how its rules are
//! carried out.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;
use millrace_core::desired::Desired;
use millrace_core::plan::Preference;
use millrace_core::preflight::Backend;
use millrace_core::source::Sourced;
use millrace_core::value::Groups;
use millrace_host::capture::{self, By, CaptureError, Order};
use millrace_host::engine::{Outcome, Session};

use super::output::{log_outcome, print};
use super::{exit_of, namespace, reported, termination};
use crate::cli::istio::NotTyped;
use crate::cli::own::NetnsTarget;
use crate::exit::Exit;
use crate::log::Log;

/// Flags by their names, in their order.
type Flags = Vec<(String, String)>;

/// A whole command, from the words behind its name: `run` has the flags that `read` makes of them.
pub(super) fn command(
    words: Vec<OsString>,
    read: impl FnOnce(Vec<OsString>) -> Result<Flags, NotTyped>,
    run: impl FnOnce(Flags, &mut Log) -> Result<Exit>,
) -> Exit {
    let failed = |text: &str| {
        crate::complain(text);
        termination::tell(&text.lines().map(str::to_owned).collect::<Vec<_>>());
    };
    let flags = match read(words) {
        Ok(flags) => flags,
        Err(NotTyped::Help(text)) => {
            return if print(&text).is_ok() { Exit::Ok } else { Exit::Failed };
        }
        Err(NotTyped::Bad(text)) => {
            failed(text.strip_prefix("error: ").unwrap_or(&text));
            return Exit::Failed;
        }
    };
    run(flags, &mut Log::own()).unwrap_or_else(|error| {
        failed(&reported(&error));
        exit_of(&error)
    })
}

/// What a tool is to carry out: native nftables, where it has these, else iptables.
pub(super) struct Enacted<'a> {
    pub(super) desired: Desired,
    /// The namespace to work in, and who named it.
    pub(super) netns: Option<&'a Sourced<String>>,
    pub(super) wait: Duration,
}

/// Carry it out, and say what was done.
pub(super) fn enact(wanted: &Enacted<'_>, log: &mut Log) -> Result<Exit> {
    let place =
        wanted.netns.map_or(NetnsTarget::Here, |netns| NetnsTarget::Netns(netns.value.clone()));
    if let Some(netns) = wanted.netns {
        namespace::enter_as(&format!("{}: {:?}", netns.source, netns.value), &netns.value)?;
    }
    let preference = match wanted.desired.native {
        Some(_) => Preference::Backend(Backend::Nftables),
        None => Preference::Iptables,
    };
    let mut session = Session::open()?;
    let outcome = by_rules(&mut session, &place, &wanted.desired, (preference, None), wanted.wait)?;
    for warning in &outcome.warnings {
        log.warn(warning);
    }
    log_outcome(&outcome, log);
    Ok(Exit::Ok)
}

/// Have rules capture the namespace that was entered, as a tool does that knows nothing of eBPF.
pub(super) fn by_rules(
    session: &mut Session,
    place: &NetnsTarget,
    desired: &Desired,
    (preference, instead): (Preference, Option<Preference>),
    wait: Duration,
) -> Result<Outcome, CaptureError> {
    let entered = namespace::entered(place)?;
    let groups = Groups::new();
    let order = Order {
        instead,
        entered: entered.as_ref(),
        ..Order::new(desired, By::Rules(preference), &groups, wait)
    };
    Ok(capture::apply(session, &order)?.outcome)
}
