//! What a pod that eBPF captures holds beside its entry, and no rule is.

use super::{differences, holds_rest, read_back};
use crate::dialect::{self, FOOTPRINTS};
use crate::observed::{Observed, Variant};
use crate::plan::{self, Context, Effect, Wanted};
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
/// of `::6`, ways to localhost, and nothing of another backend.
pub fn judge_beside(observed: &Observed, rest: &Ruleset, groups: &Groups) -> Beside {
    let context = Context { footprints: FOOTPRINTS, groups, marks: Vec::new(), netlink: true };
    let plan = plan::plan(observed, Wanted::Iptables(rest, Variant::Nft), false, &context);
    let differences = differences(plan.effects, observed);
    let whole = differences.is_empty() && plan.obstacles.is_empty();
    let mut notes = plan.obstacles;
    if holds_rest(observed) || !observed.native.is_empty() || !read_back(observed).is_empty() {
        notes.push("rules of another backend are there as well".to_owned());
    }
    notes.extend(dialect::others::captures(observed));
    if observed.interrupted {
        notes.push("a run that changes the rules is in progress, or was interrupted".to_owned());
    }
    Beside { differences, notes, whole }
}
