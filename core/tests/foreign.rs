//! Verify that rules which Millrace did not write are walked, or refused by the name of what is
//! not known of them: rules as kube-proxy, Docker and Calico write them, and lists of nft.

#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]

use std::collections::BTreeMap;

use millrace_core::iptables::Dump;
use millrace_core::nft::listed::{Ending, Layer, ListedChain, ListedRule, ListedTable, Term};
use millrace_core::nft::tables::Base;
use millrace_core::ruleset::Routing;
use millrace_core::sim::compare::compare;
use millrace_core::sim::{
    Change, Class, How, Identity, Namespace, Outcome, Program, Protocol, Question, Reply, of_dump,
    of_listed, of_nft_json, partition,
};
use millrace_core::value::{Family, Groups};

fn pod() -> Namespace {
    let addresses = ["10.4.0.2", "fd00:4::2"].map(|a| a.parse().unwrap());
    Namespace::pod(&addresses, &Routing::default())
}

fn out(id: u32, to: &str) -> Question {
    Question::out(Identity { uid: id, gid: id }, Protocol::TCP, to.parse().unwrap())
}

fn captured(port: u16) -> Outcome {
    Outcome::Captured { port: Some(port), how: How::Translated }
}

fn passed() -> Outcome {
    Outcome::Passed { interface: "eth0".to_owned(), masked: false }
}

fn foreign(text: &str) -> Program {
    let dump = Dump::parse(text).unwrap();
    let mut nobody = |_, _: &str, _: &_| None;
    Program::new(of_dump(&dump, Family::V4, "iptables", &Groups::new(), &mut nobody))
}

/// Verify that what decides and is not known is named, and what decides nothing is walked past.
#[test]
fn an_unknown_match_is_named_where_it_matters() {
    let program = foreign(
        "*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         -A OUTPUT -p udp -m statistic --mode random --probability 0.5 -j DROP\n\
         -A OUTPUT -m limit --limit 5/min -j LOG --log-prefix \"a b\"\n\
         -A OUTPUT -d 10.9.9.9/32 -m statistic --mode random --probability 0.5 -j DROP\nCOMMIT\n",
    );
    let pod = pod();
    assert_eq!(program.answer(&pod, &out(1, "10.9.9.8:80")).outcome, passed());
    let unknown = program.answer(&pod, &out(1, "10.9.9.9:80")).outcome;
    let Outcome::Unknown { what } = unknown else { panic!("{unknown:?}") };
    assert_eq!(what, "-m statistic --mode random");
}

/// Verify that a target without options is one, and no chain.
#[test]
fn bare_targets_are_no_chains() {
    for note in ["LOG", "NFLOG", "TRACE"] {
        let text = format!("*raw\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j {note}\nCOMMIT\n");
        let outcome = foreign(&text).answer(&pod(), &out(1, "10.9.9.9:80")).outcome;
        assert_eq!(outcome, passed(), "{note}");
    }
    let untracked = "*raw\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j NOTRACK\nCOMMIT\n*filter\n\
         :OUTPUT ACCEPT [0:0]\n-A OUTPUT -m conntrack --ctstate UNTRACKED -j DROP\nCOMMIT\n";
    let outcome = foreign(untracked).answer(&pod(), &out(1, "10.9.9.9:80")).outcome;
    assert!(matches!(outcome, Outcome::Dropped { .. }), "{outcome:?}");
    let docker = foreign(
        "*nat\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         -A POSTROUTING -s 10.4.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n",
    );
    let masked = Outcome::Passed { interface: "eth0".to_owned(), masked: true };
    let mut elsewhere = out(1, "10.9.9.9:80");
    elsewhere.source = Some("10.4.0.9".parse().unwrap());
    assert_eq!(docker.answer(&pod(), &elsewhere).outcome, masked);
    // The address that it has is no other one.
    assert_eq!(docker.answer(&pod(), &out(1, "10.9.9.9:80")).outcome, passed());
}

