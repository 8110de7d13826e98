//! Verify that the rules are those of istio-iptables 1.32, byte for byte, in every recorded case.
//! The recordings are not part of the repository: they are read from `../shared/reference` when
//! that folder is there.
#![expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]
#![expect(
    clippy::disallowed_methods,
    reason = "the recordings are read from files, and a test that can't run says so"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::istio::annotations::{self, Decision, Node, decide};
use millrace_core::dialect::istio::{self, Raw, dry_run_log};
use millrace_core::facts::HostFacts;
use millrace_core::iptables::layout::{self, Line, Verb};
use millrace_core::iptables::render_restore;
use millrace_core::nft::{self, NftEmission, NftRuleset, Statement};
use millrace_core::pod::{Container, PodFacts};
use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::{Chain, Protocol, Reason, Routing, Ruleset, Side, Table};
use millrace_core::source::Source;
use millrace_core::value::{Cidr, Family};
use serde_json::Value;
use support::argv::pairs;

fn suite(name: &str) -> Option<Vec<(String, Value, PathBuf)>> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/istio").join(name);
    let Ok(entries) = fs::read_dir(&folder) else {
        // Not by a macro: the test harness keeps what those print of a test that passes.
        let text = format!("SKIPPED: {name}: the recordings are not at {}\n", folder.display());
        io::stderr().write_all(text.as_bytes()).unwrap();
        return None;
    };
    let mut cases: Vec<_> = entries
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .map(|p| {
            let case = serde_json::from_str(&fs::read_to_string(&p).unwrap()).unwrap();
            (p.file_stem().unwrap().to_string_lossy().into_owned(), case, p)
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    Some(cases)
}

fn golden(path: &Path) -> String {
    fs::read_to_string(path.with_extension("golden")).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

fn map(value: &Value) -> BTreeMap<String, String> {
    let members = value.as_object().unwrap().iter();
    members.map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect()
}

/// The ruleset of a case, as the reference chooses the families.
fn ruleset(argv: &Value, env: &Value, host: &Value) -> Ruleset {
    to_iptables(&policy(argv, env, host), &istio::LAYOUT)
}

/// The policy of a case.
fn policy(argv: &Value, env: &Value, host: &Value) -> CapturePolicy {
    let mut env = map(env);
    env.insert("MILLRACE_IPV6_AS_REFERENCE".to_owned(), "true".to_owned());
    let lines: Vec<String> = strings(&host["resolv_conf_nameservers"])
        .iter()
        .map(|s| format!("nameserver {s}\n"))
        .collect();
    let resolv_conf = lines.concat();
    let facts = HostFacts {
        addresses: strings(&host["interface_addresses"])
            .iter()
            .map(|a| a.split('/').next().unwrap().parse().unwrap())
            .collect(),
        resolv_conf: Some(Ok(resolv_conf)),
        ..HostFacts::default()
    };
    // The reference writes native nftables rules even in a dry run, so those are recorded without.
    let mut flags = pairs(&strings(argv)).unwrap();
    flags.push(("dry-run".to_owned(), "true".to_owned()));
    istio::resolve(&Raw::new(flags, env), &facts).unwrap().policy
}

fn capture_suite(name: &str, expected: usize) {
    let Some(cases) = suite(name) else { return };
    assert_eq!(cases.len(), expected);
    for (case, json, path) in cases {
        let got = dry_run_log(&ruleset(&json["argv"], &json["env"], &json["host"]));
        // The recorded test put in an address that a real resolver list gives back in
        // hexadecimal; its notes say so.
        let want = golden(&path).replace("::127.0.0.53", "::7f00:35");
        assert_eq!(got.trim(), want.trim(), "{name}/{case}");
    }
}

/// Verify that the reference's own cases come out the same.
#[test]
fn istio_iptables_capture() {
    capture_suite("istio-iptables-capture", 27);
}

/// Verify that the reference's answers to 250 random command lines come out the same.
#[test]
fn oracle_iptables_capture() {
    capture_suite("oracle-iptables-capture", 250);
}

/// Native nftables, as the text of the one transaction; gives the number of cases.
fn nftables_suite(name: &str) -> usize {
    let mut compared = 0;
    for (case, json, path) in suite(name).into_iter().flatten() {
        let policy = policy(&json["argv"], &json["env"], &json["host"]);
        let got = nft::render_transaction(&to_nft(&policy, &istio::NFT_LAYOUT, false));
        if json["exit_code"].as_u64() == Some(1) {
            // The reference jumps to chains that it did not make; see the next test.
            continue;
        }
        let want = golden(&path).replace("::127.0.0.53", "::7f00:35");
        assert_eq!(got.trim(), want.trim(), "{name}/{case}");
        compared += 1;
    }
    compared
}

/// Verify that the reference's own cases of native nftables come out the same.
#[test]
fn istio_nftables_capture() {
    assert!([0, 28].contains(&nftables_suite("istio-nftables-capture")));
}

/// Verify the same for random command lines.
#[test]
fn oracle_nftables_capture() {
    let compared = nftables_suite("oracle-nftables-capture");
    assert!([0, 238].contains(&compared), "{compared}");
}

/// The pod of a case of istio-cni.
fn pod(input: &Value) -> PodFacts {
    let pod = &input["pod"];
    let id = |key: &str| pod[key].as_u64().map(|id| u32::try_from(id).unwrap());
    let container = |name: String| {
        let proxy = name == "istio-proxy";
        Container {
            user: id("proxy_run_as_user").filter(|_| proxy),
            group: id("proxy_run_as_group").filter(|_| proxy),
            env: if proxy { map(&pod["proxy_env"]) } else { BTreeMap::new() },
            name,
            ..Container::default()
        }
    };
    PodFacts {
        name: pod["name"].as_str().map(str::to_owned),
        namespace: pod["namespace"].as_str().map(str::to_owned),
        annotations: Some(map(&pod["annotations"])),
        labels: Some(map(&pod["labels"])),
        containers: Some(strings(&pod["containers"]).into_iter().map(container).collect()),
        ..PodFacts::default()
    }
}

/// Verify that what istio-cni writes for a pod comes out the same, by its flags and by the pod.
#[test]
fn cni_plugin_sidecar() {
    let Some(cases) = suite("cni-plugin-sidecar") else { return };
    let mut compared = 0;
    for (case, json, path) in cases.iter().filter(|c| !c.0.ends_with(".orphan")) {
        let set = ruleset(&json["equivalent_argv"], &json["equivalent_env"], &json["host"]);
        let blocks = |text: &str| -> Vec<String> {
            let mut blocks: Vec<String> = text
                .split("COMMIT")
                .map(|b| {
                    b.trim()
                        .lines()
                        .filter(|l| !l.ends_with("-save"))
                        .collect::<Vec<_>>()
                        .join("\n")
                })
                .filter(|b| !b.is_empty())
                .collect();
            blocks.sort();
            blocks
        };
        assert_eq!(blocks(&render_restore(&set, Family::V4)), blocks(&golden(path)), "{case}");
        let pod = pod(&json["input"]);
        assert_eq!(decide(&pod, Node::default()), Decision::Capture, "{case}");
        let captured = annotations::policy(&pod, &annotations::Defaults::default()).unwrap();
        let by_pod = to_iptables(&captured.policy, &istio::LAYOUT);
        assert_eq!(blocks(&render_restore(&by_pod, Family::V4)), blocks(&golden(path)), "{case}");
        compared += 1;
    }
    assert_eq!(compared, 9);
}

/// Verify that chains are made and lines are ordered as the reference's builder does it.
#[test]
fn iptables_builder() {
    let Some(cases) = suite("iptables-builder") else { return };
    assert_eq!(cases.len(), 24);
    for (case, json, path) in cases {
        let input = &json["input"];
        let lines: Vec<Line> = input["operations"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|o| o["family"] == input["family"])
            .map(|o| Line {
                table: o["table"].as_str().unwrap().to_owned(),
                chain: o["chain"].as_str().unwrap().to_owned(),
                verb: match o["op"].as_str().unwrap() {
                    "append" => Verb::Append,
                    _ => Verb::Insert(u32::try_from(o["position"].as_u64().unwrap()).unwrap()),
                },
                body: strings(&o["params"]).join(" "),
                jump: None,
            })
            .collect();
        let got = match input["render"].as_str().unwrap() {
            "restore" => layout::restore(&lines),
            _ => layout::commands(&lines).join("\n"),
        };
        assert_eq!(got.trim(), golden(&path).trim(), "{case}");
    }
}

/// A rule of the builder's cases, whose one chain stands for the one for inbound connections.
fn statements(text: &str) -> Vec<Statement> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let cidr = |address: &str| Cidr::host(address.parse().unwrap());
    match words.as_slice() {
        ["tcp", "dport", port, rest @ ..] => {
            let ports = vec![port.parse().unwrap()];
            let (protocol, side) = (Protocol::Tcp, Side::Destination);
            let mut rule = vec![Statement::Ports { protocol, side, negated: false, ports }];
            rule.extend(statements(&rest.join(" ")));
            rule
        }
        ["meta", "l4proto", "tcp", rest @ ..] => {
            let rest = statements(&rest.join(" "));
            [vec![Statement::Protocol(Protocol::Tcp)], rest].concat()
        }
        ["ip" | "ip6", "daddr", address, rest @ ..] => {
            let (side, cidrs) = (Side::Destination, vec![cidr(address)]);
            let mut rule = vec![Statement::Address { side, negated: false, cidrs }];
            rule.extend(statements(&rest.join(" ")));
            rule
        }
        ["redirect", "to", port] => vec![Statement::Redirect(port[1..].parse().unwrap())],
        ["jump", _] => vec![Statement::Jump(istio::NFT_LAYOUT.chains.inbound.clone())],
        ["return"] => vec![Statement::Return],
        other => panic!("{other:?}"),
    }
}

/// Verify that rules are ordered as the reference's builder does it, in the kernel's terms and as
/// text.
#[test]
fn nftables_builder() {
    let Some(cases) = suite("nftables-builder") else { return };
    assert_eq!(cases.len(), 8);
    for (case, json, path) in cases {
        let operations = json["input"]["operations"].as_array().unwrap();
        let emission = |operation: &Value| NftEmission {
            table: Table::Nat,
            chain: Chain::User(istio::NFT_LAYOUT.chains.inbound.clone()),
            before: operation["index"].as_u64().map(|index| usize::try_from(index).unwrap()),
            rule: statements(operation["rule"].as_str().unwrap()),
            reason: Reason { source: Source::Always, purpose: String::new() },
        };
        let emissions: Vec<NftEmission> = operations.iter().map(emission).collect();
        let ruleset = NftRuleset {
            layout: &istio::NFT_LAYOUT,
            emissions,
            routing: Routing::default(),
            families: Family::ALL.to_vec(),
        };
        let wanted = golden(&path);
        let wanted: Vec<Vec<Statement>> = wanted
            .lines()
            .filter_map(|line| line.strip_prefix("add rule inet inet-table test-chain "))
            .map(statements)
            .collect();
        let chains = ruleset.chains(Table::Nat);
        let [chain] = chains.as_slice() else { panic!("{case}: {chains:?}") };
        let rules: Vec<Vec<Statement>> = chain.rules.iter().map(|e| e.rule.clone()).collect();
        assert_eq!(rules, wanted, "{case}");

        let mut lines: Vec<Vec<Statement>> = Vec::new();
        for line in nft::render_transaction(&ruleset).lines() {
            let line = line.replace("/32 ", " ").replace("/128 ", " ");
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["add", "rule", _, _, _, rule @ ..] => lines.push(statements(&rule.join(" "))),
                ["insert", "rule", _, _, _, "index", index, rule @ ..] => {
                    lines.insert(index.parse().unwrap(), statements(&rule.join(" ")));
                }
                _ => {}
            }
        }
        assert_eq!(lines, wanted, "{case}");
    }
}
