//! Verify that rules are those of ambient mode: byte for byte those that Istio's agent writes, by effect those
//! that a kernel held after Cilium's agent. `ambient/NOTICE.md` says where they are from; what differs is in
//! `docs/compatibility.md`.
#![expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]
#![expect(clippy::disallowed_methods, reason = "the recordings are files")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::ambient::{
    self, Ambient, CILIUM_DIALECT, CILIUM_LAYOUT, CILIUM_NFT_LAYOUT, DIALECT, LAYOUT, NFT_LAYOUT,
    Raw, Resolved,
};
use millrace_core::dialect::{Dialect, native as own};
use millrace_core::facts::HostFacts;
use millrace_core::iptables::Dump;
use millrace_core::nft::{self, NftLayout};
use millrace_core::observed::{Holding, IpRule, Observed, Route, Variant};
use millrace_core::policy::CapturePolicy;
use millrace_core::sim::{
    Direction, How, Known, Namespace, Outcome, Program, Question, of_native, of_nft, of_ruleset,
};
use millrace_core::status::{State, judge, read_native_back};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use serde_json::Value;
use support::argv::pairs_of;
use support::connections::{questions, wide_pod};
use support::predicted::{end, question};
use support::state::{
    apply, count, follows_on_istio, is_read_back, is_whole, native_is_read_back, recorded,
};
use support::verdicts::Who;
use support::{configs, verdicts};

/// The proxy's mark.
const ZTUNNEL: u32 = 0x539;

fn resolve(words: &[String]) -> Result<Resolved, ConfigErrors> {
    let facts = HostFacts::default();
    ambient::resolve(&Raw::new(pairs_of::<Ambient>(words).unwrap(), BTreeMap::new()), &facts)
}

