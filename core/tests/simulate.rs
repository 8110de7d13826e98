//! Verify the simulator: what becomes of connections under rules, and that rules which mean the
//! same have the same effect, in whatever language they are.

#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]

mod support;

use std::net::{IpAddr, SocketAddr};

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::{istio, native};
use millrace_core::iptables::Dump;
use millrace_core::nft;
use millrace_core::ruleset::Ruleset;
use millrace_core::sim::{
    Class, Direction, Fate, How, Identity, Known, Namespace, Outcome, Program, Protocol, Question,
    Reply, changes, of_dump, of_native, of_nft, of_ruleset, partition,
};
use proptest::prelude::*;
use support::connections::{groups, questions, wide_pod};
use support::{RandomConfig, configs, lines, restore};

fn pod(ruleset: &Ruleset) -> Namespace {
    let addresses = ["10.4.0.2", "fd00:4::2"].map(|a| a.parse().unwrap());
    Namespace::pod(&addresses, &ruleset.routing)
}

fn program(line: &str) -> (Program, Namespace) {
    let ruleset = lines::ruleset(line);
    (Program::new(of_ruleset(&ruleset, &groups())), pod(&ruleset))
}

fn who(id: u32) -> Identity {
    Identity { uid: id, gid: id }
}

fn out(id: u32, to: &str) -> Question {
    Question::out(who(id), Protocol::TCP, to.parse().unwrap())
}

fn inward(to: &str) -> Question {
    Question::inward("10.1.2.3".parse().unwrap(), Protocol::TCP, to.parse().unwrap())
}

fn captured(port: u16) -> Outcome {
    Outcome::Captured { port: Some(port), how: How::Translated }
}

fn passed() -> Outcome {
    Outcome::Passed { interface: "eth0".to_owned(), masked: false }
}

/// Verify the fates that a default sidecar is made for, with the answers to them.
#[test]
fn a_sidecar_captures_what_it_should() {
    let (program, pod) = program("istio-iptables -u 1337 -b * -i * -d 15090,15021");
    let cases = [
        (out(1000, "10.9.9.9:80"), captured(15001)),
        (out(1000, "[fd09::9]:80"), captured(15001)),
        (out(1337, "10.9.9.9:80"), passed()),
        (out(1000, "127.0.0.1:80"), Outcome::Delivered),
        (out(1000, "10.4.0.2:80"), Outcome::Delivered),
        (out(1337, "10.4.0.2:80"), captured(15006)),
        (out(1337, "10.4.0.2:15008"), Outcome::Delivered),
        (inward("10.4.0.2:8080"), captured(15006)),
        (inward("10.4.0.2:15021"), Outcome::Delivered),
        (Question { protocol: Protocol::UDP, ..out(1000, "10.9.9.9:53") }, passed()),
        (
            Question { source: Some("127.0.0.6".parse().unwrap()), ..out(1337, "10.4.0.2:80") },
            Outcome::Delivered,
        ),
    ];
    for (question, outcome) in cases {
        let explained = program.explain(&pod, &question);
        assert_eq!(explained.answer.outcome, outcome, "{question}");
        assert_eq!(explained.answer, program.answer(&pod, &question), "{question}");
        assert_eq!(explained.reply, Some(Reply::Arrives), "{question}");
    }
}

/// Verify that the proxy learns where a captured connection was meant to go.
#[test]
fn the_original_destination_is_known() {
    let (program, pod) = program("istio-iptables -u 1337 -b * -i *");
    let to: SocketAddr = "10.9.9.9:80".parse().unwrap();
    let answer = program.answer(&pod, &out(1000, "10.9.9.9:80"));
    let Fate::Delivered { port, original, destination, source, .. } = answer.fate else {
        panic!("{:?}", answer.fate)
    };
    assert_eq!((port, original), (15001, to));
    assert_eq!(destination, "127.0.0.1:15001".parse().unwrap());
    assert_eq!(source.ip(), "10.4.0.2".parse::<IpAddr>().unwrap());
    let rule = answer.decided.last().map(|id| program.line(*id)).unwrap();
    assert!(rule.contains("REDIRECT --to-ports 15001"), "{rule}");
}

/// Verify TPROXY: the packet keeps its addresses, the answer comes back from the address asked,
/// and its packets find the proxy by the connection's mark.
#[test]
fn a_transparent_proxy_takes_what_arrives() {
    let (program, pod) = program("istio-iptables -u 1337 -b * -m TPROXY -d 15021");
    let explained = program.explain(&pod, &inward("10.4.0.2:8080"));
    let how = Outcome::Captured { port: Some(15006), how: How::Transparent };
    assert_eq!(explained.answer.outcome, how);
    assert_eq!(explained.reply, Some(Reply::Arrives));
    let answer = program.answer(&pod, &inward("10.4.0.2:15021"));
    assert_eq!(answer.outcome, Outcome::Delivered);
}

