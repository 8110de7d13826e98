//! Verify what a namespace with rules of Kuma's kumactl is told to be, whoever wrote them, and that other
//! rules follow on them and they on others.
#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]
#![expect(clippy::disallowed_methods, reason = "the recordings are files")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::kuma::{self, DIALECT, LAYOUT, NFT_LAYOUT, Raw, Resolved, rules};
use millrace_core::facts::HostFacts;
use millrace_core::infer::read;
use millrace_core::iptables::Dump;
use millrace_core::nft::{self, NftRuleset};
use millrace_core::observed::{Holding, InterfaceAddress, Observed, Variant};
use millrace_core::policy::{CapturePolicy, passthrough};
use millrace_core::ruleset::Match;
use millrace_core::sim::{Namespace, Program, of_native, of_nft, of_ruleset};
use millrace_core::status::{State, judge};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use support::configs;
use support::predicted::{end, question};
use support::state::{apply, count, follows_on_istio, is_read_back, is_whole, native_is_read_back};
use support::verdicts;

fn resolve(flags: &[(&str, &str)], host: &HostFacts) -> Resolved {
    let own = |(flag, value): &(&str, &str)| ((*flag).to_owned(), (*value).to_owned());
    kuma::resolve(&Raw::new(flags.iter().map(own), BTreeMap::new()), host).unwrap()
}

/// What can be said to kumactl, in any mixture, on hosts with and without IPv6.
fn resolved() -> impl Strategy<Value = Resolved> {
    let some = |list: &'static [&'static str], most: usize| {
        prop::sample::subsequence(list, 0..=most).prop_map(|list| list.join(","))
    };
    let ports = &["22", "80", "443", "9090", "1", "65535"][..];
    let networks = &["10.0.0.1", "192.168.1.1/24", "fd00::/8", "2001:db8::1"][..];
    let flows = prop::sample::subsequence(
        &[
            "7",
            "53,3000-5000:106-108",
            "udp:53:0-1000",
            "tcp:1,3,5,7,9,11,13,15,17,19,21-22,24,26,28,30,32,34:9",
        ][..],
        0..=4,
    );
    let dns = prop::sample::select(&["no", "servers", "all"][..]);
    let lists = (some(ports, 6), some(ports, 6), some(networks, 4), some(networks, 4));
    let only = (some(ports, 2), some(ports, 2));
    let given = (lists, only, flows, dns, any::<[bool; 6]>());
    given.prop_map(|(lists, only, flows, dns, [six, zones, invalid, inbound, comments, front])| {
        let flows = flows.join(";");
        let truth = |is: bool| if is { "true" } else { "false" };
        let flags = [
            ("kuma-dp-user", "5678"),
            ("exclude-inbound-ports", lists.0.as_str()),
            ("exclude-outbound-ports", &lists.1),
            ("exclude-inbound-ips", &lists.2),
            ("exclude-outbound-ips", &lists.3),
            ("include-inbound-ports", &only.0),
            ("include-outbound-ports", &only.1),
            ("exclude-outbound-ports-for-uids", &flows),
            ("redirect-dns", truth(dns == "servers")),
            ("redirect-all-dns-traffic", truth(dns == "all")),
            ("skip-dns-conntrack-zone-split", truth(zones)),
            ("drop-invalid-packets", truth(invalid)),
            ("redirect-inbound", truth(inbound)),
            ("disable-comments", truth(!comments)),
            ("redirect-outbound-insert-instead-of-append", truth(front)),
        ];
        let resolv_conf = "nameserver 10.96.0.10\nnameserver 127.0.0.11\nnameserver fd00::a\n";
        let host = HostFacts {
            addresses: if six { vec!["fd00::1".parse().unwrap()] } else { Vec::new() },
            resolv_conf: Some(Ok(resolv_conf.to_owned())),
            ..HostFacts::default()
        };
        resolve(&flags, &host)
    })
}

fn native(policy: &CapturePolicy) -> NftRuleset {
    nft::merge(&to_nft(policy, &NFT_LAYOUT, true))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Verify that the settings are read back from any rules, and that these survive the kernel's form.
    #[test]
    fn settings_can_be_read_back(resolved in resolved()) {
        is_read_back(&rules(&resolved.policy, &resolved.options), &DIALECT);
    }

    /// Verify the same for native nftables, and that a part is never taken for the whole.
    #[test]
    fn settings_of_native_rules_can_be_read_back(resolved in resolved()) {
        native_is_read_back(native(&resolved.policy).native(&Groups::new()).unwrap(), &DIALECT);
    }

    /// Verify that Kuma's rules follow on Istio's and the other way round, and that nothing stays when
    /// they go.
    #[test]
    fn one_mesh_follows_on_the_other(resolved in resolved(), config in configs(), first in any::<bool>()) {
        follows_on_istio(&rules(&resolved.policy, &resolved.options), &config.policy(), first);
    }
}