fn of_line(line: &str) -> Result<Resolved, ConfigErrors> {
    resolve(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
}

/// The recorded cases of Istio's agent in a pod; none where they are not there.
fn cases(backend: &str) -> Vec<(String, CapturePolicy, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/istio");
    let folder = folder.join(format!("cni-ambient-{backend}"));
    let Ok(entries) = fs::read_dir(&folder) else {
        // Not by a macro: the test harness keeps what those print of a test that passes.
        let text = format!("SKIPPED: {backend}: no recordings at {}\n", folder.display());
        io::stderr().write_all(text.as_bytes()).unwrap();
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|e| e == "json"));
    let mut cases = Vec::new();
    for path in paths {
        let case: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        if case["scope"] != "in-pod" {
            continue;
        }
        let (global, pod) = (&case["input"]["global"], &case["input"]["pod_overrides"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let on = |value: &Value| if value.as_bool().unwrap() { "on" } else { "off" };
        let dns = match pod["dns_proxy"].as_str().unwrap() {
            "enabled" => "true".to_owned(),
            "disabled" => "false".to_owned(),
            _ => global["redirect_dns"].to_string(),
        };
        let nics = pod["virtual_interfaces"].as_array().unwrap().iter().map(text);
        let flags = [
            ("ipv6", on(&global["enable_ipv6"]).to_owned()),
            ("dns-capture", dns),
            ("bypass-inbound-capture", pod["ingress_mode"].to_string()),
            ("reroute-virtual-interfaces", nics.collect::<Vec<_>>().join(",")),
            ("host-probe-snat-ip", text(&global["host_probe_snat_v4"])),
            ("host-probe-snat-ipv6", text(&global["host_probe_snat_v6"])),
        ];
        let flags = flags.map(|(flag, value)| (flag.to_owned(), value));
        let resolved = ambient::resolve(&Raw::new(flags, BTreeMap::new()), &HostFacts::default());
        let golden = fs::read_to_string(path.with_extension("golden")).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        cases.push((name, resolved.unwrap().policy, golden));
    }
    assert_eq!(cases.len(), 12, "{backend}");
    cases
}

/// Verify that the input of iptables is that of Istio's agent, byte for byte.
#[test]
fn what_istios_agent_gives_iptables() {
    for (name, policy, golden) in cases("iptables") {
        let text = ambient::dry_run(&to_iptables(&policy, &LAYOUT));
        assert_eq!(text.trim(), golden.trim(), "{name}");
    }
}

/// Verify the same of its transaction of nftables.
#[test]
fn what_istios_agent_gives_nftables() {
    for (name, policy, golden) in cases("nftables") {
        let text = ambient::transaction(&to_nft(&policy, &NFT_LAYOUT, false));
        assert_eq!(text.trim(), golden.trim(), "{name}");
    }
}

/// Policy routing as both agents make it.
fn with_routing(mut observed: Observed) -> Observed {
    for family in Family::ALL {
        observed.routes.push(Route::local_default(family, 100));
        observed.ip_rules.push(IpRule {
            family,
            priority: 32_764,
            fwmark: Some((0x111, 0xfff)),
            table: 100,
            mark_only: true,
        });
    }
    observed
}

/// Verify that rules which the agents wrote themselves are captured, and whole; that a run changes nothing of
/// them, and that a cleanup leaves nothing.
#[test]
fn rules_of_the_agents() {
    let istio = |text: &str| {
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let text = lines.join("\n") + "\n";
        let dump = |family, text: &str| {
            let mut dump = Dump::default();
            support::restore(&mut dump, text);
            Holding { variant: Variant::Nft, family, dump }
        };
        let at = text.rfind("* mangle").unwrap();
        let holdings = if at == 0 {
            vec![dump(Family::V4, &text)]
        } else {
            vec![dump(Family::V4, &text[..at]), dump(Family::V6, &text[at..])]
        };
        Observed { holdings, ..Observed::default() }
    };
    let mut all: Vec<_> = cases("iptables")
        .into_iter()
        .map(|(name, policy, golden)| (name, policy, istio(&golden), &DIALECT))
        .collect();
    let cilium = of_line("ambient --as cilium --ipv6 on").unwrap().policy;
    let rules = recorded(include_str!("ambient/effective-cilium.txt"));
    all.push(("cilium".to_owned(), cilium, rules, &CILIUM_DIALECT));
    for (name, policy, observed, dialect) in all {
        let mut observed = with_routing(observed);
        if !policy.ipv6.value {
            observed.ip_rules.pop();
            observed.routes.pop();
        }
        let set = to_iptables(&policy, dialect.footprint.layout);
        for wanted in [None, Some(&set)] {
            let status = judge(&observed, wanted, &Groups::new());
            let captured = (State::Captured, Some(dialect.name));
            assert_eq!((status.state, status.dialect), captured, "{name}: {status:#?}");
            let open = status.notes.iter().any(|note| note.contains("is the proxy's"));
            assert!(!open, "{name}: {:?}", status.notes);
        }
        assert!(is_whole(&observed, Some(&set)), "{name}");
        apply(&mut observed, None);
        assert_eq!(count(&observed), 0, "{name}");
        assert_eq!((observed.ip_rules, observed.routes), (vec![], vec![]), "{name}");
    }
}

/// Everything that can be said, in any mixture.
fn policies() -> impl Strategy<Value = (CapturePolicy, &'static Dialect)> {
    let ports = || prop::sample::subsequence(vec!["22", "53", "8080", "15008", "8000:8010"], 0..=5);
    let networks = || {
        let all = vec!["10.0.0.0/8", "1.1.1.1/32", "0.0.0.0/0", "2001:db8::/32", "::/0"];
        prop::sample::subsequence(all, 0..=5)
    };
    let nics = || prop::sample::subsequence(vec!["eth1", "eth2", "cali+"], 0..=3);
    let nodes = prop::sample::subsequence(vec!["10.7.7.7", "fd07::7", "2001:db8::7"], 0..=3);
    let probes = prop::sample::select(vec!["", "none", "own"]);
    let lists = ((ports(), ports()), (networks(), networks()), (nics(), nics()), nodes);
    (lists, any::<[bool; 4]>(), probes).prop_map(|(lists, [six, dns, ingress, cilium], probes)| {
        let ((inbound, outbound), (from, to), (excluded, rerouted), nodes) = lists;
        let lists = [inbound, outbound, from, to, excluded, rerouted, nodes];
        let [inbound, outbound, from, to, excluded, rerouted, nodes] =
            lists.map(|list| list.join(","));
        let (flavour, dialect) =
            if cilium { ("cilium", &CILIUM_DIALECT) } else { ("istio", &DIALECT) };
        let six = if six { "on" } else { "off" };
        let snat = match probes {
            "own" => ["10.1.2.3", "fd00:1::3"],
            word => [word; 2],
        };
        let line = format!(
            "ambient --as={flavour} --ipv6={six} --dns-capture={dns} \
             --bypass-inbound-capture={ingress} --reroute-virtual-interfaces={rerouted} \
             --exclude-interfaces={excluded} --exclude-inbound-ports={inbound} \
             --exclude-outbound-ports={outbound} --exclude-inbound-cidrs={from} \
             --exclude-outbound-cidrs={to} --node-ips={nodes} --host-probe-snat-ip={} \
             --host-probe-snat-ipv6={}",
            snat[0], snat[1]
        );
        (of_line(&line).unwrap().policy, dialect)
    })
}

fn merged(policy: &CapturePolicy, layout: &'static NftLayout) -> nft::NftRuleset {
    let rules = to_nft(policy, layout, true);
    if layout.one_table { nft::merge(&rules) } else { rules }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Verify that the settings are read back from any rules, that these survive the kernel's form, and that
    /// they follow on a sidecar's and the other way round, which share a chain's name.
    #[test]
    fn settings_can_be_read_back(
        (policy, dialect) in policies(),
        config in configs(),
        first in any::<bool>(),
    ) {
        let set = to_iptables(&policy, dialect.footprint.layout);
        is_read_back(&set, dialect);
        follows_on_istio(&set, &config.policy(), first);
    }

    /// Verify the same for native nftables.
    #[test]
    fn settings_of_native_rules_can_be_read_back((policy, dialect) in policies()) {
        let rules = merged(&policy, dialect.nft_layout);
        native_is_read_back(rules.native(&Groups::new()).unwrap(), dialect);
    }

    /// Verify that every backend's rules do the same to connections of anybody, with and without marks.
    #[test]
    fn every_backend_has_the_same_effect(
        (policy, dialect) in policies(),
        questions in prop::collection::vec(questions(), 20),
        marks in prop::collection::vec(prop::sample::select(&[0_u32, 0x539, 0x1539, 0x111, 7][..]), 20),
    ) {
        let groups = Groups::new();
        let set = to_iptables(&policy, dialect.footprint.layout);
        let iptables = Program::new(of_ruleset(&set, &groups));
        let pod = wide_pod(&set);
        let mut programs = Vec::new();
        for layout in [&NFT_LAYOUT, &CILIUM_NFT_LAYOUT, &own::NFT_LAYOUT] {
            let rules = merged(&policy, layout);
            programs.push((layout.nat, Program::new(of_nft(&rules, &groups))));
            let native = rules.native(&groups).unwrap();
            programs.push((layout.nat, Program::new(of_native(&native))));
        }
        for (question, mark) in questions.into_iter().zip(marks) {
            let mark = if question.direction == Direction::Out { mark } else { 0 };
            let known = match question.known {
                Known::Established(1337) => Known::Established(0x111),
                known => known,
            };
            let question = Question { mark, known, ..question };
            let wanted = iptables.answer(&pod, &question).outcome;
            for (name, program) in &programs {
                let outcome = program.answer(&pod, &question).outcome;
                prop_assert_eq!(&wanted, &outcome, "{}: {}", name, question);
            }
        }
    }
}

/// Verify that the simulator tells of every recorded connection what became of it, by every backend's rules.
#[test]
fn recorded_connections() {
    for (recorded, layout, nft_layout) in [
        (include_str!("ambient/verdicts.txt"), &LAYOUT, &NFT_LAYOUT),
        (include_str!("ambient/verdicts-cilium.txt"), &CILIUM_LAYOUT, &CILIUM_NFT_LAYOUT),
    ] {
        let (words, verdicts) = verdicts::read(recorded);
        assert_eq!(verdicts.len(), 17);
        let policy = resolve(&words).unwrap().policy;
        let (ruleset, groups) = (to_iptables(&policy, layout), Groups::new());
        let pod = Namespace::pod(&["10.4.0.2".parse().unwrap()], &ruleset.routing);
        let programs = [
            Program::new(of_ruleset(&ruleset, &groups)),
            Program::new(of_nft(&to_nft(&policy, nft_layout, true), &groups)),
            Program::new(of_native(&merged(&policy, nft_layout).native(&groups).unwrap())),
        ];
        for program in &programs {
            for verdict in &verdicts {
                let mark = if verdict.who == Who::Proxy { ZTUNNEL } else { 0 };
                let question = Question { mark, ..question(verdict, 0) };
                let answer = program.answer(&pod, &question);
                assert_eq!(end(verdict, &answer.fate), verdict.end, "{}", verdict.line);
            }
        }
    }
}

fn answer(line: &str, question: &Question) -> Outcome {
    let policy = of_line(line).unwrap().policy;
    let set = to_iptables(&policy, &LAYOUT);
    Program::new(of_ruleset(&set, &Groups::new())).answer(&wide_pod(&set), question).outcome
}

/// Verify what each setting is about.
#[test]
fn a_setting_means_what_it_says() {
    let captured = |port| Outcome::Captured { port: Some(port), how: How::Translated };
    let tcp = millrace_core::sim::Protocol::TCP;
    let from =
        |from: &str, to: &str| Question::inward(from.parse().unwrap(), tcp, to.parse().unwrap());
    let by = |name: &str, question| Question { interface: Some(name.to_owned()), ..question };
    let out = |to: &str| {
        let app = millrace_core::sim::Identity { uid: 1000, gid: 1000 };
        Question::out(app, tcp, to.parse().unwrap())
    };
    let query = |to: &str| Question { protocol: millrace_core::sim::Protocol::UDP, ..out(to) };
    let left = |name: &str| Outcome::Passed { interface: name.to_owned(), masked: false };
    let pod = "10.4.0.2:8080";
    let (peer, probe, node) = ("10.7.7.7", "169.254.7.127", "10.1.2.3");
    for (line, question, outcome) in [
        ("ambient", from(peer, pod), captured(15006)),
        ("ambient", from(probe, pod), Outcome::Delivered),
        ("ambient", out("169.254.7.127:8080"), left("eth0")),
        ("ambient --host-probe-snat-ip none", from(probe, pod), captured(15006)),
        ("ambient --as cilium", from(probe, pod), captured(15006)),
        // From the node itself, without any rule on the node; what goes there is captured.
        ("ambient", from(node, pod), captured(15006)),
        ("ambient --node-ips 10.1.2.3", from(node, pod), Outcome::Delivered),
        ("ambient --node-ips 10.1.2.3", from(probe, pod), captured(15006)),
        ("ambient --node-ips 10.1.2.3", out("10.1.2.3:10250"), captured(15001)),
        ("ambient --bypass-inbound-capture", from(peer, pod), Outcome::Delivered),
        ("ambient --exclude-inbound-ports 8080", from(peer, pod), Outcome::Delivered),
        ("ambient --exclude-inbound-cidrs 10.7.0.0/16", from(peer, pod), Outcome::Delivered),
        ("ambient --exclude-outbound-ports 443", out("1.1.1.1:443"), left("eth0")),
        ("ambient --exclude-outbound-ports 53", query("1.1.1.1:53"), left("eth0")),
        ("ambient --exclude-outbound-cidrs 1.1.1.1/32", out("1.1.1.1:443"), left("eth0")),
        ("ambient --exclude-outbound-cidrs 1.1.1.1/32", query("1.1.1.1:53"), captured(15053)),
        ("ambient --exclude-interfaces eth1", out("10.5.0.9:443"), left("eth1")),
        ("ambient --exclude-interfaces eth1", by("eth1", from(peer, pod)), Outcome::Delivered),
        ("ambient", query("1.1.1.1:53"), captured(15053)),
        ("ambient --dns-capture false", query("1.1.1.1:53"), left("eth0")),
        ("ambient --reroute-virtual-interfaces eth1", by("eth1", from(peer, pod)), captured(15001)),
    ] {
        assert_eq!(answer(line, &question), outcome, "{line}: {question}");
    }
}

/// Verify that what the node has under the name of a pod's table is not taken for a pod's, and that a
/// sidecar's chain of the same name isn't either.
#[test]
fn names_that_others_have_as_well() {
    let sidecar = Dump::parse("*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n");
    let dump = sidecar.unwrap();
    assert!(!millrace_core::ownership::has_chains(&dump, &DIALECT.footprint));
    let policy = of_line("ambient").unwrap().policy;
    let tables = to_nft(&policy, &NFT_LAYOUT, true).native(&Groups::new()).unwrap();
    assert!(tables.iter().all(|(name, table)| !ambient::is_of_node(name, table)));
    let observed = Observed { native: tables.clone(), ..Observed::default() };
    assert!(read_native_back(&observed).is_some_and(|found| found.dialect.name == DIALECT.name));
    let mut node = tables[0].1.clone();
    node.retain(|(chain, _)| chain == "output");
    node[0].0 = "postrouting".to_owned();
    assert!(ambient::is_of_node("istio-ambient-nat", &node));
}

/// Verify that every value is parsed, and that each error says what was wrong and where it is from.
#[test]
fn wrong_values() {
    let line = "ambient --as=kuma --ipv6=yes --dns-capture=2 --node-ips=10.0.0.1,127.0.0.1 \
                --host-probe-snat-ip=fd00::1 --exclude-outbound-ports=http --exclude-interfaces=a/b \
                --exclude-inbound-cidrs=10.0.0.1 --check --remove";
    let error = of_line(line).unwrap_err().to_string();
    for start in [
        "flag --as: \"kuma\": rules are as istio or as cilium",
        "flag --ipv6: \"yes\": it is one of auto, on, off",
        "flag --dns-capture: \"2\": ",
        "flag --node-ips: \"127.0.0.1\": a node's address",
        "flag --host-probe-snat-ip: \"fd00::1\": an address of IPv4",
        "flag --exclude-outbound-ports: \"http\": ",
        "flag --exclude-interfaces: \"a/b\": ",
        "flag --exclude-inbound-cidrs: \"10.0.0.1\": a network is",
        "flag --remove: \"true\": of --check, --remove and --dry-run one can be done",
    ] {
        assert!(error.lines().any(|line| line.starts_with(start)), "{start}\n{error}");
    }
    assert_eq!(error.lines().count(), 9, "{error}");
    let error = of_line("ambient --netns a --pid 1").unwrap_err().to_string();
    assert!(error.starts_with("flag --pid: \"1\": --netns names a place already"), "{error}");
}
