//! Verify that plans lead to exactly what is wanted, from anywhere, and back.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use millrace_core::capture::to_iptables;
use millrace_core::dialect;
use millrace_core::dialect::istio::{LAYOUT, NFT_GUARD, Raw, resolve};
use millrace_core::facts::{self, HostFacts};
use millrace_core::iptables::{Dump, render_restore};
use millrace_core::observed::{Holding, IpRule, Logger, Observed, TableId, Variant};
use millrace_core::plan::{self, Context, Effect};
use millrace_core::ruleset::Ruleset;
use millrace_core::status::{State, judge};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use support::{apply_effect, changed_by_nf_tables, configs, restore, want};

fn groups() -> Groups {
    facts::groups("java:x:202:\n")
}

/// By netlink or by programs.
fn context(groups: &Groups, netlink: bool) -> Context<'_> {
    Context { footprints: dialect::FOOTPRINTS, groups, marks: vec![(1337, 133)], netlink }
}

/// Rules of others: some before and some behind ours, one in a chain of its own.
fn others() -> Observed {
    let mut dump = Dump::default();
    restore(
        &mut dump,
        "*nat\n:FOREIGN - [0:0]\n-A PREROUTING -d 10.9.9.9/32 -j FOREIGN\n-A OUTPUT -d 10.9.9.9/32 -j FOREIGN\n\
         -A FOREIGN -p tcp -m tcp --dport 1 -j DNAT --to-destination 10.8.8.8:2\nCOMMIT\n\
         *filter\n-A INPUT -s 192.0.2.1/32 -j DROP\nCOMMIT\n",
    );
    Observed {
        holdings: Family::ALL
            .map(|family| Holding { variant: Variant::Nft, family, dump: dump.clone() })
            .to_vec(),
        ..Observed::default()
    }
}

fn run(observed: &mut Observed, wanted: Option<&Ruleset>, netlink: bool) -> Vec<Effect> {
    let groups = groups();
    let plan = plan::plan(observed, want(wanted), false, &context(&groups, netlink));
    for effect in &plan.effects {
        apply_effect(observed, effect);
    }
    plan.effects
}

/// All rules of all tables, chain by chain, canonical where they are understood.
fn rules(observed: &Observed) -> Vec<String> {
    let groups = groups();
    let mut all = Vec::new();
    for holding in &observed.holdings {
        for table in &holding.dump.tables {
            for chain in &table.chains {
                let at = format!(
                    "{:?} {:?} {} {}",
                    holding.variant, holding.family, table.name, chain.name
                );
                if chain.policy.is_none() {
                    all.push(at.clone());
                }
                for rule in &chain.rules {
                    all.push(match &rule.rule {
                        Ok(rule) => format!("{at} {:?}", rule.canonical(&groups)),
                        Err(_) => format!("{at} {}", rule.text),
                    });
                }
            }
        }
    }
    let mut routing: Vec<String> = observed.ip_rules.iter().map(|r| format!("{r:?}")).collect();
    routing.extend(observed.routes.iter().map(|r| format!("{r:?}")));
    routing.extend(observed.addresses.iter().map(|a| format!("{a:?}")));
    routing.sort();
    all.extend(routing);
    all
}

/// The same, but with the chains in the order of their names: which was made first is not said.
fn sorted_chains(observed: &Observed) -> Vec<String> {
    let mut observed = observed.clone();
    observed.holdings.sort_by_key(|h| (h.variant, h.family));
    for holding in &mut observed.holdings {
        holding
            .dump
            .tables
            .retain(|t| t.chains.iter().any(|c| !c.rules.is_empty() || c.policy.is_none()));
        holding.dump.tables.sort_by(|a, b| a.name.cmp(&b.name));
        for table in &mut holding.dump.tables {
            table.chains.sort_by(|a, b| a.name.cmp(&b.name));
        }
    }
    rules(&observed)
}

/// The effects with every restore cut into its tables, since each is committed by itself.
fn commits(effects: &[Effect]) -> Vec<Effect> {
    let mut commits = Vec::new();
    for effect in effects {
        let Effect::Restore { variant, family, input, counters } = effect else {
            commits.push(effect.clone());
            continue;
        };
        commits.extend(input.split_inclusive("COMMIT\n").map(|table| Effect::Restore {
            variant: *variant,
            family: *family,
            input: table.to_owned(),
            counters: *counters,
        }));
    }
    commits
}

