//! Which address is a source, what rules of policy routing cost, and what else decides the way.

use std::net::SocketAddr;

use super::super::fate::{Fate, Outcome, Reply};
use super::super::interface::Label;
use super::super::partition::partition;
use super::super::program::Program;
use super::super::question::{EPHEMERAL, Identity, Protocol, Question};
use super::super::routing::{LOCAL_TABLE, MAIN_TABLE, RoutingRule, TableRoute};
use super::*;
use crate::ruleset::Masked;

fn rule(family: Family, priority: u32, selector: Selector, table: u32) -> RoutingRule {
    RoutingRule { family, priority, selector, action: RuleAction::Table(table) }
}

/// Rules as every namespace has them.
fn usual() -> Vec<RoutingRule> {
    let of = |family| {
        [(0, LOCAL_TABLE), (32_766, MAIN_TABLE)]
            .map(|(priority, table)| rule(family, priority, Selector::default(), table))
    };
    Family::ALL.into_iter().flat_map(of).collect()
}

fn route(table: u32, network: &str, action: RouteAction) -> TableRoute {
    TableRoute { table, network: network.parse().unwrap(), metric: 0, action }
}

fn own(cidr: &str) -> OwnAddress {
    cidr.parse::<Cidr>().unwrap().into()
}

fn interface(name: &str, addresses: Vec<OwnAddress>) -> Interface {
    Interface { addresses, ..Interface::new(name, []) }
}

/// A namespace with these interfaces, the first of which everything is behind.
fn namespace(interfaces: Vec<Interface>, exit: Exit) -> Namespace {
    let all = interfaces.iter().flat_map(|interface| &interface.addresses);
    let here = |own: &OwnAddress| {
        let network = Cidr::host(own.address());
        let action = RouteAction::Local(Some(own.address()));
        TableRoute { table: LOCAL_TABLE, network, metric: 0, action }
    };
    let mut routes: Vec<TableRoute> = all.map(here).collect();
    let out = RouteAction::Out(vec![exit]);
    routes.extend(["0.0.0.0/0", "::/0"].map(|network| route(MAIN_TABLE, network, out.clone())));
    Namespace::routed(interfaces, usual(), routes)
}

fn out(to: &str) -> Question {
    let to: SocketAddr = to.parse().unwrap();
    Question::out(Identity { uid: 1000, gid: 1000 }, Protocol::TCP, to)
}

fn fate(namespace: &Namespace, to: &str) -> Fate {
    Program::new(Vec::new()).answer(namespace, &out(to)).fate
}

fn source(namespace: &Namespace, to: &str) -> String {
    match fate(namespace, to) {
        Fate::Passed { source, .. } => source.ip().to_string(),
        fate => panic!("{fate:?}"),
    }
}

/// The next hop is beside an address whose other end is around it, and not its own one.
#[test]
fn the_other_end_is_what_a_next_hop_is_beside() {
    let peer = |address: &str, peer: &str| OwnAddress {
        peer: Some(peer.parse().unwrap()),
        ..own(address)
    };
    let hop = |to: &str| Exit { gateway: Some(to.parse().unwrap()), scope: 0, ..Exit::by("eth0") };
    let two = vec![peer("10.77.0.2/32", "10.4.0.3/32"), peer("10.4.0.2/32", "10.4.0.1/32")];
    let pod = namespace(vec![interface("eth0", two)], hop("10.4.0.1"));
    assert_eq!(source(&pod, "8.8.8.8:80"), "10.4.0.2");
    let two = vec![own("10.66.0.5/24"), peer("10.4.0.2/24", "10.77.0.0/24")];
    let pod = namespace(vec![interface("eth0", two)], hop("10.4.0.1"));
    assert_eq!(source(&pod, "8.8.8.8:80"), "10.66.0.5");
}

