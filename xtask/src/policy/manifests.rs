//! Rules on the members' manifests. Declared dependencies count, not the resolved graph, since
//! cargo unifies features over the workspace.

use serde_json::Value;

use super::{SourceFile, Violation};

/// What the pure core must not depend on, and a prefix form with `*`.
const IMPURE: [&str; 8] =
    ["nix", "libc", "aya", "rtnetlink", "iptables", "tokio", "clap", "netlink-*"];

/// Who may depend on whom inside the workspace; members not named may depend on any.
const EDGES: [(&str, &[&str]); 6] = [
    ("millrace-ebpf-common", &[]),
    ("millrace-core", &["millrace-ebpf-common"]),
    ("millrace-host", &["millrace-core", "millrace-ebpf-common"]),
    ("millrace", &["millrace-core", "millrace-host"]),
    ("millrace-cni", &["millrace-core", "millrace-host"]),
    ("millrace-node", &["millrace-core", "millrace-host", "millrace-cni"]),
];

/// The core depends on nothing that does input or output.
pub fn pure_core(metadata: &Value) -> Vec<Violation> {
    let Some(core) = package(metadata, "millrace-core") else {
        return vec![missing("millrace-core")];
    };
    normal_dependencies(core)
        .filter(|name| IMPURE.iter().any(|impure| is_match(name, impure)))
        .map(|name| violation(metadata, core, format!("the core is pure; it can't use {name}")))
        .collect()
}

/// Dependencies between members point one way: `core`, then `host`, then the binaries.
pub fn workspace_edges(metadata: &Value) -> Vec<Violation> {
    let members: Vec<_> = packages(metadata).filter_map(name).collect();
    let mut found = Vec::new();
    for (member, allowed) in EDGES {
        let Some(member) = package(metadata, member) else {
            found.push(missing(member));
            continue;
        };
        for dependency in normal_dependencies(member) {
            if members.contains(&dependency) && !allowed.contains(&dependency) {
                let what = format!("can't depend on {dependency}; edges go core, host, binaries");
                found.push(violation(metadata, member, what));
            }
        }
    }
    found
}

/// Every member takes the workspace's lints.
pub fn opted_in_lints(metadata: &Value, files: &[SourceFile]) -> Vec<Violation> {
    let mut found = Vec::new();
    for member in packages(metadata) {
        let path = manifest(metadata, member);
        let text = files.iter().find(|file| file.path == path).map(|file| file.text.as_str());
        if !text.is_some_and(takes_lints) {
            found.push(violation(metadata, member, "say `[lints] workspace = true`".to_owned()));
        }
    }
    found
}

fn takes_lints(manifest: &str) -> bool {
    let mut section = "";
    manifest.lines().map(str::trim).any(|line| {
        if line.starts_with('[') {
            section = line;
        }
        let setting = line.replace(' ', "");
        (section == "[lints]" && setting == "workspace=true")
            || (section.is_empty() && setting == "lints.workspace=true")
    })
}

fn is_match(name: &str, pattern: &str) -> bool {
    pattern.strip_suffix('*').map_or(name == pattern, |prefix| name.starts_with(prefix))
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn package<'m>(metadata: &'m Value, wanted: &str) -> Option<&'m Value> {
    packages(metadata).find(|package| name(package) == Some(wanted))
}

fn name(package: &Value) -> Option<&str> {
    package["name"].as_str()
}

/// The crate names of what is linked in, for any target and whether optional or not. Build
/// dependencies run on the builder's machine only, yet can write code, so they count as well.
fn normal_dependencies(package: &Value) -> impl Iterator<Item = &str> {
    let all = package["dependencies"].as_array().into_iter().flatten();
    all.filter(|dependency| dependency["kind"] != "dev").filter_map(name)
}