/// Whether inbound connections of a family reach the proxy: by a redirect, or by a transparent
/// socket that policy routing leads to.
fn captures_inbound(observed: &Observed, family: Family) -> bool {
    let Some(dump) = observed.holding(Variant::Nft, family) else { return false };
    let leads = |table: &str, from: &str, to: &str| {
        dump.table(table)
            .and_then(|t| t.chain(from))
            .is_some_and(|c| c.rules.iter().any(|r| r.text.ends_with(&format!("-j {to}"))))
    };
    let redirects = leads("nat", "PREROUTING", "ISTIO_INBOUND")
        && leads("nat", "ISTIO_INBOUND", "ISTIO_IN_REDIRECT");
    let diverts = leads("mangle", "PREROUTING", "ISTIO_INBOUND")
        && leads("mangle", "ISTIO_INBOUND", "ISTIO_TPROXY")
        && observed.ip_rules.iter().any(|rule| {
            rule.family == family
                && observed.routes.iter().any(|r| r.family == family && r.table == rule.table)
                && rule.fwmark.is_some_and(|(mark, _)| {
                    dump.table("mangle").and_then(|t| t.chain("ISTIO_TPROXY")).is_some_and(|c| {
                        c.rules.iter().any(|r| r.text.contains(&format!("--tproxy-mark {mark}/")))
                    })
                })
        });
    redirects || diverts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Verify that any configuration over any earlier one ends in what a first run leaves, that
    /// a second run has nothing to do, and that a cleanup leaves only what others had.
    #[test]
    fn any_configuration_over_any_other_converges(
        old in configs(), new in configs(), netlink: bool
    ) {
        let (old, new) = (old.ruleset(), new.ruleset());
        let mut fresh = others();
        run(&mut fresh, Some(&new), netlink);
        let mut changed = others();
        run(&mut changed, Some(&old), netlink);
        run(&mut changed, Some(&new), netlink);
        prop_assert_eq!(sorted_chains(&changed), sorted_chains(&fresh));
        prop_assert_eq!(run(&mut changed, Some(&new), netlink), vec![]);
        run(&mut changed, None, netlink);
        prop_assert_eq!(sorted_chains(&changed), sorted_chains(&others()));
        prop_assert_eq!(run(&mut changed, None, netlink), vec![]);
    }

    /// Verify that a run over what istio-iptables itself left has nothing to do, but for the
    /// routing that the reference adds without priority, and for the guard that it has not.
    #[test]
    fn what_the_reference_wrote_is_known(config in configs(), netlink: bool) {
        let set = config.ruleset();
        let mut observed = others();
        for holding in &mut observed.holdings {
            restore(&mut holding.dump, &render_restore(&set, holding.family));
        }
        let effects = run(&mut observed, Some(&set), netlink);
        let rewritten = |e: &Effect| match e {
            Effect::Restore { .. } => true,
            Effect::Native { names, tables, edits, .. } => {
                !names.is_empty() || !edits.is_empty() || tables.iter().any(|(name, _)| name != NFT_GUARD)
            }
            _ => false,
        };
        let rewritten = effects.iter().any(rewritten);
        prop_assert!(!rewritten, "{:?}", effects);
        run(&mut observed, None, netlink);
        prop_assert_eq!(sorted_chains(&observed), sorted_chains(&others()));
    }

    /// Verify that a run that stops after any effect is finished by the next one, whatever its
    /// configuration, and that it can be taken back exactly.
    #[test]
    fn an_interrupted_run_can_be_finished_and_taken_back(
        old in configs(), new in configs(), next in configs(), cut in any::<prop::sample::Index>(), netlink: bool
    ) {
        let (old, new, next) = (old.ruleset(), new.ruleset(), next.ruleset());
        let groups = groups();
        let mut before = others();
        run(&mut before, Some(&old), netlink);
        let plan = plan::plan(&before, want(Some(&new)), false, &context(&groups, netlink));
        let commits = commits(&plan.effects);
        let mut stopped = before.clone();
        for effect in commits.iter().take(cut.index(commits.len() + 1)) {
            apply_effect(&mut stopped, effect);
        }
        let mut back = stopped.clone();
        for effect in plan::rollback(&before, &stopped, &context(&groups, netlink)) {
            apply_effect(&mut back, &effect);
        }
        prop_assert_eq!(sorted_chains(&back), sorted_chains(&before));
        prop_assert!(!back.interrupted);

        let mut fresh = others();
        run(&mut fresh, Some(&next), netlink);
        run(&mut stopped, Some(&next), netlink);
        prop_assert_eq!(sorted_chains(&stopped), sorted_chains(&fresh));
        prop_assert!(!stopped.interrupted);
    }

    /// Verify that there is no moment between two commits at which inbound connections that both
    /// configurations capture are let past.
    #[test]
    fn there_is_no_moment_without_capture(
        old in configs(), new in configs(), netlink: bool
    ) {
        let (old, new) = (old.ruleset(), new.ruleset());
        let groups = groups();
        let mut now = others();
        run(&mut now, Some(&old), netlink);
        let mut end = now.clone();
        run(&mut end, Some(&new), netlink);
        let kept: Vec<Family> = Family::ALL
            .into_iter()
            .filter(|f| captures_inbound(&now, *f) && captures_inbound(&end, *f))
            .collect();
        let plan = plan::plan(&now, want(Some(&new)), false, &context(&groups, netlink));
        for commit in commits(&plan.effects) {
            apply_effect(&mut now, &commit);
            for family in &kept {
                prop_assert!(captures_inbound(&now, *family), "{family} after {commit}");
            }
        }
    }

    /// Verify that rules in the kernel's terms, read back, are the same rules.
    #[test]
    fn rules_survive_nf_tables(config in configs()) {
        prop_assert_eq!(changed_by_nf_tables(&config.ruleset(), &groups()), vec![]);
    }

    /// Verify that a rule is the same after rendering and parsing, and that the whole restore
    /// text is.
    #[test]
    fn rendered_rules_parse_to_the_same_rules(config in configs()) {
        let set = config.ruleset();
        for family in Family::ALL {
            let dump = Dump::parse(&render_restore(&set, family)).unwrap();
            for ((table, chain), rules) in set.chains(family) {
                let parsed = dump.table(table.as_str()).unwrap().chain(chain.as_str()).unwrap();
                let parsed: Vec<_> = parsed.rules.iter().map(|r| r.rule.clone().unwrap()).collect();
                let rules: Vec<_> = rules.iter().map(|e| e.rule.clone()).collect();
                prop_assert_eq!(parsed, rules);
            }
        }
    }
}

