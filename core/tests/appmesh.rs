//! Verify that rules are those of App Mesh's init container, by effect. No rules of it were recorded: those that its
//! script writes are here by hand, and the connections were measured with them.
#![expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::appmesh::{self, AppMesh, DIALECT, LAYOUT, NFT_LAYOUT, Raw};
use millrace_core::ebpf::compile;
use millrace_core::iptables::Dump;
use millrace_core::nft::{self, NftRuleset};
use millrace_core::observed::{Holding, Observed, Variant};
use millrace_core::policy::{CapturePolicy, IdentityMatching, SelfCall};
use millrace_core::sim::{Namespace, Program, of_native, of_nft, of_ruleset};
use millrace_core::status::{State, judge};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use support::argv::pairs_of;
use support::predicted::{end, question};
use support::state::{apply, follows_on_istio, is_read_back, is_whole, native_is_read_back};
use support::{configs, verdicts};

fn of_words(words: &[String]) -> Result<CapturePolicy, ConfigErrors> {
    appmesh::policy(&Raw::new(pairs_of::<AppMesh>(words).unwrap(), BTreeMap::new()))
}

fn of_line(line: &str) -> Result<CapturePolicy, ConfigErrors> {
    of_words(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
}

fn native(policy: &CapturePolicy) -> NftRuleset {
    nft::merge(&to_nft(policy, &NFT_LAYOUT, true))
}

/// What `iptables-save` prints behind the script, with `APPMESH_APP_PORTS=8080,9090`, `APPMESH_IGNORE_GID=2000`
/// and all else as it is by default.
const SCRIPT: &str = "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:APPMESH_EGRESS - [0:0]
:APPMESH_INGRESS - [0:0]
-A PREROUTING -p tcp -m addrtype ! --src-type LOCAL -j APPMESH_INGRESS
-A OUTPUT -p tcp -m addrtype ! --dst-type LOCAL -j APPMESH_EGRESS
-A APPMESH_EGRESS -m owner --uid-owner 1337 -j RETURN
-A APPMESH_EGRESS -m owner --gid-owner 2000 -j RETURN
-A APPMESH_EGRESS -p tcp -m multiport --dports 22 -j RETURN
-A APPMESH_EGRESS -d 169.254.169.254/32 -p tcp -j RETURN
-A APPMESH_EGRESS -d 169.254.170.2/32 -p tcp -j RETURN
-A APPMESH_EGRESS -p tcp -j REDIRECT --to-ports 15001
-A APPMESH_INGRESS -p tcp -m multiport --dports 8080,9090 -j REDIRECT --to-ports 15000
COMMIT
";
/// The chain that older images make as well.
const OLDER: &str = "*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:APPMESH_INGRESS - [0:0]
COMMIT
";
const LINE: &str = "appmesh --app-ports=8080,9090 --ignore-gid=2000";

fn observed(text: &str) -> Observed {
    let dump = Dump::parse(text).unwrap();
    let holding = Holding { variant: Variant::Nft, family: Family::V4, dump };
    Observed { holdings: vec![holding], ..Observed::default() }
}

/// Verify that the commands which are printed write the rules of the script.
#[test]
fn commands_are_those_of_the_script() {
    let printed = appmesh::commands(&of_line(LINE).unwrap());
    // `iptables-save` has an order of its own for the parts of a rule.
    let parts = |rule: &str| -> BTreeSet<String> { rule.split(' ').map(str::to_owned).collect() };
    let written = printed.lines().filter_map(|line| line.split_once(" -A "));
    let written: BTreeSet<_> = written.map(|(_, rule)| parts(rule)).collect();
    let script = SCRIPT.lines().filter_map(|line| line.strip_prefix("-A "));
    assert_eq!(written, script.map(parts).collect());
    let made = |line: &&str| line.contains(" -N ");
    assert_eq!(printed.lines().filter(made).count(), 2, "{printed}");
}

/// Verify that rules which the script wrote, older images' as well, are known as its own and captured, that
/// Millrace's follow on them, and that nothing stays after a cleanup.
#[test]
fn rules_of_the_script() {
    let policy = of_line(LINE).unwrap();
    let set = to_iptables(&policy, &LAYOUT);
    for text in [SCRIPT.to_owned(), [OLDER, SCRIPT].concat()] {
        let mut observed = observed(&text);
        for wanted in [None, Some(&set)] {
            let status = judge(&observed, wanted, &Groups::new());
            let captured = (State::Captured, Some("AWS App Mesh"));
            assert_eq!((status.state, status.dialect), captured, "{status:#?}");
        }
        apply(&mut observed, Some(&set));
        assert!(is_whole(&observed, Some(&set)));
        apply(&mut observed, None);
        let dumps = observed.holdings.iter().flat_map(|holding| &holding.dump.tables);
        let rules: usize =
            dumps.flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum();
        assert_eq!(rules, 0);
    }
    // Without what tells the pod's own addresses it is another's rule, or a broken one.
    let broken = SCRIPT.replace(" -m addrtype ! --dst-type LOCAL", "");
    assert_eq!(judge(&observed(&broken), None, &Groups::new()).state, State::Drifted);
}

/// Everything that can be said, in any mixture.
fn policies() -> impl Strategy<Value = CapturePolicy> {
    let ports = || {
        let list = vec!["22", "53", "80", "443", "8080", "9000:9010", "15000"];
        prop::sample::subsequence(list, 0..=7)
    };
    let networks = || {
        let list = vec!["10.0.0.0/8", "1.1.1.1/32", "fd00::/8", "169.254.170.2"];
        prop::sample::subsequence(list, 0..=4)
    };
    let who = prop::sample::select(vec![("1337", ""), ("", "2000"), ("1337", "2000")]);
    (ports(), ports(), networks(), who, any::<bool>()).prop_map(|(app, ignored, networks, who, v6)| {
        let app = if app.is_empty() { "0".to_owned() } else { app.join(",") };
        let (ignored, networks, v6) = (ignored.join(","), networks.join(","), u8::from(v6));
        let (uid, gid) = who;
        of_line(&format!(
            "appmesh --app-ports={app} --egress-ignored-ports={ignored} --egress-ignored-ip={networks} \
             --ignore-uid={uid} --ignore-gid={gid} --enable-ipv6={v6}"
        ))
        .unwrap()
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
    let (words, verdicts) = verdicts::read(include_str!("appmesh/verdicts.txt"));
    assert_eq!(verdicts.len(), 17);
    let policy = of_words(&words).unwrap();
    let (ruleset, groups) = (to_iptables(&policy, &LAYOUT), Groups::new());
    let pod = Namespace::pod(&["10.4.0.2".parse().unwrap()], &ruleset.routing);
    let programs = [
        Program::new(of_ruleset(&ruleset, &groups)),
        Program::new(of_nft(&to_nft(&policy, &NFT_LAYOUT, true), &groups)),
        Program::new(of_native(&native(&policy).native(&groups).unwrap())),
    ];
    for program in &programs {
        for verdict in &verdicts {
            let answer = program.answer(&pod, &question(verdict, 1337));
            assert_eq!(end(verdict, &answer.fate), verdict.end, "{}", verdict.line);
        }
    }
}

/// Verify that every value is parsed, and that each error says what was wrong and where it is from.
#[test]
fn wrong_values() {
    let line = "appmesh --app-ports=http --ignore-uid= --enable-ipv6=yes --envoy-egress-port=0 \
                --egress-ignored-ip=10.0.0.0/33 --egress-ignored-ports=1:0";
    let error = of_line(line).unwrap_err().to_string();
    let starts = [
        "flag --enable-ipv6: \"yes\": this is 1 or 0",
        "flag --ignore-uid: \"\": the proxy is told by its user, by its group, or both",
        "flag --envoy-egress-port: \"0\": a listening port is",
        "flag --app-ports: \"http\": a port is",
        "flag --egress-ignored-ports: \"1:0\": a port is",
        "flag --egress-ignored-ip: \"10.0.0.0/33\": ",
    ];
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), starts.len(), "{error}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    let unnamed = appmesh::policy(&Raw::new([], BTreeMap::new())).unwrap_err().to_string();
    assert!(unnamed.contains("has to name the application's ports: 0 where"), "{unnamed}");
    let env = |value: &str| {
        let variables = [("APPMESH_START_ENABLED".to_owned(), value.to_owned())];
        appmesh::options(&Raw::new([], variables.into()))
    };
    assert!(env("1").unwrap().enabled.value && !env("0").unwrap().enabled.value);
    assert!(env("true").unwrap_err().to_string().contains("APPMESH_START_ENABLED"));
}

/// Verify that the programs of eBPF take what can be said, and refuse what they would decide otherwise.
#[test]
fn programs_take_what_can_be_said() {
    let policy = of_line(LINE).unwrap();
    assert!(compile(&policy, &Groups::new()).is_ok());
    let mut one_by_one = policy.clone();
    one_by_one.proxy.matching = IdentityMatching::OneByOne;
    let mut comes_in = policy;
    comes_in.conventions.self_call = SelfCall::Inbound;
    for other in [one_by_one, comes_in] {
        let refused = compile(&other, &Groups::new()).unwrap_err().to_string();
        assert!(refused.contains("the pod's own addresses can't be left alone"), "{refused}");
    }
}
