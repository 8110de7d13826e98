//! Capture of DNS queries, with connection tracking zones that keep the application's queries and
//! the proxy's own apart: both can use the same addresses and ports.

use super::families;
use super::program::{
    Addresses, Branch, Condition, DNS, Path, Program, Role, Verdict, from, from_port, not_of, of,
    owners, tcp, to, to_port, udp, why,
};
use crate::policy::{
    CapturePolicy, DnsCapture, DnsConvention, DnsScope, DnsServer, DnsTarget, DnsTcp,
};
use crate::ruleset::{Reason, Table};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, Family, Zone};

/// The zone of what the proxy asks and of what it is answered.
pub(super) const UPSTREAM: Zone = Zone(1);
/// The zone of what the application asks and of what the proxy answers.
const DOWNSTREAM: Zone = Zone(2);

/// Servers whose queries are captured, each with who named it; one `None` when all are.
pub(super) type Servers = Vec<(Option<Cidr>, Source)>;

/// Those that are asked for among the decisions about outbound connections; nothing when DNS is not captured.
pub(super) fn capture(program: &mut Program, policy: &CapturePolicy) {
    let (Some(dns), DnsConvention::AmongOutbound { zones }) = (&policy.dns, policy.conventions.dns)
    else {
        return;
    };
    let servers = servers(policy, dns);
    let ask = Verdict::Ask(Branch::Dns);
    if zones {
        let reason = why(&dns.source, "DNS queries get conntrack zones");
        program.add((Table::Raw, Path::Leaving, Role::Enter), [], ask, reason);
    }
    let reason = why(&dns.source, "DNS queries are captured");
    program.add((Table::Nat, Branch::Outbound, Role::Enter), [], ask, reason);
    for protocol in [tcp(), udp()] {
        redirects(program, dns, &servers, &protocol, |program, place, when, verdict, reason| {
            program.add((place, Branch::Dns, Role::Dns), when, verdict, reason);
        });
    }
    if !zones {
        return;
    }
    let leaving = Branch::Dns.into();
    proxy_zones(program, policy, dns, leaving);
    let reason = why(&dns.source, "answers to DNS queries get conntrack zones");
    let ask = Verdict::Ask(Branch::Inbound);
    program.add((Table::Raw, Path::Arriving, Role::Enter), [], ask, reason);
    application_zones(program, &servers, leaving, Branch::Inbound.into());
}

/// Those that are asked for before anything about TCP.
pub(super) fn ahead(program: &mut Program, policy: &CapturePolicy) {
    let (Some(dns), DnsConvention::Ahead { tcp: by_tcp, spares_proxy, in_front, zones }) =
        (&policy.dns, policy.conventions.dns)
    else {
        return;
    };
    let servers = servers(policy, dns);
    let before = program.decisions.len();
    let put = |program: &mut Program, table, when: Vec<Condition>, verdict, reason| {
        let place = (table, Path::Leaving, Role::Dns);
        if in_front {
            program.put_in_front(place, when, verdict, reason);
        } else {
            program.add(place, when, verdict, reason);
        }
    };
    if zones {
        let leaving = Path::Leaving;
        proxy_zones(program, policy, dns, leaving);
        application_zones(program, &servers, leaving, Path::Arriving);
    }
    if spares_proxy {
        for (owner, source) in owners(policy) {
            let reason = why(source, "the proxy's own DNS queries are left alone");
            let when = vec![udp(), to_port(DNS), of(&owner)];
            put(program, Table::Nat, when, Verdict::Pass, reason);
        }
    }
    if by_tcp == DnsTcp::Bypassed {
        let mut when = vec![tcp(), to_port(DNS)];
        when.extend(owners(policy).map(|(owner, _)| not_of(&owner)));
        let reason = why(&dns.source, "DNS queries by TCP are left alone");
        program.add((Table::Nat, Path::Leaving, Role::Dns), when, Verdict::Pass, reason);
    }
    redirects(program, dns, &servers, &udp(), put);
    if by_tcp == DnsTcp::Captured {
        redirects(program, dns, &servers, &tcp(), put);
    }
    // Where no server is of a family, nothing is asked about DNS in it.
    let has_server = |family: &Family| {
        servers.iter().any(|(server, _)| server.is_none_or(|server| server.family() == *family))
    };
    let asked: Vec<Family> = families(policy).filter(has_server).collect();
    match asked.as_slice() {
        [] => program.decisions.truncate(before),
        [only] => program.decisions.iter_mut().skip(before).for_each(|d| d.only = Some(*only)),
        _ => {}
    }
}

