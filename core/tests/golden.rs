//! Golden rules: each file of `golden/` starts with a command line, and goes on with the rules that
//! it gives, each with its reason. A new file with a command line alone is a new case:
//! `UPDATE_GOLDEN=1` writes what is behind that line. Read the difference.
#![expect(clippy::unwrap_used, reason = "a file that can't be read should stop the test")]
#![expect(clippy::disallowed_methods, reason = "the rules are held against files")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use millrace_core::compile::compile;
use millrace_core::dialect::{istio, native};
use millrace_core::facts::HostFacts;
use millrace_core::report::{restore_text, routing_text};
use millrace_core::ruleset::Ruleset;
use support::argv::pairs;

/// A pod with both families and a resolver of each.
fn facts() -> HostFacts {
    HostFacts {
        addresses: vec!["10.4.0.2".parse().unwrap(), "fd00:4::2".parse().unwrap()],
        resolv_conf: Some(Ok("nameserver 10.96.0.10\nnameserver fd96::10\n".to_owned())),
        users: BTreeMap::from([("istio-proxy".to_owned(), "1337".parse().unwrap())]),
        groups: BTreeMap::from([("java".parse().unwrap(), "202".parse().unwrap())]),
    }
}

/// The words of a command line: blanks between them, `''` for an empty one.
fn words(line: &str) -> Vec<String> {
    line.split_ascii_whitespace().map(|w| w.trim_matches('\'').to_owned()).collect()
}

/// The rules of `[NAME=value ...] istio-iptables FLAGS` or `apply FLAGS`.
fn ruleset(line: &str) -> Ruleset {
    let words = words(line);
    let at = words.iter().position(|w| !w.contains('=')).unwrap();
    let env = words[..at].iter().map(|w| w.split_once('=').unwrap());
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if words[at] == "istio-iptables" {
        let raw = istio::Raw::new(pairs(&words[at..]).unwrap(), env);
        let resolved = istio::resolve(&raw, &facts()).unwrap();
        return compile(&resolved.policy, &istio::LAYOUT);
    }
    assert_eq!(words[at], "apply");
    let flags = words[at + 1..].chunks(2).map(|pair| {
        let flag = pair[0].strip_prefix("--").unwrap();
        assert!(native::settings::SETTINGS.iter().any(|s| s.flag == flag), "{flag}");
        (flag.to_owned(), pair[1].clone())
    });
    let raw = native::Raw::new(BTreeMap::new(), flags);
    compile(&native::resolve(&raw, &facts(), true).unwrap(), &native::LAYOUT)
}

/// Verify every file.
#[test]
fn the_rules_are_the_golden_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let golden = fs::read_to_string(&path).unwrap();
        let line = golden.lines().next().unwrap();
        let ruleset = ruleset(line.strip_prefix("$ ").unwrap());
        let mut text = format!("{line}\n");
        for family in ruleset.families() {
            text.push_str(&restore_text(&ruleset, family));
        }
        text.push_str(&routing_text(&ruleset));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, text).unwrap();
        } else {
            assert_eq!(text, golden, "{}", path.display());
        }
        cases += 1;
    }
    assert!(cases >= 20, "only {cases} files");
}
