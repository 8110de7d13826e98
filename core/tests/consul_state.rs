//! Verify what a namespace with Consul's rules is told to be, whoever wrote them, that other rules follow on
//! them and they on others, and where the simulator says that connections end.
#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]
#![expect(clippy::disallowed_methods, reason = "the recordings are files")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::consul::{self, DIALECT, LAYOUT, NFT_LAYOUT, Raw, Resolved};
use millrace_core::infer::{of_saved, read};
use millrace_core::observed::{Observed, Variant};
use millrace_core::policy::CapturePolicy;
use millrace_core::sim::{Namespace, Program, of_native, of_nft, of_nft_json, of_ruleset};
use millrace_core::status::{State, judge};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use serde_json::Value;
use support::predicted::{end, question};
use support::state::{
    apply, follows_on_istio, is_read_back, is_whole, native_is_read_back, recorded,
};
use support::{configs, verdicts};

fn resolve(flags: &[(&str, &str)]) -> Resolved {
    let own = |(flag, value): &(&str, &str)| ((*flag).to_owned(), (*value).to_owned());
    consul::resolve(&Raw::new(flags.iter().map(own), BTreeMap::new()), None).unwrap()
}

/// What a command line means, `consul connect redirect-traffic` in front.
fn of_words<T: AsRef<str>>(words: impl IntoIterator<Item = T>) -> Option<Resolved> {
    let flags = words.into_iter().skip(3).map(|word| {
        let word = word.as_ref().trim_start_matches('-');
        let (flag, value) = word.split_once('=').unwrap_or((word, "true"));
        (flag.to_owned(), value.to_owned())
    });
    consul::resolve(&Raw::new(flags, BTreeMap::new()), None).ok()
}

/// What can be said to Consul, in any mixture.
fn policies() -> impl Strategy<Value = CapturePolicy> {
    let ports = || {
        let ports = ["22", "25:27", "53", "8080", "1000-1999", ":9", "60000:", "20000", "15001"];
        prop::sample::subsequence(ports.to_vec(), 0..=9).prop_shuffle()
    };
    let networks = [
        "10.0.0.0/8",
        "192.168.1.1/24",
        "127.0.0.1",
        "0.0.0.0/0",
        "fd00::/8",
        "::1",
        "2001:db8::1",
    ];
    let networks = prop::sample::subsequence(networks.to_vec(), 0..=7).prop_shuffle();
    let users = prop::sample::subsequence(vec!["0", "5995", "5996", "4294967294"], 0..=4);
    let dns = prop::sample::select(vec![
        ("", "", ""),
        ("10.96.0.10", "2001:db8::53", ""),
        ("10.96.0.10", "2001:db8::53", "8600"),
        ("127.0.0.1", "::1", "53"),
        ("", "", "8600"),
    ]);
    let given = (ports(), ports(), networks, users.prop_shuffle(), dns, any::<bool>());
    given.prop_map(|(inbound, outbound, networks, users, (v4, v6, dns_port), dual)| {
        let lists = [inbound, outbound, networks, users].map(|list| list.join(","));
        let [inbound, outbound, networks, users] = lists.each_ref().map(String::as_str);
        let flags = [
            ("proxy-uid", "5995"),
            ("proxy-inbound-port", "20000"),
            ("exclude-inbound-port", inbound),
            ("exclude-outbound-port", outbound),
            ("exclude-outbound-cidr", networks),
            ("exclude-uid", users),
            ("consul-dns-ip", if dual { v6 } else { v4 }),
            ("consul-dns-port", dns_port),
            ("dual-stack", if dual { "true" } else { "false" }),
        ];
        resolve(&flags).policy
    })
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
        native_is_read_back(to_nft(&policy, &NFT_LAYOUT, true).native(&Groups::new()).unwrap(), &DIALECT);
    }

    /// Verify that Consul's rules follow on Istio's and the other way round, and that nothing stays when they
    /// go.
    #[test]
    fn one_mesh_follows_on_the_other(policy in policies(), config in configs(), first in any::<bool>()) {
        follows_on_istio(&to_iptables(&policy, &LAYOUT), &config.policy(), first);
    }
}

