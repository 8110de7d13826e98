//! Verify that eBPF programs decide what the rules of any mesh do, and that its policy is read back.

mod support;

use std::net::IpAddr;

use millrace_core::capture::to_iptables;
use millrace_core::dialect::{istio, native};
use millrace_core::ebpf::{beside, beside_entry, judge, read};
use millrace_core::facts;
use millrace_core::policy::{CapturePolicy, Local};
use millrace_core::sim::{
    self, Answer, Fate, Listening, Namespace, Outcome, Program, Question, of_ebpf, of_ruleset,
};
use millrace_ebpf_common::{Class, PodFlags};
use proptest::prelude::*;
use support::policies::policies;
use support::programs::{POD, able, entry, questions};

/// The port that a connection ends at, and by whose address, if that is not its own: 0 if it is let
/// past. None if it does not get anywhere.
fn end(answer: &Answer, question: &Question) -> Option<(u16, Option<IpAddr>)> {
    let at = match &answer.fate {
        Fate::Delivered { destination, .. } | Fate::Passed { destination, .. } => {
            Some(destination.ip())
        }
        _ => None,
    };
    Some(match &answer.outcome {
        Outcome::Captured { port, .. } | Outcome::Led { port, .. } => {
            (port.unwrap_or(question.port), at)
        }
        Outcome::Dropped { .. } => return None,
        Outcome::Unknown { what } => panic!("{question}: {what}"),
        _ => (0, at),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Verify the decisions against the simulator's walk through the rules of iptables, for 200,000
    /// pairs of policy and connection; that the walk through the same decisions as rules ends so, for the
    /// same reason; and that both is so of the policy that is read back from the pod's entry, which makes
    /// the same entry.
    #[test]
    fn the_programs_decide_what_the_rules_of_any_mesh_do(
        policy in policies(),
        questions in prop::collection::vec(questions(), 200),
    ) {
        let policy = able(policy);
        let entry = entry(&policy);
        let (rest, known) = (beside_entry(&entry.pod), beside(&policy));
        prop_assert_eq!((&rest.routing, rest.v6), (&known.routing, known.v6));
        let numbers = facts::groups("java:x:202:\n");
        let ruleset = to_iptables(&policy, &istio::LAYOUT);
        let program = Program::new(of_ruleset(&ruleset, &numbers));
        let as_rules =
            |policy: &CapturePolicy| Program::new(of_ebpf(policy, &numbers, Listening::ALL));
        let again = read(&entry, &native::DIALECT).unwrap();
        let mut conventions = policy.conventions;
        if conventions.local == Local::Addresses {
            // The programs tell both in the same way.
            conventions.local = Local::Lo;
        }
        prop_assert_eq!(&again.conventions, &conventions);
        let mut made = support::programs::entry(&again);
        if entry.pod.has(PodFlags::NAMES_LOOPBACK) {
            // Which address of loopback it was may be hidden by the network around it.
            made.networks.clone_from(&entry.networks);
        }
        prop_assert_eq!(&made, &entry);
        let (meant, found) = (as_rules(&policy), as_rules(&again));
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
            // What arrives under an address of the pod is forged. Rules that ask for the type of the source leave
            // it to the application; the programs capture it, as all that arrives.
            let forged = question.source.is_some_and(|ip| POD.iter().any(|own| ip == own.parse::<IpAddr>().unwrap()) || inner(ip));
            if policy.conventions.local == Local::Addresses && !out && forged {
                continue;
            }
            let verdict = judge(&entry, &pod, &question, None).unwrap();
            for (program, whose) in [(&meant, "the policy's"), (&found, "the entry's")] {
                let answer = program.answer(&pod, &question);
                let Some((port, _)) = end(&answer, &question) else { continue };
                prop_assert_eq!(verdict.port, port, "{}, {}: {:?}", question, whose, policy);
                let text = answer.decided.last().map(|id| program.rule(*id).text.as_str());
                let class = text.and_then(|text| text.split_once(": ")).map(|(class, _)| class);
                let class = class.unwrap_or("none");
                prop_assert_eq!(verdict.class.as_str(), class, "{}, {}: {:?}", question, whose, policy);
            }
            let answer = program.answer(&pod, &question);
            let Some((port, at)) = end(&answer, &question) else { continue };
            prop_assert_eq!(verdict.port, port, "{}: {:?}\n{:?}", question, verdict, policy);
            if verdict.port != 0 && matches!(verdict.class, Class::Dns | Class::OwnLocalhost) {
                let led = end(&meant.answer(&pod, &question), &question);
                prop_assert!(led.is_none_or(|led| led == (port, at)), "{}: {:?}", question, led);
            }
        }
    }
}
