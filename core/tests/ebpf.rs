//! Verify what the eBPF programs decide: the same as the rules of iptables for the same policy,
//! and that what they can't do is refused.

#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]

mod support;

use std::net::IpAddr;

use millrace_core::capture::to_iptables as rules;
use millrace_core::dialect::{istio, native};
use millrace_core::ebpf::{
    Addresses, Entry, IdMap, MAX_NETWORKS, Unsupported, beside, beside_entry, compile, judge, read,
};
use millrace_core::facts;
use millrace_core::ids::mapped;
use millrace_core::iptables::Dump;
use millrace_core::policy::{CapturePolicy, InboundMode, NetworkSelection};
use millrace_core::sim::{
    self, Identity, Listening, Namespace, Outcome, Program, Question, of_ebpf, of_ruleset,
};
use millrace_core::source::{Source, Sourced};
use millrace_core::value::{Cidr, Family};
use millrace_ebpf_common::{Class, Pod, Verdict};
use proptest::prelude::*;
use support::configs;
use support::programs::{POD, able, entry, questions};

fn judged(entry: &Entry, question: &Question) -> Verdict {
    let pod = Namespace::pod(&POD.map(|ip| ip.parse().unwrap()), &beside(&policy()).routing);
    judge(entry, &pod, question, None).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Verify the decisions against the simulator's walk through the rules of iptables, for 200,000
    /// pairs of policy and connection, of which more than half can happen. And that the walk through
    /// the same decisions as rules ends so, for the same reason, also when the policy has been read
    /// back from the pod's entry.
    #[test]
    fn the_programs_decide_what_the_rules_do(
        config in configs(),
        sources in prop::sample::subsequence(&["0.0.0.0/1", "10.0.0.0/8", "::/1"][..], 0..=3),
        questions in prop::collection::vec(questions(), 200),
    ) {
        let mut policy = able(config.policy());
        let network = |text: &str| Sourced::new(text.parse::<Cidr>().unwrap(), Source::Always);
        policy.inbound.except_sources = sources.into_iter().map(network).collect();
        let entry = entry(&policy);
        let (rest, known) = (beside_entry(&entry.pod), beside(&policy));
        prop_assert_eq!((rest.routing, rest.v6), (known.routing, known.v6));
        let ruleset = rules(&policy, &istio::LAYOUT);
        let program = Program::new(of_ruleset(&ruleset, &facts::groups("java:x:202:\n")));
        // What the programs decide, as rules: of the policy, and of the policy that is read back.
        let numbers = facts::groups("java:x:202:\n");
        let as_rules = |policy: &CapturePolicy| {
            Program::new(of_ebpf(policy, &numbers, Listening::ALL))
        };
        let (meant, found) = (as_rules(&policy), as_rules(&read(&entry, &native::DIALECT).unwrap()));
        let pod = Namespace::pod(&POD.map(|ip| ip.parse().unwrap()), &ruleset.routing);
        for question in questions {
            // What arrives for somebody else belongs to no socket here.
            let own = POD.iter().any(|ip| question.destination == ip.parse::<IpAddr>().unwrap());
            if question.direction == sim::Direction::In && !own {
                continue;
            }
            // The kernel routes nothing from an address of `lo` to elsewhere: there is no such
            // connection (`ip_route_output_key_hash_rcu()`).
            let inner = |ip: IpAddr| ip.is_loopback() || ip == "::6".parse::<IpAddr>().unwrap();
            let out = question.direction == sim::Direction::Out;
            if out && question.source.is_some_and(inner) && !own && !inner(question.destination) {
                continue;
            }
            let verdict = judge(&entry, &pod, &question, None).unwrap();
            for (program, whose) in [(&meant, "the policy's"), (&found, "the entry's")] {
                let answer = program.answer(&pod, &question);
                let port = match answer.outcome {
                    Outcome::Captured { port: Some(port), .. } => port,
                    Outcome::Dropped { .. } => continue,
                    Outcome::Unknown { what } => panic!("{question}: {what}"),
                    _ => 0,
                };
                prop_assert_eq!(verdict.port, port, "{}, {}: {:?}", question, whose, policy);
                let text = answer.decided.last().map(|id| program.rule(*id).text.as_str());
                let class = text.and_then(|text| text.split_once(": ")).map(|(class, _)| class);
                let class = class.unwrap_or("none");
                prop_assert_eq!(verdict.class.as_str(), class, "{}, {}: {:?}", question, whose, policy);
            }
            let wanted = match program.answer(&pod, &question).outcome {
                Outcome::Captured { port: Some(port), .. } => port,
                Outcome::Unknown { what } => panic!("{question}: {what}"),
                // The kernel lets nothing in that comes from a loopback address.
                Outcome::Dropped { .. } => continue,
                _ => 0,
            };
            prop_assert_eq!(verdict.port, wanted, "{}: {:?}\n{:?}", question, verdict, policy);
        }
    }
}

