//! Connections, and the pod that makes and takes them.

use std::net::IpAddr;

use millrace_core::facts;
use millrace_core::ruleset::Ruleset;
use millrace_core::sim::{
    Direction, EPHEMERAL, Identity, Interface, Known, MarkedLocal, Namespace, Path, Protocol,
    Question,
};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;

/// The groups that random configurations name.
pub(crate) fn groups() -> Groups {
    facts::groups("java:x:202:\n")
}

/// Connections that the values of random configurations are about, and others.
pub(crate) fn questions() -> impl Strategy<Value = Question> {
    let addresses = prop::sample::select(
        &[
            "10.4.0.2",
            "127.0.0.1",
            "127.0.0.6",
            "127.9.9.9",
            "10.9.9.9",
            "10.1.2.3",
            "10.96.0.1",
            "10.96.0.10",
            "1.1.1.1",
            "8.8.8.8",
            "::1",
            "::6",
            "fd00:4::2",
            "fd00::a",
            "2001:db8::7",
            "2001:db8:1::7",
            "fd09::9",
        ][..],
    );
    let ports = || {
        prop::sample::select(
            &[
                1_u16, 22, 53, 80, 443, 8005, 15001, 15006, 15008, 15020, 15021, 15053, 31000,
                32000, 50000,
            ][..],
        )
    };
    let ids = || prop::sample::select(&[0_u32, 1, 2, 3, 4, 5, 202, 888, 999, 1000, 1337][..]);
    let names = ["eth0", "eth1", "eth2", "eth9", "cali7"];
    (
        addresses,
        (ports(), prop_oneof![Just(EPHEMERAL), ports()]),
        (ids(), ids()),
        prop::sample::select(&[Protocol::TCP, Protocol::UDP, Protocol::ICMP][..]),
        any::<bool>(),
        prop::sample::select(&[0_u32, 7, 42, 1337, 1338][..]),
        prop::option::of(0..2_usize),
        prop::sample::select(names.to_vec()),
        prop::sample::select(
            &[Known::New, Known::New, Known::Invalid, Known::Established(1337), Known::Related(42)]
                [..],
        ),
    )
        .prop_map(
            |(to, (port, source_port), (uid, gid), protocol, out, mark, source, name, known)| {
                let destination: IpAddr = to.parse().unwrap();
                let v4 = destination.is_ipv4();
                let inside = if v4 { ["127.0.0.6", "10.4.0.2"] } else { ["::6", "fd00:4::2"] };
                let outside =
                    if v4 { ["10.7.7.7", "10.1.2.3"] } else { ["fd07::7", "2001:db8::7"] };
                let has_ports = protocol.has_ports();
                let source = match (out, source) {
                    (true, source) => source.map(|at| inside[at].parse().unwrap()),
                    (false, source) => outside[source.unwrap_or(0)].parse().ok(),
                };
                Question {
                    direction: if out { Direction::Out } else { Direction::In },
                    protocol,
                    source,
                    source_port: if has_ports { source_port } else { 0 },
                    destination,
                    port: if has_ports { port } else { 0 },
                    owner: out.then_some(Identity { uid, gid }),
                    mark: if out { mark } else { 0 },
                    interface: (!out).then(|| name.to_owned()),
                    known,
                }
            },
        )
}

/// A pod with interfaces of all the names that random configurations hold.
pub(crate) fn wide_pod(ruleset: &Ruleset) -> Namespace {
    let of = |name: &str, v4: &str, v6: &str| {
        Interface::new(name, [v4.parse().unwrap(), v6.parse().unwrap()])
    };
    let interfaces = vec![
        of("eth0", "10.4.0.2/24", "fd00:4::2/64"),
        of("eth1", "10.5.0.2/24", "fd00:5::2/64"),
        of("eth2", "10.6.0.2/24", "fd00:6::2/64"),
        of("eth9", "10.8.0.2/24", "fd00:8::2/64"),
        of("cali7", "10.9.0.2/24", "fd00:9::2/64"),
    ];
    let everything = ["0.0.0.0/0", "::/0"]
        .map(|network| Path { network: network.parse().unwrap(), interface: "eth0".to_owned() });
    let marked = ruleset.routing.marked.iter().flat_map(|route| {
        let mark = route.mark;
        Family::ALL.map(|family| MarkedLocal { family, mark })
    });
    Namespace::new(interfaces, everything.to_vec(), marked.collect())
}