/// Verify that what IPVS or `IPsec` decides is named, also where a rule leads there, and other connections are told
/// as ever.
#[test]
fn what_is_beside_all_rules_is_named() {
    let named = |program: &Program, pod: &Namespace, to: &str| {
        let outcome = program.answer(pod, &out(1, to)).outcome;
        let classes = partition(program, pod);
        let class = classes.iter().find(|class| class.has(&out(1, to))).unwrap();
        assert_eq!(class.answer.outcome, outcome);
        matches!(outcome, Outcome::Unknown { .. })
    };
    let program = foreign(
        "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -d 10.9.9.7/32 -j DNAT --to-destination 10.9.9.9\nCOMMIT\n",
    );
    let mut served = pod();
    served.serve_virtually(&["10.9.9.9".parse().unwrap()], false);
    for (to, is) in [("10.9.9.9:80", true), ("10.9.9.7:80", true), ("10.9.9.8:80", false)] {
        assert_eq!(named(&program, &served, to), is, "{to}");
    }
    served.serve_virtually(&[], true);
    assert!(named(&program, &served, "10.9.9.8:80"));
    let mut encrypted = pod();
    encrypted.ipsec = true;
    for (to, is) in [("10.9.9.8:80", true), ("127.0.0.1:80", false)] {
        assert_eq!(named(&program, &encrypted, to), is, "{to}");
    }
}

/// Verify every form of MARK and CONNMARK: each leaves a mark that only the rule behind it drops.
#[test]
fn marks_are_changed_bit_by_bit() {
    for (change, mark) in [
        ("MARK --set-xmark 0x4000/0x4000", 0x4111),
        // Outside of the mask bits are flipped: what is set is cleared, what is clear is set.
        ("MARK --set-xmark 0x100/0x0", 0x11),
        ("MARK --set-xmark 0x4000/0x0", 0x4111),
        ("MARK --set-xmark 0x300/0xff", 0x200),
        ("MARK --set-xmark 0x5/0xffffffff", 5),
        ("MARK --set-mark 0x300/0xff", 0x300),
        ("MARK --set-mark 7", 7),
        ("MARK --and-mark 0x10", 0x10),
        ("MARK --or-mark 0x4", 0x115),
        ("MARK --xor-mark 0x101", 0x10),
    ] {
        for of in ["", "CONN"] {
            let module = format!("{}mark", of.to_lowercase());
            let rules = |mark: u32| {
                format!(
                    "*mangle\n:OUTPUT ACCEPT [0:0]\n\
                     -A OUTPUT -j {of}MARK --set-xmark 0x111/0xffffffff\n\
                     -A OUTPUT -j {of}{change}\n\
                     -A OUTPUT -m {module} --mark {mark:#x} -j DROP\nCOMMIT\n"
                )
            };
            let outcome =
                |mark| foreign(&rules(mark)).answer(&pod(), &out(1, "9.9.9.9:80")).outcome;
            let is = outcome(mark);
            assert!(matches!(is, Outcome::Dropped { .. }), "{of}{change}: {is:?}");
            assert_eq!(outcome(mark ^ 1), passed(), "{of}{change}");
        }
    }
    for (change, mark) in [
        ("--save-mark --nfmask 0xf0 --ctmask 0xff", 0x510),
        ("--save-mark --mask 0xf", 0x5a1),
        ("--save-mark", 0x111),
    ] {
        let text = format!(
            "*mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j CONNMARK --set-mark 0x5aa\n\
             -A OUTPUT -j MARK --set-mark 0x111\n-A OUTPUT -j CONNMARK {change}\n\
             -A OUTPUT -m connmark --mark {mark:#x} -j DROP\nCOMMIT\n"
        );
        let is = foreign(&text).answer(&pod(), &out(1, "9.9.9.9:80")).outcome;
        assert!(matches!(is, Outcome::Dropped { .. }), "{change}: {is:?}");
    }
}

