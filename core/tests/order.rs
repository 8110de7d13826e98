//! Verify that chains of one hook and priority are called as the kernel does, the last one first, and
//! that where nobody knows which is the last, it is said, if it matters.

#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]

use millrace_core::iptables::Dump;
use millrace_core::ruleset::Routing;
use millrace_core::sim::compare::compare;
use millrace_core::sim::{
    How, Identity, Namespace, Outcome, Program, Protocol, Question, of_dump, of_nft_json, partition,
};
use millrace_core::value::{Family, Groups};
use serde_json::{Value, json};

/// A chain of family `inet`: table, name, kind, priority, and the expressions of its rules.
type Chain<'a> = (&'a str, &'a str, &'a str, i32, &'a [Value]);

fn listed(chains: &[Chain<'_>]) -> Program {
    let mut objects = Vec::new();
    let mut tables: Vec<&str> = chains.iter().map(|chain| chain.0).collect();
    tables.dedup();
    objects.extend(tables.iter().map(|name| json!({"table": {"family": "inet", "name": name}})));
    for (table, name, kind, prio, rules) in chains {
        let place = json!({"family": "inet", "table": table, "name": name, "type": kind,
                           "hook": "output", "prio": prio, "policy": "accept"});
        objects.push(json!({ "chain": place }));
        for expr in *rules {
            let rule = json!({"family": "inet", "table": table, "chain": name, "expr": expr});
            objects.push(json!({ "rule": rule }));
        }
    }
    Program::new(of_nft_json(&json!({ "nftables": objects }).to_string()).unwrap().tables)
}

fn pod() -> Namespace {
    Namespace::pod(&["10.4.0.2".parse().unwrap()], &Routing::default())
}

fn outcome(program: &Program, to: &str) -> Outcome {
    let identity = Identity { uid: 1, gid: 1 };
    let question = Question::out(identity, Protocol::TCP, to.parse().unwrap());
    program.answer(&pod(), &question).outcome
}

fn passed() -> Outcome {
    Outcome::Passed { interface: "eth0".to_owned(), masked: false }
}

fn what(outcome: Outcome) -> String {
    let Outcome::Unknown { what } = outcome else { panic!("{outcome:?}") };
    what
}

fn port(number: u16) -> Value {
    let left = json!({"payload": {"protocol": "tcp", "field": "dport"}});
    json!({"match": {"op": "==", "left": left, "right": number}})
}

fn redirect(to: u16) -> Value {
    json!({"redirect": {"port": to}})
}

fn set_mark(mark: u32) -> Value {
    json!({"mangle": {"key": {"meta": {"key": "mark"}}, "value": mark}})
}

fn is_mark(mark: u32) -> Value {
    json!({"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": mark}})
}

fn drop() -> Value {
    json!({"drop": null})
}

/// Verify that of two chains of one table the one that was made last decides.
#[test]
fn the_last_chain_of_a_table_is_called_first() {
    let captured = |port| Outcome::Captured { port: Some(port), how: How::Translated };
    let rules = [[json!([redirect(1)])], [json!([redirect(2)])]];
    let nat = listed(&[("a", "one", "nat", -100, &rules[0]), ("a", "two", "nat", -100, &rules[1])]);
    assert_eq!(outcome(&nat, "9.9.9.9:80"), captured(2));

    let (sets, drops) = ([json!([set_mark(1)])], [json!([is_mark(1), drop()])]);
    let first = ("a", "one", "route", -150, &sets[..]);
    let last = ("a", "two", "filter", -150, &drops[..]);
    assert_eq!(outcome(&listed(&[first, last]), "9.9.9.9:80"), passed());
    let found = outcome(&listed(&[last, first]), "9.9.9.9:80");
    assert!(matches!(found, Outcome::Dropped { .. }), "{found:?}");
}

/// Verify that the same chains in another order are not taken for the same, where that matters: between
/// tables it can't be told.
#[test]
fn the_order_of_chains_is_compared() {
    let differs = |one: &[Chain<'_>], other: &[Chain<'_>]| {
        let (one, other) = (listed(one), listed(other));
        let found = compare((&one, &pod()), (&other, &pod()));
        [!found.traffic.is_empty(), !found.untold.is_empty()]
    };
    let rules = [[json!([redirect(1)])], [json!([redirect(2)])]];
    for table in ["a", "b"] {
        let one = ("a", "one", "nat", -100, &rules[0][..]);
        let two = (table, "two", "nat", -100, &rules[1][..]);
        // Between tables not even the same list says that the order is the same.
        let between = table == "b";
        assert_eq!(differs(&[one, two], &[two, one]), [!between, between], "{table}");
        assert_eq!(differs(&[one, two], &[one, two]), [false, between], "{table}");
        let later = (table, "two", "nat", -99, &rules[1][..]);
        assert_eq!(differs(&[one, later], &[later, one]), [false, false], "{table}");
    }
}