/// Verify that a packet which belongs to no connection is dropped where that is wanted.
#[test]
fn invalid_packets_are_dropped_on_demand() {
    let (program, pod) = program("istio-iptables -u 1337 -b * --drop-invalid");
    let stray = Question { known: Known::Invalid, ..inward("10.4.0.2:8080") };
    assert!(matches!(program.answer(&pod, &stray).outcome, Outcome::Dropped { .. }));
}

fn programs(config: &RandomConfig) -> (Program, Program, [Program; 2], Namespace) {
    let (policy, groups) = (config.policy(), groups());
    let iptables = to_iptables(&policy, &istio::LAYOUT);
    let theirs = nft::guarded(to_nft(&policy, &istio::NFT_LAYOUT, true));
    let ours = nft::merge(&to_nft(&policy, &native::NFT_LAYOUT, true));
    (
        Program::new(of_ruleset(&iptables, &groups)),
        Program::new(of_nft(&theirs, &groups)),
        [
            Program::new(of_nft(&ours, &groups)),
            Program::new(of_native(&ours.native(&groups).unwrap())),
        ],
        wide_pod(&iptables),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Verify that the rules of iptables, the nftables of the reference's layout and those of our
    /// own do the same with every connection.
    #[test]
    fn every_backend_has_the_same_effect(
        config in configs(),
        questions in prop::collection::vec(questions(), 20),
    ) {
        let (iptables, theirs, [ours, kernel], pod) = programs(&config);
        for question in questions {
            let found = iptables.answer(&pod, &question);
            // Whoever drops it, and why: nobody but the proxy gets what is captured.
            let unheard = |program: &Program| {
                let found = program.unheard(&pod, &question, &found.fate)?;
                Some(match found.outcome {
                    Outcome::Dropped { .. } => Outcome::Dropped { why: String::new() },
                    other => other,
                })
            };
            let silent = unheard(&iptables);
            if let Some(silent) = &silent {
                let kept = match silent {
                    Outcome::Dropped { .. } | Outcome::Refused => true,
                    // The way back is by another interface than it came by.
                    Outcome::Unknown { what } => {
                        question.interface.as_ref().is_some_and(|by| by != "eth0")
                            && what == "whether the sender hears of it: what tells it leaves by eth0"
                    }
                    _ => false,
                };
                prop_assert!(kept, "{question}: {silent}");
            }
            for (name, program) in [("reference", &theirs), ("own", &ours), ("kernel", &kernel)] {
                prop_assert_eq!(&silent, &unheard(program), "{}: {}", name, question);
            }
            let wanted = found.outcome;
            // With nftables the reference drops invalid packets of TCP alone.
            if question.known != Known::Invalid || question.protocol == Protocol::TCP {
                let other = theirs.answer(&pod, &question).outcome;
                prop_assert_eq!(&wanted, &other, "layout of the reference: {}", question);
            }
            // Within the pod, the reference's rules let the application have what another connection
            // announced; ours take nothing that starts one for a part of another.
            let announced = matches!(question.known, Known::Related(_))
                && question.protocol == Protocol::TCP
                && question.direction == Direction::Out;
            if announced {
                continue;
            }
            let own = ours.answer(&pod, &question).outcome;
            prop_assert_eq!(&wanted, &own, "own layout: {}", question);
            let own = kernel.answer(&pod, &question).outcome;
            prop_assert_eq!(&wanted, &own, "own layout in the kernel's terms: {}", question);
        }
    }

    /// Verify that rules which have been through text are the same rules to the simulator, whether
    /// they are read as Millrace's or as anybody's.
    #[test]
    fn text_means_what_it_was_made_of(
        config in configs(),
        questions in prop::collection::vec(questions(), 10),
    ) {
        // The guard is no rule of iptables.
        let ruleset = Ruleset { guard: None, ..config.ruleset() };
        let typed = Program::new(of_ruleset(&ruleset, &groups()));
        let mut read = Vec::new();
        let mut unread = Vec::new();
        let mut nobody = |_, _: &str, _: &_| None;
        for family in ruleset.families() {
            let mut dump = Dump::default();
            restore(&mut dump, &millrace_core::iptables::render_restore(&ruleset, family));
            read.extend(of_dump(&dump, family, "iptables", &groups(), &mut nobody));
            for rule in dump.tables.iter_mut().flat_map(|t| &mut t.chains).flat_map(|c| &mut c.rules) {
                rule.rule = Err(millrace_core::iptables::UnknownRule("a stranger's".to_owned()));
            }
            unread.extend(of_dump(&dump, family, "iptables", &groups(), &mut nobody));
        }
        let (read, unread) = (Program::new(read), Program::new(unread));
        let pod = wide_pod(&ruleset);
        for question in questions {
            let wanted = typed.answer(&pod, &question);
            prop_assert_eq!(&wanted.outcome, &read.answer(&pod, &question).outcome);
            prop_assert_eq!(&wanted.outcome, &unread.answer(&pod, &question).outcome);
        }
    }
}

/// Verify that what changes is told of two sets of rules that have little in common: together they
/// tell far more connections apart than each of them.
#[test]
fn changes_between_unlike_rules_are_told() {
    let rules = [
        "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=127.0.0.0/8 ISTIO_OUTBOUND_OWNER_GROUPS=888 \
         ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE=888,999 istio-iptables -u 3,4 -g 1,2 -m TPROXY \
         -b 15020,15021,15090 -d 80,443 -c cali+ -i fd00::/8 -x 0.0.0.0/0 -q 32000,31000 -o 80,443 \
         --istio-inbound-tproxy-mark 42 --istio-inbound-tproxy-route-table 77 --drop-invalid \
         --match-any-proxy-id",
        "ISTIO_OUTBOUND_OWNER_GROUPS=888 istio-iptables -u 1337,0 -g 1,2 -m TPROXY -b * \
         -d 15020,15021,15090 -c eth8,eth9 -i 10.1.2.3/8 -x 0.0.0.0/0 -q 32000,31000 -o 1,2,3, \
         -k eth1,eth2 --istio-inbound-tproxy-mark 1337 --istio-inbound-tproxy-route-table 133 \
         --drop-invalid",
    ];
    let rules = rules.map(lines::ruleset);
    let [one, other] = [0, 1].map(|at| Program::new(of_ruleset(&rules[at], &groups())));
    let [here, there] = [0, 1].map(|at| wide_pod(&rules[at]));
    let changes = changes((&one, &here), (&other, &there));
    assert!(!changes.is_empty());
    for Class { example, answer, .. } in &changes {
        let sides = [
            (&answer.before, one.answer(&here, example)),
            (&answer.after, other.answer(&there, example)),
        ];
        for (told, own) in sides {
            assert!(!matches!(told.outcome, Outcome::Unknown { .. }), "{example}: {told:?}");
            assert_eq!(*told, own, "{example}");
        }
    }
    let question = Question {
        source: Some("fd00:4::2".parse().unwrap()),
        source_port: 0,
        protocol: Protocol::ICMP,
        mark: 7,
        ..Question::out(Identity { uid: 4, gid: 3 }, Protocol::ICMP, "[::1]:0".parse().unwrap())
    };
    let [was, is] = [one.answer(&here, &question), other.answer(&there, &question)];
    assert_eq!(was.outcome, is.outcome, "{question}");
    assert!(!changes.iter().any(|class| class.has(&question)), "{question}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    /// Verify that every connection is in exactly one class, and has its outcome.
    #[test]
    fn classes_are_complete_and_free_of_overlaps(
        config in configs(),
        questions in prop::collection::vec(questions(), 100),
    ) {
        let ruleset = config.ruleset();
        let program = Program::new(of_ruleset(&ruleset, &groups()));
        let pod = wide_pod(&ruleset);
        let classes = partition(&program, &pod);
        let examples: Vec<Question> = classes.iter().map(|class| class.example.clone()).collect();
        for question in questions.iter().chain(&examples) {
            let question = Question { known: Known::New, ..question.clone() };
            let bindable = question.direction == Direction::In
                || question.source.is_none_or(|source| source != "::6".parse::<IpAddr>().unwrap());
            if !bindable {
                continue;
            }
            let own: Vec<&Class> = classes.iter().filter(|c| c.has(&question)).collect();
            prop_assert_eq!(own.len(), 1, "{}: {:?}", question, own);
            let answer = program.answer(&pod, &question);
            prop_assert_eq!(&own[0].answer.outcome, &answer.outcome, "{}", question);
            prop_assert_eq!(&own[0].answer.decided, &answer.decided, "{}", question);
        }
    }

    /// Verify that exactly the connections of which something else becomes are said to change.
    #[test]
    fn changes_are_complete_and_free_of_overlaps(
        (before, after) in (configs(), configs()),
        questions in prop::collection::vec(questions(), 100),
    ) {
        let [first, second] = [&before, &after].map(RandomConfig::ruleset);
        let [one, other] = [&first, &second].map(|r| Program::new(of_ruleset(r, &groups())));
        let [here, there] = [&first, &second].map(wide_pod);
        let changes = changes((&one, &here), (&other, &there));
        for question in questions {
            let question = Question { known: Known::New, ..question };
            let own = changes.iter().filter(|class| class.has(&question)).count();
            let [was, is] = [one.answer(&here, &question), other.answer(&there, &question)];
            let both_dropped = [&was, &is]
                .iter()
                .all(|answer| matches!(answer.outcome, Outcome::Dropped { .. }));
            let bindable = question.direction == Direction::In
                || question.source.is_none_or(|source| source != "::6".parse::<IpAddr>().unwrap());
            if bindable {
                let differs = was.outcome != is.outcome && !both_dropped;
                prop_assert_eq!(own, usize::from(differs), "{}", question);
            }
        }
    }
}
