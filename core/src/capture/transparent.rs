//! Marks that bring the packets of a transparently captured connection back to the proxy, and
//! that tell the proxy's calls to its own pod from what it passes on.

use super::SELF_CALL_MARK;
use super::program::{
    Addresses, Branch, Condition, Path, Program, Role, Verdict, arrived_by, from, marked,
    not_to_localhost, of, over_lo, owners, tcp, why,
};
use crate::policy::{CapturePolicy, InboundMode};
use crate::ruleset::{Masked, Placement, Table};
use crate::value::InterfacePattern;

/// All of it; nothing unless inbound is transparent.
pub(super) fn bookkeeping(program: &mut Program, policy: &CapturePolicy) {
    let InboundMode::Tproxy { mark, source, .. } = &policy.inbound.mode else { return };
    let mark = Masked::exact(mark.value.get());
    let arriving = (Table::Mangle, Path::Arriving, Role::Mark);
    let leaving = (Table::Mangle, Path::Leaving, Role::Mark);

    let reason = why(source, "a connection that the proxy has is known by its mark");
    program.add(arriving, [tcp(), marked(mark)], Verdict::SaveMark, reason);

    let reason = why(source, "what the proxy passes on to the application keeps its mark");
    program.add(leaving, [tcp(), over_lo(), marked(mark)], Verdict::Pass, reason);

    for (owner, source) in owners(policy) {
        let when = [not_to_localhost(), tcp(), over_lo(), of(&owner)];
        let reason = why(source, "the proxy's calls to its own pod are marked, to be captured");
        program.add(leaving, when, Verdict::SetMark(SELF_CALL_MARK), reason);
    }

    let reason = why(source, "answers to a connection that the proxy has return to the proxy");
    let when = [tcp(), Condition::ConnectionMark(mark)];
    program.add(leaving, when, Verdict::RestoreMark, reason);

    let by_lo = || arrived_by(&InterfacePattern::loopback());
    let first = [
        (vec![tcp(), marked(mark)], "what has the proxy's mark is not captured again"),
        (
            vec![tcp(), from(Addresses::Passthrough), by_lo()],
            "what the proxy passes on to the application is left alone",
        ),
        (
            vec![
                tcp(),
                by_lo(),
                Condition::Mark { negated: true, mark: Masked::exact(SELF_CALL_MARK) },
            ],
            "what stays in the pod is left alone, but for the proxy's calls to it",
        ),
    ];
    let place = (Table::Mangle, Branch::Inbound, Role::Mark);
    for (position, (when, purpose)) in (1..).zip(first) {
        let placement = Placement::Insert(position);
        program.put(place, placement, when, Verdict::Pass, why(source, purpose));
    }
}