proptest! {
    /// Verify that a pod that is waiting for its policy has everything let past.
    #[test]
    fn a_waiting_pod_is_not_captured(question in questions(), inbound in any::<u16>()) {
        let waiting = Entry { pod: Pod::waiting(inbound, 7), ..entry(&policy()) };
        prop_assert!(!waiting.pod.is_policy());
        let verdict = judged(&waiting, &question);
        prop_assert_eq!(verdict.port, 0, "{}: {:?}", question, verdict);
    }
}

fn refused(change: impl FnOnce(&mut CapturePolicy)) -> Vec<Unsupported> {
    let mut policy = policy();
    change(&mut policy);
    compile(&policy, &facts::groups("")).map(|_| ()).unwrap_err().0
}

fn policy() -> CapturePolicy {
    let raw = istio::Raw::new(
        [("istio-service-cidr", "*"), ("istio-inbound-ports", "*")]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
        std::collections::BTreeMap::new(),
    );
    able(istio::resolve(&raw, &support::lines::facts()).unwrap().policy)
}

#[test]
fn what_can_not_be_done_is_refused_with_its_source() {
    let source = Source::Flag("--x".to_owned());
    assert_eq!(
        refused(|policy| policy.drop_invalid = Some(source.clone())),
        [Unsupported::DropInvalid(source.clone())]
    );
    let nic = Sourced::new("eth1".parse().unwrap(), source.clone());
    assert_eq!(
        refused(|policy| policy.interfaces.excluded.push(nic.clone())),
        [Unsupported::ExcludedInterface(source.clone())]
    );
    assert_eq!(
        refused(|policy| policy.interfaces.rerouted.push(nic.clone())),
        [Unsupported::ReroutedInterface(source.clone())]
    );
    let uids =
        (1..=9).map(|uid: u32| Sourced::new(uid.to_string().parse().unwrap(), source.clone()));
    assert_eq!(
        refused(|policy| policy.proxy.uids = uids.collect()),
        [Unsupported::Identities(source.clone())]
    );
    let tproxy = refused(|policy| {
        policy.inbound.mode = InboundMode::Tproxy {
            mark: Sourced::new("1337".parse().unwrap(), source.clone()),
            table: Sourced::new("133".parse().unwrap(), source.clone()),
            source: source.clone(),
        };
    });
    assert_eq!(tproxy, [Unsupported::Tproxy(source.clone())]);
    assert!(tproxy[0].to_string().contains("(flag --x)"), "{}", tproxy[0]);
}

/// Verify the limit: ten thousand networks are fine, and the first too many is not.
#[test]
fn networks_are_limited() {
    let host = |n: usize| {
        let n = u32::try_from(n).unwrap() + 0x0b00_0000;
        let cidr = Cidr::host(IpAddr::V4(n.into()));
        Sourced::new(cidr, Source::Always)
    };
    let mut policy = policy();
    policy.outbound.except_networks = (0..MAX_NETWORKS).map(host).collect();
    assert_eq!(compile(&policy, &facts::groups("")).unwrap().networks.len(), MAX_NETWORKS);
    let too_many = refused(|policy| {
        policy.outbound.except_networks = (0..=MAX_NETWORKS).map(host).collect();
    });
    assert_eq!(too_many, [Unsupported::Networks(MAX_NETWORKS + 1)]);
}