/// Verify rules as kube-proxy, Docker and Calico write them: walked, or refused by name.
#[test]
fn rules_of_others_are_walked() {
    let kube = foreign(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         :POSTROUTING ACCEPT [0:0]\n:SERVICES - [0:0]\n:SVC-A - [0:0]\n:SEP-A - [0:0]\n\
         :MARK-MASQ - [0:0]\n:POST - [0:0]\n\
         -A PREROUTING -m comment --comment \"service portals\" -j SERVICES\n\
         -A OUTPUT -m comment --comment \"service portals\" -j SERVICES\n\
         -A POSTROUTING -m comment --comment \"postrouting rules\" -j POST\n\
         -A SERVICES -d 10.96.0.20/32 -p tcp -m comment --comment \"a/b:http cluster IP\" -m tcp --dport 80 -j SVC-A\n\
         -A SVC-A ! -s 10.4.0.0/24 -d 10.96.0.20/32 -p tcp -m tcp --dport 80 -j MARK-MASQ\n\
         -A SVC-A -m comment --comment \"a/b:http -> 10.9.0.7:8080\" -j SEP-A\n\
         -A SEP-A -s 10.9.0.7/32 -j MARK-MASQ\n\
         -A SEP-A -p tcp -m tcp -j DNAT --to-destination 10.9.0.7:8080\n\
         -A MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A POST -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A POST -j MARK --set-xmark 0x4000/0x0\n\
         -A POST -j MASQUERADE --random-fully\nCOMMIT\n",
    );
    let pod = pod();
    let led = Outcome::Led { address: "10.9.0.7".parse().ok(), port: Some(8080) };
    let explained = kube.explain(&pod, &out(0, "10.96.0.20:80"));
    assert_eq!((explained.answer.outcome, explained.reply), (led, Some(Reply::Arrives)));
    assert_eq!(kube.answer(&pod, &out(0, "10.96.0.20:81")).outcome, passed());

    let docker = foreign(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :DOCKER_OUTPUT - [0:0]\n:DOCKER - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT\n\
         -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8443 -j DNAT --to-destination 172.17.0.2:443\n\
         -A DOCKER_OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.11:40321\n\
         -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n",
    );
    let dns = Question { protocol: Protocol::UDP, ..out(0, "127.0.0.11:53") };
    assert_eq!(docker.answer(&pod, &dns).outcome, captured(40321));
    let published = docker.answer(&pod, &out(0, "10.4.0.2:8443")).outcome;
    let led = Outcome::Led { address: "172.17.0.2".parse().ok(), port: Some(443) };
    assert_eq!(published, led);

    let calico = foreign(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         :cali-OUTPUT - [0:0]\n:cali-to-host - [0:0]\n\
         -A OUTPUT -m comment --comment \"cali:tVnHkvAo15HuiPy0\" -j cali-OUTPUT\n\
         -A cali-OUTPUT -m mark --mark 0x10000/0x10000 -j ACCEPT\n\
         -A cali-OUTPUT -o cali+ -j RETURN\n\
         -A cali-OUTPUT -m conntrack ! --ctstate DNAT -j cali-to-host\n\
         -A cali-to-host -m set --match-set cali40s:all dst -j DROP\nCOMMIT\n",
    );
    let marked = Question { mark: 0x1_0000, ..out(0, "10.9.9.9:80") };
    assert_eq!(calico.answer(&pod, &marked).outcome, passed());
    let refused = calico.answer(&pod, &out(0, "10.9.9.9:80")).outcome;
    assert_eq!(refused, Outcome::Unknown { what: "-m set --match-set cali40s:all dst".to_owned() });
}

/// Verify that rules in another order differ, and that what nobody knows is the same as itself.
#[test]
fn rules_are_compared_in_their_order() {
    let program = |rules: &str| {
        foreign(&format!("*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n"))
    };
    let (accept, drop) = ("-A OUTPUT -p tcp -j ACCEPT\n", "-A OUTPUT -d 10.9.9.9/32 -j DROP\n");
    let pod = pod();
    let [one, other] = [[accept, drop], [drop, accept]].map(|rules| program(&rules.concat()));
    let found = compare((&one, &pod), (&other, &pod));
    assert_eq!(found.rules.len(), 2);
    let changed: Vec<&Class<Change>> =
        found.traffic.iter().filter(|class| class.has(&out(1, "10.9.9.9:80"))).collect();
    let [class] = changed[..] else { panic!("{changed:?}") };
    assert_eq!(class.answer.before.outcome, passed());
    assert!(matches!(class.answer.after.outcome, Outcome::Dropped { .. }));
    let strange = program("-A OUTPUT -m frobnicate --fully -j DROP\n");
    // What nobody knows may ask for anything.
    let found = compare((&strange, &pod), (&strange, &pod));
    assert!(found.traffic.is_empty() && found.rules.is_empty() && !found.untold.is_empty());
    let limited = program("-A OUTPUT -m limit --limit 1/sec -j DROP\n");
    let found = compare((&limited, &pod), (&limited, &pod));
    assert!(found.is_none() && found.rules.is_empty());
    let gone = program("-A OUTPUT -j X\n");
    assert!(!compare((&gone, &pod), (&gone, &pod)).untold.is_empty());
    assert!(!compare((&strange, &pod), (&one, &pod)).traffic.is_empty());
    // But not what a list says that no rule holds.
    let recent = program("-A OUTPUT -m recent --update -j DROP\n");
    let found = compare((&recent, &pod), (&recent, &pod));
    assert!(!found.untold.is_empty() && found.traffic.is_empty() && found.rules.is_empty());
}

