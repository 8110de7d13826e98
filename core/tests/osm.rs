//! Verify that scripts and rules are those of Open Service Mesh: byte for byte those of its injector, by effect
//! those that a kernel held after it. `osm/NOTICE.md` says where they are from; what differs is in
//! `docs/compatibility.md`.
#![expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]
#![expect(clippy::disallowed_methods, reason = "the recordings are files")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::osm::{self, DIALECT, LAYOUT, NFT_LAYOUT, Osm, Raw, Resolved};
use millrace_core::iptables::Dump;
use millrace_core::nft::{self, NftRuleset};
use millrace_core::observed::{Holding, Observed, Variant};
use millrace_core::policy::CapturePolicy;
use millrace_core::sim::{Namespace, Program, of_native, of_nft, of_ruleset};
use millrace_core::status::{State, judge};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use support::argv::pairs_of;
use support::predicted::{end, question};
use support::state::{apply, follows_on_istio, is_read_back, is_whole, native_is_read_back};
use support::{configs, verdicts};

/// What a command line means in a pod with this address.
fn resolve(words: &[String], address: &str) -> Result<Resolved, ConfigErrors> {
    let environment = [("POD_IP".to_owned(), address.to_owned())];
    osm::resolve(&Raw::new(pairs_of::<Osm>(words).unwrap(), environment.into()))
}

fn of_line(line: &str, address: &str) -> Result<Resolved, ConfigErrors> {
    resolve(&line.split(' ').map(str::to_owned).collect::<Vec<_>>(), address)
}

/// Every case of a folder: its name, what its settings mean, and what was recorded.
fn cases(name: &str, expected: usize) -> Vec<(String, CapturePolicy, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/osm").join(name);
    let case = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path()).unwrap();
        let (line, text) = text.strip_prefix("$ ").unwrap().split_once('\n').unwrap();
        let name = entry.path().file_stem().unwrap().to_string_lossy().into_owned();
        (name, of_line(line, "10.1.2.3").unwrap().policy, text.to_owned())
    };
    let cases: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| case(entry.unwrap())).collect();
    assert_eq!(cases.len(), expected);
    cases
}

/// Verify that a script is that of the injector, byte for byte.
#[test]
fn scripts() {
    for (name, policy, text) in cases("script", 3) {
        assert_eq!(osm::script(&policy), text, "{name}");
    }
}

fn native(policy: &CapturePolicy) -> NftRuleset {
    nft::merge(&to_nft(policy, &NFT_LAYOUT, true))
}

/// Verify that rules which the script itself wrote are known as its own and captured, once or twice written,
/// that Millrace's follow on them, and that nothing stays after a cleanup.
#[test]
fn rules_of_the_script() {
    for (name, policy, text) in cases("effective", 4) {
        let text = text.strip_prefix("### ip\n").unwrap().split_once("### ip6").unwrap().0;
        let dump = Dump::parse(text).unwrap();
        let holding = Holding { variant: Variant::Nft, family: Family::V4, dump };
        let mut observed = Observed { holdings: vec![holding], ..Observed::default() };
        let set = to_iptables(&policy, &LAYOUT);
        for wanted in [None, Some(&set)] {
            let status = judge(&observed, wanted, &Groups::new());
            let captured = (State::Captured, Some("Open Service Mesh"));
            assert_eq!((status.state, status.dialect), captured, "{name}: {status:#?}");
        }
        apply(&mut observed, Some(&set));
        assert!(is_whole(&observed, Some(&set)), "{name}");
        apply(&mut observed, None);
        let dumps = observed.holdings.iter().flat_map(|holding| &holding.dump.tables);
        let rules: usize =
            dumps.flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum();
        assert_eq!(rules, 0, "{name}");
    }
}