/// A route's scope says which addresses are good, and that none is good is no loss: it leaves from nowhere.
#[test]
fn a_source_is_of_the_scope_of_its_route() {
    let narrow = |scope| OwnAddress { scope, ..own("10.4.0.2/24") };
    let pod = |scope, of_route, localnet| {
        let mut eth0 = interface("eth0", vec![narrow(scope)]);
        eth0.settings.route_localnet = localnet;
        let lo = interface(
            "lo",
            vec![OwnAddress { scope: 254, ..own("127.0.0.1/8") }, own("10.99.0.1/32")],
        );
        namespace(vec![lo, eth0], Exit { scope: of_route, ..Exit::by("eth0") })
    };
    for (scope, of_route, localnet, wanted) in [
        (253, 0, false, "10.99.0.1"),
        (253, 253, false, "10.4.0.2"),
        (254, 253, false, "10.99.0.1"),
        (254, 253, true, "10.4.0.2"),
        (254, 254, false, "10.4.0.2"),
    ] {
        let found = source(&pod(scope, of_route, localnet), "8.8.8.8:80");
        assert_eq!(found, wanted, "{scope} {of_route} {localnet}");
    }
    let none = namespace(vec![interface("eth0", vec![narrow(254)])], Exit::by("eth0"));
    let Fate::Unknown { what, .. } = fate(&none, "8.8.8.8:80") else { panic!() };
    assert_eq!(what, NO_SOURCE);
    let none = namespace(vec![interface("eth0", Vec::new())], Exit::by("eth0"));
    assert!(matches!(fate(&none, "[2001:db8::8]:80"), Fate::Dropped { .. }));
}

/// By IPv6 labels, temporary addresses and a setting of the interface choose the source.
#[test]
fn labels_and_settings_choose_a_source() {
    let temporary = OwnAddress { temporary: true, ..own("2001:db8:4::99/64") };
    let eth0 = vec![own("fd00:4::2/64"), own("2001:db8:4::2/64"), temporary];
    let lo = interface("lo", vec![own("2001:db8:7::1/128")]);
    let pod = |prefer, addresses: &[OwnAddress], only| {
        let mut eth0 = interface("eth0", addresses.to_vec());
        (eth0.settings.prefer_temporary, eth0.settings.use_oif_addrs_only) = (prefer, only);
        namespace(vec![lo.clone(), eth0], Exit::by("eth0"))
    };
    let to = "[2606::1]:80";
    assert_eq!(source(&pod(false, &eth0, false), to), "2001:db8:4::2");
    assert_eq!(source(&pod(true, &eth0, false), to), "2001:db8:4::99");
    let mut labelled = pod(false, &eth0, false);
    let network = "2606::/16".parse().unwrap();
    labelled.labels.insert(5, Label { network, interface: Some("net1".to_owned()), label: 5 });
    assert_eq!(source(&labelled, to), "2001:db8:4::2");
    labelled.labels[5].interface = None;
    assert_eq!(source(&labelled, to), "fd00:4::2");
    assert_eq!(source(&pod(false, &[], false), to), "2001:db8:7::1");
    assert!(matches!(fate(&pod(false, &[], true), to), Fate::Dropped { .. }));
}

/// By an interface without a carrier nothing goes, but as long as no route comes that has to be known.
#[test]
fn without_a_carrier_nothing_leaves() {
    let mut eth0 = interface("eth0", vec![own("10.4.0.2/24")]);
    eth0.settings.carrier = false;
    let pod = namespace(vec![eth0], Exit::by("eth0"));
    let Fate::Dropped { why, .. } = fate(&pod, "8.8.8.8:80") else { panic!() };
    assert_eq!(why, "eth0 has no carrier");
    assert!(matches!(fate(&pod.with_ways_out(), "8.8.8.8:80"), Fate::Passed { .. }));
}