/// Verify that what a rule asks before it does something is not taken for what it asks behind, and that
/// rules of which a part is not read are like no others.
#[test]
fn rules_that_are_read_alike_are_not_the_same() {
    let place = r#""family": "inet", "table": "t""#;
    let program = |expr: &str| {
        let text = format!(
            r#"{{"nftables": [{{"table": {{"family": "inet", "name": "t"}}}},
            {{"chain": {{{place}, "name": "c", "type": "filter", "hook": "output", "prio": 0, "policy": "accept"}}}},
            {{"rule": {{{place}, "chain": "c", "expr": [{expr}]}}}}]}}"#
        );
        Program::new(of_nft_json(&text).unwrap().tables)
    };
    let marks = r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}"#;
    let asks = r#"{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 0}}"#;
    let drop = r#"{"drop": null}"#;
    let (first, second) =
        (program(&[marks, asks, drop].join(",")), program(&[asks, marks, drop].join(",")));
    let pod = pod();
    let found = compare((&first, &pod), (&second, &pod));
    assert!(
        found.rules.len() == 2 && !(found.traffic.is_empty() && found.untold.is_empty()),
        "{found:?}"
    );

    let known = |key: &str, dir: &str| {
        let asks = format!(
            r#"{{"match": {{"op": "==", "left": {{"ct": {{"key": "{key}", "dir": "{dir}"}}}}, "right": 7}}}}"#
        );
        program(&format!("{asks}, {drop}"))
    };
    let found = compare((&known("mark", "original"), &pod), (&known("mark", "reply"), &pod));
    assert!(
        found.rules.len() == 2 && !(found.traffic.is_empty() && found.untold.is_empty()),
        "{found:?}"
    );
    let same = compare((&known("mark", "original"), &pod), (&known("mark", "original"), &pod));
    assert!(same.rules.is_empty() && same.traffic.is_empty(), "{same:?}");

    // What nft does not print, and what it prints elsewhere.
    for hidden in [
        r#"{"xt": {"type": "match", "name": "set"}}"#,
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "@changes"}}"#,
    ] {
        let program = program(&format!("{hidden}, {drop}"));
        let found = compare((&program, &pod), (&program, &pod));
        assert!(!found.rules.is_empty() && !found.untold.is_empty(), "{hidden}: {found:?}");
    }
    // What the kernel says of an expression that is not read is not read.
    let listed = |part: &str| {
        let base = Base { hook: 3, kind: "filter".to_owned(), priority: 0 };
        let parts = vec![Term::Asks(part.to_owned()), Term::Verdict(Ending::Drop)];
        let rules = vec![ListedRule { parts, counters: None }];
        let chain = ListedChain {
            name: "c".to_owned(),
            base: Some(base),
            devices: Vec::new(),
            drops: false,
            rules,
        };
        let table = ListedTable {
            layer: Layer::Inet,
            name: "t".to_owned(),
            dormant: false,
            sets: BTreeMap::new(),
            chains: vec![chain],
        };
        Program::new(of_listed(&[table], &BTreeMap::new()))
    };
    let found = compare((&listed("limit"), &pod), (&listed("limit"), &pod));
    assert!(
        found.rules.len() == 2 && !(found.traffic.is_empty() && found.untold.is_empty()),
        "{found:?}"
    );
}

/// Verify every rule of a list that nft 1.0.6 printed: `nft.txt` has what is understood of it.
#[test]
fn lists_of_nft_are_read() {
    let listed = of_nft_json(include_str!("foreign/nft.json")).unwrap();
    assert_eq!(listed.left_out, ["table bridge demo"]);
    let program = Program::new(listed.tables);
    let rules = program.chains().flat_map(|(_, chain)| &chain.rules);
    let lines: Vec<String> = rules.map(|id| program.line(*id)).collect();
    let wanted: Vec<&str> = include_str!("foreign/nft.txt").lines().collect();
    for (line, wanted) in lines.iter().zip(&wanted) {
        assert_eq!(line, wanted);
    }
    assert_eq!(lines.len(), wanted.len());
}

