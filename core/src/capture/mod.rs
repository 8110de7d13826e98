//! The capture program: what a connection is asked, in which order, and what follows. It is made of
//! the policy once, and every backend spells the same program.

mod dns;
mod inbound;
mod lower;
mod marked;
mod outbound;
mod program;
pub(crate) mod purpose;
mod transparent;

pub use lower::{to_iptables, to_nft};
pub use program::{Addresses, Branch, Condition, Decision, Listener, Path, Program, Role, Verdict};

use crate::policy::{CapturePolicy, InboundMode};
use crate::ruleset::{Home, MarkedRoute, Masked, Routing, TPROXY_PRIORITY};
use crate::value::Family;

/// The mark of a proxy's connection to its own pod that is to come in by the inbound port.
pub const SELF_CALL_MARK: u32 = 1338;

/// The decisions that `policy` means. Nowhere else is an order decided.
pub fn program(policy: &CapturePolicy) -> Program {
    let mut program = Program::new(policy);
    if let Some(marks) = &policy.proxy.marks {
        marked::capture(&mut program, policy, marks);
        return program;
    }
    inbound::interfaces(&mut program, policy);
    inbound::drop_invalid(&mut program, policy);
    inbound::listeners(&mut program, policy);
    inbound::capture(&mut program, policy);
    outbound::ahead(&mut program, policy);
    dns::ahead(&mut program, policy);
    outbound::enter(&mut program, policy);
    outbound::identity(&mut program, policy);
    outbound::groups(&mut program, policy);
    dns::capture(&mut program, policy);
    outbound::selection(&mut program, policy);
    transparent::bookkeeping(&mut program, policy);
    program
}

/// The policy routing and addresses that `policy` needs, whatever the backend.
pub fn routing(policy: &CapturePolicy, passthrough: Home) -> Routing {
    let answers = policy.proxy.marks.map(|marks| MarkedRoute {
        mark: marks.connection,
        table: marks.table,
        priority: marks.priority,
        ipv6: policy.ipv6.value,
        transparent: false,
    });
    let marked = match &policy.inbound.mode {
        InboundMode::Tproxy { mark, table, .. } if policy.inbound.selection.captures() => {
            Some(MarkedRoute {
                mark: Masked::exact(mark.value.get()),
                table: table.value,
                priority: TPROXY_PRIORITY,
                ipv6: policy.ipv6.value,
                transparent: true,
            })
        }
        _ => answers,
    };
    Routing {
        marked,
        passthrough_v6: (policy.ipv6.value && policy.conventions.passthrough)
            .then_some(passthrough),
        localhost_everywhere: Vec::new(),
    }
}

/// The families that a policy captures.
fn families(policy: &CapturePolicy) -> impl Iterator<Item = Family> + use<> {
    let ipv6 = policy.ipv6.value;
    Family::ALL.into_iter().filter(move |family| *family == Family::V4 || ipv6)
}
