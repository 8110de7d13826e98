//! Getting to the namespace that a command works in.

use anyhow::{Context as _, Result};
use millrace_core::facts::HostFacts;
use millrace_host::cri::{self, PodRef};
use millrace_host::engine::Session;
use millrace_host::facts;
use millrace_host::netns::{Netns, NetnsError, NetnsRef};

use crate::cli::own::NetnsTarget;

/// The namespace that a program is in.
const OWN: &str = "/proc/self/ns/net";

/// Enter the namespace that was named, if one was. This is the program's only thread, so all of
/// it is there from now on, and so are its children.
pub(super) fn enter(place: &NetnsTarget) -> Result<()> {
    match place {
        NetnsTarget::Here => Ok(()),
        NetnsTarget::Netns(name) => enter_as(&format!("--netns {name:?}"), name),
        NetnsTarget::Process(pid) => enter_at(&format!("--pid {pid}"), &NetnsRef::of_process(*pid)),
        NetnsTarget::Pod { name, endpoint } => {
            let what = format!("--pod {name:?}");
            let path = cri::netns(endpoint, &PodRef::new(name)).with_context(|| what.clone())?;
            enter_at(&what, &NetnsRef::at(path))
        }
    }
}

/// Enter a namespace; `what` says who named it.
pub(super) fn enter_as(what: &str, name: &str) -> Result<()> {
    let reference: NetnsRef = name.parse().with_context(|| what.to_owned())?;
    enter_at(what, &reference)
}

fn enter_at(what: &str, reference: &NetnsRef) -> Result<()> {
    let handle = reference.open().with_context(|| what.to_owned())?;
    handle.enter().with_context(|| what.to_owned())
}

/// Be root among the users of the pod that was entered, if it has users of its own: ids of connections that
/// are made are the pod's then. There is no way back, and no way to what is the host's.
pub(super) fn as_owner(place: &NetnsTarget) -> Result<()> {
    if let Some(netns) = entered(place)? {
        netns.enter_owner()?;
    }
    Ok(())
}

/// The namespace that was entered, if one was.
pub(super) fn entered(place: &NetnsTarget) -> Result<Option<Netns>, NetnsError> {
    if *place == NetnsTarget::Here {
        return Ok(None);
    }
    Ok(Some(NetnsRef::at(OWN.into()).open()?))
}

/// The namespace with what is known of it and of the host.
pub(super) fn open(place: &NetnsTarget) -> Result<(Session, HostFacts)> {
    enter(place)?;
    let mut session = Session::open()?;
    let facts = facts::gather(session.net())?;
    Ok((session, facts))
}
