//! Capture of DNS queries, with connection tracking zones that keep the application's queries and
//! the proxy's own apart: both can use the same addresses and ports.

use super::families;
use super::program::{
    Addresses, Branch, Condition, DNS, Path, Program, Role, Verdict, from, from_port, of, owners,
    tcp, to, to_port, udp, why,
};
use crate::policy::{CapturePolicy, DnsCapture, DnsScope};
use crate::ruleset::{Reason, Table};
use crate::source::Source;
use crate::value::{Cidr, Zone};

/// The zone of what the proxy asks and of what it is answered.
const UPSTREAM: Zone = Zone(1);
/// The zone of what the application asks and of what the proxy answers.
const DOWNSTREAM: Zone = Zone(2);

/// Servers whose queries are captured, each with who named it; one `None` when all are.
type Servers = Vec<(Option<Cidr>, Source)>;

/// All of it; nothing when DNS is not captured.
pub(super) fn capture(program: &mut Program, policy: &CapturePolicy) {
    let Some(dns) = &policy.dns else { return };
    let servers = servers(policy, dns);
    let ask = Verdict::Ask(Branch::Dns);
    let reason = why(&dns.source, "DNS queries get conntrack zones");
    program.add((Table::Raw, Path::Leaving, Role::Enter), [], ask, reason);
    let reason = why(&dns.source, "DNS queries are captured");
    program.add((Table::Nat, Branch::Outbound, Role::Enter), [], ask, reason);
    redirects(program, dns, &servers);
    proxy_zones(program, policy, dns);
    let reason = why(&dns.source, "answers to DNS queries get conntrack zones");
    let ask = Verdict::Ask(Branch::Inbound);
    program.add((Table::Raw, Path::Arriving, Role::Enter), [], ask, reason);
    application_zones(program, &servers);
}

fn servers(policy: &CapturePolicy, dns: &DnsCapture) -> Servers {
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

/// The redirects to the proxy's DNS port, TCP first.
fn redirects(program: &mut Program, dns: &DnsCapture, servers: &Servers) {
    for protocol in [tcp(), udp()] {
        for (server, source) in servers {
            let mut when = vec![protocol.clone(), to_port(DNS)];
            when.extend(server.map(|server| to(Addresses::Network(server))));
            let purpose = format!("{} go to port {}", whose(server.as_ref()), dns.port.value);
            let verdict = Verdict::Redirect(dns.port.value);
            program.add((Table::Nat, Branch::Dns, Role::Dns), when, verdict, why(source, purpose));
        }
    }
}

/// Zones for what the proxy sends.
fn proxy_zones(program: &mut Program, policy: &CapturePolicy, dns: &DnsCapture) {
    for (owner, source) in owners(policy) {
        let when = [udp(), to_port(DNS), of(&owner)];
        let reason = why(source, "the proxy's own queries are tracked apart");
        zone(program, Branch::Dns, when, UPSTREAM, reason);
        let when = [udp(), from_port(dns.port.value.port()), of(&owner)];
        let reason = why(source, "the proxy's answers belong to the application's queries");
        zone(program, Branch::Dns, when, DOWNSTREAM, reason);
    }
}

/// Zones for what the application asks and the servers answer.
fn application_zones(program: &mut Program, servers: &Servers) {
    for (server, source) in servers {
        let purpose = format!("{} are tracked apart from the proxy's", whose(server.as_ref()));
        let server = server.map(Addresses::Network);
        let mut when = vec![udp(), to_port(DNS)];
        when.extend(server.map(to));
        zone(program, Branch::Dns, when, DOWNSTREAM, why(source, purpose));
        let mut when = vec![udp(), from_port(DNS)];
        when.extend(server.map(from));
        let reason = why(source, "the server's answers belong to the proxy's own queries");
        zone(program, Branch::Inbound, when, UPSTREAM, reason);
    }
}

fn zone(
    program: &mut Program,
    branch: Branch,
    when: impl Into<Vec<Condition>>,
    zone: Zone,
    reason: Reason,
) {
    program.add((Table::Raw, branch, Role::Zone), when, Verdict::Zone(zone), reason);
}