/// Verify what the smallest network around an address says of those around it.
#[test]
fn networks_in_networks_keep_what_holds_around_them() {
    let of = |text: &str| Sourced::new(text.parse::<Cidr>().unwrap(), Source::Always);
    let mut policy = policy();
    policy.outbound.networks = NetworkSelection::Only(vec![of("10.0.0.0/8"), of("10.96.0.0/16")]);
    policy.outbound.except_networks = vec![of("10.96.0.0/12"), of("10.200.0.1/32")];
    let entry = entry(&policy);
    let who = Identity { uid: 1000, gid: 1000 };
    let class = |to: &str| {
        let to = format!("{to}:80").parse().unwrap();
        judged(&entry, &Question::out(who, sim::Protocol::TCP, to)).class
    };
    assert_eq!(class("10.1.1.1"), Class::Network);
    assert_eq!(class("10.96.1.1"), Class::ExcludedNetwork);
    assert_eq!(class("10.97.1.1"), Class::ExcludedNetwork);
    assert_eq!(class("10.200.0.1"), Class::ExcludedNetwork);
    assert_eq!(class("10.200.0.2"), Class::Network);
    assert_eq!(class("11.0.0.1"), Class::OtherNetwork);
}

/// Verify that networks of IPv6 say nothing of IPv4, however large they are, also when they have been
/// read back.
#[test]
fn networks_of_ipv6_are_not_of_ipv4() {
    let of = |text: &str| Sourced::new(text.parse::<Cidr>().unwrap(), Source::Always);
    let who = Identity { uid: 1000, gid: 1000 };
    for all in ["::/0", "::/8", "::/80"] {
        let mut excluded = policy();
        excluded.ipv6.value = true;
        excluded.outbound.except_networks = vec![of(all), of("10.9.0.0/16")];
        let mut included = excluded.clone();
        included.outbound.except_networks.clear();
        included.outbound.networks = NetworkSelection::Only(vec![of("10.9.0.0/16"), of(all)]);
        for (policy, v4, named) in [
            (excluded, Class::Network, Class::ExcludedNetwork),
            (included, Class::OtherNetwork, Class::Network),
        ] {
            let found = entry(&policy);
            let again = read(&found, &native::DIALECT).unwrap();
            assert_eq!(
                again.outbound.networks.of(Family::V4).count(),
                policy.outbound.networks.of(Family::V4).count()
            );
            for entry in [&found, &entry(&again)] {
                let class = |to: &str| {
                    let to = to.parse().unwrap();
                    judged(entry, &Question::out(who, sim::Protocol::TCP, to)).class
                };
                assert_eq!(class("8.8.8.8:80"), v4, "{all}");
                assert_eq!(class("10.9.1.1:80"), named, "{all}");
                assert_eq!(class("[::7]:80"), named, "{all}");
            }
        }
    }
}

#[test]
fn ids_are_those_of_the_pods_user_namespace() {
    let users = IdMap::parse("0 100000 65536\n").unwrap();
    let entry = compile(&policy(), &facts::groups("")).unwrap();
    let in_pod = entry.clone().for_pod(&Addresses::default(), &users, &users).unwrap();
    assert_eq!(in_pod.pod.uids[0], 101_337);
    let few = IdMap::parse("0 100000 1000\n").unwrap();
    let error = entry.for_pod(&Addresses::default(), &few, &few).unwrap_err();
    assert_eq!(error.to_string(), "user 1337 is not mapped in the pod's user namespace");
    assert_eq!(mapped(&policy(), &facts::groups(""), &users, &users), Ok(()));
    let error = mapped(&policy(), &facts::groups(""), &few, &users).unwrap_err();
    assert_eq!(
        error.to_string(),
        "user 1337 (default of ENVOY_USER) is not mapped in the pod's user namespace, which has \
         0-999: name one that a process of the pod can have"
    );
    assert_eq!(mapped(&policy(), &facts::groups(""), &users, &few).unwrap_err().kind, "group");
}

