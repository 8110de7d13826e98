//! Marks that bring the packets of a transparently captured connection back to the proxy, and
//! that tell the proxy's calls to its own pod from what it passes on.

use super::{
    Builder, Statement, by_loopback, from, in_by, not_to, of, passthrough, rule, tcp, why,
};
use crate::compile::SELF_CALL_MARK;
use crate::policy::InboundMode;
use crate::ruleset::{Chain, Hook, Owner, Table};
use crate::value::InterfacePattern;

/// All of it; nothing unless inbound is transparent.
pub(super) fn bookkeeping(b: &mut Builder<'_>) {
    let policy = b.policy;
    let InboundMode::Tproxy { mark, source, .. } = &policy.inbound.mode else { return };
    let mark = mark.value.get();
    let marked = || Statement::Mark { negated: false, mark };

    let reason = why(source, "a connection that the proxy has is known by its mark");
    let save = rule(vec![tcp(), marked()], Statement::SaveMark);
    b.hook(Table::Mangle, Hook::Prerouting, save, reason);

    let reason = why(source, "what the proxy passes on to the application keeps its mark");
    let skip = rule(vec![by_loopback(), tcp(), marked()], Statement::Return);
    b.hook(Table::Mangle, Hook::Output, skip, reason);

    let uids = policy.proxy.uids.iter().map(|u| (Owner::Uid(u.value), &u.source));
    let gids = policy.proxy.gids.iter().map(|g| (Owner::Gid(g.value), &g.source));
    for (owner, source) in uids.chain(gids) {
        for family in b.families() {
            let call = vec![by_loopback(), tcp(), not_to(b.localhost(family)), of(owner.clone())];
            let reason = why(source, "the proxy's calls to its own pod are marked, to be captured");
            let set = rule(call, Statement::SetMark(SELF_CALL_MARK));
            b.hook(Table::Mangle, Hook::Output, set, reason);
        }
    }

    let reason = why(source, "answers to a connection that the proxy has return to the proxy");
    let restore = rule(vec![tcp(), Statement::Connmark(mark)], Statement::RestoreMark);
    b.hook(Table::Mangle, Hook::Output, restore, reason);

    let by_lo = || in_by(&InterfacePattern::loopback());
    let mut first =
        vec![(0, vec![tcp(), marked()], "what has the proxy's mark is not captured again")];
    first.extend(b.families().map(|family| {
        let passed = vec![by_lo(), tcp(), from(passthrough(family))];
        (1, passed, "what the proxy passes on to the application is left alone")
    }));
    let other = Statement::Mark { negated: true, mark: SELF_CALL_MARK };
    first.push((
        2,
        vec![by_lo(), tcp(), other],
        "what stays in the pod is left alone, but for the proxy's calls to it",
    ));
    for (index, conditions, purpose) in first {
        let chain = Chain::User(b.layout.inbound.clone());
        let rule = rule(conditions, Statement::Return);
        b.put(Table::Mangle, chain, Some(index), rule, why(source, purpose));
    }
}
