//! Capture of DNS queries, with conntrack zones that keep the application's queries and the
//! proxy's own apart: both can use the same addresses and ports.

use super::build::{Builder, DNS, from, from_port, jump, of, tcp, to, to_port, udp, why};
use crate::policy::{DnsCapture, DnsScope};
use crate::ruleset::{Hook, Owner, Reason, RedirectSpelling, Table, Target};
use crate::source::Source;
use crate::value::{Cidr, Zone};

/// The zone of what the proxy asks and of what it is answered.
const UPSTREAM: Zone = Zone(1);
/// The zone of what the application asks and of what the proxy answers.
const DOWNSTREAM: Zone = Zone(2);

/// All of it; nothing when DNS is not captured.
pub(super) fn capture(b: &mut Builder<'_>) {
    let Some(dns) = &b.policy.dns else { return };
    let layout = b.layout;
    let reason = why(&dns.source, "DNS queries get conntrack zones");
    b.hook(Table::Raw, Hook::Output, vec![], jump(&layout.output_dns), reason);
    let networks = servers(b, dns);
    if !networks.is_empty() {
        let reason = why(&dns.source, "DNS queries are captured");
        b.user(Table::Nat, &layout.output, vec![], jump(&layout.output_dns), reason);
    }
    redirects(b, dns, &networks);
    proxy_zones(b, dns);
    application_zones(b, dns, &networks);
}

/// Servers whose queries are captured in this family, each with its source; one `None` when all
/// are.
fn servers(b: &Builder<'_>, dns: &DnsCapture) -> Vec<(Option<Cidr>, Source)> {
    match &dns.scope {
        DnsScope::All(source) => vec![(None, source.clone())],
        DnsScope::Servers(_) => dns
            .scope
            .servers(b.family)
            .map(|s| (Some(Cidr::host(s.value)), s.source.clone()))
            .collect(),
    }
}

fn whose(server: Option<&Cidr>) -> String {
    server
        .map_or_else(|| "all DNS queries".to_owned(), |s| format!("DNS queries to {}", s.address()))
}

/// The redirects to the proxy's DNS port, TCP first.
fn redirects(b: &mut Builder<'_>, dns: &DnsCapture, networks: &[(Option<Cidr>, Source)]) {
    for (protocol, spelling) in
        [(tcp(), RedirectSpelling::ToPorts), (udp(), RedirectSpelling::ToPort)]
    {
        for (server, source) in networks {
            let mut matches = vec![protocol.clone(), to_port(DNS)];
            matches.extend(server.map(to));
            let target = Target::Redirect { port: dns.port.value, spelling };
            let purpose = format!("{} go to port {}", whose(server.as_ref()), dns.port.value);
            let chain = &b.layout.output_dns;
            b.user(Table::Nat, chain, matches, target, why(source, purpose));
        }
    }
}

/// Zones for what the proxy sends.
fn proxy_zones(b: &mut Builder<'_>, dns: &DnsCapture) {
    let proxy = &b.policy.proxy;
    let uids = proxy.uids.iter().map(|u| (Owner::Uid(u.value), &u.source));
    let gids = proxy.gids.iter().map(|g| (Owner::Gid(g.value), &g.source));
    for (owner, source) in uids.chain(gids) {
        let asks = vec![udp(), to_port(DNS), of(owner.clone())];
        let reason = why(source, "the proxy's own queries are tracked apart");
        zone(b, asks, UPSTREAM, reason);
        let answers = vec![udp(), from_port(dns.port.value.port()), of(owner)];
        let reason = why(source, "the proxy's answers belong to the application's queries");
        zone(b, answers, DOWNSTREAM, reason);
    }
}

/// Zones for what the application asks and the servers answer.
fn application_zones(b: &mut Builder<'_>, dns: &DnsCapture, networks: &[(Option<Cidr>, Source)]) {
    if networks.is_empty() {
        return;
    }
    let layout = b.layout;
    let reason = why(&dns.source, "answers to DNS queries get conntrack zones");
    b.hook(Table::Raw, Hook::Prerouting, vec![], jump(&layout.inbound), reason);
    for (server, source) in networks {
        let mut asks = vec![udp(), to_port(DNS)];
        asks.extend(server.map(to));
        let purpose = format!("{} are tracked apart from the proxy's", whose(server.as_ref()));
        zone(b, asks, DOWNSTREAM, why(source, purpose));
        let mut answers = vec![udp(), from_port(DNS)];
        answers.extend(server.map(from));
        let reason = why(source, "the server's answers belong to the proxy's own queries");
        b.user(Table::Raw, &layout.inbound, answers, Target::Zone(UPSTREAM), reason);
    }
}

fn zone(b: &mut Builder<'_>, matches: Vec<crate::ruleset::Match>, zone: Zone, reason: Reason) {
    let chain = &b.layout.output_dns;
    b.user(Table::Raw, chain, matches, Target::Zone(zone), reason);
}
