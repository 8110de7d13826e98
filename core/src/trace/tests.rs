//! Packets as the kernel tells of them.

use std::time::Duration;

use proptest::prelude::*;

use super::report::{Handles, Rulebook, journey_json, journey_text};
use super::*;
use crate::iptables::Dump;
use crate::nft::expr::{Comparison, Expr, MetaField};
use crate::sim::{Direction, Program, Protocol, of_dump};
use crate::value::Groups;

const OWN: &str = "millrace-trace-7";

/// An IPv4 packet of TCP.
fn tcp(from: (u8, u16), to: (u8, u16), sequence: u32) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 6, 0, 0];
    bytes.extend([10, 0, 0, from.0, 10, 0, 0, to.0]);
    bytes.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0; 12]);
    bytes
}

/// The same of UDP.
fn udp(from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
    let mut bytes = tcp(from, to, 0);
    bytes[9] = 17;
    bytes
}

fn head(packet: &[u8], by: [Option<&str>; 2]) -> Option<Head> {
    let [input, output] = by.map(|name| name.map(str::to_owned));
    Head::of_packet(packet).map(|head| Head { input, output, ..head })
}

fn own(chain: &str, id: u32, head: Option<Head>) -> [Heard; 2] {
    let heard = |said, head| Heard {
        tables: Tables::Inet,
        table: OWN.to_owned(),
        chain: chain.to_owned(),
        said,
        id: Some(id),
        hook: None,
        head,
    };
    let first = match chain {
        filter::OUT | filter::IN => Said::Rule(RuleRef::Handle(1), TraceVerdict::On),
        _ => Said::Return,
    };
    [heard(first, head), heard(Said::Policy(TraceVerdict::On), None)]
}

fn rule(chain: &str, number: usize, packet: &[u8], hook: Hook) -> Heard {
    Heard {
        tables: Tables::Legacy(Family::V4),
        table: "nat".to_owned(),
        chain: chain.to_owned(),
        said: Said::Rule(RuleRef::Number(number), TraceVerdict::On),
        id: None,
        hook: Some(hook),
        head: head(packet, [None, Some("eth0")]),
    }
}

fn book() -> Rulebook {
    let text = "*nat\n:OUTPUT ACCEPT [0:0]\n:X - [0:0]\n-A OUTPUT -p tcp -j X\n\
                -A X -d 10.0.0.8/32 -j RETURN\n-A X -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n\
                *filter\n:INPUT DROP [0:0]\nCOMMIT\n";
    let dump = Dump::parse(text).unwrap();
    let tables = of_dump(&dump, Family::V4, "iptables-legacy", &Groups::new(), &mut |_, _, _| None);
    Rulebook { program: Program::new(tables), handles: Handles::new() }
}

const NOW: Duration = Duration::from_secs(100);

/// A packet that is redirected on its way out, as iptables-legacy and the own table tell of it.
fn redirected(follower: &mut Follower) {
    let (before, after) = (tcp((1, 4000), (9, 80), 5), tcp((1, 4000), (1, 15001), 5));
    let out = [None, Some("eth0")];
    for heard in own(filter::OUT, 1, head(&before, out)) {
        follower.hear([heard], NOW);
    }
    follower.hear([rule("OUTPUT", 1, &before, Hook::Output)], NOW);
    follower.hear([rule("X", 2, &before, Hook::Output)], NOW);
    for heard in own(filter::AWAY, 1, head(&after, [None, Some("lo")])) {
        follower.hear([heard], NOW);
    }
    for heard in own(filter::HERE, 2, head(&after, [Some("lo"), None])) {
        follower.hear([heard], NOW);
    }
}

#[test]
fn a_packet_is_followed_to_its_end_and_told_in_words() {
    let mut follower = Follower::new(OWN.to_owned(), false);
    redirected(&mut follower);
    let journeys = follower.ended(NOW);
    let [journey] = journeys.as_slice() else { panic!("{journeys:?}") };
    assert_eq!(
        journey_text(&book(), journey, "now"),
        "now from a process to 10.0.0.9:80/tcp\n\
         OUTPUT: tcp 10.0.0.1:4000 -> 10.0.0.9:80 out by eth0\n  \
         nat OUTPUT 1: -p tcp -j X\n      matched\n    \
         nat X 2: -p tcp -j REDIRECT --to-ports 15001\n        matched\n\
         INPUT: tcp 10.0.0.1:4000 -> 10.0.0.1:15001 in by lo\n\
         => delivered to 10.0.0.1 on port 15001, original destination 10.0.0.9:80, from \
         10.0.0.1:4000\n"
    );
    let json = journey_json(&book(), journey, "now");
    assert_eq!(json["fate"]["port"], 15001);
    assert_eq!(json["way"][2]["rule"]["number"], 2);
    assert!(follower.rest().is_empty());
}

#[test]
fn what_others_trace_is_not_followed() {
    let mut follower = Follower::new("millrace-trace-8".to_owned(), false);
    redirected(&mut follower);
    assert!(follower.rest().is_empty());
}

