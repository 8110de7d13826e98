//! Rules in the form of an older release.

use super::{State, judge_newest, modernized};
use crate::dialect::FOOTPRINTS;
use crate::observed::{Holding, Observed};
use crate::ownership::Owned;
use crate::ruleset::Table;
use crate::value::Groups;

/// The rules of ours alone, as they are, where they are whole in the form of an older release: what they
/// do is what is wanted of them, and not what today's would do in a few things.
pub fn whole_in_older_form(observed: &Observed, groups: &Groups) -> Option<Vec<Holding>> {
    let (modern, ..) = modernized(observed)?;
    let whole = judge_newest(&modern, None, groups).state == State::Captured;
    whole.then(|| observed.holdings.iter().map(ours).collect())
}

fn ours(holding: &Holding) -> Holding {
    let owned = Owned::find(&holding.dump, FOOTPRINTS);
    let mut ours = holding.clone();
    for content in &mut ours.dump.tables {
        let table = Table::from_name(&content.name);
        for chain in &mut content.chains {
            let mut at = 0..;
            let name = &chain.name;
            chain.rules.retain(|_| {
                let at = at.next().unwrap_or_default();
                table.is_some_and(|table| owned.has_rule(table, name, at))
            });
            chain.policy = chain.policy.take().map(|_| "ACCEPT".to_owned());
        }
    }
    ours
}
