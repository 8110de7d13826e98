//! Marks that bring the packets of a transparently captured connection back to the proxy, and
//! that tell the proxy's calls to its own pod from what it passes on.

use super::SELF_CALL_MARK;
use super::build::{Builder, from, in_by, marked, not_to, of, out_by, tcp, why};
use crate::policy::InboundMode;
use crate::ruleset::{Chain, Hook, Masked, Match, Owner, Placement, Table, Target};
use crate::value::InterfacePattern;

/// All of it; nothing unless inbound is transparent.
pub(super) fn bookkeeping(b: &mut Builder<'_>) {
    let policy = b.policy;
    let InboundMode::Tproxy { mark, source, .. } = &policy.inbound.mode else { return };
    let (mark, lo) = (mark.value, InterfacePattern::loopback());
    let connection = Match::Connmark { negated: false, mark: Masked::exact(mark.get()) };

    let reason = why(source, "a connection that the proxy has is known by its mark");
    let matches = vec![tcp(), marked(mark)];
    b.hook(Table::Mangle, Hook::Prerouting, matches, Target::SaveMark, reason);

    let reason = why(source, "what the proxy passes on to the application keeps its mark");
    let matches = vec![tcp(), out_by(&lo), marked(mark)];
    b.hook(Table::Mangle, Hook::Output, matches, Target::Return, reason);

    let uids = policy.proxy.uids.iter().map(|u| (Owner::Uid(u.value), &u.source));
    let gids = policy.proxy.gids.iter().map(|g| (Owner::Gid(g.value), &g.source));
    for (owner, source) in uids.chain(gids) {
        let matches = vec![not_to(b.localhost()), tcp(), out_by(&lo), of(owner)];
        let set = Target::SetMark(Masked::exact(SELF_CALL_MARK));
        let reason = why(source, "the proxy's calls to its own pod are marked, to be captured");
        b.hook(Table::Mangle, Hook::Output, matches, set, reason);
    }

    let reason = why(source, "answers to a connection that the proxy has return to the proxy");
    let matches = vec![tcp(), connection];
    b.hook(Table::Mangle, Hook::Output, matches, Target::RestoreMark, reason);

    let not_self_call = Match::Mark { negated: true, mark: Masked::exact(SELF_CALL_MARK) };
    let first = [
        (vec![tcp(), marked(mark)], "what has the proxy's mark is not captured again"),
        (
            vec![tcp(), from(b.passthrough()), in_by(&lo)],
            "what the proxy passes on to the application is left alone",
        ),
        (
            vec![tcp(), in_by(&lo), not_self_call],
            "what stays in the pod is left alone, but for the proxy's calls to it",
        ),
    ];
    for (position, (matches, purpose)) in (1..).zip(first) {
        let chain = Chain::User(b.layout.inbound.clone());
        let placement = Placement::Insert(position);
        let reason = why(source, purpose);
        b.put(Table::Mangle, chain, placement, matches, Target::Return, reason);
    }
}
