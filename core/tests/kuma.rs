//! Verify that rules and messages are those of Kuma's `kumactl install transparent-proxy`: as text where
//! it printed them, by what they mean where they are what a kernel held. `kuma/NOTICE.md` says where they
//! are from; what differs is in `docs/compatibility.md`.
#![expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]
#![expect(clippy::disallowed_methods, reason = "the recordings are files")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use millrace_core::capture::to_iptables;
use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::kuma::{self, Kuma, LAYOUT, Raw, Resolved, dry_run, rules};
use millrace_core::facts::HostFacts;
use millrace_core::iptables::Dump;
use millrace_core::ruleset::Rule;
use millrace_core::value::{Family, Groups};
use serde_json::Value;
use support::argv::pairs_of;

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kuma").join(name)
}

/// Recorded runs: the name, the words behind the command, the text.
fn cases(name: &str, expected: usize) -> Vec<(String, Vec<String>, String)> {
    let files = fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path());
    let case = |path: std::path::PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let (line, text) = text.strip_prefix("$ ").unwrap().split_once('\n').unwrap();
        // What is called is `kumactl install transparent-proxy`.
        let words = line.split(' ').skip(2).map(|word| word.trim_matches('\'').to_owned());
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        (name, words.collect(), text.replace("ifPlaceholder", "lo"))
    };
    let mut cases: Vec<_> = files.map(case).collect();
    cases.sort();
    assert_eq!(cases.len(), expected);
    cases
}

/// The host on which they were recorded.
fn host(six: bool) -> HostFacts {
    let user = |(name, id): (&str, &str)| (name.to_owned(), id.parse().unwrap());
    HostFacts {
        addresses: if six { vec!["fe80::1".parse().unwrap()] } else { Vec::new() },
        users: [("root", "0"), ("kuma-dp", "5678")].map(user).into(),
        ..HostFacts::default()
    }
}

fn resolve(words: &[String], facts: &HostFacts) -> Result<Resolved, ConfigErrors> {
    kuma::resolve(&Raw::new(pairs_of::<Kuma>(words).unwrap(), BTreeMap::new()), facts)
}

fn of_line(line: &str, facts: &HostFacts) -> Result<Resolved, ConfigErrors> {
    let words: Vec<String> =
        format!("kumactl {line}").split_whitespace().map(str::to_owned).collect();
    resolve(&words, facts)
}