/// Verify that rules which Consul itself wrote are known as its own and as whole, that Millrace has nothing to
/// change in them, and that what a failed run of it left is completed.
#[test]
fn rules_of_consul() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/consul/effective");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let mut observed = recorded(&text);
        let Some(resolved) = of_words(text.lines().next().unwrap()[2..].split(' ')) else {
            continue;
        };
        seen += 1;
        let set = to_iptables(&resolved.policy, &LAYOUT);
        let halves = ["dual.exclude-outbound-cidrs-is-set", "dual.exclude-outbound-cidrs-is-set-2"];
        let half = halves.contains(&name.as_str());
        let whole = !half && name != "dual.consul-dns-port-provided";
        assert_eq!(is_whole(&observed, Some(&set)), whole, "{name}");
        let status = judge(&observed, None, &Groups::new());
        assert_eq!(status.dialect, Some("Consul"), "{name}");
        assert_eq!(status.state == State::Captured, !half, "{name}: {status:#?}");
        apply(&mut observed, Some(&set));
        assert!(is_whole(&observed, Some(&set)), "{name}");
    }
    assert_eq!(seen, 18);
}

/// Verify that native rules which Consul itself wrote are captured as its own.
#[test]
fn native_rules_of_consul() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/consul/nft");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let recorded: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let words = recorded["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        if of_words(words).is_none() {
            continue;
        }
        seen += 1;
        let listed = of_nft_json(&recorded["listed"].to_string()).unwrap();
        let observed = Observed { native: of_saved(&listed.tables), ..Observed::default() };
        let status = judge(&observed, None, &Groups::new());
        let wanted = (State::Captured, Some("Consul"), true);
        assert_eq!((status.state, status.dialect, status.native), wanted, "{path:?}: {status:#?}");
    }
    assert_eq!(seen, 18);
}

/// Verify that every part of a policy that was read back says which flag would have set it.
#[test]
fn what_is_read_back_names_consuls_flags() {
    let policy = resolve(&[
        ("proxy-uid", "5995"),
        ("proxy-inbound-port", "20000"),
        ("exclude-uid", "5996"),
        ("exclude-outbound-cidr", "10.0.0.0/8"),
    ]);
    let mut observed = Observed::default();
    apply(&mut observed, Some(&to_iptables(&policy.policy, &LAYOUT)));
    let dump = observed.holding(Variant::Nft, Family::V4);
    let again = read(dump, None, &[], &DIALECT).unwrap();
    let reasons: Vec<String> =
        to_iptables(&again, &LAYOUT).v4.iter().map(|rule| rule.reason.to_string()).collect();
    for told in [
        // What it is without.
        "default of --proxy-outbound-port",
        "flag --proxy-inbound-port",
        "flag --proxy-uid",
        "flag --exclude-uid",
        "flag --exclude-outbound-cidr",
    ] {
        assert!(reasons.iter().any(|reason| reason.contains(told)), "{told}: {reasons:#?}");
    }
    // Flags that there are not.
    for told in ["--include-inbound-ports", "--include-outbound-cidrs", "--localhost-cidr"] {
        assert!(!reasons.iter().any(|reason| reason.contains(told)), "{told}: {reasons:#?}");
    }
}

/// Verify that the simulator tells of every recorded connection what became of it under Consul's rules, by
/// every backend's rules.
#[test]
fn recorded_connections() {
    for recorded in [include_str!("consul/verdicts.txt"), include_str!("consul/verdicts-dns.txt")] {
        let (words, verdicts) = verdicts::read(recorded);
        assert_eq!(verdicts.len(), 17);
        let policy = of_words(words.iter().map(String::as_str)).unwrap().policy;
        let (ruleset, groups) = (to_iptables(&policy, &LAYOUT), Groups::new());
        let pod = Namespace::pod(&["10.4.0.2".parse().unwrap()], &ruleset.routing);
        let native = to_nft(&policy, &NFT_LAYOUT, true);
        let programs = [
            Program::new(of_ruleset(&ruleset, &groups)),
            Program::new(of_nft(&native, &groups)),
            Program::new(of_native(&native.native(&groups).unwrap())),
        ];
        for program in &programs {
            for verdict in &verdicts {
                let answer = program.answer(&pod, &question(verdict, 5995));
                assert_eq!(end(verdict, &answer.fate), verdict.end, "{}", verdict.line);
            }
        }
    }
}
