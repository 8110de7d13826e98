//! Getting to the namespace that a command works in.

use anyhow::{Context as _, Result};
use millrace_core::facts::HostFacts;
use millrace_host::engine::Session;
use millrace_host::facts;
use millrace_host::netns::NetnsRef;

/// Enter the namespace that was named, if one was. This is the program's only thread, so all of
/// it is there from now on, and so are its children.
pub(super) fn enter(netns: Option<&str>) -> Result<()> {
    netns.map_or(Ok(()), |name| enter_as(&format!("--netns {name:?}"), name))
}

/// Enter a namespace; `what` says who named it.
pub(super) fn enter_as(what: &str, name: &str) -> Result<()> {
    let reference: NetnsRef = name.parse().with_context(|| what.to_owned())?;
    let handle = reference.open().with_context(|| what.to_owned())?;
    handle.enter().with_context(|| what.to_owned())
}

/// The namespace with what is known of it and of the host.
pub(super) fn open(netns: Option<&str>) -> Result<(Session, HostFacts)> {
    enter(netns)?;
    let mut session = Session::open()?;
    let facts = facts::gather(session.net())?;
    Ok((session, facts))
}
