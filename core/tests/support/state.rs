//! What is wanted of a namespace, applied to a stand-in for the kernel's tables, and what is said of it.

use millrace_core::capture::to_iptables;
use millrace_core::dialect::{Dialect, FOOTPRINTS, istio};
use millrace_core::infer::{read, read_native};
use millrace_core::iptables::Dump;
use millrace_core::nft::tables::NativeTables;
use millrace_core::observed::{Holding, Observed, Variant};
use millrace_core::plan::{self, Context};
use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::Ruleset;
use millrace_core::status::{State, judge};
use millrace_core::value::{Family, Groups};

use super::{apply_effect, changed_by_nf_tables, want};

fn context(groups: &Groups) -> Context<'_> {
    Context { footprints: FOOTPRINTS, groups, marks: vec![], netlink: false }
}

/// Do what a run does; without rules, it removes what is there.
pub(crate) fn apply(observed: &mut Observed, set: Option<&Ruleset>) {
    let groups = Groups::new();
    for effect in &plan::plan(observed, want(set), false, &context(&groups)).effects {
        apply_effect(observed, effect);
    }
}

/// Whether a run would change nothing.
pub(crate) fn is_whole(observed: &Observed, set: Option<&Ruleset>) -> bool {
    let groups = Groups::new();
    plan::plan(observed, want(set), false, &context(&groups)).is_empty()
}

/// How many rules are there.
pub(crate) fn count(observed: &Observed) -> usize {
    let dumps = observed.holdings.iter().flat_map(|holding| &holding.dump.tables);
    dumps.flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum()
}

/// A namespace that holds recorded rules of both families.
pub(crate) fn recorded(text: &str) -> Observed {
    let (v4, v6) = text.split_once("### ip\n").unwrap().1.split_once("### ip6").unwrap();
    let holding = |(family, text): (Family, &str)| Holding {
        variant: Variant::Nft,
        family,
        dump: Dump::parse(text.trim_start()).unwrap(),
    };
    let holdings = [(Family::V4, v4), (Family::V6, v6)].map(holding);
    Observed { holdings: holdings.to_vec(), ..Observed::default() }
}

/// Verify that the settings are read back from a dialect's rules, that these survive the kernel's form, and
/// that status says whose they are.
pub(crate) fn is_read_back(set: &Ruleset, dialect: &Dialect) {
    let layout = dialect.footprint.layout;
    assert_eq!(changed_by_nf_tables(set, &Groups::new()), []);
    let mut observed = Observed::default();
    apply(&mut observed, Some(set));
    let dump = |family| observed.holding(Variant::Nft, family);
    // IPv6 that is not captured has no rules.
    let six = set.families().any(|family| family == Family::V6);
    let v6 = dump(Family::V6).filter(|_| six);
    let again = read(dump(Family::V4), v6, &[], dialect).unwrap();
    assert!(is_whole(&observed, Some(&to_iptables(&again, layout))), "{again:#?}");
    let status = judge(&observed, None, &Groups::new());
    assert_eq!((status.state, status.dialect), (State::Captured, Some(dialect.name)));
}

/// Verify the same for native nftables, and that a part is never taken for the whole.
pub(crate) fn native_is_read_back(mut tables: NativeTables, dialect: &Dialect) {
    assert!(read_native(&tables, &[], dialect).is_some(), "{tables:#?}");
    for (_, chain) in tables.iter_mut().flat_map(|(_, chains)| chains) {
        if chain.base.is_some() {
            chain.rules.clear();
        }
    }
    assert!(read_native(&tables, &[], dialect).is_none());
}

/// Verify that a mesh's rules follow on Istio's or the other way round, and that nothing stays when
/// they go.
pub(crate) fn follows_on_istio(ours: &Ruleset, config: &CapturePolicy, first: bool) {
    let theirs = to_iptables(config, &istio::LAYOUT);
    let mut sets = [ours, &theirs];
    if first {
        sets.reverse();
    }
    let mut observed = Observed::default();
    for set in sets {
        apply(&mut observed, Some(set));
        assert!(is_whole(&observed, Some(set)));
    }
    apply(&mut observed, None);
    assert!(is_whole(&observed, None));
    assert_eq!(count(&observed), 0);
}
