//! Verify what becomes of a connection behind its first packet: the answer, what both say then, what tells
//! a sender that it is refused, and what has to be known of the next hop.

#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]

use std::net::IpAddr;

use millrace_core::iptables::Dump;
use millrace_core::ruleset::{Home, MarkedRoute, Masked, Routing, TPROXY_PRIORITY};
use millrace_core::sim::{
    Exit, Explanation, Fate, Identity, Interface, LOCAL_TABLE, MAIN_TABLE, Namespace, Outcome,
    Path, Program, Protocol, Question, Reply, RouteAction, RoutingRule, RuleAction, Selector,
    TableRoute, of_dump, of_nft_json,
};
use millrace_core::value::{Cidr, Family, Groups};

fn pod() -> Namespace {
    let addresses = ["10.4.0.2", "fd00:4::2"].map(|a| a.parse().unwrap());
    Namespace::pod(&addresses, &Routing::default())
}

fn rules(family: Family, tables: &[(&str, &str)]) -> Program {
    let mut text = String::new();
    for (table, rules) in tables {
        text.push_str(&format!("*{table}\n"));
        for chain in ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"] {
            text.push_str(&format!(":{chain} ACCEPT [0:0]\n"));
        }
        text.push_str(&format!("{rules}\nCOMMIT\n"));
    }
    let dump = Dump::parse(&text).unwrap();
    let mut nobody = |_, _: &str, _: &_| None;
    Program::new(of_dump(&dump, family, "iptables", &Groups::new(), &mut nobody))
}

fn v4(tables: &[(&str, &str)]) -> Program {
    rules(Family::V4, tables)
}

fn out(protocol: Protocol, to: &str) -> Question {
    Question::out(Identity { uid: 1000, gid: 1000 }, protocol, to.parse().unwrap())
}

fn inward(from: &str, protocol: Protocol, to: &str) -> Question {
    let from: IpAddr = from.parse().unwrap();
    Question::inward(from, protocol, to.parse().unwrap())
}

fn broken(found: &Explanation) -> bool {
    matches!(found.reply, Some(Reply::Broken { .. }))
}

fn lost(found: &Explanation) -> bool {
    matches!(found.reply, Some(Reply::Lost { .. }))
}

/// Verify that a rule which drops the answer, or what is said behind it, is found.
#[test]
fn a_connection_needs_more_than_its_first_packet() {
    let explain = |table: &str, rule: &str, question: &Question| {
        v4(&[(table, rule)]).explain(&pod(), question)
    };
    let established = "-m state --state ESTABLISHED -j DROP";
    let to = out(Protocol::TCP, "10.9.9.9:80");
    let from = inward("10.9.9.9", Protocol::TCP, "10.4.0.2:80");
    // The answer comes in established; what the sender says then goes out so.
    assert!(lost(&explain("filter", &format!("-A INPUT {established}"), &to)));
    assert!(broken(&explain("filter", &format!("-A OUTPUT {established}"), &to)));
    assert!(lost(&explain("filter", &format!("-A OUTPUT {established}"), &from)));
    assert!(broken(&explain("filter", &format!("-A INPUT {established}"), &from)));
    assert!(lost(&explain("filter", "-A OUTPUT -p tcp --sport 80 -j DROP", &from)));
    let datagram = out(Protocol::UDP, "10.9.9.9:80");
    let found = explain("filter", &format!("-A OUTPUT {established}"), &datagram);
    assert_eq!(found.reply, Some(Reply::Arrives));
    // A connection whose first packet is not tracked is picked up in its middle, and translated there.
    let half = [("raw", "-A PREROUTING -j CT --notrack"), ("nat", "-A POSTROUTING -j MASQUERADE")];
    let addresses = ["10.4.0.2/24", "10.4.1.2/24"].map(|a| a.parse().unwrap());
    let path = Path { network: "0.0.0.0/0".parse().unwrap(), interface: "eth0".to_owned() };
    let two = Namespace::new(vec![Interface::new("eth0", addresses)], vec![path], Vec::new());
    let second = inward("10.9.9.9", Protocol::TCP, "10.4.1.2:80");
    assert!(broken(&v4(&half).explain(&two, &second)));
    assert_eq!(v4(&half[..1]).explain(&two, &second).reply, Some(Reply::Arrives));
}