/// Verify that between tables the order is not known, and that it is said only where it matters; for
/// whole classes of connections as well.
#[test]
fn what_no_listing_says_is_told_where_it_does_not_matter() {
    let captured = |port| Outcome::Captured { port: Some(port), how: How::Translated };
    let (one, two) = ([json!([port(80), redirect(1)])], [json!([redirect(2)])]);
    let nat = listed(&[("a", "one", "nat", -100, &one), ("b", "two", "nat", -100, &two)]);
    assert_eq!(outcome(&nat, "9.9.9.9:81"), captured(2));
    let found = what(outcome(&nat, "9.9.9.9:80"));
    assert!(found.contains("a one (nftables), b two (nftables)"), "{found}");
    let classes = partition(&nat, &pod());
    let unknown = classes.iter().filter(|c| matches!(c.answer.outcome, Outcome::Unknown { .. }));
    let unknown: Vec<_> = unknown.collect();
    assert!(!unknown.is_empty() && unknown.iter().all(|class| class.example.port == 80));

    let (sets, drops) = ([json!([port(80), set_mark(1)])], [json!([is_mark(1), drop()])]);
    let filter = listed(&[("a", "one", "filter", 0, &sets), ("b", "two", "filter", 0, &drops)]);
    assert_eq!(outcome(&filter, "9.9.9.9:81"), passed());
    assert!(what(outcome(&filter, "9.9.9.9:80")).contains("called first"));

    // Both orders end alike: two drop, or two set different things.
    let drops = [json!([drop()])];
    let filter = listed(&[("a", "one", "filter", 0, &drops), ("b", "two", "filter", 0, &drops)]);
    let found = outcome(&filter, "9.9.9.9:80");
    assert!(matches!(found, Outcome::Dropped { .. }), "{found:?}");
    let ct = [json!([{"mangle": {"key": {"ct": {"key": "mark"}}, "value": 5}}])];
    let filter = listed(&[("a", "one", "filter", 0, &sets), ("b", "two", "filter", 0, &ct)]);
    assert_eq!(outcome(&filter, "9.9.9.9:80"), passed());
}

/// Verify that chains at the priorities of connection tracking and of address translation are told
/// only where it does not matter which comes first.
#[test]
fn tracking_and_translation_have_an_order_that_is_not_known() {
    let state = json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}});
    let asks = [json!([state, drop()])];
    let found = outcome(&listed(&[("a", "one", "filter", -200, &asks)]), "9.9.9.9:80");
    assert!(what(found).contains("connection tracking"));
    let counts = [json!([{"counter": {"packets": 0, "bytes": 0}}])];
    assert_eq!(outcome(&listed(&[("a", "one", "filter", -200, &counts)]), "9.9.9.9:80"), passed());

    let to = [json!([port(80), redirect(1)])];
    let drops = [json!([port(1), drop()])];
    let both = [("a", "one", "nat", -110, &to[..]), ("b", "two", "filter", -100, &drops[..])];
    assert!(what(outcome(&listed(&both), "9.9.9.9:80")).contains("address translation"));
    assert_eq!(outcome(&listed(&both), "9.9.9.9:81"), passed());
}

/// Verify that both variants of iptables side by side have no order that is known.
#[test]
fn both_iptables_side_by_side_have_no_order() {
    let dump = |rule: &str, holder: &str| {
        let text = format!("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp {rule}\nCOMMIT\n");
        let mut nobody = |_, _: &str, _: &_| None;
        of_dump(&Dump::parse(&text).unwrap(), Family::V4, holder, &Groups::new(), &mut nobody)
    };
    let mut tables = dump("-j REDIRECT --to-ports 15001", "iptables-nft");
    tables.extend(dump("--dport 80 -j DNAT --to-destination 9.9.9.8:80", "iptables-legacy"));
    let program = Program::new(tables);
    let captured = Outcome::Captured { port: Some(15001), how: How::Translated };
    assert_eq!(outcome(&program, "9.9.9.9:81"), captured);
    assert!(what(outcome(&program, "9.9.9.9:80")).contains("iptables-legacy"));
}