/// A namespace that holds recorded rules, with the marks of their recording taken out.
fn recorded(texts: &[(Family, String)]) -> Observed {
    let holding = |(family, text): &(Family, String)| Holding {
        variant: Variant::Nft,
        family: *family,
        dump: Dump::parse(&text.replace("ifPlaceholder", "lo")).unwrap(),
    };
    let own = InterfaceAddress { loopback: true, address: passthrough(Family::V6), prefix: 128 };
    let holdings = texts.iter().map(holding).collect();
    Observed { holdings, addresses: vec![own], ..Observed::default() }
}

fn save(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kuma/save");
    let text = fs::read_to_string(folder.join(name)).unwrap();
    text.split_once('\n').unwrap().1.to_owned()
}

fn dumps(run: &str, number: u32) -> Observed {
    let text =
        |(family, of): (Family, &str)| (family, save(&format!("{run}.{of}.rules-{number}.txt")));
    recorded(&[(Family::V4, "ip"), (Family::V6, "ip6")].map(text))
}

/// Verify that rules which kumactl itself wrote are known as Kuma's, and as whole where they are of no
/// virtual network, that Millrace has nothing to change in them, and that they go as a whole.
#[test]
fn rules_of_kumactl() {
    let host = HostFacts { addresses: vec!["fd00::1".parse().unwrap()], ..HostFacts::default() };
    for number in 1..=3 {
        let mut observed = dumps("default", number);
        let set = to_iptables(&resolve(&[("kuma-dp-user", "5678")], &host).policy, &LAYOUT);
        assert!(is_whole(&observed, Some(&set)));
        let status = judge(&observed, None, &Groups::new());
        assert_eq!((status.state, status.dialect), (State::Captured, Some("Kuma")));
        apply(&mut observed, None);
        assert_eq!(count(&observed), 0);
        for run in ["with-multiple-flags", "with-multiple-config-flags"] {
            let mut observed = dumps(run, number);
            let status = judge(&observed, None, &Groups::new());
            assert_eq!((status.state, status.dialect), (State::Drifted, Some("Kuma")));
            apply(&mut observed, Some(&set));
            assert!(is_whole(&observed, Some(&set)));
            let status = judge(&observed, None, &Groups::new());
            assert_eq!((status.state, status.dialect), (State::Captured, Some("Kuma")));
            apply(&mut observed, None);
            assert_eq!(count(&observed), 0);
        }
    }
}

/// Verify that rules without comments, which kumactl itself can't take back, are replaced and go: those of
/// DNS are known by what they ask for.
#[test]
fn rules_without_comments() {
    let flags = [("kuma-dp-user", "5678"), ("redirect-all-dns-traffic", "true")];
    let resolved = resolve(&flags, &HostFacts::default());
    let mut bare = to_iptables(&resolved.policy, &LAYOUT);
    for emission in &mut bare.v4 {
        emission.rule.matches.retain(|condition| !matches!(condition, Match::Comment(_)));
    }
    let mut observed = Observed::default();
    apply(&mut observed, Some(&bare));
    assert!(is_whole(&observed, Some(&bare)));
    let status = judge(&observed, None, &Groups::new());
    assert_eq!((status.state, status.dialect), (State::Captured, Some("Kuma")));
    apply(
        &mut observed,
        Some(&to_iptables(&resolve(&flags[..1], &HostFacts::default()).policy, &LAYOUT)),
    );
    let rules = count(&observed);
    apply(&mut observed, None);
    assert_eq!((rules, count(&observed)), (11, 0));
}

/// Rules of others about DNS that resemble Kuma's.
const OTHERS: &str = "\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 53 -j CT --zone 1
-A OUTPUT -d 10.9.9.9/32 -p udp -m udp --dport 53 -j CT --zone 77
-A OUTPUT -d 10.9.9.9/32 -p udp -m udp --dport 53 -j CT --zone 2
-A OUTPUT -p udp -m owner --uid-owner 5678 -j CT --zone 1
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353
-A OUTPUT -d 10.9.9.9/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 5354
-A OUTPUT -o eth9 -p udp -m udp --dport 53 -m owner --uid-owner 5678 -j RETURN
COMMIT
";