/// Verify that of several zones the first is heard, and NOTRACK behind one is not.
#[test]
fn the_first_zone_counts() {
    let apart = "-A PREROUTING -p udp --sport 53 -j CT --zone 1\n\
                 -A OUTPUT -p udp --dport 53 -j CT --zone 1\n";
    let to = out(Protocol::UDP, "10.9.9.9:53");
    let nat = ("nat", "-A POSTROUTING -j SNAT --to-source 10.4.0.9");
    for behind in ["", "-A OUTPUT -j CT --zone 2", "-A OUTPUT -j CT --notrack"] {
        let raw = format!("{apart}{behind}");
        let found = v4(&[("raw", &raw), nat]).explain(&pod(), &to);
        assert_eq!(found.reply, Some(Reply::Arrives), "{behind}");
    }
    let other =
        apart.replace("PREROUTING -p udp --sport 53 -j CT --zone 1", "PREROUTING -j CT --zone 3");
    assert!(lost(&v4(&[("raw", &other), nat]).explain(&pod(), &to)));
}

/// Verify that what a receiver can ask for is told: nothing of a connection of TCP in a zone.
#[test]
fn nobody_is_told_of_a_connection_in_a_zone() {
    let nat = ("nat", "-A OUTPUT -j REDIRECT --to-ports 15001");
    let zone = ("raw", "-A OUTPUT -j CT --zone 1");
    let original = |tables: &[(&str, &str)], protocol| match v4(tables)
        .answer(&pod(), &out(protocol, "10.9.9.9:53"))
        .fate
    {
        Fate::Delivered { original, .. } => original.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(original(&[nat], Protocol::TCP), "10.9.9.9:53");
    assert_eq!(original(&[nat, zone], Protocol::TCP), "127.0.0.1:15001");
    assert_eq!(original(&[nat, zone], Protocol::UDP), "10.9.9.9:53");
}

/// Verify that a refusal is one only where its sender is told.
#[test]
fn what_tells_of_a_refusal_can_be_lost() {
    let outcome = |rules: &str, question: &Question| {
        v4(&[("filter", rules)]).answer(&pod(), question).outcome
    };
    let told = |rules: &str, question: &Question| outcome(rules, question) == Outcome::Refused;
    let to = out(Protocol::TCP, "10.9.9.9:80");
    let udp = out(Protocol::UDP, "10.9.9.9:80");
    let from = inward("10.9.9.9", Protocol::TCP, "10.4.0.2:80");
    assert!(told("-A OUTPUT -p tcp -j REJECT", &to));
    assert!(!told("-A OUTPUT -p tcp -j REJECT --reject-with tcp-reset", &to));
    assert!(told("-A OUTPUT -p tcp --dport 80 -j REJECT --reject-with tcp-reset", &to));
    assert!(!told("-A OUTPUT -j REJECT", &to));
    assert!(told("-A OUTPUT -m state --state RELATED -j ACCEPT\n-A OUTPUT -j REJECT", &to));
    assert!(told("-A OUTPUT -p icmp -m icmp --icmp-type 3 -j ACCEPT\n-A OUTPUT -j REJECT", &to));
    assert!(!told("-A OUTPUT -p icmp -m icmp --icmp-type 8 -j ACCEPT\n-A OUTPUT -j REJECT", &to));
    assert!(!told("-A OUTPUT -p udp -j REJECT --reject-with tcp-reset", &udp));
    assert!(told("-A INPUT -j REJECT", &from));
    assert!(!told("-A INPUT -j REJECT\n-A OUTPUT -p icmp -j DROP", &from));
    assert!(matches!(outcome("-A OUTPUT -j REJECT", &to), Outcome::Dropped { .. }));
}

/// Verify that what is passed on has an answer, which rules for what is passed on see too.
#[test]
fn what_is_passed_on_is_answered() {
    let network = |text: &str| text.parse().unwrap();
    let mut interfaces = vec![
        Interface::new("eth0", [network("10.4.0.2/24")]),
        Interface::new("docker0", [network("172.17.0.1/16")]),
    ];
    for interface in &mut interfaces {
        interface.settings.forwarding = true;
    }
    let path = Path { network: network("0.0.0.0/0"), interface: "eth0".to_owned() };
    let machine = Namespace::new(interfaces, vec![path], Vec::new());
    let nat =
        ("nat", "-A PREROUTING -i eth0 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80");
    let published = inward("10.9.9.9", Protocol::TCP, "10.4.0.2:8080");
    let explain = |filter: &str| v4(&[nat, ("filter", filter)]).explain(&machine, &published);
    let found = explain("-A FORWARD -i docker0 -m state --state ESTABLISHED -j ACCEPT");
    let Fate::Passed { interface, destination, .. } = &found.answer.fate else {
        panic!("{found:?}")
    };
    assert_eq!((interface.as_str(), *destination), ("docker0", "172.17.0.2:80".parse().unwrap()));
    assert_eq!(found.reply, Some(Reply::Arrives));
    assert!(lost(&explain("-A FORWARD -i docker0 -j DROP")));
    assert!(broken(&explain("-A FORWARD -o docker0 -m state --state ESTABLISHED -j DROP")));
    let closed = explain("-A FORWARD -o docker0 -m state --state NEW -j DROP");
    assert!(matches!(closed.answer.outcome, Outcome::Dropped { .. }));
    // Rules alone do not say whether anything is passed on.
    let saved = v4(&[nat]).answer(&pod(), &published).outcome;
    assert!(matches!(saved, Outcome::Unknown { what } if what.starts_with("the routes")));
    let elsewhere = inward("10.9.9.9", Protocol::TCP, "10.8.8.8:80");
    let outcome = v4(&[nat]).answer(&pod(), &elsewhere).outcome;
    assert!(matches!(outcome, Outcome::Dropped { .. }));
    // Who is behind the interface that it came in by may answer without this host.
    let back = ("nat", "-A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.9.9.8:80");
    let found = v4(&[back]).explain(&machine, &published);
    assert!(matches!(found.reply, Some(Reply::Unknown { .. })), "{found:?}");
}

/// Verify that what stays in the pod can be masqueraded too.
#[test]
fn loopback_is_masqueraded() {
    let nat = v4(&[("nat", "-A POSTROUTING -j MASQUERADE")]);
    let found = nat.explain(&pod(), &out(Protocol::TCP, "127.0.0.1:80"));
    let Fate::Delivered { source, .. } = found.answer.fate else { panic!("{found:?}") };
    assert_eq!(source.ip(), "10.4.0.2".parse::<IpAddr>().unwrap());
    assert_eq!(found.reply, Some(Reply::Arrives));
}

/// Verify that rules of IPv6 which drop neighbour discovery are found, and only where it is needed.
#[test]
fn rules_can_hide_the_next_hop() {
    let to = out(Protocol::TCP, "[fd00:4::9]:80");
    let of = |rule: &str| rules(Family::V6, &[("filter", rule)]);
    let known = |hop: &[&str]| {
        let mut pod = pod();
        let found = hop.iter().map(|hop| ("eth0".to_owned(), hop.parse().unwrap()));
        pod.neighbours = Some(found.collect());
        pod
    };
    let tcp = "-A OUTPUT -p tcp -j ACCEPT\n";
    let drops = of(&format!("{tcp}-A OUTPUT -j DROP"));
    let Outcome::Unknown { what } = drops.answer(&pod(), &to).outcome else { panic!() };
    assert!(what.contains("neighbour solicitation meets filter OUTPUT 2"), "{what}");
    // Who asks for this host says where it is itself, where rules let that past.
    let unknown = drops.answer(&known(&[]), &to).outcome;
    assert!(matches!(unknown, Outcome::Unknown { .. }), "{unknown:?}");
    let deaf = of(&format!("{tcp}-A OUTPUT -j DROP\n-A INPUT -p ipv6-icmp -j DROP"));
    let dropped = deaf.answer(&known(&[]), &to).outcome;
    assert!(matches!(dropped, Outcome::Dropped { .. }), "{dropped:?}");
    let passed = Outcome::Passed { interface: "eth0".to_owned(), masked: false };
    assert_eq!(drops.answer(&known(&["fd00:4::9"]), &to).outcome, passed);
    for lets in ["-p ipv6-icmp", "-p ipv6-icmp -m icmp6 --icmpv6-type 135"] {
        let rules = of(&format!("{tcp}-A OUTPUT {lets} -j ACCEPT\n-A OUTPUT -j DROP"));
        assert_eq!(rules.answer(&known(&[]), &to).outcome, passed, "{lets}");
    }
    let answers = of("-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j DROP");
    assert!(matches!(answers.answer(&known(&[]), &to).outcome, Outcome::Unknown { .. }));
    // What stays in the pod needs none.
    let here = out(Protocol::TCP, "[::1]:80");
    assert_eq!(drops.answer(&known(&[]), &here).outcome, Outcome::Delivered);
}

/// Verify that types of ICMP are read from what nft prints.
#[test]
fn types_of_icmp_are_read() {
    let text = |right: &str| {
        format!(
            r#"{{"nftables": [{{"table": {{"family": "ip6", "name": "t"}}}},
            {{"chain": {{"family": "ip6", "table": "t", "name": "c", "type": "filter",
              "hook": "output", "prio": 0, "policy": "drop"}}}},
            {{"rule": {{"family": "ip6", "table": "t", "chain": "c", "expr": [
              {{"match": {{"op": "==", "left": {{"payload": {{"protocol": "icmpv6", "field": "type"}}}},
                "right": {right}}}}}, {{"accept": null}}]}}}},
            {{"rule": {{"family": "ip6", "table": "t", "chain": "c", "expr": [
              {{"match": {{"op": "==", "left": {{"payload": {{"protocol": "tcp", "field": "dport"}}}},
                "right": 80}}}}, {{"accept": null}}]}}}}]}}"#
        )
    };
    let to = out(Protocol::TCP, "[fd00:4::9]:80");
    let outcome = |right: &str| {
        let program = Program::new(of_nft_json(&text(right)).unwrap().tables);
        program.answer(&pod(), &to).outcome
    };
    let passed = Outcome::Passed { interface: "eth0".to_owned(), masked: false };
    assert_eq!(outcome(r#""nd-neighbor-solicit""#), passed);
    assert_eq!(outcome(r#"{"set": ["nd-router-solicit", 135]}"#), passed);
    assert!(matches!(outcome(r#""echo-request""#), Outcome::Unknown { .. }));
}

/// Verify that an answer which goes by a route with several paths is not said to arrive.
#[test]
fn answers_by_several_paths_are_not_guessed() {
    let network = |text: &str| text.parse::<Cidr>().unwrap();
    let interfaces = vec![
        Interface::new("eth0", [network("10.4.0.2/24")]),
        Interface::new("eth1", [network("10.5.0.2/24")]),
    ];
    let all = ["eth0", "eth1"].map(Exit::by).to_vec();
    let route =
        |table, to: &str, action| TableRoute { table, network: network(to), metric: 0, action };
    let routes = vec![
        route(LOCAL_TABLE, "10.4.0.2/32", RouteAction::Local(None)),
        route(MAIN_TABLE, "10.4.0.0/24", RouteAction::Out(vec![Exit::by("eth0")])),
        route(MAIN_TABLE, "0.0.0.0/0", RouteAction::Out(all)),
    ];
    let rule = |priority, table| RoutingRule {
        family: Family::V4,
        priority,
        selector: Selector::default(),
        action: RuleAction::Table(table),
    };
    let rules = vec![rule(0, LOCAL_TABLE), rule(32766, MAIN_TABLE)];
    let two = Namespace::routed(interfaces, rules, routes);
    let reply = |from: &str| {
        let mut question = inward(from, Protocol::TCP, "10.4.0.2:80");
        question.interface = Some("eth0".to_owned());
        v4(&[]).explain(&two, &question).reply
    };
    assert_eq!(reply("10.4.0.9"), Some(Reply::Arrives));
    assert!(matches!(reply("10.9.9.9"), Some(Reply::Unknown { .. })));
}

/// Verify that what localhost sends to itself can't be translated to outside, but where that is allowed.
#[test]
fn localhost_does_not_leave() {
    let nat = v4(&[("nat", "-A OUTPUT -p tcp --dport 80 -j DNAT --to-destination 10.9.9.9:80")]);
    let to = out(Protocol::TCP, "127.0.0.1:80");
    assert!(matches!(nat.answer(&pod(), &to).outcome, Outcome::Dropped { .. }));
    let mut eth0 = Interface::new("eth0", ["10.4.0.2/24".parse().unwrap()]);
    eth0.settings.route_localnet = true;
    let path = Path { network: "0.0.0.0/0".parse().unwrap(), interface: "eth0".to_owned() };
    let open = Namespace::new(vec![eth0], vec![path], Vec::new());
    let found = nat.explain(&open, &to);
    assert!(matches!(found.answer.outcome, Outcome::Led { .. }), "{found:?}");
    // Nobody outside answers to 127.0.0.1, unless it is hidden.
    assert!(lost(&found));
    let rules = "-A OUTPUT -p tcp --dport 80 -j DNAT --to-destination 10.9.9.9:80\n\
                 -A POSTROUTING -o eth0 -j MASQUERADE";
    assert_eq!(v4(&[("nat", rules)]).explain(&open, &to).reply, Some(Reply::Arrives));
}

/// Verify what becomes of connections that a mark has delivered here, wherever they go: by IPv4 a socket
/// that is not bound has no source, and nobody but a transparent socket answers; by IPv6 the source is
/// the kernel's choice of all, among which `::6` is none too old.
#[test]
fn what_a_mark_delivers_here_is_answered_by_few() {
    let routing = Routing {
        marked: Some(MarkedRoute {
            mark: Masked::exact(1337),
            table: "133".parse().unwrap(),
            priority: TPROXY_PRIORITY,
            ipv6: true,
            transparent: true,
        }),
        passthrough_v6: Some(Home::Own),
        ..Routing::default()
    };
    let addresses = ["10.4.0.2", "fd00:4::2"].map(|a| a.parse().unwrap());
    let pod = Namespace::pod(&addresses, &routing);
    let none = Program::new(Vec::new());
    let marked = |to: &str, from: Option<&str>| {
        let source = from.map(|from| from.parse().unwrap());
        Question { mark: 1337, source, ..out(Protocol::TCP, to) }
    };
    let unbound = none.explain(&pod, &marked("9.9.9.9:80", None));
    assert!(matches!(unbound.answer.outcome, Outcome::Dropped { .. }), "{unbound:?}");
    for from in ["10.4.0.2", "127.0.0.1"] {
        let found = none.explain(&pod, &marked("9.9.9.9:80", Some(from)));
        assert_eq!(found.answer.outcome, Outcome::Delivered);
        assert!(lost(&found), "{found:?}");
    }
    for (to, from) in [("[2001:db8::9]:80", "::6"), ("[fd71::9]:80", "fd00:4::2")] {
        let found = none.explain(&pod, &marked(to, None));
        let Fate::Delivered { source, .. } = found.answer.fate else { panic!("{found:?}") };
        assert_eq!(source.ip(), from.parse::<IpAddr>().unwrap());
        assert_eq!(found.reply, Some(Reply::Arrives));
    }
}