/// Verify that what a killed trace changed is told, and put right by a cleanup.
#[test]
fn a_killed_trace_is_cleaned_up_behind() {
    let logger = Logger { family: Family::V4, name: "nf_log_ipv4".to_owned() };
    let mut observed = Observed { loggers: vec![logger.clone()], ..others() };
    let told = |observed: &Observed| judge(observed, None, &groups()).notes.join("\n");
    assert!(told(&observed).contains("a trace was killed here, and packets of IPv4"));
    assert_eq!(run(&mut observed, None, true), [Effect::Logger { logger }]);
    assert_eq!(run(&mut observed, None, true), []);
    assert!(!told(&observed).contains("trace"));
}

/// Captured by iptables-nft, with what `status` says of it.
fn captured(config: &[&str]) -> (Ruleset, Observed) {
    let flags = config.iter().map(|flag| flag.split_once('=').expect("a flag and its value"));
    let flags = flags.map(|(flag, value)| (flag.to_owned(), value.to_owned()));
    let raw = Raw::new(flags, BTreeMap::new());
    let facts = HostFacts { addresses: vec![IpAddr::from([10, 0, 0, 5])], ..HostFacts::default() };
    let ruleset = to_iptables(&resolve(&raw, &facts).expect("a configuration").policy, &LAYOUT);
    let mut observed = Observed::default();
    run(&mut observed, Some(&ruleset), true);
    assert_eq!(judge(&observed, None, &groups()).state, State::Captured);
    (ruleset, observed)
}

/// Verify that a table which the kernel does not call, and `lo` being down, are drift that a run
/// mends and that can be taken back.
#[test]
fn what_keeps_rules_from_working_is_mended() {
    let (ruleset, whole) = captured(&["istio-service-cidr=*", "istio-inbound-ports=*"]);
    let dormant = vec![TableId::ip(Family::V4, "nat".to_owned())];
    for broken in
        [Observed { dormant, ..whole.clone() }, Observed { lo_down: true, ..whole.clone() }]
    {
        let found = judge(&broken, None, &groups());
        assert_eq!((found.state, found.differences.len()), (State::Drifted, 1));
        let mut observed = broken.clone();
        assert_eq!(run(&mut observed, Some(&ruleset), true).len(), 1);
        assert_eq!(observed, whole);
        let groups = groups();
        let back = plan::rollback(&broken, &observed, &context(&groups, true));
        for effect in &back {
            apply_effect(&mut observed, effect);
        }
        assert_eq!(observed, broken);
    }
    // A table in which nothing of ours is wanted is its owner's to wake.
    let dormant = vec![TableId::ip(Family::V4, "filter".to_owned())];
    let mut other = Observed { dormant, ..whole };
    assert_eq!(run(&mut other, Some(&ruleset), true), []);
}

/// Verify that rules of policy routing in front of TPROXY's are drift where they take what it is to
/// get, and only there.
#[test]
fn policy_routing_in_front_of_ours_is_drift() {
    let config = ["istio-inbound-interception-mode=TPROXY", "istio-inbound-ports=*"];
    let (_, whole) = captured(&config);
    let all = |priority, table| IpRule {
        family: Family::V4,
        priority,
        fwmark: None,
        table,
        mark_only: false,
    };
    let state = |rule: IpRule| {
        let observed = Observed { catch_alls: vec![rule], ..whole.clone() };
        judge(&observed, None, &groups()).state
    };
    assert_eq!(state(all(100, 254)), State::Drifted);
    assert_eq!(state(all(100, 0)), State::Drifted);
    // Nothing is in its table; or it comes behind ours.
    assert_eq!(state(all(100, 99)), State::Captured);
    assert_eq!(state(all(0, 255)), State::Captured);
    assert_eq!(state(all(32_766, 254)), State::Captured);
    let marked = IpRule { fwmark: Some((1337, 0xffff)), mark_only: true, ..all(100, 254) };
    let mut observed = whole.clone();
    observed.ip_rules.push(marked);
    assert_eq!(judge(&observed, None, &groups()).state, State::Drifted);
}
