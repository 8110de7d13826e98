//! Verify that many rules cost what they must and no more: rules in a row are looked up and not
//! asked one after the other, with the same result, and what takes too long ends by a limit that
//! is named.

#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]

use std::fmt::Write as _;
use std::net::IpAddr;

use millrace_core::iptables::Dump;
use millrace_core::ruleset::Routing;
use millrace_core::sim::compare::compare;
use millrace_core::sim::{
    Class, Identity, Namespace, Outcome, Program, Protocol, Question, RuleId, of_dump, partition,
};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;

fn pod() -> Namespace {
    let addresses = ["10.4.0.2", "fd00:4::2"].map(|a| a.parse().unwrap());
    Namespace::pod(&addresses, &Routing::default())
}

/// Rules of both families.
fn program(texts: [&str; 2]) -> Program {
    let mut nobody = |_, _: &str, _: &_| None;
    let tables = Family::ALL.into_iter().zip(texts).flat_map(|(family, text)| {
        of_dump(&Dump::parse(text).unwrap(), family, "iptables", &Groups::new(), &mut nobody)
    });
    Program::new(tables.collect())
}

const V4: [&str; 6] = ["10.4.0.2", "127.0.0.1", "10.9.9.9", "10.9.1.1", "10.7.0.7", "1.1.1.1"];
const V6: [&str; 4] = ["fd00:4::2", "::1", "fd09::9", "2001:db8::7"];

/// The words of a rule, of which some are its own and the others those of the whole row.
fn rule(six: bool, what: u8, own: u16, target: &str) -> String {
    let at = usize::from(own);
    let network = if six {
        format!("{}/{}", V6[at % V6.len()], [128, 64, 16][at % 3])
    } else {
        format!("{}/{}", V4[at % V4.len()], [32, 24, 16, 8][at % 4])
    };
    let port = [22, 53, 80, 443, 8080][at % 5];
    match what {
        0 => format!("-d {network} -j {target}"),
        1 => format!("-s {network} -p tcp -j {target}"),
        2 => format!("-p tcp -m tcp --dport {port} -j {target}"),
        3 => format!("-d {network} -p udp -m udp --dport {port}:9000 -j {target}"),
        4 => format!("-p tcp -m tcp --sport {port} -m mark --mark {} -j {target}", own % 3),
        5 => format!("-d {network} -m statistic --mode nth --every 2 --packet 0 -j {target}"),
        6 => format!("! -d {network} -j {target}"),
        // Rules of several kinds in turn.
        8 | 9 => rule(six, [0, 2, 1, 6, 3][at % 5], own / 5, target),
        _ => format!("-m owner --uid-owner {} -j {target}", own % 4),
    }
}

/// Rows of rules that are alike, in chains that jump to each other.
fn rules(six: bool) -> impl Strategy<Value = String> {
    let targets =
        ["RETURN", "ACCEPT", "A", "B", "MARK --set-xmark 0x1/0x1", "REDIRECT --to-ports 9"];
    let row = (0..10_u8, 1..24_u16, any::<u16>(), prop::sample::select(targets.to_vec()));
    let chain = || prop::collection::vec(row.clone(), 0..5);
    (chain(), chain(), chain(), chain()).prop_map(move |(output, prerouting, a, b)| {
        let mut text =
            "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                        :POSTROUTING ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n"
                .to_owned();
        for (chain, rows) in [("PREROUTING", prerouting), ("OUTPUT", output), ("A", a), ("B", b)] {
            for (what, length, start, target) in rows {
                // No chain jumps to itself.
                let target = match (chain, target) {
                    ("A", "A") => "B",
                    ("B", "A" | "B") => "RETURN",
                    (_, target) => target,
                };
                for own in 0..length {
                    let rule = rule(six, what, start.wrapping_add(own), target);
                    writeln!(text, "-A {chain} {rule}").unwrap();
                }
            }
        }
        text + "COMMIT\n"
    })
}

