//! Verify that commands, rules and messages are those of Linkerd's proxy-init: byte for byte where its
//! own code printed them, by effect where they are what a kernel held. `linkerd/NOTICE.md` says where
//! they are from; what differs is in `docs/compatibility.md`.
#![expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]
#![expect(clippy::disallowed_methods, reason = "the recordings are files")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use millrace_core::capture::to_iptables;
use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::linkerd::{self, LAYOUT, Linkerd, Raw, Resolved};
use millrace_core::iptables::Dump;
use millrace_core::ruleset::{Match, Rule, Ruleset, Target};
use millrace_core::value::{Family, Groups};
use serde_json::Value;
use support::argv::pairs_of;

/// A recorded run.
struct Case {
    name: String,
    words: Vec<String>,
    failed: bool,
    text: String,
}

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/linkerd").join(name)
}

fn cases(name: &str, expected: usize) -> Vec<Case> {
    let files = fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path());
    let case = |path: std::path::PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let (line, rest) = text.strip_prefix("$ ").unwrap().split_once('\n').unwrap();
        let (exit, text) = rest.split_once('\n').unwrap();
        Case {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            words: line.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect(),
            failed: exit == "# exit 1",
            text: text.trim_end().to_owned(),
        }
    };
    let mut cases: Vec<Case> = files.map(case).collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(cases.len(), expected);
    cases
}

fn resolve(words: &[String]) -> Result<Resolved, ConfigErrors> {
    linkerd::resolve(&Raw::new(pairs_of::<Linkerd>(words).unwrap(), BTreeMap::new()))
}

