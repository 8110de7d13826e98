//! Verify what a namespace with rules of Linkerd's proxy-init is told to be, whoever wrote them, and that
//! other rules follow on them and they on others.
#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]
#![expect(clippy::disallowed_methods, reason = "the recordings are files")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::linkerd::{self, DIALECT, LAYOUT, NFT_LAYOUT, Raw, Resolved};
use millrace_core::infer::read;
use millrace_core::nft::{self, NftRuleset};
use millrace_core::observed::{Observed, Variant};
use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::{Match, Rule, Target};
use millrace_core::sim::{Namespace, Program, of_native, of_nft, of_ruleset};
use millrace_core::status::{State, judge};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use support::configs;
use support::predicted::{end, question};
use support::state::{
    apply, follows_on_istio, is_read_back, is_whole, native_is_read_back, recorded,
};
use support::verdicts;

fn resolve(flags: &[(&str, &str)]) -> Resolved {
    let own = |(flag, value): &(&str, &str)| ((*flag).to_owned(), (*value).to_owned());
    linkerd::resolve(&Raw::new(flags.iter().map(own), BTreeMap::new())).unwrap()
}

/// What can be said to proxy-init, in any mixture.
fn policies() -> impl Strategy<Value = CapturePolicy> {
    let id = || prop::sample::select(&["-1", "0", "2102", "4294967294"][..]);
    let ignored = || {
        prop::sample::subsequence(
            &[
                "22",
                "25-27",
                "4190",
                "4191",
                "8080-8080",
                "1000-1999",
                "9",
                "1",
                "2",
                "3",
                "5",
                "7",
                "11-12",
            ][..],
            0..=13,
        )
    };
    let networks =
        &["10.0.0.0/8", "192.168.1.1/24", "0.0.0.0/0", "fd00::/8", "2001:db8::1/128"][..];
    let networks = prop::sample::subsequence(networks, 0..=5);
    let listed = prop::sample::subsequence(&["9090", "9099", "8080"][..], 0..=3);
    let given = ((id(), id()), (ignored(), ignored()), networks, listed, any::<bool>());
    given.prop_map(|((uid, gid), (inbound, outbound), networks, listed, ipv6)| {
        let [inbound, outbound, networks, listed] =
            [inbound, outbound, networks, listed].map(|list| list.join(","));
        let mut flags = vec![
            ("incoming-proxy-port", "4143"),
            ("outgoing-proxy-port", "4140"),
            ("proxy-uid", uid),
            ("proxy-gid", gid),
            ("inbound-ports-to-ignore", inbound.as_str()),
            ("outbound-ports-to-ignore", outbound.as_str()),
            ("subnets-to-ignore", networks.as_str()),
            ("ipv6", if ipv6 { "true" } else { "false" }),
        ];
        if !listed.is_empty() {
            flags.push(("ports-to-redirect", listed.as_str()));
        }
        resolve(&flags).policy
    })
}

fn native(policy: &CapturePolicy) -> NftRuleset {
    nft::merge(&to_nft(policy, &NFT_LAYOUT, true))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Verify that the settings are read back from any rules, and that these survive the kernel's form.
    #[test]
    fn settings_can_be_read_back(policy in policies()) {
        is_read_back(&to_iptables(&policy, &LAYOUT), &DIALECT);
    }

    /// Verify the same for native nftables, and that a part is never taken for the whole.
    #[test]
    fn settings_of_native_rules_can_be_read_back(policy in policies()) {
        native_is_read_back(native(&policy).native(&Groups::new()).unwrap(), &DIALECT);
    }

    /// Verify that Linkerd's rules follow on Istio's and the other way round, and that nothing stays
    /// when they go.
    #[test]
    fn one_mesh_follows_on_the_other(policy in policies(), config in configs(), first in any::<bool>()) {
        follows_on_istio(&to_iptables(&policy, &LAYOUT), &config.policy(), first);
    }
}

/// Verify that rules which proxy-init itself wrote are known as Linkerd's and as whole, that Millrace has
/// nothing to change in them, and that what a failed run of it left is completed.
#[test]
fn rules_of_proxy_init() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/linkerd/effective");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let words: Vec<String> =
            text.lines().next().unwrap()[2..].split(' ').map(str::to_owned).collect();
        let pairs = support::argv::pairs_of::<linkerd::Linkerd>(&words).unwrap();
        let mut observed = recorded(&text);
        seen += 1;
        let Ok(resolved) = linkerd::resolve(&Raw::new(pairs, BTreeMap::new())) else {
            assert_eq!(name, "bad-port-yields-empty-multiport");
            apply(&mut observed, None);
            assert!(is_whole(&observed, None));
            continue;
        };
        let set = to_iptables(&resolved.policy, &LAYOUT);
        let whole = !["subnets-dualstack-fails", "uid0-is-omitted"].contains(&name.as_str());
        assert_eq!(is_whole(&observed, Some(&set)), whole, "{name}");
        let status = judge(&observed, None, &Groups::new());
        assert_eq!(status.dialect, Some("Linkerd"), "{name}");
        let captured = name != "subnets-dualstack-fails";
        assert_eq!(status.state == State::Captured, captured, "{name}: {status:#?}");
        apply(&mut observed, Some(&set));
        assert!(is_whole(&observed, Some(&set)), "{name}");
    }
    assert_eq!(seen, 20);
}

