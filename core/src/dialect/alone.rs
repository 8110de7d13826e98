//! What one dialect has in a namespace, as if nobody else of those that Millrace knows were there: so its
//! own command takes nothing away from others.

use super::others::captures;
use super::{Dialect, FOOTPRINTS};
use crate::observed::Observed;
use crate::ownership::has_chains;

/// What was seen, without all that is or may be another dialect's and is no rule of iptables: those are
/// told apart by their footprint. For a dialect that needs no policy routing. The address `::6` on
/// `lo` and the note of a run that did not end say not whose they are: where another captures too, they are
/// taken for that one's.
pub fn alone(mut seen: Observed, dialect: &Dialect) -> Observed {
    let own = |name: &str| dialect.nft_layout.names().any(|table| table == name);
    let another = FOOTPRINTS.iter().filter(|other| other.layout != dialect.footprint.layout);
    let others = seen.native.iter().any(|(name, _)| !own(name))
        || seen.holdings.iter().any(|h| another.clone().any(|other| has_chains(&h.dump, other)))
        || !captures(&seen).is_empty();
    seen.native.retain(|(name, _)| own(name));
    seen.ip_rules.clear();
    seen.routes.clear();
    seen.localhost_ways.clear();
    seen.loggers.clear();
    seen.interrupted &= !others;
    // One that has it at an interface of its own does not need it on `lo`.
    if others && seen.passthrough_link.take().is_none() {
        seen.addresses.clear();
    }
    seen.passthrough_link = None;
    seen
}
