//! Verify that the settings that gave a live namespace's rules can be read back from them.

mod support;

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::{self, DIALECTS, Dialect, istio};
use millrace_core::infer::{infer, policy, read_native};
use millrace_core::nft::{self, NftRuleset};
use millrace_core::observed::{IpRule, Observed, Variant};
use millrace_core::plan::{self, Context};
use millrace_core::ruleset::Ruleset;
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use support::{RandomConfig, carry_out, configs, want};

fn context(groups: &Groups) -> Context<'_> {
    Context { footprints: dialect::FOOTPRINTS, groups, marks: vec![], netlink: false }
}

fn applied(set: &Ruleset, groups: &Groups) -> Observed {
    let mut observed = Observed::default();
    let plan = plan::plan(&observed, want(Some(set)), false, &context(groups));
    for effect in &plan.effects {
        carry_out(&mut observed, effect);
    }
    observed
}

fn read_back(observed: &Observed, dialect: &Dialect) -> Option<Ruleset> {
    let dump = |family| observed.holding(Variant::Nft, family);
    let found = infer(dump(Family::V4), dump(Family::V6), &observed.ip_rules, &dialect.footprint)?;
    Some(to_iptables(
        &policy(&found, dialect).expect("what is read back makes a policy"),
        dialect.footprint.layout,
    ))
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
        for dialect in DIALECTS {
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
        for dialect in DIALECTS {
            let rules = native(&config, dialect);
            let ip_rules: Vec<IpRule> = rules.routing.tproxy.iter().map(|(mark, table)| IpRule {
                family: Family::V4,
                priority: 32_133,
                fwmark: Some((mark.get(), u32::MAX)),
                table: table.get(),
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
        for dialect in DIALECTS {
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
}