fn questions() -> impl Strategy<Value = Question> {
    let ports = || prop::sample::select(&[22_u16, 53, 80, 443, 8080, 31000][..]);
    let address = || prop::sample::select([V4.as_slice(), V6.as_slice()].concat());
    let protocols = [Protocol::TCP, Protocol::UDP, Protocol::ICMP];
    (
        address(),
        address(),
        ports(),
        ports(),
        prop::sample::select(protocols.to_vec()),
        0..5_u32,
        0..4_u32,
    )
        .prop_map(|(to, from, port, source_port, protocol, id, mark)| {
            let [to, from] = [to, from].map(|a| a.parse::<IpAddr>().unwrap());
            let to_pod = to.to_string().ends_with(":4::2") || to.to_string() == "10.4.0.2";
            let mut question = if to_pod && from.is_ipv4() == to.is_ipv4() {
                Question::inward(from, protocol, (to, port).into())
            } else {
                let who = Identity { uid: id, gid: id };
                Question { mark, ..Question::out(who, protocol, (to, port).into()) }
            };
            question.source_port = source_port;
            if !protocol.has_ports() {
                (question.port, question.source_port) = (0, 0);
            }
            question
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Verify that rules which are looked up do what they do one after the other, to connections
    /// and to classes of them.
    #[test]
    fn a_row_of_rules_does_what_its_rules_do(
        (v4, v6) in (rules(false), rules(true)),
        questions in prop::collection::vec(questions(), 60),
    ) {
        let (program, pod) = (program([&v4, &v6]), pod());
        let classes = partition(&program, &pod);
        let examples = classes.iter().map(|class| class.example.clone());
        // Some of these rules are more than all classes of are walked: then those say so, each by its name.
        let is_bounded = |class: &Class| {
            matches!(&class.answer.outcome, Outcome::Unknown { what } if what.starts_with("what all rules do"))
        };
        let bounded = classes.iter().any(is_bounded);
        for question in questions.into_iter().chain(examples) {
            // It says what each rule does, and so asks each.
            let one_by_one = program.explain(&pod, &question).answer;
            prop_assert_eq!(&one_by_one, &program.answer(&pod, &question), "{}", question);
            let own: Vec<&Class> = classes.iter().filter(|c| c.has(&question)).collect();
            if bounded || (question.interface.is_none() && question.source.is_some()) {
                continue;
            }
            prop_assert_eq!(own.len(), 1, "{}: {:?}", question, own);
            prop_assert_eq!(&own[0].answer.outcome, &one_by_one.outcome, "{}", question);
            // Of rules in a row that are alike each decides about its own values.
            let alike = |decided: &[RuleId]| -> Vec<RuleId> {
                decided.iter().map(|id| program.first_alike(*id)).collect()
            };
            let decided = alike(&own[0].answer.decided);
            prop_assert_eq!(decided, alike(&one_by_one.decided), "{}", question);
            if own[0].example == question {
                prop_assert_eq!(&own[0].answer.decided, &one_by_one.decided, "{}", question);
            }
        }
    }
}

fn to(address: &str) -> Question {
    Question::out(Identity { uid: 1000, gid: 1000 }, Protocol::TCP, address.parse().unwrap())
}

/// Fifteen chains, each of which calls the next one four times: 4^14 ways through sixty rules.
fn bomb() -> String {
    let mut text = "*nat\n:OUTPUT ACCEPT [0:0]\n".to_owned();
    for chain in 0..15 {
        writeln!(text, ":C{chain} - [0:0]").unwrap();
    }
    text.push_str("-A OUTPUT -j C0\n");
    for chain in 0..14 {
        for address in 0..4 {
            writeln!(text, "-A C{chain} -d 1.2.3.{address}/32").unwrap();
            writeln!(text, "-A C{chain} -j C{}", chain + 1).unwrap();
        }
    }
    text + "COMMIT\n"
}

/// Verify that a way without end is not gone, and that the answer says so, for one connection and
/// for all of them, and for what changes.
#[test]
fn a_way_that_is_too_long_is_named() {
    let (bomb, none, pod) = (program([&bomb(), ""]), program(["", ""]), pod());
    let unknown = |outcome: &Outcome| matches!(outcome, Outcome::Unknown { what } if what == "a way past more than 500000 rules");
    let explained = bomb.explain(&pod, &to("9.9.9.9:80"));
    assert!(unknown(&explained.answer.outcome), "{:?}", explained.answer.outcome);
    assert!(explained.there.len() < 600_000, "{} events", explained.there.len());
    assert_eq!(explained.answer, bomb.answer(&pod, &to("9.9.9.9:80")));
    let classes = partition(&bomb, &pod);
    let own: Vec<&Class> = classes.iter().filter(|c| c.has(&to("9.9.9.9:80"))).collect();
    assert!(own.len() == 1 && unknown(&own[0].answer.outcome), "{own:?}");
    let changes = compare((&none, &pod), (&bomb, &pod)).traffic;
    let one = changes.iter().find(|c| c.has(&to("9.9.9.9:80"))).unwrap();
    assert!(unknown(&one.answer.after.outcome), "{:?}", one.answer);
}

/// Verify that rules which tell connections apart in more ways than are looked at leave the rest
/// unknown, and say so, and that what is told before stays told.
#[test]
fn what_is_not_looked_at_is_unknown() {
    let mut text = "*nat\n:OUTPUT ACCEPT [0:0]\n".to_owned();
    for mark in 1..100 {
        writeln!(text, "-A OUTPUT -m mark --mark {mark:#x} -j ACCEPT").unwrap();
    }
    let (program, pod) = (program([&(text + "COMMIT\n"), ""]), pod());
    let classes = partition(&program, &pod);
    let of = |mark| {
        let question = Question { mark, ..to("9.9.9.9:80") };
        let own: Vec<&Class> = classes.iter().filter(|c| c.has(&question)).collect();
        assert_eq!(own.len(), 1, "{own:?}");
        own[0].answer.outcome.clone()
    };
    assert!(matches!(of(7), Outcome::Passed { .. }));
    let Outcome::Unknown { what } = of(99) else { panic!("{:?}", of(99)) };
    assert!(what.contains("more than 64 marks"), "{what}");
}

/// Verify that rules of two kinds in turn that do the same are few classes, of which all is told, however
/// many rules there are; and that the example's rule is the first that matches it.
#[test]
fn rules_in_turn_that_do_the_same_are_few_classes() {
    let mut text = "*filter\n:OUTPUT ACCEPT [0:0]\n".to_owned();
    for at in 0..4000_u32 {
        let (high, low) = (at >> 8, at & 255);
        writeln!(text, "-A OUTPUT -d 11.{high}.{low}.1/32 -p tcp -j DROP").unwrap();
        writeln!(text, "-A OUTPUT -s 10.0.0.0/8 -p tcp -m tcp --dport {} -j DROP", 2 * at + 1)
            .unwrap();
    }
    let (program, pod) = (program([&(text + "COMMIT\n"), ""]), pod());
    let classes = partition(&program, &pod);
    assert!(classes.len() < 60, "{} classes", classes.len());
    let is_told = |class: &&Class| !matches!(class.answer.outcome, Outcome::Unknown { .. });
    assert_eq!(classes.iter().filter(is_told).count(), classes.len());
    for (address, dropped) in [
        ("11.0.9.1:4000", true),
        ("9.9.9.9:19", true),
        ("11.0.9.1:19", true),
        ("11.0.8.1:19", true),
        ("9.9.9.9:20", false),
        ("11.0.9.2:8002", false),
    ] {
        let question = Question { source: Some("10.4.0.2".parse().unwrap()), ..to(address) };
        let own: Vec<&Class> = classes.iter().filter(|class| class.has(&question)).collect();
        assert_eq!(own.len(), 1, "{address}: {own:?}");
        let outcome = &own[0].answer.outcome;
        assert_eq!(matches!(outcome, Outcome::Dropped { .. }), dropped, "{address}: {outcome:?}");
        let example = program.answer(&pod, &own[0].example);
        assert_eq!(own[0].answer, example);
    }
}

/// Verify that what two sets of rules do differently is told of each connection, where each tells thousands
/// of ports and marks apart.
#[test]
fn rules_that_tell_much_apart_are_compared() {
    let rules = |from: u32| -> Vec<(u32, u32)> {
        (0..1500_u32).map(|at| (1 + (at * 37 + from) % 60_000, (at * 7 + from) % 250)).collect()
    };
    let text = |rules: &[(u32, u32)]| {
        let mut text = "*filter\n:OUTPUT ACCEPT [0:0]\n".to_owned();
        for (port, mark) in rules {
            writeln!(
                text,
                "-A OUTPUT -p tcp -m tcp --dport {port} -m mark --mark {mark:#x}/0xff -j DROP"
            )
            .unwrap();
        }
        text + "COMMIT\n"
    };
    let sets = [rules(0), rules(37 * 900)];
    let [before, after] = [0, 1].map(|side: usize| program([&text(&sets[side]), ""]));
    let pod = pod();
    let changes = compare((&before, &pod), (&after, &pod)).traffic;
    let (mut changed, mut same) = (0, 0);
    for (port, mark) in sets.iter().flatten().step_by(7) {
        let port = u16::try_from(*port).unwrap();
        for mark in [*mark, *mark | 0x100, *mark ^ 1] {
            let question = Question { mark, port, ..to("9.9.9.9:80") };
            let differs =
                before.answer(&pod, &question).outcome != after.answer(&pod, &question).outcome;
            assert_eq!(changes.iter().any(|class| class.has(&question)), differs, "{question}");
            *(if differs { &mut changed } else { &mut same }) += 1;
        }
    }
    assert!(changed > 100 && same > 100, "{changed} and {same}");
}
