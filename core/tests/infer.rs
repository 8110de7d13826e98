//! Verify that the settings that gave a live namespace's rules can be read back from them.

mod support;

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::{self, DIALECTS, Dialect, istio};
use millrace_core::infer::{infer, policy, read_native};
use millrace_core::iptables::Dump;
use millrace_core::nft::{self, NftRuleset};
use millrace_core::observed::{IpRule, Observed, Variant};
use millrace_core::plan::{self, Context, Effect};
use millrace_core::ruleset::Ruleset;
use millrace_core::status::judge;
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use support::{RandomConfig, apply_effect, configs, want};

fn context(groups: &Groups) -> Context<'_> {
    Context { footprints: dialect::FOOTPRINTS, groups, marks: vec![], netlink: false }
}

fn applied(set: &Ruleset, groups: &Groups) -> Observed {
    let mut observed = Observed::default();
    let plan = plan::plan(&observed, want(Some(set)), false, &context(groups));
    for effect in &plan.effects {
        apply_effect(&mut observed, effect);
    }
    observed
}

fn read_back(observed: &Observed, dialect: &Dialect) -> Option<Ruleset> {
    let dump = |family| observed.holding(Variant::Nft, family);
    let found = infer(
        dump(Family::V4),
        dump(Family::V6),
        &observed.ip_rules,
        &dialect.footprint,
        dialect.mesh,
    )?;
    Some(to_iptables(
        &policy(&found, dialect).expect("what is read back makes a policy"),
        dialect.footprint.layout,
    ))
}

/// The dialects with which the same can be said.
fn common() -> impl Iterator<Item = &'static Dialect> {
    DIALECTS.iter().filter(|dialect| dialect.mesh == &istio::MESH)
}

fn native(config: &RandomConfig, dialect: &Dialect) -> NftRuleset {
    let rules = nft::guarded(to_nft(&config.policy(), dialect.nft_layout, true));
    if dialect.nft_layout.one_table { nft::merge(&rules) } else { rules }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Verify that what is read back from any configuration's rules gives the same rules, in
    /// every dialect's names.
    #[test]
    fn settings_can_be_read_back(config in configs()) {
        let groups = millrace_core::facts::groups("java:x:202:\n");
        for dialect in common() {
            let set = to_iptables(&config.policy(), dialect.footprint.layout);
            let observed = applied(&set, &groups);
            let again = read_back(&observed, dialect).unwrap();
            let plan = plan::plan(&observed, want(Some(&again)), false, &context(&groups));
            prop_assert!(plan.is_empty(), "{}: {:#?}", dialect.name, plan.effects);
        }
    }

    /// Verify the same for native nftables of both layouts.
    #[test]
    fn settings_of_native_rules_can_be_read_back(config in configs()) {
        let groups = millrace_core::facts::groups("java:x:202:\n");
        for dialect in common() {
            let rules = native(&config, dialect);
            let ip_rules: Vec<IpRule> = rules.routing.marked.iter().map(|route| IpRule {
                family: Family::V4,
                priority: route.priority,
                fwmark: Some((route.mark.value, route.mark.mask)),
                table: route.table.get(),
                mark_only: true,
            }).collect();
            let tables = rules.native(&groups).unwrap();
            let again = read_native(&tables, &ip_rules, dialect);
            prop_assert!(again.is_some(), "{}\n{}", dialect.name, nft::render_transaction(&rules));
            // istio-iptables has no guard.
            let bare = tables.into_iter().filter(|(name, _)| *name != istio::NFT_GUARD).collect();
            prop_assert!(read_native(&bare, &ip_rules, dialect).is_some());
        }
    }

    /// Verify that native rules of which one is missing are never taken for whole.
    #[test]
    fn a_missing_native_jump_is_noticed(config in configs()) {
        let groups = millrace_core::facts::groups("java:x:202:\n");
        for dialect in common() {
            let mut tables = native(&config, dialect).native(&groups).unwrap();
            let hooks = tables.iter_mut().flat_map(|(_, chains)| chains);
            for (_, chain) in hooks.filter(|(_, c)| c.base.as_ref().is_some_and(|b| b.kind == "nat")) {
                chain.rules.clear();
            }
            prop_assert!(read_native(&tables, &[], dialect).is_none());
        }
    }

    /// Verify that rules with one missing are never taken for whole: what is read back differs
    /// from what is there, or the missing rule changes nothing but a setting.
    #[test]
    fn a_missing_jump_is_noticed(config in configs()) {
        let groups = millrace_core::facts::groups("java:x:202:\n");
        let dialect = &DIALECTS[0];
        let mut observed = applied(&to_iptables(&config.policy(), dialect.footprint.layout), &groups);
        for holding in &mut observed.holdings {
            for table in holding.dump.tables.iter_mut().filter(|t| t.name == "nat") {
                for chain in table.chains.iter_mut().filter(|c| c.name == "OUTPUT") {
                    chain.rules.retain(|r| !r.text.ends_with("-j ISTIO_OUTPUT"));
                }
            }
        }
        let again = read_back(&observed, dialect).unwrap();
        let plan = plan::plan(&observed, want(Some(&again)), false, &context(&groups));
        prop_assert!(!plan.is_empty());
    }

    /// Verify that without settings nobody is advised to take rules away, wherever somebody has put one
    /// into a chain of ours, or moved one: nothing is advised, or only what is to be added.
    #[test]
    fn no_advice_takes_rules_away(
        config in configs(),
        place in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        added in prop::option::of(prop::sample::select(vec![
            "-d 198.51.100.0/24 -j RETURN",
            "-p tcp --dport 81 -j RETURN",
            "-m owner --uid-owner 77 -j RETURN",
            "-j ACCEPT",
        ])),
    ) {
        let groups = millrace_core::facts::groups("java:x:202:\n");
        let mut observed = applied(&to_iptables(&config.policy(), DIALECTS[0].footprint.layout), &groups);
        let tables = observed.holdings.iter_mut().flat_map(|h| &mut h.dump.tables);
        let chains = tables.filter(|t| t.name == "nat").flat_map(|t| &mut t.chains);
        let mut chains: Vec<_> =
            chains.filter(|c| c.name.starts_with("ISTIO_") && !c.rules.is_empty()).collect();
        let count = chains.len();
        let rules = &mut chains[place.index(count)].rules;
        let index = at.index(rules.len());
        match added {
            Some(text) => {
                let dump = Dump::parse(&format!("*nat\n:X - [0:0]\n-A X {text}\nCOMMIT\n")).unwrap();
                rules.insert(index, dump.tables[0].chains[0].rules[0].clone());
            }
            None => rules.rotate_left(index),
        }
        for effect in judge(&observed, None, &groups).differences {
            if let Effect::Restore { input: text, .. } | Effect::Native { text, .. } = &effect {
                let away = text.lines().find(|line| line.starts_with("-X"));
                prop_assert_eq!(away, None, "{}", text);
                let declared: Vec<&str> =
                    text.lines().filter_map(|line| line.strip_prefix(':')).collect();
                for chain in declared {
                    let name = chain.split(' ').next().unwrap();
                    let there = observed.holdings.iter().filter_map(|h| h.dump.table("nat")?.chain(name));
                    let most = there.map(|c| c.rules.len()).min().unwrap_or(0);
                    let given = text.lines().filter(|l| l.starts_with(&format!("-A {name} "))).count();
                    prop_assert!(given >= most, "{}", text);
                }
            }
        }
    }
}