/// Everything that can be said, in any mixture.
fn policies() -> impl Strategy<Value = CapturePolicy> {
    let ports = || prop::sample::subsequence(vec!["22", "53", "8080", "15003", "15010"], 0..=5);
    let networks =
        || prop::sample::subsequence(vec!["10.0.0.0/8", "1.1.1.1/32", "0.0.0.0/0"], 0..=3);
    let nics = prop::sample::subsequence(vec!["eth1", "eth2", "cali+"], 0..=3);
    let given = ((ports(), ports()), (networks(), networks()), nics, any::<bool>());
    given.prop_map(|((inbound, outbound), (except, only), nics, pod_ip)| {
        let lists = [inbound, outbound, except, only, nics].map(|list| list.join(","));
        let [inbound, outbound, except, only, nics] = lists;
        let mode = if pod_ip { "PodIP" } else { "Localhost" };
        let line = format!(
            "osm --inbound-port-exclusion-list={inbound} --outbound-port-exclusion-list={outbound} \
             --outbound-ip-range-exclusion-list={except} --outbound-ip-range-inclusion-list={only} \
             --network-interface-exclusion-list={nics} --local-proxy-mode={mode}"
        );
        of_line(&line, "10.4.0.2").unwrap().policy
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Verify that the settings are read back from any rules, that these survive the kernel's form, and that
    /// they follow on Istio's and the other way round.
    #[test]
    fn settings_can_be_read_back(policy in policies(), config in configs(), first in any::<bool>()) {
        let set = to_iptables(&policy, &LAYOUT);
        is_read_back(&set, &DIALECT);
        follows_on_istio(&set, &config.policy(), first);
    }

    /// Verify the same for native nftables.
    #[test]
    fn settings_of_native_rules_can_be_read_back(policy in policies()) {
        native_is_read_back(native(&policy).native(&Groups::new()).unwrap(), &DIALECT);
    }
}

/// Verify that the simulator tells of every recorded connection what became of it, by every backend's rules.
#[test]
fn recorded_connections() {
    for recorded in [include_str!("osm/verdicts.txt"), include_str!("osm/verdicts-pod-ip.txt")] {
        let (words, verdicts) = verdicts::read(recorded);
        assert_eq!(verdicts.len(), 17);
        let policy = resolve(&words, "10.4.0.2").unwrap().policy;
        let (ruleset, groups) = (to_iptables(&policy, &LAYOUT), Groups::new());
        let pod = Namespace::pod(&["10.4.0.2".parse().unwrap()], &ruleset.routing);
        let programs = [
            Program::new(of_ruleset(&ruleset, &groups)),
            Program::new(of_nft(&to_nft(&policy, &NFT_LAYOUT, true), &groups)),
            Program::new(of_native(&native(&policy).native(&groups).unwrap())),
        ];
        for program in &programs {
            for verdict in &verdicts {
                let answer = program.answer(&pod, &question(verdict, 1500));
                assert_eq!(end(verdict, &answer.fate), verdict.end, "{}", verdict.line);
            }
        }
    }
}

/// Verify that every value is parsed, and that each error says what was wrong and where it is from.
#[test]
fn wrong_values() {
    let line = "osm --inbound-port-exclusion-list=80,0 --outbound-port-exclusion-list=http \
                --outbound-ip-range-exclusion-list=10.0.0.1 \
                --outbound-ip-range-inclusion-list=fd00::/8 --local-proxy-mode=podip";
    let error = of_line(line, "").unwrap_err().to_string();
    let starts = [
        "flag --inbound-port-exclusion-list: \"0\": a port is",
        "flag --outbound-port-exclusion-list: \"http\": a port is",
        "flag --outbound-ip-range-exclusion-list: \"10.0.0.1\": a network is",
        "flag --outbound-ip-range-inclusion-list: \"fd00::/8\": Open Service Mesh captures IPv4",
        "flag --local-proxy-mode: \"podip\": a mode is",
    ];
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), starts.len(), "{error}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    let error = of_line("osm --local-proxy-mode=PodIP", "").unwrap_err().to_string();
    let wanted = "environment variable POD_IP: \"\": --local-proxy-mode PodIP needs the pod's";
    assert!(error.starts_with(wanted), "{error}");
    let empty = Raw::new([], BTreeMap::new());
    assert!(osm::resolve(&empty).is_ok());
}
