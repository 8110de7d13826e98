//! What a pod that eBPF captures holds beside its entry, and no rule is.

use std::net::IpAddr;

use super::{differences, holds_rest, read_back};
use crate::dialect::{self, FOOTPRINTS};
use crate::observed::{Observed, Variant, Way};
use crate::plan::{self, Change, Context, DesiredState, Effect};
use crate::ruleset::Ruleset;
use crate::value::Groups;

/// How it differs from what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// What would have to be done to make it whole.
    pub differences: Vec<Effect>,
    /// What keeps it from being whole and is not ours to change, and what the user should know.
    pub notes: Vec<String>,
    /// Whether nothing has to be done, and nothing keeps it from working.
    pub whole: bool,
}

/// Hold what is there against `rest`, which has no rules ([`crate::ebpf::beside`]): `lo`, the interface
/// of `::6`, ways to localhost, and nothing of another backend. Captured connections come from `sources`;
/// a way by an interface that has none of them is only noted, as it may have come or gone up since.
pub fn judge_beside(
    observed: &Observed,
    rest: &Ruleset,
    sources: &[IpAddr],
    groups: &Groups,
) -> Beside {
    let context = Context { footprints: FOOTPRINTS, groups, marks: Vec::new(), netlink: true };
    let plan = plan::plan(observed, DesiredState::Iptables(rest, Variant::Nft), false, &context);
    let matters = |effect: &Effect| match effect {
        Effect::Localhost { change: Change::Add, way } => {
            observed.ways.get(way).is_some_and(|its| its.iter().any(|ip| sources.contains(ip)))
        }
        _ => true,
    };
    let (effects, ways): (Vec<_>, Vec<_>) = plan.effects.into_iter().partition(matters);
    let differences = differences(effects, observed);
    let whole = differences.is_empty() && plan.obstacles.is_empty();
    let mut notes = plan.obstacles;
    if holds_rest(observed) || !observed.native.is_empty() || !read_back(observed).is_empty() {
        notes.push("rules of another backend are there as well".to_owned());
    }
    notes.extend(ways.iter().filter_map(|effect| match effect {
        Effect::Localhost { way: Way { family, interface }, .. } => Some(format!(
            "localhost is not reached by {interface} over {family}, as it was not there or not up when \
             the pod was enrolled, or has been set down since: enrol the pod again"
        )),
        _ => None,
    }));
    notes.extend(dialect::others::captures(observed));
    if observed.interrupted {
        notes.push("a run that changes the rules is in progress, or was interrupted".to_owned());
    }
    Beside { differences, notes, whole }
}
