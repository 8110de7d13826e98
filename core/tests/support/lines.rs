//! The command lines of the golden files, for tests that use the library itself.
#![allow(
    clippy::disallowed_methods,
    clippy::allow_attributes,
    dead_code,
    reason = "files are read; it is part of crates that may and of some that may not; not each uses all"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_core::capture::to_iptables;
use millrace_core::dialect::{istio, native};
use millrace_core::facts::HostFacts;
use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::Ruleset;

use super::argv::pairs;

/// The golden files, each with its command line.
pub(crate) fn golden() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/golden");
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let line = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        text.lines().next().unwrap().strip_prefix("$ ").unwrap().to_owned()
    };
    let files: Vec<_> = files.map(|path| (path.clone(), line(&path))).collect();
    assert!(files.len() >= 20, "only {} files", files.len());
    files
}

/// A pod with both families and a resolver of each.
pub(crate) fn facts() -> HostFacts {
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

/// The policy of `istio-iptables FLAGS`.
pub(crate) fn policy(line: &str) -> CapturePolicy {
    sidecar(&words(line), BTreeMap::new())
}

fn sidecar(words: &[String], env: BTreeMap<String, String>) -> CapturePolicy {
    let raw = istio::Raw::new(pairs(words).unwrap(), env);
    istio::resolve(&raw, &facts()).unwrap().policy
}

/// The rules of `[NAME=value ...] istio-iptables FLAGS` or `apply FLAGS`.
pub(crate) fn ruleset(line: &str) -> Ruleset {
    let words = words(line);
    let at = words.iter().position(|w| !w.contains('=')).unwrap();
    let env = words[..at].iter().map(|w| w.split_once('=').unwrap());
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if words[at] == "istio-iptables" {
        return to_iptables(&sidecar(&words[at..], env), &istio::LAYOUT);
    }
    assert_eq!(words[at], "apply");
    to_iptables(&of_own(&words[at + 1..]), &native::LAYOUT)
}

/// The policy of `apply FLAGS`.
pub(crate) fn own(flags: &str) -> CapturePolicy {
    of_own(&words(flags))
}

fn of_own(words: &[String]) -> CapturePolicy {
    let flags = words.chunks(2).map(|pair| {
        let flag = pair[0].strip_prefix("--").unwrap();
        assert!(native::settings::SETTINGS.iter().any(|s| s.flag == flag), "{flag}");
        (flag.to_owned(), pair[1].clone())
    });
    let raw = native::Raw::new(BTreeMap::new(), flags);
    native::resolve(&raw, &facts(), true).unwrap()
}
