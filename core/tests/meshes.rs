//! Verify what meshes differ in: whatever they take for granted, every backend and every style of rules
//! has the same effect.

mod support;

use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::{DIALECTS, Dialect, Mesh, istio, native};
use millrace_core::infer::{infer, policy as policy_of, read_native};
use millrace_core::iptables::{Dump, render_restore};
use millrace_core::nft;
use millrace_core::ownership::Footprint;
use millrace_core::policy::{
    CapturePolicy, Conventions, DnsConvention, ExceptPorts, Local, Phase, SelfCall,
};
use millrace_core::ruleset::{
    Chain, ChainName, Comment, Home, Layout, Match, Role, Rule, Ruleset, Style,
};
use millrace_core::sim;
use millrace_core::sim::{
    How, Identity, Known, Outcome, Program, Question, of_native, of_nft, of_ruleset,
};
use millrace_core::value::Family;
use proptest::prelude::*;
use support::connections::{groups, questions, wide_pod};
use support::policies::policies;
use support::restore;

static INLINED: [ChainName; 6] = [
    ChainName::known("ISTIO_REDIRECT"),
    ChainName::known("ISTIO_IN_REDIRECT"),
    ChainName::known("ISTIO_OUTPUT_DNS"),
    ChainName::known("ISTIO_DIVERT"),
    ChainName::known("ISTIO_TPROXY"),
    ChainName::known("ISTIO_DROP"),
];

/// The style of a mesh that has two chains, lists and comments.
static COMPACT: Layout = layout(Style {
    dns_chain: false,
    inlined: &INLINED,
    multiport: &[Role::ExcludedPort, Role::ExcludedInboundPort],
    tcp_jump: false,
    any_protocol: &[Role::ExcludedUser, Role::SelfCall],
    tcp: &[Role::StaysInPod],
    at_head: &[Role::ExcludedSource, Role::ExcludedInboundPort],
    sources_first: true,
    empty_jumps: false,
    comment: Some(comment),
});

/// The same without any of it.
static PLAIN: Layout = layout(Style::PLAIN);

const fn layout(style: Style) -> Layout {
    Layout {
        inbound: ChainName::known("ISTIO_INBOUND"),
        redirect: ChainName::known("ISTIO_REDIRECT"),
        in_redirect: ChainName::known("ISTIO_IN_REDIRECT"),
        output: ChainName::known("ISTIO_OUTPUT"),
        output_dns: ChainName::known("ISTIO_OUTPUT_DNS"),
        divert: ChainName::known("ISTIO_DIVERT"),
        tproxy: ChainName::known("ISTIO_TPROXY"),
        drop: ChainName::known("ISTIO_DROP"),
        tagged: false,
        guard: Some(&istio::NFT_LAYOUT),
        passthrough: Home::Loopback,
        style,
    }
}

fn comment(chain: &Chain, rule: &Rule) -> Option<Comment> {
    format!("mesh/{} {}", chain.as_str(), rule.matches.len()).parse().ok()
}

fn with_style(policy: &CapturePolicy, layout: &Layout) -> (Ruleset, Program) {
    let ruleset = to_iptables(policy, layout);
    let program = Program::new(of_ruleset(&ruleset, &groups()));
    (ruleset, program)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_backend_and_style_has_the_same_effect(
        policy in policies(),
        questions in prop::collection::vec(questions(), 20),
    ) {
        let (plain, iptables) = with_style(&policy, &PLAIN);
        let (styled, compact) = with_style(&policy, &COMPACT);
        let ours = nft::merge(&to_nft(&policy, &native::NFT_LAYOUT, true));
        let own = Program::new(of_nft(&ours, &groups()));
        let kernel = Program::new(of_native(&ours.native(&groups()).unwrap()));
        let pod = wide_pod(&plain);
        for family in [Family::V4, Family::V6] {
            prop_assert!(styled.family(family).len() <= plain.family(family).len());
            let commented = |rule: &Rule| matches!(rule.matches.last(), Some(Match::Comment(_)));
            prop_assert!(styled.family(family).iter().all(|emission| commented(&emission.rule)));
        }
        for question in questions {
            let wanted = iptables.answer(&pod, &question).outcome;
            let other = compact.answer(&pod, &question).outcome;
            prop_assert_eq!(&wanted, &other, "another style: {}", question);
            // In the pod, ours take nothing that starts a connection for a part of another.
            if matches!(question.known, Known::Related(_)) {
                continue;
            }
            for (name, program) in [("own", &own), ("kernel", &kernel)] {
                let other = program.answer(&pod, &question).outcome;
                prop_assert_eq!(&wanted, &other, "{}: {}", name, question);
            }
        }
    }
}

/// A mesh whose proxy's calls to its pod are nothing special, and its rules.
static OTHER: Mesh = Mesh {
    name: "another",
    conventions: Conventions {
        local: Local::Lo,
        self_call: SelfCall::Pass,
        passthrough: false,
        except_ports: ExceptPorts { phase: Phase::Last, udp: false },
        except_networks: Phase::Last,
        except_users: Phase::Last,
        interfaces_last: false,
        dns: DnsConvention::AMONG_OUTBOUND,
    },
    tunnels: false,
    nobody: true,
    always_outbound: false,
    marks: None,
    usual: "",
};

