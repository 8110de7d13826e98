//! Random policies of any mesh.

use std::net::{Ipv4Addr, SocketAddr};

use millrace_core::policy::{
    CapturePolicy, Conventions, DnsConvention, DnsServer, DnsTarget, DnsTcp, ExceptPorts, Flow,
    Local, Phase, SelfCall,
};
use millrace_core::ruleset::Protocol;
use millrace_core::source::{Source, Sourced};
use millrace_core::value::{Cidr, ListenPort, Uid};
use proptest::prelude::*;

use super::configs;

/// A configuration of any mesh: what a sidecar of Istio's can be told, and what meshes differ in.
pub(crate) fn policies() -> impl Strategy<Value = CapturePolicy> {
    let phases = || prop::sample::select(&[Phase::Ahead, Phase::First, Phase::Last][..]);
    let dns = prop_oneof![
        any::<bool>().prop_map(|zones| DnsConvention::AmongOutbound { zones }),
        any::<[bool; 4]>().prop_map(|[tcp, spares_proxy, in_front, zones]| DnsConvention::Ahead {
            tcp: if tcp { DnsTcp::Captured } else { DnsTcp::Bypassed },
            spares_proxy,
            in_front,
            zones,
        }),
    ];
    let flows = prop::sample::subsequence(
        &[
            ("1-65535", "5"),
            ("53,80,8000:8010", "0-1000"),
            ("1,22,443,2:9,10:19,20:21,23:29,30:39,40:49,50:52", "202"),
        ][..],
        0..=2,
    );
    let conventions = (
        prop::sample::select(
            &[Local::LoAndLocalhost, Local::Lo, Local::Localhost, Local::Addresses][..],
        ),
        prop::sample::select(&[SelfCall::Inbound, SelfCall::Pass][..]),
        any::<[bool; 4]>(),
        phases(),
        (phases(), phases()),
        dns,
    );
    let sources =
        prop::sample::subsequence(&["10.7.0.0/16", "10.1.2.3/32", "2001:db8::/32"][..], 0..=3);
    let users = prop::sample::subsequence(&[0_u32, 5, 1000][..], 0..=3);
    let servers = prop::sample::subsequence(
        &["10.9.9.9", "127.0.0.1:8600", "fd09::9", "[::1]:8600"][..],
        0..=4,
    );
    let exclusions = (sources, users, flows, (servers, any::<bool>()));
    (configs(), conventions, exclusions).prop_map(
        |(config, meant, (sources, users, flows, (servers, led)))| {
            let (
                local,
                self_call,
                [passthrough, tunnel, udp, interfaces_last],
                ports,
                (networks, phase_of_users),
                dns,
            ) = meant;
            let mut policy = config.policy();
            policy.conventions = Conventions {
                local,
                self_call,
                passthrough,
                except_ports: ExceptPorts { phase: ports, udp },
                except_networks: networks,
                except_users: phase_of_users,
                interfaces_last,
                dns,
            };
            if !tunnel {
                policy.inbound.tunnel_port = None;
            }
            let network = |text: &str| Sourced::new(text.parse::<Cidr>().unwrap(), Source::Always);
            policy.inbound.except_sources = sources.into_iter().map(network).collect();
            let user = |id| Sourced::new(Uid::new(id).unwrap(), Source::Always);
            policy.outbound.except_users = users.into_iter().map(user).collect();
            let flow = |(ports, users): (&str, &str)| {
                let ports = ports
                    .split(',')
                    .map(|range| range.replace('-', ":").parse().unwrap())
                    .collect();
                let protocols = vec![Protocol::Tcp, Protocol::Udp];
                let flow = Flow { protocols, ports, users: users.parse().unwrap() };
                Sourced::new(flow, Source::Always)
            };
            policy.outbound.except_flows = flows.into_iter().map(flow).collect();
            let server = |text: &str| {
                let at: Option<SocketAddr> = text.parse().ok();
                let address = at.map_or_else(|| text.parse().unwrap(), |at| at.ip());
                let port = at.and_then(|at| ListenPort::new(at.port()));
                Sourced::new(DnsServer { address, port }, Source::Always)
            };
            if let Some(dns) = policy.dns.as_mut().filter(|_| !servers.is_empty()) {
                dns.to = DnsTarget::Servers(servers.into_iter().map(server).collect());
            }
            let own = Sourced::new(Ipv4Addr::new(10, 4, 0, 2), Source::Always);
            policy.outbound.localhost_to = led.then_some(own);
            policy
        },
    )
}
