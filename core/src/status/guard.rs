//! The guard of transparent capture: the table beside rules that are to stay as another tool writes
//! them, and that let a connection past which is the proxy's.

use super::NativeReadBack;
use crate::nft::tables::{Native, named};
use crate::nft::{UNGUARDED, guarded};
use crate::observed::Observed;
use crate::ruleset::Ruleset;
use crate::value::Groups;

/// Whether a guard can be here, or is.
pub(super) const fn can_be(observed: &Observed) -> bool {
    observed.nf_tables || !observed.native.is_empty()
}

/// What it means that none can be.
pub(super) fn lacking(ruleset: &Ruleset) -> Option<String> {
    let name = ruleset.guard.as_ref()?.layout.guard?;
    Some(format!("table inet {name} can't be here, as the kernel has no nf_tables: {UNGUARDED}"))
}

/// What it means that it is not there.
pub(super) fn missing(observed: &Observed, ruleset: &Ruleset) -> Option<String> {
    let name = ruleset.guard.as_ref()?.layout.guard?;
    let there = named(&observed.native, name).is_some();
    (!there).then(|| format!("table inet {name} is missing: {UNGUARDED}"))
}

/// Have native rules that were read back want their guard as well; what it means where it is not
/// there.
pub(super) fn complete(native: &mut Native, found: &NativeReadBack) -> Option<String> {
    let name = found.ruleset.layout.guard?;
    if named(&native.tables, name).is_some() {
        return None;
    }
    let whole = guarded(found.ruleset.clone()).native(&Groups::new()).ok()?;
    let guard = whole.into_iter().find(|(found, _)| found == name)?;
    native.tables.push(guard);
    Some(format!(
        "table inet {name} is missing: while no transparent socket listens on the proxy's port, \
         connections reach the application; and {UNGUARDED}"
    ))
}

/// The table that the rules which are here need, and that is missing, with what that means.
pub fn unguarded(observed: &Observed) -> Option<String> {
    if let Some(found) = super::read_native_back(observed) {
        let mut native = found.ruleset.ready(&Groups::new()).ok()?;
        native.tables.clone_from(&observed.native);
        return complete(&mut native, &found);
    }
    let found = super::read_back(observed).into_iter().find_map(|found| found.ruleset)?;
    missing(observed, &found)
}