#[test]
fn what_leaves_what_is_dropped_and_what_is_silent() {
    let mut follower = Follower::new(OWN.to_owned(), false);
    let packet = tcp((1, 4000), (8, 80), 5);
    let begin = |follower: &mut Follower, chain: &str, by| {
        for heard in own(chain, 1, head(&packet, by)) {
            follower.hear([heard], NOW);
        }
    };
    begin(&mut follower, filter::OUT, [None, Some("eth0")]);
    begin(&mut follower, filter::AWAY, [None, Some("eth0")]);
    let left = follower.ended(NOW);
    assert!(journey_text(&book(), &left[0], "").contains("=> leaves by eth0 to 10.0.0.8:80"));

    begin(&mut follower, filter::IN, [Some("eth0"), None]);
    let policy = Heard {
        table: "filter".to_owned(),
        // The chain has no rules: what comes first is what it ends with.
        ..rule("INPUT", 1, &packet, Hook::Input)
    };
    follower.hear([policy], NOW);
    assert!(follower.ended(NOW).is_empty());
    let dropped = follower.ended(NOW + Duration::from_secs(1));
    let text = journey_text(&book(), &dropped[0], "");
    assert!(text.contains("from outside") && text.contains("=> dropped: policy of filter INPUT"));

    begin(&mut follower, filter::IN, [Some("eth0"), None]);
    let silent = follower.rest();
    let text = journey_text(&book(), &silent[0], "");
    assert!(text.contains("=> can't be told: the kernel told no more of it"), "{text}");
}

#[test]
fn of_udp_the_first_packet_of_each_connection_is_told() {
    let (there, back) = (udp((1, 4000), (9, 53)), udp((9, 53), (1, 4000)));
    let send = |follower: &mut Follower, begin, packet: &[u8], now| {
        let head = || head(packet, [None, Some("eth0")]);
        for heard in own(begin, 1, head()).into_iter().chain(own(filter::AWAY, 1, head())) {
            follower.hear([heard], now);
        }
        follower.ended(now).len()
    };
    for (every, expected) in [(false, [1, 0, 0, 1]), (true, [1, 1, 1, 1])] {
        let mut follower = Follower::new(OWN.to_owned(), every);
        let reported = [
            send(&mut follower, filter::OUT, &there, NOW),
            send(&mut follower, filter::IN, &back, NOW),
            send(&mut follower, filter::OUT, &there, NOW + Duration::from_secs(20)),
            send(&mut follower, filter::OUT, &there, NOW + Duration::from_mins(1)),
        ];
        assert_eq!(reported, expected);
    }
}

#[test]
fn a_filter_asks_only_where_it_can_match() {
    let chains = |filter: &Filter| {
        let table = filter.table().unwrap();
        table.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    let all = Filter::default();
    assert_eq!(chains(&all), [filter::HERE, filter::AWAY, filter::OUT, filter::IN]);
    let owned = Filter { uid: crate::value::Uid::new(1000), ..Filter::default() };
    assert_eq!(chains(&owned), [filter::HERE, filter::AWAY, filter::OUT]);
    let inward = Filter { direction: Some(Direction::In), ..Filter::default() };
    assert_eq!(chains(&inward), [filter::HERE, filter::AWAY, filter::IN]);
    let both = Filter { direction: Some(Direction::In), ..owned };
    assert_eq!(both.table(), Err(Unfilterable::Stranger));
    let families = Filter {
        source: "10.0.0.1/32".parse().ok(),
        destination: "fd00::/64".parse().ok(),
        ..Filter::default()
    };
    assert_eq!(families.table(), Err(Unfilterable::Families));
    let icmp = Filter { protocol: Some(Protocol::ICMP), ..Filter::default() };
    let port = crate::value::PortRange::single(crate::value::Port::new(1));
    let asked = Filter { port: Some(port), ..icmp.clone() };
    assert_eq!(asked.table(), Err(Unfilterable::Portless(Protocol::ICMP)));
    // Every rule ends with what makes the kernel tell, and what comes by lo is not from outside.
    for (name, chain) in icmp.table().unwrap().iter().filter(|(n, _)| n.starts_with("begin")) {
        let [Ok(rule)] = chain.rules.as_slice() else { panic!("{chain:?}") };
        assert!(rule.ends_with(&[Expr::Load(vec![1]), Expr::StoreMeta(MetaField::Traced)]));
        let not_lo =
            matches!(rule.get(1), Some(Expr::Compare(Comparison::Ne, n)) if n[..2] == *b"lo");
        assert_eq!(not_lo, name == filter::IN);
    }
}

#[test]
fn a_head_is_read_of_both_families() {
    let head = Head::of_packet(&tcp((1, 4000), (9, 80), 77)).unwrap();
    assert_eq!((head.to(), head.tag), ("10.0.0.9:80".to_owned(), 77));
    let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    v6.extend([0xfd; 16]);
    v6.extend([0; 15]);
    v6.extend([1, 0x10, 0, 0, 53, 0, 8, 0, 0]);
    let head = Head::of_packet(&v6).unwrap();
    assert_eq!((head.to(), head.tag), ("[::1]:53".to_owned(), 8));
}

proptest! {
    #[test]
    fn no_packet_is_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _head = Head::of_packet(&bytes);
    }
}
