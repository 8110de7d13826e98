//! Golden rules: each file of `golden/` starts with a command line, and goes on with the rules that
//! it gives, each with its reason. A new file with a command line alone is a new case:
//! `UPDATE_GOLDEN=1` writes what is behind that line. Read the difference.
#![expect(clippy::disallowed_methods, reason = "the rules are held against files")]

mod support;

use std::fs;

use millrace_core::report::{restore_text, routing_text};
use support::changed_by_nf_tables;
use support::lines::{facts, golden, ruleset};

/// Verify every file.
#[test]
fn the_rules_are_the_golden_ones() {
    for (path, line) in golden() {
        let golden = fs::read_to_string(&path).unwrap();
        let ruleset = ruleset(&line);
        let mut text = format!("$ {line}\n");
        for family in ruleset.families() {
            text.push_str(&restore_text(&ruleset, family));
        }
        text.push_str(&routing_text(&ruleset));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, text).unwrap();
        } else {
            assert_eq!(text, golden, "{}", path.display());
        }
    }
}

/// Verify for every file that the rules in the kernel's terms, read back, are the same rules.
#[test]
fn golden_rules_survive_nf_tables() {
    for (path, line) in golden() {
        assert_eq!(
            changed_by_nf_tables(&ruleset(&line), &facts().groups),
            [],
            "{}",
            path.display()
        );
    }
}
