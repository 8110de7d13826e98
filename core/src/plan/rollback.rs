//! Back to what was there before.

use super::Context;
use super::effect::{Change, Effect};
use super::routing::PASSTHROUGH_V6;
use super::target::FamilyState;
use crate::observed::{Observed, Variant};
use crate::value::Family;

/// What has to be done so that the namespace, which is now as `now` says, holds of ours what it
/// held in `before`: the same rules in the same places with the same counters, the same policy
/// routing, the same addresses.
pub fn rollback(before: &Observed, now: &Observed, context: &Context<'_>) -> Vec<Effect> {
    let mut effects = Vec::new();
    let removed = |change| move |rule| Effect::IpRule { change, rule };
    let missing = |a: &Observed, b: &Observed| -> Vec<_> {
        a.ip_rules.iter().filter(|r| !b.ip_rules.contains(r)).cloned().collect()
    };
    let routes = |a: &Observed, b: &Observed, change| -> Vec<Effect> {
        a.routes
            .iter()
            .filter(|r| r.local_default && !b.routes.contains(r))
            .map(|r| Effect::Route { change, family: r.family, table: r.table })
            .collect()
    };
    let ways = |a: &Observed, b: &Observed, change| -> Vec<Effect> {
        let ways = a.localhost_ways.iter().filter(|way| !b.localhost_ways.contains(way));
        ways.map(|way| Effect::Localhost { change, way: way.clone() }).collect()
    };
    let has = |o: &Observed| super::routing::has_passthrough(o);
    if before.lo_down != now.lo_down {
        let change = if before.lo_down { Change::Remove } else { Change::Add };
        effects.push(Effect::Loopback { change });
    }
    effects.extend(routes(before, now, Change::Add));
    effects.extend(ways(before, now, Change::Add));
    effects.extend(missing(before, now).into_iter().map(removed(Change::Add)));
    if has(before) && !has(now) {
        effects.push(Effect::Address { change: Change::Add, address: PASSTHROUGH_V6 });
    }
    if before.passthrough_link == Some(true) && now.passthrough_link != Some(true) {
        effects.push(Effect::Passthrough { change: Change::Add });
    }
    let mut edits = Vec::new();
    for variant in Variant::ALL {
        for family in Family::ALL {
            let state = |o: &Observed| {
                o.holding(variant, family)
                    .map(|d| FamilyState::observed(d, context.footprints, context.groups))
                    .unwrap_or_default()
            };
            let changes = super::table_edits(family, &state(now), &state(before), false);
            match variant {
                // Whoever wrote them: so they are byte for byte what they were.
                Variant::Nft => edits.extend(changes),
                Variant::Legacy => effects.extend(super::restore(variant, family, &changes, true)),
            }
        }
    }
    effects.extend(super::native(now, before.native.clone(), String::new(), false, edits));
    let dormant = before.dormant.iter().filter(|table| !now.dormant.contains(table));
    effects
        .extend(dormant.map(|table| Effect::Dormant { change: Change::Add, table: table.clone() }));
    effects.extend(missing(now, before).into_iter().map(removed(Change::Remove)));
    effects.extend(routes(now, before, Change::Remove));
    effects.extend(ways(now, before, Change::Remove));
    if has(now) && !has(before) {
        effects.push(Effect::Address { change: Change::Remove, address: PASSTHROUGH_V6 });
    }
    if now.passthrough_link.is_some() && before.passthrough_link.is_none() {
        effects.push(Effect::Passthrough { change: Change::Remove });
    }
    if now.interrupted && !before.interrupted {
        effects.push(Effect::Marker { change: Change::Remove });
    }
    effects
}
