//! Rules on the text of single files.

use super::text;
use super::{SourceFile, Violation};

/// Meshes that have a dialect.
const MESHES: [&str; 8] =
    ["istio", "linkerd", "kuma", "consul", "osm", "appmesh", "ztunnel", "cilium"];

/// The most lines a Rust file may have; the aim is 400.
const MAX_LINES: usize = 500;

/// Every Rust file starts with `//!` and says what it is for.
pub fn documented_head(file: &SourceFile) -> Option<Violation> {
    let head = file.text.lines().next().unwrap_or_default();
    let documented = head.strip_prefix("//!").is_some_and(|rest| !rest.trim().is_empty());
    (file.is_rust() && !documented)
        .then(|| file.violation(1, "start the file with a `//!` line that says what it is for"))
}

/// No Rust file is longer than 500 lines.
pub fn length(file: &SourceFile) -> Option<Violation> {
    let lines = file.text.lines().count();
    (file.is_rust() && lines > MAX_LINES)
        .then(|| file.violation(0, format!("{lines} lines; split it, the limit is {MAX_LINES}")))
}

/// `unsafe` stands only in files named `sys_*.rs`.
pub fn unsafe_code(file: &SourceFile) -> Option<Violation> {
    if !file.is_rust() || file.name().starts_with("sys_") {
        return None;
    }
    let code = text::code_only(&file.text);
    let line = code.lines().position(|line| text::has_word(line, "unsafe"))?;
    Some(file.violation(line + 1, "move `unsafe` into a small sys_*.rs module"))
}

/// The core knows no mesh by name, except in its dialects. Comments and tests may name one.
pub fn neutral_core(file: &SourceFile) -> Option<Violation> {
    let inside = file.path.strip_prefix("core/src/")?;
    if !file.is_rust() || inside.starts_with("dialect/") || inside.contains("tests/") {
        return None;
    }
    let text = text::without_tests(&file.text).to_ascii_lowercase();
    // A dialect's own module path is how the rest of the core may reach it.
    let names = |line: &str| {
        let named = |mesh: &&str| line.replace(&format!("dialect::{mesh}"), "").contains(*mesh);
        MESHES.iter().find(|mesh| named(mesh))
    };
    let (line, mesh) = text.lines().zip(1..).find_map(|(line, at)| Some((at, names(line)?)))?;
    Some(file.violation(line, format!("names {mesh}; that belongs in core/src/dialect/")))
}

/// No file mentions a path of the machine it was written on.
pub fn local_paths(file: &SourceFile) -> Option<Violation> {
    // Put together here, so that this file does not break its own rule.
    let prefix = concat!("/", "work", "/");
    let line = file.text.lines().position(|line| is_rooted(line, prefix))?;
    Some(file.violation(line + 1, format!("mentions a path below {prefix} of one machine")))
}

/// Does an absolute path that starts with `prefix` occur in the line?
fn is_rooted(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-*}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rule = fn(&SourceFile) -> Option<Violation>;

    fn mk_file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.to_owned(), text: text.to_owned() }
    }

    fn assert_broken(rule: Rule, path: &str, text: &str, line: usize) {
        let found = rule(&mk_file(path, text)).map(|violation| violation.line);
        assert_eq!(found, Some(line), "{path}: {text}");
    }

    fn assert_kept(rule: Rule, path: &str, text: &str) {
        assert_eq!(rule(&mk_file(path, text)), None);
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        for text in ["", "use std::fs;\n", "// plain\n", "//!\n", "\n//! late\n"] {
            assert_broken(documented_head, "host/src/x.rs", text, 1);
        }
        assert_kept(documented_head, "host/src/x.rs", "//! What it is.\n");
        assert_kept(documented_head, "scripts/test", "#!/bin/bash\n");
    }

    #[test]
    fn a_long_file_is_found() {
        assert_broken(length, "core/src/x.rs", &"x\n".repeat(501), 0);
        assert_kept(length, "core/src/x.rs", &"x\n".repeat(500));
        assert_kept(length, "Cargo.lock", &"x\n".repeat(900));
    }

    #[test]
    fn unsafe_outside_sys_is_found() {
        let block = "//! Head.\nfn f() {\n    unsafe { g() }\n}\n";
        assert_broken(unsafe_code, "host/src/netns.rs", block, 3);
        assert_kept(unsafe_code, "host/src/sys_netns.rs", block);
        let only_named = "//! unsafe\n#![forbid(unsafe_code)]\nconst A: &str = \"unsafe\";\n";
        assert_kept(unsafe_code, "host/src/netns.rs", only_named);
    }

    #[test]
    fn a_mesh_in_the_core_is_found() {
        let chain = "//! Head.\nconst A: &str = \"ISTIO_OUTPUT\";\n";
        assert_broken(neutral_core, "core/src/capture/mod.rs", chain, 2);
        assert_broken(neutral_core, "core/src/policy.rs", "//! H.\nfn istio_rules() {}\n", 2);
        assert_broken(neutral_core, "core/src/plan.rs", "//! H.\n\nuse crate::linkerd;\n", 3);
        assert_kept(neutral_core, "core/src/ids.rs", "use crate::dialect::linkerd::LAYOUT;\n");
        assert_kept(neutral_core, "core/src/dialect/istio/mod.rs", chain);
        assert_kept(neutral_core, "host/src/lib.rs", chain);
        let in_tests = format!("//! As Istio does.\n#[cfg(test)]\nmod tests {{\n{chain}\n}}\n");
        assert_kept(neutral_core, "core/src/policy.rs", &in_tests);
        assert_kept(neutral_core, "core/src/lib.rs", "pub use dialect::istio;\n");
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        let prefix = concat!("/", "work", "/");
        assert_broken(local_paths, "docs/x.md", &format!("ok\nsee {prefix}notes\n"), 2);
        assert_broken(local_paths, "a.sh", &format!("{prefix}x"), 1);
        assert_kept(local_paths, "docs/x.md", &format!("see ./a{prefix}notes\n"));
    }

    #[test]
    fn a_violation_says_where() {
        let file = mk_file("a.rs", "");
        assert_eq!(file.violation(3, "bad").to_string(), "a.rs:3: bad");
        assert_eq!(file.violation(0, "bad").to_string(), "a.rs: bad");
    }
}