/// What a route sends by `lo` comes in again, and it isn't said that it has left.
#[test]
fn by_loopback_nothing_leaves() {
    let lo = interface("lo", vec![own("fd99::1/32"), own("10.4.0.2/16")]);
    let pod = namespace(vec![lo], Exit::by("lo"));
    for to in ["10.4.0.5:80", "[fd99::5]:80"] {
        assert!(matches!(fate(&pod, to), Fate::Unknown { .. }), "{to}");
    }
}

/// Who accepts a connection answers with its mark where a setting says so: here that is delivered again.
#[test]
fn a_mark_is_accepted_with_a_connection() {
    let mut pod = namespace(vec![interface("eth0", vec![own("10.4.0.2/24")])], Exit::by("eth0"));
    let marked = Selector { mark: Some(Masked::exact(7)), ..Selector::default() };
    let rules = usual().into_iter().chain([rule(Family::V4, 5, marked, 99)]).collect();
    let routes = vec![
        route(LOCAL_TABLE, "10.4.0.2/32", RouteAction::Local(None)),
        route(MAIN_TABLE, "0.0.0.0/0", RouteAction::Out(vec![Exit::by("eth0")])),
        route(99, "0.0.0.0/0", RouteAction::Local(None)),
    ];
    pod = Namespace::routed(pod.all_interfaces().to_vec(), rules, routes);
    let question = Question {
        source: Some("8.8.8.8".parse().unwrap()),
        source_port: EPHEMERAL,
        interface: Some("eth0".to_owned()),
        mark: 7,
        ..Question::inward(
            "8.8.8.8".parse().unwrap(),
            Protocol::TCP,
            "10.4.0.2:80".parse().unwrap(),
        )
    };
    let none = Program::new(Vec::new());
    assert_eq!(none.explain(&pod, &question).reply, Some(Reply::Arrives));
    pod.accepts_marks = true;
    assert!(matches!(none.explain(&pod, &question).reply, Some(Reply::Lost { .. })));
}

/// Rules whose table says nothing of a destination, or that another condition has ruled out, cost nothing
/// but their count, and too many of them are told of by name.
#[test]
fn many_rules_of_policy_routing_come_to_an_end() {
    let pod = |count: u32, one: &dyn Fn(u32) -> Selector| {
        let mut rules = usual();
        let mut routes = vec![
            route(LOCAL_TABLE, "10.4.0.2/32", RouteAction::Local(None)),
            route(MAIN_TABLE, "0.0.0.0/0", RouteAction::Out(vec![Exit::by("eth0")])),
        ];
        for at in 0..count {
            rules.push(rule(Family::V4, 100 + at, one(at), 300 + at));
            routes.push(route(300 + at, "10.9.0.0/16", RouteAction::Out(vec![Exit::by("net1")])));
        }
        let eth0 = interface("eth0", vec![own("10.4.0.2/24")]);
        Namespace::routed(vec![eth0, interface("net1", Vec::new())], rules, routes)
    };
    let from = |at: u32| format!("11.0.{}.{}/32", at / 256, at % 256).parse().ok();
    let both =
        |at| Selector { from: from(at), mark: Some(Masked::exact(at + 1)), ..Selector::default() };
    let bit = |at| {
        let mark = Some(Masked { value: 1_u32 << at, mask: 1_u32 << at });
        Selector { mark, ..Selector::default() }
    };
    let none = Program::new(Vec::new());
    for pod in [pod(31, &bit), pod(50, &both)] {
        let found = partition(&none, &pod);
        let unclear = |class: &&super::super::partition::Class| {
            matches!(class.answer.outcome, Outcome::Unknown { .. })
        };
        assert_eq!(found.iter().find(unclear), None);
    }
    // So many can't be told, which is said.
    let found = partition(&none, &pod(1000, &both));
    let unclear = found.iter().filter_map(|class| match &class.answer.outcome {
        Outcome::Unknown { what } => Some(what.as_str()),
        _ => None,
    });
    let unclear: Vec<&str> = unclear.collect();
    assert!(
        !unclear.is_empty() && unclear.iter().all(|what| what.contains("ask for one")),
        "{unclear:?}"
    );
}