/// Verify that chains at interfaces and tables that are dormant are what they are, and that where nft
/// leaves out what it takes to know, that is what can't be told.
#[test]
fn what_lists_leave_out_is_named() {
    let outcome = |flags: &str, family: &str, hook: &str| {
        let place = format!(r#""family": "{family}", "table": "t""#);
        let text = format!(
            r#"{{"nftables": [{{"table": {{"family": "{family}", "name": "t"{flags}}}}},
            {{"chain": {{{place}, "name": "c", "type": "filter", "prio": 0, "policy": "accept", {hook}}}}},
            {{"rule": {{{place}, "chain": "c", "expr": [{{"drop": null}}]}}}}]}}"#
        );
        let program = Program::new(of_nft_json(&text).unwrap().tables);
        program.answer(&pod(), &out(1, "9.9.9.9:80")).outcome
    };
    let dropped = |outcome: Outcome| matches!(outcome, Outcome::Dropped { .. });
    let unknown = |outcome: Outcome| matches!(outcome, Outcome::Unknown { what } if what.contains("does not print"));
    let output = r#""hook": "output""#;
    assert!(dropped(outcome("", "inet", output)));
    assert!(dropped(outcome(r#", "flags": ["owner"]"#, "inet", output)));
    assert_eq!(outcome(r#", "flags": "dormant""#, "inet", output), passed());
    assert!(unknown(outcome(r#", "flags": "t""#, "inet", output)));
    let egress = |device: &str| format!(r#""hook": "egress", "dev": {device}"#);
    assert!(dropped(outcome("", "netdev", &egress(r#""eth0""#))));
    assert_eq!(outcome("", "netdev", &egress(r#"["lo", "eth1"]"#)), passed());
    assert!(unknown(outcome("", "netdev", r#""hook": "egress""#)));
}

/// Verify that two bytes of a header are ports only where the protocol has ports.
#[test]
fn bytes_are_ports_where_there_are_ports() {
    let th = |field: &str, op: &str, right: &str| {
        format!(
            r#"{{"match": {{"op": "{op}", "left": {{"payload": {{"protocol": "th", "field": "{field}"}}}}, "right": {right}}}}}"#
        )
    };
    let program = |chains: &[(&str, String)]| {
        let place = r#""family": "inet", "table": "t""#;
        let mut text = String::new();
        for (hook, expr) in chains {
            text = format!(
                r#"{text}, {{"chain": {{{place}, "name": "{hook}", "type": "filter", "hook": "{hook}", "prio": 0, "policy": "accept"}}}},
                {{"rule": {{{place}, "chain": "{hook}", "expr": [{expr}]}}}}"#
            );
        }
        let text =
            format!(r#"{{"nftables": [{{"table": {{"family": "inet", "name": "t"}}}}{text}]}}"#);
        Program::new(of_nft_json(&text).unwrap().tables)
    };
    let drop = |expr: String| program(&[("output", format!(r#"{expr}, {{"drop": null}}"#))]);
    let question = out(1000, "10.9.9.9:80");
    let icmp = Question { protocol: Protocol::ICMP, port: 0, source_port: 0, ..question.clone() };
    let of = |program: &Program, question: &Question| program.answer(&pod(), question).outcome;
    let ported = r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": {"set": ["tcp", "udp"]}}}"#;
    for (expr, tcp, other) in [
        (th("dport", "==", "80"), Some(true), None),
        (th("dport", "==", "81"), Some(false), None),
        (th("dport", "!=", "80"), Some(false), None),
        (th("dport", "<=", "65535"), Some(true), Some(true)),
        (th("dport", "<=", "1023"), Some(true), None),
        (th("sport", "==", "2048"), Some(false), None),
        (format!("{ported}, {}", th("dport", "==", "80")), Some(true), Some(false)),
    ] {
        let program = drop(expr.clone());
        for (question, is) in [(&question, tcp), (&icmp, other)] {
            let found = match of(&program, question) {
                Outcome::Dropped { .. } => Some(true),
                Outcome::Passed { .. } => Some(false),
                Outcome::Unknown { .. } => None,
                other => panic!("{expr}: {other:?}"),
            };
            assert_eq!(found, is, "{expr}, {question}");
            let classes = partition(&program, &pod());
            let class = classes.iter().find(|class| class.has(question)).unwrap();
            assert_eq!(class.answer.outcome, of(&program, question), "{expr}, {question}");
        }
    }
    // What tells a sender that it is refused has a type and a code there.
    let tcp = r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}"#;
    let own = Question { destination: "10.4.0.2".parse().unwrap(), ..question.clone() };
    for (range, told) in [("[768, 1023]", false), ("[0, 767]", true), ("[771, 771]", true)] {
        let expr = th("sport", "==", &format!(r#"{{"range": {range}}}"#));
        let refuses =
            format!(r#"{tcp}, {{"reject": {{"type": "icmpx", "expr": "port-unreachable"}}}}"#);
        let both =
            program(&[("input", refuses), ("output", format!(r#"{expr}, {{"drop": null}}"#))]);
        match (of(&both, &own), told) {
            (Outcome::Refused, true) | (Outcome::Dropped { .. }, false) => {}
            // The code is not modelled.
            (Outcome::Unknown { .. }, true) if range == "[771, 771]" => {}
            other => panic!("{range}: {other:?}"),
        }
    }
}