fn of_line(line: &str) -> Result<Resolved, ConfigErrors> {
    resolve(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
}

fn ruleset(resolved: &Resolved) -> Ruleset {
    to_iptables(&resolved.policy, &LAYOUT)
}

fn commands(resolved: &Resolved) -> String {
    linkerd::commands(&ruleset(resolved), &resolved.options).join("\n")
}

/// Verify every command line: the commands, or what is said of it. Four are named where Millrace differs.
#[test]
fn command_lines() {
    for Case { name, words, failed, text } in cases("argv", 33) {
        let resolved = resolve(&words);
        if failed {
            let errors = resolved.unwrap_err();
            assert_eq!(format!("Error: {}", linkerd::said(&errors).unwrap()), text, "{name}");
            continue;
        }
        match name.as_str() {
            "bad-port-yields-empty-multiport" => {
                let error = resolved.unwrap_err().to_string();
                let wanted = "flag --inbound-ports-to-ignore: \"abc\": a port is a number";
                assert!(error.starts_with(wanted), "{error}");
            }
            // The network is of one family, and is in the rules of that family alone.
            "subnets-dualstack-fails" => {
                let rules =
                    |line: &&str| !(line.contains("10.0.0.0/8") && line.contains("ip6tables"));
                let wanted: Vec<&str> = text.lines().filter(rules).collect();
                assert_eq!(commands(&resolved.unwrap()), wanted.join("\n"));
            }
            // User 0 is a user.
            "uid0-is-omitted" => {
                let got = commands(&resolved.unwrap());
                let (of_user, rest): (Vec<&str>, Vec<&str>) =
                    got.lines().partition(|line| line.contains("ignore-proxy-user-id"));
                assert_eq!(rest.join("\n"), text);
                assert!(
                    matches!(of_user.as_slice(), [rule] if rule.contains("--uid-owner 0 -j RETURN"))
                );
            }
            // No simulation: its rules are those of the first run.
            "second-run" => {
                let of_chains = |text: &str| -> Vec<String> {
                    let rules = text.lines().filter(|line| line.contains("-A PROXY_INIT_"));
                    rules.map(str::to_owned).collect()
                };
                assert_eq!(of_chains(&commands(&resolved.unwrap())), of_chains(&text));
            }
            _ => assert_eq!(commands(&resolved.unwrap()), text, "{name}"),
        }
    }
}

/// The rules of a family by chain, as they mean, without those of chains that nobody has filled.
fn recorded(text: &str, family: Family) -> BTreeMap<String, Vec<Rule>> {
    let (v4, v6) = text.strip_prefix("### ip\n").unwrap().split_once("### ip6").unwrap();
    let dump = Dump::parse(if family == Family::V4 { v4 } else { v6.trim_start() }).unwrap();
    let groups = Groups::new();
    let chains = dump.tables.iter().flat_map(|table| &table.chains);
    let rules = chains.map(|chain| {
        let rules = chain.rules.iter().map(|rule| rule.rule.as_ref().unwrap().canonical(&groups));
        (chain.name.clone(), rules.collect())
    });
    rules.filter(|(_, rules): &(_, Vec<Rule>)| !rules.is_empty()).collect()
}

fn written(ruleset: &Ruleset, family: Family) -> BTreeMap<String, Vec<Rule>> {
    let groups = Groups::new();
    let chains = ruleset.chains(family).into_iter();
    let chains = chains.map(|((_, chain), rules)| {
        let rules = rules.into_iter().map(|emission| emission.rule.canonical(&groups)).collect();
        (chain.to_string(), rules)
    });
    chains.filter(|(_, rules): &(_, Vec<Rule>)| !rules.is_empty()).collect()
}

/// Verify that the rules are those which the kernel holds after proxy-init.
#[test]
fn rules_in_the_kernel() {
    for Case { name, words, failed, text } in cases("effective", 20) {
        let Ok(resolved) = resolve(&words) else {
            assert_eq!(name, "bad-port-yields-empty-multiport");
            continue;
        };
        let ruleset = ruleset(&resolved);
        for family in Family::ALL {
            let mut got = written(&ruleset, family);
            if name == "uid0-is-omitted" {
                let of_user =
                    |rule: &Rule| rule.matches.iter().any(|m| matches!(m, Match::Owner { .. }));
                for rules in got.values_mut() {
                    rules.retain(|rule| !of_user(rule));
                }
            }
            // proxy-init fails there half-way: what it leaves is a part.
            if !failed || family == Family::V4 {
                assert_eq!(got, recorded(&text, family), "{name} {family}");
            }
        }
    }
}

/// Verify that every rule says of itself what proxy-init's says.
#[test]
fn comments_in_the_kernel() {
    let comments = |rules: &mut dyn Iterator<Item = Rule>| -> BTreeSet<(Target, String)> {
        let comment = |rule: Rule| {
            let text = rule.matches.iter().find_map(|m| match m {
                Match::Comment(comment) => Some(comment.to_string()),
                _ => None,
            });
            let target = match rule.target {
                Target::Redirect { .. } => Target::Accept,
                target => target,
            };
            (target, text.unwrap())
        };
        rules.map(comment).collect()
    };
    for Case { name, words, failed, text } in cases("effective", 20) {
        let Ok(resolved) = resolve(&words) else { continue };
        if failed || name == "uid0-is-omitted" {
            continue;
        }
        let ours = ruleset(&resolved);
        let (v4, _) = text.strip_prefix("### ip\n").unwrap().split_once("### ip6").unwrap();
        let dump = Dump::parse(v4).unwrap();
        let chains = dump.tables.iter().flat_map(|table| &table.chains);
        let mut theirs = chains.flat_map(|c| &c.rules).map(|rule| rule.rule.clone().unwrap());
        let mut written = ours.v4.iter().map(|emission| emission.rule.clone());
        assert_eq!(comments(&mut written), comments(&mut theirs), "{name}");
    }
}

fn json(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder("unit").join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Verify how port lists are split into rules. One that holds what is no port is refused here.
#[test]
fn port_lists() {
    let cases = json("multiport-split.json");
    assert_eq!(cases.len(), 8);
    for case in cases {
        let list: Vec<&str> =
            case["in"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        let line = format!("proxy-init -p 1 -o 2 --outbound-ports-to-ignore {}", list.join(","));
        let Ok(resolved) = of_line(&line) else {
            assert!(list.iter().any(|item| item.starts_with("not")), "{list:?}");
            continue;
        };
        let groups: Vec<Vec<String>> = (ruleset(&resolved).v4.iter())
            .flat_map(|emission| &emission.rule.matches)
            .filter_map(|m| match m {
                Match::DestinationPorts { ports, .. } => {
                    Some(ports.iter().map(ToString::to_string).collect())
                }
                _ => None,
            })
            .collect();
        assert_eq!(serde_json::to_value(groups).unwrap(), case["out"], "{list:?}");
    }
}

/// Verify what is said of settings that proxy-init does not take; more of them at once, ours.
#[test]
fn wrong_settings() {
    let cases = json("validation-errors.json");
    assert_eq!(cases.len(), 5);
    for case in cases {
        let port = |name: &str| case["options"][name].as_str().unwrap_or("1234").to_owned();
        let mut line =
            format!("proxy-init -p={} -o={}", port("IncomingProxyPort"), port("OutgoingProxyPort"));
        if case["options"]["SubnetsToIgnore"].is_string() {
            line.push_str(" --subnets-to-ignore 1.1.1.1/24,0.0.0.0");
        }
        let errors = of_line(&line).unwrap_err();
        assert_eq!(linkerd::said(&errors).unwrap(), case["error"].as_str().unwrap());
    }
    let errors = of_line("proxy-init -o 0 -u -2 -r 80,x --timeout-close-wait-secs 1h").unwrap_err();
    let told: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
    assert_eq!(told.len(), 5, "{errors}");
    for (line, start) in told.iter().zip([
        "flag -p/--incoming-proxy-port: \"\": it has to be given",
        "flag -o/--outgoing-proxy-port: \"0\": a listening port is",
        "flag -u/--proxy-uid: \"-2\": a user id is",
        "flag -r/--ports-to-redirect: \"x\": a port is",
        "flag --timeout-close-wait-secs: \"1h\": a time is",
    ]) {
        assert!(line.starts_with(start), "{line}");
    }
    assert!(told[2].ends_with("-1 is for none"), "{}", told[2]);
}