fn lines(observed: &Observed) -> Vec<String> {
    let tables = observed.holdings.iter().flat_map(|holding| &holding.dump.tables);
    let chains = tables.flat_map(|t| t.chains.iter().map(move |chain| (&t.name, chain)));
    let lines = chains.flat_map(|(table, chain)| {
        chain.rules.iter().map(move |rule| format!("{table} {} {}", chain.name, rule.text))
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

/// Verify that rules of others about DNS stay, beside rules without comments, with DNS and without: when the
/// same is installed again, which changes nothing, and when Kuma's go.
#[test]
fn dns_rules_of_others_stay() {
    let resolv_conf = "nameserver 10.96.0.10\nnameserver 10.96.0.11\n".to_owned();
    let host = HostFacts { resolv_conf: Some(Ok(resolv_conf)), ..HostFacts::default() };
    for more in [
        &[][..],
        &[("redirect-all-dns-traffic", "true")],
        &[("redirect-dns", "true")],
        &[("redirect-all-dns-traffic", "true"), ("skip-dns-conntrack-zone-split", "true")],
    ] {
        let mut bare = to_iptables(
            &resolve(&[&[("kuma-dp-user", "5678")], more].concat(), &host).policy,
            &LAYOUT,
        );
        for emission in &mut bare.v4 {
            emission.rule.matches.retain(|condition| !matches!(condition, Match::Comment(_)));
        }
        let mut observed = recorded(&[(Family::V4, OTHERS.to_owned())]);
        let before = lines(&observed);
        apply(&mut observed, Some(&bare));
        assert_eq!(lines(&observed).len(), before.len() + bare.v4.len(), "{more:?}");
        assert!(is_whole(&observed, Some(&bare)), "{more:?}");
        apply(&mut observed, None);
        assert_eq!(lines(&observed), before, "{more:?}");
    }
}

/// Verify that every part of a policy that was read back says which flag would have set it.
#[test]
fn what_is_read_back_names_kumactls_flags() {
    let resolved = resolve(
        &[
            ("kuma-dp-user", "5678"),
            ("exclude-inbound-ips", "10.0.0.0/8"),
            ("exclude-outbound-ips", "10.0.0.0/8"),
            ("exclude-outbound-ports-for-uids", "80:3"),
            ("redirect-all-dns-traffic", "true"),
        ],
        &HostFacts::default(),
    );
    let mut observed = Observed::default();
    apply(&mut observed, Some(&to_iptables(&resolved.policy, &LAYOUT)));
    let dump = observed.holding(Variant::Nft, Family::V4);
    let again = read(dump, None, &[], &DIALECT).unwrap();
    let reasons: Vec<String> =
        to_iptables(&again, &LAYOUT).v4.iter().map(|rule| rule.reason.to_string()).collect();
    for told in [
        "default of --redirect-outbound-port",
        "flag --kuma-dp-user",
        "flag --exclude-inbound-ips",
        "flag --exclude-outbound-ips",
        "flag --exclude-outbound-ports-for-uids",
        "flag --redirect-all-dns-traffic",
        "default of --redirect-inbound)",
        "default of --redirect-outbound)",
    ] {
        assert!(reasons.iter().any(|reason| reason.contains(told)), "{told}: {reasons:#?}");
    }
    // Nobody gave these.
    for told in [
        "flag --redirect-inbound)",
        "flag --redirect-outbound)",
        "flag --include",
        "flag --localhost",
    ] {
        assert!(!reasons.iter().any(|reason| reason.contains(told)), "{told}: {reasons:#?}");
    }
}

/// Verify that the simulator tells of every recorded connection what became of it under kumactl's rules, by
/// every backend's rules.
#[test]
fn recorded_connections() {
    for text in [include_str!("kuma/verdicts.txt"), include_str!("kuma/verdicts-dns.txt")] {
        let (words, verdicts) = verdicts::read(text);
        assert_eq!(verdicts.len(), 17);
        let pairs = support::argv::pairs_of::<kuma::Kuma>(&words[2..]).unwrap();
        let raw = Raw::new(pairs, BTreeMap::new());
        let policy = kuma::resolve(&raw, &HostFacts::default()).unwrap().policy;
        let (ruleset, groups) = (to_iptables(&policy, &LAYOUT), Groups::new());
        let pod = Namespace::pod(&["10.4.0.2".parse().unwrap()], &ruleset.routing);
        let programs = [
            Program::new(of_ruleset(&ruleset, &groups)),
            Program::new(of_nft(&to_nft(&policy, &NFT_LAYOUT, true), &groups)),
            Program::new(of_native(&native(&policy).native(&groups).unwrap())),
        ];
        for program in &programs {
            for verdict in &verdicts {
                let answer = program.answer(&pod, &question(verdict, 5678));
                assert_eq!(end(verdict, &answer.fate), verdict.end, "{}", verdict.line);
            }
        }
    }
}