/// Verify that rules of an earlier run with a part of them missing are known, completed and removed.
#[test]
fn rules_of_an_earlier_run() {
    let text = include_str!("linkerd/unit/existing-rules.txt");
    let mut observed = recorded(&format!("### ip\n{text}### ip6\n"));
    let status = judge(&observed, None, &Groups::new());
    assert_eq!((status.state, status.dialect), (State::Drifted, Some("Linkerd")));
    let flags = [("incoming-proxy-port", "1234"), ("outgoing-proxy-port", "1234")];
    let set = to_iptables(&resolve(&flags).policy, &LAYOUT);
    apply(&mut observed, Some(&set));
    assert!(is_whole(&observed, Some(&set)));
    apply(&mut observed, None);
    assert_eq!(judge(&observed, None, &Groups::new()).state, State::NotCaptured);
}

/// Verify that every part of a policy that was read back says which flag would have set it.
#[test]
fn what_is_read_back_names_proxy_inits_flags() {
    let policy = resolve(&[
        ("incoming-proxy-port", "4143"),
        ("outgoing-proxy-port", "4140"),
        ("proxy-uid", "2102"),
        ("subnets-to-ignore", "10.0.0.0/8"),
    ]);
    let mut observed = Observed::default();
    apply(&mut observed, Some(&to_iptables(&policy.policy, &LAYOUT)));
    let dump = observed.holding(Variant::Nft, Family::V4);
    let again = read(dump, None, &[], &DIALECT).unwrap();
    let reasons: Vec<String> =
        to_iptables(&again, &LAYOUT).v4.iter().map(|rule| rule.reason.to_string()).collect();
    for told in ["flag -o/--outgoing-proxy-port", "flag -u/--proxy-uid", "flag --subnets-to-ignore"]
    {
        assert!(reasons.iter().any(|reason| reason.contains(told)), "{told}: {reasons:#?}");
    }
}

/// Verify that the simulator tells of every recorded connection what became of it under the rules of
/// proxy-init, by every backend's rules.
#[test]
fn recorded_connections() {
    let (words, verdicts) = verdicts::read(include_str!("linkerd/verdicts.txt"));
    assert_eq!(verdicts.len(), 17);
    let pairs = support::argv::pairs_of::<linkerd::Linkerd>(&words).unwrap();
    let policy = linkerd::resolve(&Raw::new(pairs, BTreeMap::new())).unwrap().policy;
    let (ruleset, groups) = (to_iptables(&policy, &LAYOUT), Groups::new());
    let pod = Namespace::pod(&["10.4.0.2".parse().unwrap()], &ruleset.routing);
    let programs = [
        Program::new(of_ruleset(&ruleset, &groups)),
        Program::new(of_nft(&to_nft(&policy, &NFT_LAYOUT, true), &groups)),
        Program::new(of_native(&native(&policy).native(&groups).unwrap())),
    ];
    for program in &programs {
        for verdict in &verdicts {
            let answer = program.answer(&pod, &question(verdict, 2102));
            assert_eq!(end(verdict, &answer.fate), verdict.end, "{}", verdict.line);
        }
    }
}

/// Verify that rules which end nowhere are not taken for whole, and that a proxy which is nobody is told.
#[test]
fn rules_that_lack_their_end() {
    let policy = resolve(&[
        ("incoming-proxy-port", "4143"),
        ("outgoing-proxy-port", "4140"),
        ("proxy-uid", "2102"),
    ]);
    let without = |chain: &str, families: &[Family], at: fn(&Rule) -> bool| {
        let mut observed = Observed::default();
        apply(&mut observed, Some(&to_iptables(&policy.policy, &LAYOUT)));
        for holding in observed.holdings.iter_mut().filter(|h| families.contains(&h.family)) {
            let chains = holding.dump.tables.iter_mut().flat_map(|table| &mut table.chains);
            for chain in chains.filter(|found| found.name == chain) {
                chain.rules.retain(|rule| !at(rule.rule.as_ref().unwrap()));
            }
        }
        judge(&observed, None, &Groups::new())
    };
    let redirects = |rule: &Rule| matches!(rule.target, Target::Redirect { .. });
    let of_a_user = |rule: &Rule| rule.matches.iter().any(|m| matches!(m, Match::Owner { .. }));
    for families in [&[Family::V4][..], &[Family::V6], &Family::ALL] {
        for chain in ["PROXY_INIT_OUTPUT", "PROXY_INIT_REDIRECT"] {
            let status = without(chain, families, redirects);
            assert_eq!(status.state, State::Drifted, "{chain} {families:?}: {status:#?}");
        }
    }
    let status = without("PROXY_INIT_OUTPUT", &Family::ALL, of_a_user);
    assert!(status.notes.iter().any(|note| note.contains("no user and no group")), "{status:#?}");
}