/// Verify that a proxy is not told where a connection was meant to go that rules of others have led to
/// it, where the programs answer what it asks.
#[test]
fn what_others_redirect_has_no_original_destination() {
    let text = "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp --dport 9092 -j REDIRECT --to-ports 15001\nCOMMIT\n";
    let dump = Dump::parse(text).unwrap();
    let mut nobody = |_, _: &str, _: &_| None;
    let numbers = facts::groups("");
    let rules = sim::of_dump(&dump, Family::V4, "iptables", &numbers, &mut nobody);
    let mut policy = policy();
    policy.outbound.except_ports =
        vec![Sourced { value: "9092".parse().unwrap(), source: Source::Always }];
    let programs = of_ebpf(&policy, &numbers, Listening::ALL);
    let pod = Namespace::pod(&POD.map(|ip| ip.parse().unwrap()), &beside(&policy).routing);
    let who = Identity { uid: 1000, gid: 1000 };
    let question = Question::out(who, sim::Protocol::TCP, "9.9.9.9:9092".parse().unwrap());
    let original = |tables: Vec<sim::SourceTable>| {
        let found = Program::new(tables).answer(&pod, &question);
        let sim::Fate::Delivered { original, .. } = found.fate else { panic!("{found:?}") };
        original.to_string()
    };
    assert_eq!(original(rules.clone()), "9.9.9.9:9092");
    assert_eq!(original(programs.into_iter().chain(rules).collect()), "127.0.0.1:15001");
}

/// Verify that a captured connection comes from the address of the pod's enrolment, though routes have
/// changed since, and that it is not guessed where that address is gone.
#[test]
fn captured_connections_come_from_the_address_of_the_enrolment() {
    let policy = policy();
    let programs = of_ebpf(&policy, &facts::groups(""), Listening::ALL);
    let routing = beside(&policy).routing;
    let who = Identity { uid: 1000, gid: 1000 };
    let question = Question::out(who, sim::Protocol::TCP, "9.9.9.9:80".parse().unwrap());
    let fate = |addresses: &[&str], enrolled: &str| {
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let mut pod = Namespace::pod(&addresses, &routing);
        pod.enrolled = vec![enrolled.parse().unwrap()];
        Program::new(programs.clone()).answer(&pod, &question).fate
    };
    let from = |fate| {
        let sim::Fate::Delivered { source, .. } = fate else { panic!("{fate:?}") };
        source.ip().to_string()
    };
    assert_eq!(from(fate(&["10.1.0.2", "10.2.0.2"], "10.1.0.2")), "10.1.0.2");
    assert_eq!(from(fate(&["10.1.0.2", "10.2.0.2"], "10.2.0.2")), "10.2.0.2");
    assert_eq!(from(fate(&["10.1.0.3"], "10.1.0.2")), "10.1.0.3");
    let gone = fate(&["10.1.0.3", "10.2.0.2"], "10.1.0.2");
    assert!(matches!(gone, sim::Fate::Unknown { .. }), "{gone:?}");
}

/// Verify that a connection to an own address comes from that one, whatever source the routes prefer; and
/// that programs don't know a connection again whose source a rule has changed on its way to the pod's
/// own address: they take it for one from outside.
#[test]
fn what_stays_in_the_pod_comes_from_where_it_goes() {
    let policy = policy();
    let programs = of_ebpf(&policy, &facts::groups(""), Listening::ALL);
    let own = "10.4.0.2";
    let pod = Namespace::pod(&[own.parse().unwrap()], &beside(&policy).routing);
    let mut question = Question::out(
        Identity { uid: 1000, gid: 1000 },
        sim::Protocol::TCP,
        format!("{own}:8000").parse().unwrap(),
    );
    let text =
        "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j SNAT --to-source 10.77.0.9\nCOMMIT\n";
    let dump = Dump::parse(text).unwrap();
    let mut nobody = |_, _: &str, _: &_| None;
    let rules = sim::of_dump(&dump, Family::V4, "iptables", &facts::groups(""), &mut nobody);
    let alone = Program::new(programs.clone());
    let translated = Program::new(programs.into_iter().chain(rules).collect());
    let delivered = |program: &Program, question: &Question| {
        let found = program.answer(&pod, question);
        let sim::Fate::Delivered { port, source, .. } = found.fate else { panic!("{found:?}") };
        (port, source.ip().to_string())
    };
    assert_eq!(delivered(&alone, &question), (8000, own.to_owned()));
    assert_eq!(delivered(&translated, &question), (15006, "10.77.0.9".to_owned()));
    question.destination = "127.0.0.1".parse().unwrap();
    assert_eq!(delivered(&translated, &question), (8000, "10.77.0.9".to_owned()));
}
