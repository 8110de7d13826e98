//! Verify that every form of a rule is either walked or named: of iptables each extension that there
//! is, of saved nftables what it prints for forms that are easily taken for others.

#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]

use std::collections::BTreeSet;

use millrace_core::iptables::Dump;
use millrace_core::ruleset::Routing;
use millrace_core::sim::compare::compare;
use millrace_core::sim::{
    Change, Class, Identity, Namespace, Outcome, Program, Protocol, Question, of_dump, of_nft_json,
    partition,
};
use millrace_core::value::{Family, Groups};

fn pod() -> Namespace {
    Namespace::pod(&["10.4.0.2".parse().unwrap()], &Routing::default())
}

fn question() -> Question {
    let owner = Identity { uid: 1000, gid: 1000 };
    Question::out(owner, Protocol::TCP, "10.9.9.9:80".parse().unwrap())
}

/// What becomes of a connection, which `explain --all` and `diff` say as well.
fn outcome(program: &Program) -> Outcome {
    let pod = pod();
    let outcome = program.answer(&pod, &question()).outcome;
    let classes = partition(program, &pod);
    let class = classes.iter().find(|class| class.has(&question())).unwrap();
    assert_eq!(class.answer.outcome, outcome);
    let nothing = Program::new(Vec::new());
    let found = compare((program, &pod), (&nothing, &pod)).traffic;
    // What is done to a packet on its way is told as well.
    let ends = |class: &&Class<Change>| class.answer.before.outcome != class.answer.after.outcome;
    let changes = found.iter().filter(ends).any(|class| class.has(&question()));
    assert_eq!(changes, nothing.answer(&pod, &question()).outcome != outcome);
    outcome
}

fn iptables(table: &str, rule: &str) -> Outcome {
    let text = format!("*{table}\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT {rule}\nCOMMIT\n");
    let dump = Dump::parse(&text).unwrap();
    let mut nobody = |_, _: &str, _: &_| None;
    outcome(&Program::new(of_dump(&dump, Family::V4, "iptables", &Groups::new(), &mut nobody)))
}

/// What a form is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// It holds for the connection.
    Met,
    /// It does not.
    Missed,
    /// It can't be told.
    Named,
}

use Is::{Met, Missed, Named};

