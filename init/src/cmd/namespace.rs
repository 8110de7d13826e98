//! Getting to the namespace that a command works in.

use anyhow::{Context as _, Result};
use millrace_core::facts::HostFacts;
use millrace_core::ids::mapped;
use millrace_core::policy::CapturePolicy;
use millrace_core::value::Groups;
use millrace_host::cri::{self, PodRef};
use millrace_host::engine::Session;
use millrace_host::netns::{NetnsRef, own_ids};
use millrace_host::sandbox::Sandbox;
use millrace_host::{exec, facts};

use crate::cli::own::Place;

/// The namespace that a program is in.
const OWN: &str = "/proc/self/ns/net";

/// Enter the namespace that was named, if one was. This is the program's only thread, so all of
/// it is there from now on, and so are its children.
pub(super) fn enter(place: &Place) -> Result<()> {
    match place {
        Place::Here => Ok(()),
        Place::Netns(name) => enter_as(&format!("--netns {name:?}"), name),
        Place::Process(pid) => enter_at(&format!("--pid {pid}"), &NetnsRef::of_process(*pid)),
        Place::Pod { name, endpoint } => {
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

/// Be root among the users of the pod that was entered, if it has users of its own: the kernel takes
/// rules that name users from there alone, and their ids, and those of connections that are made, are
/// the pod's. There is no way back, and no way to what is the host's. Gives how programs are run then:
/// they can't lock what is the host's, so they lock the pod alone.
pub(super) fn as_owner(place: &Place) -> Result<exec::Options> {
    if *place == Place::Here {
        return Ok(exec::Options::default());
    }
    let own = NetnsRef::at(OWN.into()).open()?;
    let netns = own.enter_owner()?.then(|| OWN.into());
    let sandbox = netns.map(|netns| Sandbox { netns: Some(netns) });
    Ok(exec::Options { sandbox, ..exec::Options::default() })
}

/// Whether processes of the namespace's users can have the ids of a policy.
pub(super) fn check_ids(place: &Place, policy: &CapturePolicy, groups: &Groups) -> Result<()> {
    let (users, of_groups) = match place {
        Place::Here => own_ids(),
        _ => NetnsRef::at(OWN.into()).open()?.ids()?,
    };
    Ok(mapped(policy, groups, &users, &of_groups)?)
}

/// Whether a namespace that was entered has users of its own.
pub(super) fn has_own_users(place: &Place) -> Result<bool> {
    Ok(*place != Place::Here && NetnsRef::at(OWN.into()).open()?.has_own_users()?)
}

/// The namespace with what is known of it and of the host.
pub(super) fn open(place: &Place) -> Result<(Session, HostFacts)> {
    enter(place)?;
    let mut session = Session::open()?;
    let facts = facts::gather(session.net())?;
    Ok((session, facts))
}