/// The manifest's path relative to the top folder.
fn manifest(metadata: &Value, package: &Value) -> String {
    let root = metadata["workspace_root"].as_str().unwrap_or_default();
    let path = package["manifest_path"].as_str().unwrap_or_default();
    path.strip_prefix(root).unwrap_or(path).trim_start_matches('/').to_owned()
}

fn violation(metadata: &Value, package: &Value, what: String) -> Violation {
    Violation { file: manifest(metadata, package), line: 0, what }
}

fn missing(package: &str) -> Violation {
    let what = format!("no member {package}; the rule on it checks nothing");
    Violation { file: "Cargo.toml".to_owned(), line: 0, what }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A workspace of six members, with these dependencies (name, kind) of core and host.
    fn mk_metadata(core: &[(&str, Option<&str>)], host: &[(&str, Option<&str>)]) -> Value {
        let member = |folder: &str, name: &str, dependencies: &[(&str, Option<&str>)]| {
            let dependencies: Vec<_> = dependencies
                .iter()
                .map(|(name, kind)| json!({"name": name, "kind": kind}))
                .collect();
            let manifest_path = format!("/r/{folder}/Cargo.toml");
            json!({"name": name, "manifest_path": manifest_path, "dependencies": dependencies})
        };
        json!({"workspace_root": "/r", "packages": [
            member("ebpf-common", "millrace-ebpf-common", &[]),
            member("core", "millrace-core", core),
            member("host", "millrace-host", host),
            member("init", "millrace", &[("millrace-core", None), ("clap", None)]),
            member("cni-plugin", "millrace-cni", &[("millrace-core", None)]),
            member("node-agent", "millrace-node", &[("millrace-cni", None)]),
        ]})
    }

    #[test]
    fn each_impure_dependency_of_the_core_is_found() {
        for impure in
            ["nix", "libc", "aya", "rtnetlink", "iptables", "tokio", "clap", "netlink-sys"]
        {
            for kind in [None, Some("build")] {
                let found = pure_core(&mk_metadata(&[("serde", None), (impure, kind)], &[]));
                assert_eq!(found.len(), 1, "{impure}");
                assert_eq!(found[0].file, "core/Cargo.toml");
                assert!(found[0].what.contains(impure));
            }
        }
        assert_eq!(pure_core(&mk_metadata(&[("serde", None), ("nix", Some("dev"))], &[])), []);
    }

    #[test]
    fn an_edge_that_points_back_is_found() {
        let back =
            workspace_edges(&mk_metadata(&[], &[("millrace-core", None), ("millrace", None)]));
        assert_eq!(back.len(), 1);
        assert_eq!(back[0].file, "host/Cargo.toml");
        let good = mk_metadata(&[("millrace-host", Some("dev"))], &[("millrace-core", None)]);
        assert_eq!(workspace_edges(&good), []);
    }

    #[test]
    fn a_renamed_member_does_not_switch_a_rule_off() {
        let empty = json!({"workspace_root": "/r", "packages": []});
        assert_eq!(pure_core(&empty).len(), 1);
        assert_eq!(workspace_edges(&empty).len(), EDGES.len());
    }

    #[test]
    fn a_member_without_the_lints_is_found() {
        let mk_file = |folder: &str, text: &str| SourceFile {
            path: format!("{folder}/Cargo.toml"),
            text: text.to_owned(),
        };
        let good = "[package]\nname = \"x\"\n\n[lints]\nworkspace = true\n";
        let bad = "[package]\nlicense.workspace = true\n\n[lints.rust]\nmissing_docs = \"warn\"\n";
        let files = [
            mk_file("core", good),
            mk_file("host", "lints.workspace = true\n[package]\n"),
            mk_file("init", bad),
            mk_file("cni-plugin", good),
            mk_file("ebpf-common", good),
            mk_file("node-agent", good),
        ];
        let metadata = mk_metadata(&[], &[]);
        let found = opted_in_lints(&metadata, &files);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].file, "init/Cargo.toml");
        assert_eq!(opted_in_lints(&metadata, &[]).len(), 6);
    }
}
