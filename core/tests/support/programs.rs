//! What eBPF programs are asked.

use std::net::IpAddr;

use millrace_core::ebpf::{Addresses, Entry, IdMap, compile};
use millrace_core::facts;
use millrace_core::policy::{
    CapturePolicy, IdentityMatching, InboundMode, Interfaces, Local, NetworkSelection, SelfCall,
};
use millrace_core::sim::{self, EPHEMERAL, Identity, Known, Question};
use millrace_core::source::Source;
use proptest::prelude::*;

/// The addresses of the pod.
pub(crate) const POD: [&str; 2] = ["10.4.0.2", "fd00:4::2"];

/// What the programs can carry out of a policy.
pub(crate) fn able(mut policy: CapturePolicy) -> CapturePolicy {
    policy.inbound.mode = InboundMode::Redirect;
    policy.interfaces = Interfaces::default();
    policy.drop_invalid = None;
    if policy.conventions.local == Local::Addresses {
        policy.conventions.self_call = SelfCall::Pass;
        policy.proxy.matching = IdentityMatching::Any;
        policy.outbound.networks = NetworkSelection::All(Source::Always);
        if !policy.conventions.dns.is_ahead() {
            policy.dns = None;
        }
        if policy.proxy.uids.is_empty() && policy.proxy.gids.is_empty() {
            policy.conventions.local = Local::Lo;
        }
    }
    policy
}

/// The entry of the pod.
pub(crate) fn entry(policy: &CapturePolicy) -> Entry {
    let own = POD.map(|ip| ip.parse().unwrap()).to_vec();
    let addresses = Addresses { sources: own.clone(), own };
    let ids = IdMap::identity();
    let entry = compile(policy, &facts::groups("java:x:202:\n")).unwrap();
    entry.for_pod(&addresses, &ids, &ids).unwrap()
}

/// Connections that eBPF programs are asked about.
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
    let ports = &[
        1_u16, 22, 53, 80, 443, 8005, 15001, 15006, 15008, 15020, 15021, 15053, 31000, 32000, 50000,
    ][..];
    let id = || prop::sample::select(&[0_u32, 1, 2, 3, 4, 5, 202, 888, 999, 1000, 1337][..]);
    let port = prop::sample::select(ports);
    let source = prop::option::of(any::<bool>());
    (addresses, port, id(), id(), any::<[bool; 3]>(), source).prop_map(
        |(to, port, uid, gid, [tcp, out, forged], source)| {
            let destination: IpAddr = to.parse().unwrap();
            let v4 = destination.is_ipv4();
            let inside = if v4 { ["127.0.0.6", "10.4.0.2"] } else { ["::6", "fd00:4::2"] };
            let outside = if v4 { ["10.7.7.7", "10.1.2.3"] } else { ["fd07::7", "2001:db8::7"] };
            let source = match source {
                None if out => None,
                // Outside, anybody may use an address of the pod.
                at => {
                    let pair = if out || forged { inside } else { outside };
                    Some(pair[usize::from(at == Some(true))].parse().unwrap())
                }
            };
            Question {
                direction: if out { sim::Direction::Out } else { sim::Direction::In },
                protocol: if tcp { sim::Protocol::TCP } else { sim::Protocol::UDP },
                source,
                source_port: EPHEMERAL,
                destination,
                port,
                owner: out.then_some(Identity { uid, gid }),
                mark: 0,
                interface: (!out).then(|| "eth0".to_owned()),
                known: Known::New,
            }
        },
    )
}