/// Every match of iptables 1.8, as it is saved.
const MATCHES: &[(&str, &str, Is)] = &[
    ("addrtype", "-m addrtype --dst-type LOCAL", Missed),
    ("addrtype", "-m addrtype ! --src-type LOCAL", Missed),
    ("addrtype", "-m addrtype --dst-type UNICAST", Met),
    ("addrtype", "-m addrtype ! --dst-type UNICAST", Missed),
    ("addrtype", "-m addrtype --dst-type BROADCAST,MULTICAST", Missed),
    ("addrtype", "-m addrtype --dst-type UNICAST --limit-iface-out", Named),
    ("addrtype", "-m addrtype --dst-type ANYCAST", Named),
    ("addrtype", "-m addrtype --dst-type LOCAL --limit-iface-in", Missed),
    ("ah", "-p ah -m ah --ahspi 500", Missed),
    ("bpf", "-m bpf --bytecode \"1,6 0 0 1\"", Named),
    ("cgroup", "-m cgroup --path a", Named),
    ("cgroup", "-m cgroup --cgroup 1", Named),
    (
        "cluster",
        "-m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 1",
        Named,
    ),
    ("comment", "-m comment --comment \"-j DROP\"", Met),
    (
        "connbytes",
        "-m connbytes --connbytes 1 --connbytes-mode packets --connbytes-dir both",
        Named,
    ),
    ("connlabel", "-m connlabel --label 1", Named),
    ("connlimit", "-m connlimit --connlimit-upto 2 --connlimit-mask 32 --connlimit-saddr", Named),
    ("connmark", "-m connmark --mark 0x0", Met),
    ("conntrack", "-m conntrack --ctstate NEW", Met),
    ("conntrack", "-m conntrack ! --ctstate NEW", Missed),
    ("conntrack", "-m conntrack --ctstatus CONFIRMED", Named),
    ("conntrack", "-m conntrack --ctorigdst 10.9.9.9", Met),
    ("conntrack", "-m conntrack ! --ctorigdst 10.9.0.0/16", Missed),
    ("conntrack", "-m conntrack --ctorigdstport 80:90", Met),
    ("conntrack", "-m conntrack --ctorigsrcport 1:90", Missed),
    ("conntrack", "-m conntrack --ctreplsrc 10.9.9.9", Named),
    ("conntrack", "-m conntrack --ctdir ORIGINAL", Met),
    ("cpu", "-m cpu --cpu 0", Named),
    ("dccp", "-p dccp -m dccp --dport 80", Named),
    ("devgroup", "-m devgroup --dst-group 0x1", Named),
    ("dscp", "-m dscp --dscp 0x0a", Named),
    ("ecn", "-p tcp -m ecn --ecn-tcp-cwr", Named),
    ("esp", "-p esp -m esp --espspi 1", Missed),
    (
        "hashlimit",
        "-m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 5 --hashlimit-name a",
        Named,
    ),
    ("helper", "-m helper --helper \"ftp\"", Named),
    ("icmp", "-p icmp -m icmp --icmp-type 8", Missed),
    ("ipcomp", "-m ipcomp --ipcompspi 1", Named),
    ("iprange", "-m iprange --dst-range 10.9.9.1-10.9.9.10", Met),
    ("iprange", "-m iprange ! --dst-range 10.9.9.1-10.9.9.10", Missed),
    ("ipvs", "-m ipvs --ipvs", Named),
    ("length", "-m length --length 60", Named),
    ("limit", "-m limit --limit 5/min", Named),
    ("mac", "-m mac --mac-source 00:11:22:33:44:55", Named),
    ("mark", "-m mark --mark 0x0/0xff", Met),
    ("mark", "-m mark ! --mark 0x0/0xff", Missed),
    ("multiport", "-p tcp -m multiport --dports 22,80", Met),
    ("multiport", "-p tcp -m multiport ! --ports 22,80", Missed),
    ("nfacct", "-m nfacct --nfacct-name a", Named),
    ("osf", "-p tcp -m osf --genre Linux", Named),
    ("owner", "-m owner --uid-owner 1000", Met),
    ("owner", "-m owner --socket-exists", Met),
    ("owner", "-m owner --gid-owner 1000 --suppl-groups", Named),
    ("physdev", "-m physdev --physdev-is-bridged", Named),
    ("pkttype", "-m pkttype --pkt-type unicast", Met),
    ("pkttype", "-m pkttype --pkt-type broadcast", Missed),
    ("pkttype", "-m pkttype ! --pkt-type multicast", Met),
    ("policy", "-m policy --dir out --pol none", Named),
    ("quota", "-m quota --quota 1000", Named),
    ("rateest", "-m rateest --rateest a --rateest-lt --rateest-bps 8bit", Named),
    ("realm", "-m realm --realm 0x1", Named),
    ("recent", "-m recent --rcheck --name a --mask 255.255.255.255 --rsource", Named),
    ("rpfilter", "-m rpfilter", Named),
    ("rpfilter", "-m rpfilter -p tcp", Named),
    ("rt", "-m rt --rt-type 0", Missed),
    ("rt", "-m rt ! --rt-type 0 --rt-segsleft 1:2 ! -d 10.1.1.1", Missed),
    ("frag", "-m frag --fragmore", Missed),
    ("sctp", "-p sctp -m sctp --dport 80", Missed),
    ("set", "-m set --match-set a dst", Named),
    ("socket", "-m socket", Named),
    ("socket", "-m socket ! -d 10.1.1.1", Named),
    ("socket", "-m socket --transparent", Named),
    ("state", "-m state --state NEW", Met),
    ("statistic", "-m statistic --mode random --probability 0.5", Named),
    ("string", "-m string --string \"-j DROP\" --algo bm", Named),
    ("tcp", "-p tcp -m tcp --dport 80", Met),
    ("tcp", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", Met),
    ("tcp", "-p tcp -m tcp --tcp-flags SYN SYN", Met),
    ("tcp", "-p tcp -m tcp --tcp-flags ALL NONE", Missed),
    ("tcp", "-p tcp -m tcp ! --tcp-flags SYN,RST SYN", Missed),
    // Whether it has those of ECN follows from settings of both sides.
    ("tcp", "-p tcp -m tcp --tcp-flags SYN,ECE SYN", Named),
    ("tcp", "-p tcp -m tcp --tcp-option 2", Named),
    ("tcpmss", "-p tcp -m tcpmss --mss 1:500", Named),
    ("time", "-m time --timestart 08:00 --timestop 18:00", Named),
    ("tos", "-m tos --tos 0x10/0x3f", Named),
    ("ttl", "-m ttl --ttl-eq 64", Named),
    ("u32", "-m u32 --u32 \"0x0=0x0\"", Named),
    ("udp", "-p udp -m udp --dport 80", Missed),
    ("what is new", "-m news --today", Named),
];

/// Verify every match. Those of IPv6 alone are read like these.
#[test]
fn every_match_of_iptables_is_walked_or_named() {
    let mut wrong = Vec::new();
    for (_, words, is) in MATCHES {
        let found = match iptables("filter", &format!("{words} -j DROP")) {
            Outcome::Dropped { .. } => Met,
            Outcome::Passed { .. } => Missed,
            Outcome::Unknown { .. } => Named,
            other => panic!("{words}: {other:?}"),
        };
        if found != *is {
            wrong.push(format!("{words}: {found:?}, not {is:?}"));
        }
        // What only notes may be passed over, whatever it asks.
        let noted = iptables("filter", &format!("{words} -j LOG"));
        assert!(matches!(noted, Outcome::Passed { .. }), "{words}: {noted:?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every target of iptables 1.8: the table, its words, and whether it lets a connection past, does
/// something else that is known, or can't be told.
const TARGETS: &[(&str, &str, Is)] = &[
    ("filter", "AUDIT --type accept", Missed),
    ("mangle", "CHECKSUM --checksum-fill", Missed),
    ("mangle", "CLASSIFY --set-class 0001:0002", Missed),
    ("filter", "CLUSTERIP --new", Named),
    ("mangle", "CONNMARK --set-xmark 0x1/0xffffffff", Missed),
    ("mangle", "CONNSECMARK --save", Named),
    ("raw", "CT --notrack", Missed),
    ("raw", "CT --zone 3", Missed),
    ("raw", "CT --helper ftp", Missed),
    ("raw", "CT --zone-orig 3", Named),
    ("nat", "DNAT --to-destination 10.4.0.2:8080", Met),
    ("nat", "DNAT --to-destination 10.4.0.2-10.4.0.9", Named),
    ("nat", "DNPT --src-pfx fd00::/64 --dst-pfx fd01::/64", Named),
    ("mangle", "DSCP --set-dscp 0x0a", Missed),
    ("mangle", "ECN --ecn-tcp-remove", Missed),
    ("mangle", "HMARK --hmark-tuple src --hmark-mod 2 --hmark-rnd 1", Named),
    ("filter", "IDLETIMER --timeout 5 --label a", Missed),
    ("filter", "LED --led-trigger-id a", Missed),
    ("filter", "LOG --log-prefix \"-j DROP \"", Missed),
    ("mangle", "MARK --set-xmark 0x1/0xffffffff", Missed),
    ("nat", "NETMAP --to 10.5.0.0/16", Named),
    ("filter", "NFLOG --nflog-group 1", Missed),
    ("filter", "NFQUEUE --queue-num 0", Named),
    ("raw", "NOTRACK", Missed),
    ("mangle", "RATEEST --rateest-name a --rateest-interval 250ms --rateest-ewmalog 500ms", Missed),
    ("nat", "REDIRECT --to-ports 8080", Met),
    ("nat", "REDIRECT --to-ports 8080-8081", Named),
    ("filter", "REJECT --reject-with icmp-port-unreachable", Met),
    ("filter", "DROP", Met),
    ("filter", "RETURN", Missed),
    ("filter", "ACCEPT", Missed),
    ("filter", "QUEUE", Named),
    ("mangle", "SECMARK --selctx a", Named),
    ("mangle", "SET --add-set a dst", Missed),
    ("mangle", "SET --map-set a dst --map-mark", Named),
    ("nat", "SNPT --src-pfx fd00::/64 --dst-pfx fd01::/64", Named),
    ("raw", "SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460", Named),
    ("mangle", "TCPMSS --clamp-mss-to-pmtu", Missed),
    ("mangle", "TCPOPTSTRIP --strip-options 3", Missed),
    ("mangle", "TEE --gateway 10.4.0.1", Missed),
    ("mangle", "TOS --set-tos 0x10/0x3f", Missed),
    ("raw", "TRACE", Missed),
    ("mangle", "TTL --ttl-set 64", Missed),
    ("mangle", "TTL --ttl-set 1", Named),
    ("mangle", "TTL --ttl-dec 1", Named),
    ("filter", "ULOG --ulog-nlgroup 1", Missed),
    ("filter", "NEWS --today", Named),
    ("filter", "NEWS", Named),
];

#[test]
fn every_target_of_iptables_is_carried_out_or_named() {
    for (table, words, is) in TARGETS {
        let found = match iptables(table, &format!("-p tcp -j {words}")) {
            Outcome::Passed { .. } => Missed,
            Outcome::Unknown { .. } => Named,
            _ => Met,
        };
        assert_eq!(found, *is, "{words}");
    }
}

/// Verify that the tables above have every extension of iptables, where its files are.
#[test]
fn no_extension_of_iptables_is_missing() {
    let known: BTreeSet<String> = MATCHES
        .iter()
        .map(|(name, ..)| (*name).to_owned())
        .chain(TARGETS.iter().filter_map(|(_, words, _)| Some(words.split(' ').next()?.to_owned())))
        .collect();
    // Those that are only IPv6's are asked for by the same code; the others have no name that rules use.
    let others = [
        "dst",
        "eui64",
        "frag",
        "hbh",
        "hl",
        "icmp6",
        "ipv6header",
        "mh",
        "rt",
        "srh",
        "standard",
        "NAT",
        "HL",
        "MASQUERADE",
        "SNAT",
        "TPROXY",
        "SET",
        "ip6t_ah",
    ];
    let folders = [
        "/usr/lib/x86_64-linux-gnu/xtables",
        "/usr/lib/aarch64-linux-gnu/xtables",
        "/usr/lib/xtables",
    ];
    for file in folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten() {
        let file = file.unwrap().file_name().into_string().unwrap();
        let Some((kind, name)) = file.strip_suffix(".so").and_then(|file| file.split_once('_'))
        else {
            continue;
        };
        if ["libxt", "libipt", "libip6t"].contains(&kind) {
            assert!(known.contains(name) || others.contains(&name), "{file}");
        }
    }
}

/// A rule of nft's JSON beside `drop`.
fn saved(expr: &str, sets: &str) -> Outcome {
    let place = r#""family": "inet", "table": "t""#;
    let text = format!(
        r#"{{"nftables": [{{"table": {{"family": "inet", "name": "t"}}}},{sets}
        {{"chain": {{{place}, "name": "c", "type": "filter", "hook": "output", "prio": 0, "policy": "accept"}}}},
        {{"rule": {{{place}, "chain": "c", "expr": [{expr}, {{"drop": null}}]}}}}]}}"#
    );
    outcome(&Program::new(of_nft_json(&text).unwrap().tables))
}

/// Conditions that look like others, and what nft 1.0 prints of them.
const SAVED: &[(&str, Is)] = &[
    (r#"{"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}"#, Missed),
    (r#"{"match": {"op": "!", "left": {"ct": {"key": "status"}}, "right": "dnat"}}"#, Met),
    (
        r#"{"match": {"op": "!", "left": {"ct": {"key": "status"}}, "right": ["snat", "dnat"]}}"#,
        Met,
    ),
    (
        r#"{"match": {"op": "==", "left": {"&": [{"ct": {"key": "status"}}, "dnat"]}, "right": 0}}"#,
        Met,
    ),
    (
        r#"{"match": {"op": "!=", "left": {"&": [{"ct": {"key": "status"}}, "dnat"]}, "right": 0}}"#,
        Missed,
    ),
    (
        r#"{"match": {"op": "==", "left": {"&": [{"ct": {"key": "status"}}, "dnat"]}, "right": "dnat"}}"#,
        Missed,
    ),
    // All of its bits are compared.
    (r#"{"match": {"op": "==", "left": {"ct": {"key": "status"}}, "right": "dnat"}}"#, Named),
    (r#"{"match": {"op": "!=", "left": {"ct": {"key": "status"}}, "right": "dnat"}}"#, Named),
    (
        r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "new"]}}"#,
        Met,
    ),
    (
        r#"{"match": {"op": "!", "left": {"ct": {"key": "state"}}, "right": ["established", "new"]}}"#,
        Missed,
    ),
    (
        r#"{"match": {"op": "==", "left": {"ct": {"key": "state"}}, "right": {"set": ["established", "new"]}}}"#,
        Met,
    ),
    (
        r#"{"match": {"op": "==", "left": {"ct": {"key": "state"}}, "right": {"|": ["established", "new"]}}}"#,
        Named,
    ),
    (
        r#"{"match": {"op": "==", "left": {"ct": {"key": "mark", "dir": "original"}}, "right": 0}}"#,
        Named,
    ),
    (r#"{"match": {"op": "==", "left": {"meta": {"key": "protocol"}}, "right": "ip"}}"#, Met),
    (r#"{"match": {"op": "==", "left": {"meta": {"key": "protocol"}}, "right": "ip6"}}"#, Missed),
    (
        r#"{"match": {"op": "==", "left": {"payload": {"tunnel": "vxlan", "protocol": "ip", "field": "daddr"}}, "right": "10.9.9.9"}}"#,
        Named,
    ),
    (
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "@plain"}}"#,
        Met,
    ),
    (
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "@counted"}}"#,
        Met,
    ),
    (
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "@timed"}}"#,
        Named,
    ),
    (
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "@limited"}}"#,
        Named,
    ),
    (
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "@grows"}}"#,
        Named,
    ),
    (
        r#"{"match": {"op": "==", "left": {"concat": [{"payload": {"protocol": "ip", "field": "daddr"}}, {"payload": {"protocol": "tcp", "field": "dport"}}]}, "right": {"set": [{"concat": ["10.9.9.9", 81]}, {"concat": [{"prefix": {"addr": "10.9.0.0", "len": 16}}, {"range": [79, 80]}]}]}}}"#,
        Met,
    ),
    (
        r#"{"match": {"op": "==", "left": {"concat": [{"payload": {"protocol": "ip", "field": "daddr"}}, {"payload": {"protocol": "tcp", "field": "dport"}}]}, "right": {"concat": ["10.9.9.9", 81]}}}"#,
        Missed,
    ),
    (
        r#"{"match": {"op": "!=", "left": {"concat": [{"payload": {"protocol": "ip", "field": "daddr"}}, {"payload": {"protocol": "tcp", "field": "dport"}}]}, "right": {"concat": ["10.9.9.9", 81]}}}"#,
        Named,
    ),
    (r#"{"mangle": {"key": {"ct": {"key": "zone", "dir": "original"}}, "value": 1}}"#, Named),
    (r#"{"last": null}"#, Met),
    (r#"{"counter": "named"}"#, Met),
    (r#"{"quota": "named"}"#, Named),
    (r#"{"limit": {"rate": 5, "burst": 5, "per": "second"}}"#, Named),
    (r#"{"flow": {"op": "add", "flowtable": "@f"}}"#, Named),
    (r#"{"queue": {"num": 0}}"#, Named),
    (r#"{"synproxy": {"mss": 1460, "wscale": 7, "flags": "timestamp"}}"#, Named),
    (r#"{"dup": {"addr": "10.9.9.9"}}"#, Named),
    (
        r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"map": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": {"set": [[80, 1], [443, 2]]}}}}}"#,
        Met,
    ),
    (
        r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"map": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": {"set": [[81, 1]]}}}}}"#,
        Missed,
    ),
    (
        r#"{"mangle": {"key": {"payload": {"protocol": "ip", "field": "dscp"}}, "value": "af11"}}"#,
        Named,
    ),
];

#[test]
fn saved_forms_are_walked_or_named() {
    let set = |name: &str, more: &str| {
        format!(
            r#"{{"set": {{"family": "inet", "table": "t", "name": "{name}", "type": "ipv4_addr", {more}}}}},"#
        )
    };
    let sets = [
        set("plain", r#""elem": ["10.9.9.9"]"#),
        set("counted", r#""elem": [{"elem": {"val": "10.9.9.9", "counter": {"packets": 0, "bytes": 0}}}]"#),
        set("timed", r#""flags": ["timeout"], "elem": [{"elem": {"val": "10.9.9.9", "timeout": 60, "expires": 9}}]"#),
        set("limited", r#""elem": [{"elem": {"val": "10.9.9.9", "limit": {"rate": 5, "per": "second"}}}]"#),
        set("grows", r#""flags": "dynamic", "elem": ["10.9.9.9"]"#),
    ]
    .concat();
    for (expr, is) in SAVED {
        let found = match saved(expr, &sets) {
            Outcome::Dropped { .. } => Met,
            Outcome::Passed { .. } => Missed,
            Outcome::Unknown { .. } => Named,
            other => panic!("{expr}: {other:?}"),
        };
        assert_eq!(found, *is, "{expr}");
    }
}

/// Verify that where a rule has done something already, one with a map is not done once for each element.
#[test]
fn what_is_done_before_a_map_is_done_once() {
    let vmap = r#"{"vmap": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": {"set": [[80, {"accept": null}], ["*", {"drop": null}]]}}}"#;
    let place = r#""family": "inet", "table": "t""#;
    let answer = |before: &str| {
        let text = format!(
            r#"{{"nftables": [{{"table": {{"family": "inet", "name": "t"}}}},
            {{"chain": {{{place}, "name": "c", "type": "filter", "hook": "output", "prio": 0, "policy": "accept"}}}},
            {{"rule": {{{place}, "chain": "c", "expr": [{before}{vmap}]}}}}]}}"#
        );
        outcome(&Program::new(of_nft_json(&text).unwrap().tables))
    };
    assert!(matches!(answer(""), Outcome::Passed { .. }));
    let marks = r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"^": [{"meta": {"key": "mark"}}, 1]}}},"#;
    assert!(matches!(answer(marks), Outcome::Unknown { .. }));
}

/// Verify that a refusal by a message of ICMP is for its family alone, which nft does not print; and that
/// rules of a table that is not listed are refused, as nobody knows whether they are called.
#[test]
fn what_nft_does_not_print_is_known_or_refused() {
    let place = r#""family": "inet", "table": "t""#;
    let table = r#"{"table": {"family": "inet", "name": "t"}},"#;
    let list = |table: &str, kind: &str| {
        let text = format!(
            r#"{{"nftables": [{table}
            {{"chain": {{{place}, "name": "c", "type": "filter", "hook": "output", "prio": 0, "policy": "accept"}}}},
            {{"rule": {{{place}, "chain": "c", "expr": [
                {{"match": {{"op": "==", "left": {{"meta": {{"key": "l4proto"}}}}, "right": "tcp"}}}},
                {{"reject": {{"type": "{kind}", "expr": "host-unreachable"}}}}]}}}}]}}"#
        );
        of_nft_json(&text)
    };
    let answer = |kind: &str| outcome(&Program::new(list(table, kind).unwrap().tables));
    // Of an IPv4 packet.
    assert_eq!(answer("icmp"), Outcome::Refused);
    assert_eq!(answer("icmpx"), Outcome::Refused);
    assert!(matches!(answer("icmpv6"), Outcome::Passed { .. }));
    let error = list("", "icmp").unwrap_err().to_string();
    assert!(error.contains("a table that is not there"), "{error}");
}
