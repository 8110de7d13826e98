//! Golden rules: each file of `golden/` starts with a command line, and goes on with the rules that
//! it gives, each with its reason. A new file with a command line alone is a new case:
//! `UPDATE_GOLDEN=1` writes what is behind that line. Read the difference.
#![expect(clippy::disallowed_methods, reason = "the rules are held against files")]

mod support;

use std::fs;

use millrace_core::iptables::{Dump, UnknownRule, render_rule};
use millrace_core::report::{restore_text, routing_text};
use millrace_core::ruleset::Ruleset;
use millrace_core::sim::compare::{compare, difference_text};
use millrace_core::sim::{Namespace, Program, of_dump, of_ruleset};
use millrace_core::value::Family;
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

/// Verify for every file that its rules are read as what they were made of, and are written again
/// letter by letter; and that a reader which knows nothing of Millrace reads the same.
#[test]
fn golden_files_are_read() {
    for (path, line) in golden() {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("# routing and addresses\n").next().unwrap();
        let ruleset = ruleset(&line);
        let groups = facts().groups;
        let mut nobody = |_, _: &str, _: &_| None;
        let (mut read, mut unread) = (Vec::new(), Vec::new());
        for family in ruleset.families() {
            let (_, rest) = text.split_once(&format!("# {family}\n")).unwrap();
            let end = rest.find("\n# IPv6\n").filter(|_| family == Family::V4);
            let mut dump = Dump::parse(&rest[..end.map_or(rest.len(), |end| end + 1)]).unwrap();
            let chains = dump.tables.iter_mut().flat_map(|table| &mut table.chains);
            for rule in chains.flat_map(|chain| &mut chain.rules) {
                assert_eq!(
                    render_rule(rule.rule.as_ref().unwrap()),
                    rule.text,
                    "{}",
                    path.display()
                );
            }
            read.extend(of_dump(&dump, family, "iptables", &groups, &mut nobody));
            let chains = dump.tables.iter_mut().flat_map(|table| &mut table.chains);
            for rule in chains.flat_map(|chain| &mut chain.rules) {
                rule.rule = Err(UnknownRule("a stranger's".to_owned()));
            }
            unread.extend(of_dump(&dump, family, "iptables", &groups, &mut nobody));
        }
        // The guard is no rule of iptables.
        let bare = Ruleset { guard: None, ..ruleset.clone() };
        let typed = Program::new(of_ruleset(&bare, &groups));
        let pod = Namespace::pod(&facts().addresses, &ruleset.routing);
        for other in [Program::new(read), Program::new(unread)] {
            let found = compare((&typed, &pod), (&other, &pod));
            let text = difference_text(&typed, &other, &found);
            assert!(found.rules.is_empty(), "{}: {text}", path.display());
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