/// Verify that the settings of rules in another style are read back: those that give these rules again.
#[test]
fn rules_of_another_style_are_read_back() {
    let footprint = Footprint::of(&COMPACT);
    let dialect = Dialect { footprint, mesh: &OTHER, ..DIALECTS[0] };
    for flags in [
        "",
        "--ipv6 off",
        "--proxy-uid 2102 --proxy-gid 2102",
        "--include-inbound-ports 80,8000:8010 --exclude-inbound-ports 8005 --exclude-inbound-cidrs \
         10.1.0.0/16,2001:db8::/32",
        "--exclude-outbound-ports 9,8,7000:7010,6,5,4000:4001,3,2,1,10,11,12,13,14,15:16,17,18,19 \
         --exclude-inbound-ports 4190,4191,4567,4568",
        "--exclude-users 5996,5 --exclude-outbound-cidrs 10.96.0.0/16,2001:db8::/32",
        "--include-inbound-ports ''",
    ] {
        let mut policy = support::lines::own(flags);
        // Own rules are of one convention, and read back as well.
        let own = nft::merge(&to_nft(&policy, &native::NFT_LAYOUT, true));
        let tables = own.native(&groups()).unwrap();
        assert!(read_native(&tables, &[], &native::DIALECT).is_some(), "{flags}");
        policy.conventions = OTHER.conventions;
        policy.inbound.tunnel_port = None;
        let wanted = to_iptables(&policy, &COMPACT);
        let dump = |family| {
            let mut dump = Dump::default();
            restore(&mut dump, &render_restore(&wanted, family));
            dump
        };
        let (v4, v6) = (dump(Family::V4), policy.ipv6.value.then(|| dump(Family::V6)));
        let found = infer(Some(&v4), v6.as_ref(), &[], &footprint, &OTHER).unwrap();
        let read = policy_of(&found, &dialect).unwrap();
        let again = to_iptables(&read, &COMPACT);
        let rules = |ruleset: &Ruleset| {
            let rules =
                |family| ruleset.family(family).iter().map(|e| (e.chain.clone(), e.rule.clone()));
            Family::ALL.map(|family| rules(family).collect::<Vec<_>>())
        };
        assert_eq!(rules(&again), rules(&wanted), "{flags}");
    }
}

/// Verify what each convention is about, of a sidecar that leaves port 22 and a network alone.
#[test]
fn a_convention_means_what_it_says() {
    let answer = |conventions: Conventions, question: &Question| {
        let line = "istio-iptables -u 1337 -b * -i * -o 22 -x 10.96.0.0/16 --redirect-dns --capture-all-dns";
        let mut policy = support::lines::policy(line);
        policy.conventions = conventions;
        let (ruleset, program) = with_style(&policy, &COMPACT);
        program.answer(&wide_pod(&ruleset), question).outcome
    };
    let captured = |port| Outcome::Captured { port: Some(port), how: How::Translated };
    let istio = Conventions::OWN;
    let out = |id, to: &str| {
        Question::out(Identity { uid: id, gid: id }, sim::Protocol::TCP, to.parse().unwrap())
    };
    let app = |to| out(1000, to);
    let proxy = |to| out(1337, to);
    let passed_on =
        Question { source: Some("127.0.0.6".parse().unwrap()), ..proxy("10.4.0.2:8080") };
    let query = |to| Question { protocol: sim::Protocol::UDP, ..app(to) };
    let ports = |phase, udp| Conventions { except_ports: ExceptPorts { phase, udp }, ..istio };
    let local = |local| Conventions { local, ..istio };
    let pass = Conventions { self_call: SelfCall::Pass, ..istio };
    let no_address = Conventions { passthrough: false, ..istio };
    let networks_first = Conventions { except_networks: Phase::First, ..istio };
    for (conventions, question, outcome) in [
        (istio, app("10.4.0.2:8080"), Outcome::Delivered),
        (local(Local::Localhost), app("10.4.0.2:8080"), captured(15001)),
        (local(Local::Localhost), app("127.0.0.1:8080"), Outcome::Delivered),
        (local(Local::Lo), app("10.4.0.2:8080"), Outcome::Delivered),
        (local(Local::Lo), app("127.0.0.2:8080"), Outcome::Delivered),
        (istio, proxy("10.4.0.2:8080"), captured(15006)),
        (pass, proxy("10.4.0.2:8080"), Outcome::Delivered),
        (istio, passed_on.clone(), Outcome::Delivered),
        (no_address, passed_on, captured(15006)),
        // An exclusion wins over the self-call where it is asked for first.
        (ports(Phase::First, true), proxy("10.4.0.2:22"), Outcome::Delivered),
        (ports(Phase::Last, true), proxy("10.4.0.2:22"), captured(15006)),
        (istio, query("10.96.0.10:53"), captured(15053)),
        (
            networks_first,
            query("10.96.0.10:53"),
            Outcome::Passed { interface: "eth0".to_owned(), masked: false },
        ),
    ] {
        assert_eq!(answer(conventions, &question), outcome, "{question}: {conventions:?}");
    }
}