pub(super) fn servers(policy: &CapturePolicy, dns: &DnsCapture) -> Servers {
    match &dns.scope {
        DnsScope::All(source) => vec![(None, source.clone())],
        DnsScope::Servers(_) => families(policy)
            .flat_map(|family| dns.scope.servers(family))
            .map(|server| (Some(Cidr::host(server.value)), server.source.clone()))
            .collect(),
    }
}

fn whose(server: Option<&Cidr>) -> String {
    server
        .map_or_else(|| "all DNS queries".to_owned(), |s| format!("DNS queries to {}", s.address()))
}

/// What leads queries by a protocol to the proxy's DNS port, or to other servers.
pub(super) fn redirects(
    program: &mut Program,
    dns: &DnsCapture,
    servers: &Servers,
    protocol: &Condition,
    put: impl Fn(&mut Program, Table, Vec<Condition>, Verdict, Reason),
) {
    let targets: Vec<(Verdict, String, Option<Family>)> = match &dns.to {
        DnsTarget::Listener(port) => {
            vec![(Verdict::Redirect(port.value), format!("port {}", port.value), None)]
        }
        DnsTarget::Servers(list) => {
            let to = |server: &Sourced<DnsServer>| {
                let DnsServer { address, port } = server.value;
                let at = port.map(|port| format!(" port {port}")).unwrap_or_default();
                let family = Some(Family::of(address));
                (Verdict::Translate { address, port }, format!("{address}{at}"), family)
            };
            list.iter().map(to).collect()
        }
    };
    for (server, source) in servers {
        let of_family = |family: &Option<Family>| match (server, family) {
            (Some(server), Some(family)) => server.family() == *family,
            _ => true,
        };
        for (verdict, to, _) in targets.iter().filter(|(_, _, family)| of_family(family)) {
            let mut when = vec![protocol.clone(), to_port(DNS)];
            when.extend(server.map(|server| super::program::to(Addresses::Network(server))));
            let purpose = format!("{} go to {to}", whose(server.as_ref()));
            put(program, Table::Nat, when, *verdict, why(source, purpose));
        }
    }
}

/// Zones for what the proxy sends.
fn proxy_zones(program: &mut Program, policy: &CapturePolicy, dns: &DnsCapture, leaving: Path) {
    for (owner, source) in owners(policy) {
        let when = [udp(), to_port(DNS), of(&owner)];
        let reason = why(source, "the proxy's own queries are tracked apart");
        zone(program, leaving, when, UPSTREAM, reason);
        let Some(port) = dns.listener() else { continue };
        let when = [udp(), from_port(port.port()), of(&owner)];
        let reason = why(source, "the proxy's answers belong to the application's queries");
        zone(program, leaving, when, DOWNSTREAM, reason);
    }
}

/// Zones for what the application asks and the servers answer.
fn application_zones(program: &mut Program, servers: &Servers, leaving: Path, arriving: Path) {
    for (server, source) in servers {
        let purpose = format!("{} are tracked apart from the proxy's", whose(server.as_ref()));
        let is_local = server.is_some_and(|server| server.address().is_loopback());
        let server = server.map(Addresses::Network);
        let mut when = vec![udp(), to_port(DNS)];
        when.extend(server.map(to));
        zone(program, leaving, when, DOWNSTREAM, why(source, purpose));
        if is_local && leaving == Path::Leaving {
            // Its answers never arrive from outside.
            let mut when = vec![udp(), to(Addresses::Localhost)];
            when.extend(server.map(from));
            let reason =
                why(source, "the local server's answers belong to the proxy's own queries");
            zone(program, leaving, when, UPSTREAM, reason);
        }
        let mut when = vec![udp(), from_port(DNS)];
        when.extend(server.map(from));
        let reason = why(source, "the server's answers belong to the proxy's own queries");
        zone(program, arriving, when, UPSTREAM, reason);
    }
}

pub(super) fn zone(
    program: &mut Program,
    path: Path,
    when: impl Into<Vec<Condition>>,
    zone: Zone,
    reason: Reason,
) {
    program.add((Table::Raw, path, Role::Zone), when, Verdict::Zone(zone), reason);
}
