//! Whether the ids of a policy are somebody's in the pod, which may have users of its own
//! (`user_namespaces(7)`).

use crate::ebpf::IdMap;
use crate::policy::{CapturePolicy, GroupSelection};
use crate::ruleset::Owner;
use crate::source::Source;
use crate::value::Groups;

/// An id that no process of the pod can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} {id} ({from}) is not mapped in the pod's user namespace, which has {mapped}: name one that \
     a process of the pod can have"
)]
pub struct Unmapped {
    /// `user` or `group`, as the message says it.
    pub kind: &'static str,
    /// The id as the policy has it, inside the pod's user namespace.
    pub id: u32,
    /// The flag, variable, annotation, file or default that named the id.
    pub from: Source,
    /// The ids that there are.
    pub mapped: String,
}

/// Whether the pod has all ids of a policy, whose names of groups are looked up in `known`.
///
/// # Errors
/// The first that it has not.
pub fn mapped(
    policy: &CapturePolicy,
    known: &Groups,
    users: &IdMap,
    groups: &IdMap,
) -> Result<(), Unmapped> {
    let (GroupSelection::AllExcept(owners) | GroupSelection::Only { groups: owners, .. }) =
        &policy.outbound.groups;
    let uids = policy.proxy.uids.iter().map(|uid| (true, uid.value.get(), &uid.source));
    let gids = policy.proxy.gids.iter().map(|gid| (false, gid.value.get(), &gid.source));
    let owners = owners.iter().filter_map(|owner| match &owner.value {
        Owner::Uid(uid) => Some((true, uid.get(), &owner.source)),
        Owner::Uids(uids) => Some((true, uids.last().get(), &owner.source)),
        Owner::Gid(gid) => Some((false, gid.get(), &owner.source)),
        Owner::Group(name) => known.get(name).map(|gid| (false, gid.get(), &owner.source)),
    });
    let excluded = policy.outbound.except_users.iter();
    let excluded = excluded.map(|uid| (true, uid.value.get(), &uid.source));
    let flows = policy.outbound.except_flows.iter().flat_map(|flow| {
        let users = flow.value.users;
        [users.first(), users.last()].map(|uid| (true, uid.get(), &flow.source))
    });
    for (is_user, id, from) in uids.chain(gids).chain(owners).chain(excluded).chain(flows) {
        let (kind, map) = if is_user { ("user", users) } else { ("group", groups) };
        if map.outside(id).is_none() {
            return Err(Unmapped { kind, id, from: from.clone(), mapped: map.to_string() });
        }
    }
    Ok(())
}
