//! Back to what was there before.

use super::effect::{Change, Effect};
use super::routing::PASSTHROUGH_V6;
use super::tables::{self, Style};
use super::target::{FamilyState, TableState};
use super::{Context, commit_order};
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
    let has = |o: &Observed| super::routing::has_passthrough(o);
    effects.extend(routes(before, now, Change::Add));
    effects.extend(missing(before, now).into_iter().map(removed(Change::Add)));
    if has(before) && !has(now) {
        effects.push(Effect::Address { change: Change::Add, address: PASSTHROUGH_V6 });
    }
    for variant in Variant::ALL {
        for family in Family::ALL {
            let state = |o: &Observed| {
                o.holding(variant, family)
                    .map(|d| FamilyState::found(d, context.footprints, context.groups))
                    .unwrap_or_default()
            };
            effects.extend(restore(variant, family, &state(now), &state(before)));
        }
    }
    effects.extend(super::native(now, before.native.clone(), String::new(), false));
    effects.extend(missing(now, before).into_iter().map(removed(Change::Remove)));
    effects.extend(routes(now, before, Change::Remove));
    if has(now) && !has(before) {
        effects.push(Effect::Address { change: Change::Remove, address: PASSTHROUGH_V6 });
    }
    if now.interrupted && !before.interrupted {
        effects.push(Effect::Marker { change: Change::Remove });
    }
    effects
}

fn restore(
    variant: Variant,
    family: Family,
    now: &FamilyState,
    before: &FamilyState,
) -> Option<Effect> {
    let style = Style { everything: false, counters: true };
    let empty = TableState::default();
    let input: String = commit_order(now, before)
        .into_iter()
        .filter_map(|table| {
            let now = now.tables.get(&table).unwrap_or(&empty);
            let before = before.tables.get(&table).unwrap_or(&empty);
            tables::edit(table, now, before, style)
        })
        .collect();
    (!input.is_empty()).then_some(Effect::Restore { variant, family, input, counters: true })
}