/// The text without comments, which are Millrace's own.
fn without_comments(text: &str) -> String {
    let line = |line: &str| match line.split_once("-m comment --comment \"") {
        Some((before, rest)) => format!("{before}{}", rest.split_once("\" ").unwrap().1),
        None => line.to_owned(),
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

/// Verify every dry run, byte for byte but for the comments. Where connection tracking is usable, as it is
/// taken for here, DNS has zones: its table is in front then.
#[test]
fn dry_runs() {
    for (name, words, wanted) in cases("dry-run", 11) {
        let Resolved { policy, options, .. } = resolve(&words, &host(false)).unwrap();
        assert!(options.dry_run && options.comments);
        let text = dry_run(&rules(&policy, &options), options.verbose);
        for line in text.lines().filter(|line| line.starts_with(['-']) && !line.starts_with("-N")) {
            let prefix = " -m comment --comment \"kuma/mesh/transparent/proxy/";
            assert!(line.contains(prefix), "{line}");
        }
        let text = without_comments(&text);
        let wanted = wanted.replace("dnsJumpTargetPlaceholder", "RETURN");
        let zones = "* raw\n-A PREROUTING -p udp --sport 53 -j CT --zone 1\n\
                     -A OUTPUT -p udp --dport 53 -m owner --uid-owner 0 -j CT --zone 1\n\
                     -A OUTPUT -p udp --sport 12345 -m owner --uid-owner 0 -j CT --zone 2\n\
                     -A OUTPUT -p udp --dport 53 -j CT --zone 2\nCOMMIT\n";
        let wanted = match name.as_str() {
            "dns-no-conntrack" => wanted.replace("* nat", &format!("{zones}* nat")),
            _ => wanted,
        };
        assert_eq!(text, wanted, "{name}");
    }
}

/// Verify the long words, and that the text is the same otherwise.
#[test]
fn dry_runs_in_long_words() {
    let line = "--kuma-dp-user 0 --redirect-all-dns-traffic --exclude-outbound-ips 10.0.0.0/8 \
                --exclude-inbound-ips 10.1.0.0/16 --exclude-outbound-ports-for-uids 80,90-91:7 \
                --drop-invalid-packets";
    let of = |line: &str| {
        let Resolved { policy, options, .. } = of_line(line, &host(true)).unwrap();
        dry_run(&rules(&policy, &options), options.verbose)
    };
    let (short, long) = (of(line), of(&format!("{line} --verbose")));
    assert!(
        long.starts_with("### IPv4 ###\n\n* raw\n\n# Rules:\n--append PREROUTING --match comment")
    );
    assert!(long.contains("\n\n# Custom Chains:\n--new-chain KUMA_MESH_INBOUND\n"), "{long}");
    let words = [
        ("--append", "-A"),
        ("--insert", "-I"),
        ("--new-chain", "-N"),
        ("--match", "-m"),
        ("--protocol", "-p"),
        ("--destination-port", "--dport"),
        ("--source-port", "--sport"),
        ("--destination", "-d"),
        ("--source", "-s"),
        ("--out-interface", "-o"),
        ("--jump", "-j"),
    ];
    let lines = long.lines().filter(|line| !line.is_empty() && !line.starts_with("# "));
    let back: Vec<String> = lines
        .map(|line| {
            let word = |word: &str| {
                words
                    .iter()
                    .find(|(long, _)| *long == word)
                    .map_or(word, |(_, short)| *short)
                    .to_owned()
            };
            line.split(' ').map(word).collect::<Vec<_>>().join(" ")
        })
        .collect();
    let wanted: Vec<&str> = short.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(back, wanted);
}

/// The rules of a dump by chain, as they mean.
fn recorded(text: &str) -> BTreeMap<(String, String), Vec<Rule>> {
    let groups = Groups::new();
    let mut found = BTreeMap::new();
    for table in Dump::parse(text).unwrap().tables {
        for chain in table.chains.into_iter().filter(|chain| !chain.rules.is_empty()) {
            let rules =
                chain.rules.iter().map(|rule| rule.rule.as_ref().unwrap().canonical(&groups));
            found.insert((table.name.clone(), chain.name), rules.collect());
        }
    }
    found
}

fn written(resolved: &Resolved, family: Family) -> BTreeMap<(String, String), Vec<Rule>> {
    let groups = Groups::new();
    let ruleset = to_iptables(&resolved.policy, &LAYOUT);
    let chains = ruleset.chains(family).into_iter();
    let chains = chains.map(|((table, chain), rules)| {
        let rules = rules.into_iter().map(|emission| emission.rule.canonical(&groups)).collect();
        ((table.to_string(), chain.to_string()), rules)
    });
    chains.filter(|(_, rules): &(_, Vec<Rule>)| !rules.is_empty()).collect()
}

/// Verify that the rules are those which the kernel holds after Kuma's dry run was loaded.
#[test]
fn rules_in_the_kernel() {
    for (name, words, text) in cases("effective", 8) {
        let (v4, v6) = text.strip_prefix("### ip\n").unwrap().split_once("### ip6").unwrap();
        let mut got = written(&resolve(&words, &host(false)).unwrap(), Family::V4);
        if name == "dns-no-conntrack" {
            got.retain(|(table, _), _| table != "raw");
        }
        assert_eq!(got, recorded(v4), "{name}");
        assert_eq!(v6.trim(), "");
    }
}

/// The command line of a recorded run, and what its files say.
fn raw_of(words: &[String]) -> Raw {
    let words: Vec<String> = words.to_vec();
    let mut raw = Raw::new(pairs_of::<Kuma>(&words).unwrap(), BTreeMap::new());
    let files = raw.text("config").value;
    for name in files.split(',').filter(|name| !name.is_empty()) {
        let name = if name == "-" { "stdin.yaml" } else { name.trim_start_matches('/') };
        let text = fs::read_to_string(folder("config").join(name)).unwrap();
        raw = raw.with_file(kuma::read_file(&text).unwrap());
    }
    raw
}

/// Verify that rules are those which kumactl itself made on several distributions, from flags and from
/// configuration files; those of virtual networks aside, which are refused by name.
#[test]
fn rules_of_kumactl() {
    let mut of_networks = 0;
    for (name, words, text) in cases("save", 21) {
        let family = if name.contains(".ip6.") { Family::V6 } else { Family::V4 };
        let mut wanted = recorded(&text);
        if name.contains(".empty") {
            assert_eq!(wanted, BTreeMap::new());
            continue;
        }
        let mut resolved = kuma::resolve(&raw_of(&words), &host(true));
        if let Err(errors) = &resolved {
            let errors = errors.to_string();
            let by = ["flag --vnet: ", "configuration key redirect.vnet.networks: "];
            assert!(by.iter().any(|by| errors.starts_with(by)), "{errors}");
            assert_eq!(errors.lines().count(), 1, "{errors}");
            let gone = |word: &&String| !word.starts_with("--vnet");
            let mut words: Vec<String> = words.iter().filter(gone).cloned().collect();
            words
                .retain(|word| !["docker0:", "br+:", "iface:"].iter().any(|i| word.starts_with(i)));
            let raw = raw_of(&words)
                .with_file(kuma::read_file("redirect: {vnet: {networks: []}}").unwrap());
            resolved = kuma::resolve(&raw, &host(true));
            let prerouting = wanted.get_mut(&("nat".to_owned(), "PREROUTING".to_owned())).unwrap();
            prerouting.drain(..prerouting.len() - 1);
            of_networks += 1;
        }
        assert_eq!(written(&resolved.unwrap(), family), wanted, "{name}");
    }
    assert_eq!(of_networks, 12);
}

/// Verify what is said of command lines that kumactl does not take.
#[test]
fn wrong_settings() {
    let text = fs::read_to_string(folder("unit/validation-errors.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let words: Vec<String> = serde_json::from_value(case["argv"].clone()).unwrap();
        let errors = resolve(&words[2..], &host(false)).unwrap_err();
        let said = format!("Error: {}\n", kuma::said(&errors).unwrap());
        if let Some(equal) = case.get("stderr_Equal") {
            assert_eq!(said, equal.as_str().unwrap());
        } else {
            let part = case["stderr_ContainSubstring"].as_str().unwrap();
            assert!(said.contains(part), "{said}");
        }
    }
}
