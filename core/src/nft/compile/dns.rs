//! Capture of DNS queries, with conntrack zones that keep the application's queries and the
//! proxy's own apart.

use super::{Builder, DNS, Statement, from, from_udp, jump, rule, to, to_tcp, to_udp, why};
use crate::nft::OwnerSpelling;
use crate::policy::{DnsCapture, DnsScope};
use crate::ruleset::{Hook, Owner, Reason, Table};
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
    let servers = servers(b, dns);
    let reason = why(&dns.source, "DNS queries get conntrack zones");
    b.hook(Table::Raw, Hook::Output, rule(vec![], jump(&layout.output_dns)), reason);
    if !servers.is_empty() {
        let reason = why(&dns.source, "DNS queries are captured");
        b.user(Table::Nat, &layout.output, rule(vec![], jump(&layout.output_dns)), reason);
    }
    redirects(b, dns, &servers);
    proxy_zones(b, dns);
    application_zones(b, dns, &servers);
}

/// Servers whose queries are captured, each with its source; one `None` when all are.
fn servers(b: &Builder<'_>, dns: &DnsCapture) -> Vec<(Option<Cidr>, Source)> {
    match &dns.scope {
        DnsScope::All(source) => vec![(None, source.clone())],
        DnsScope::Servers(_) => b
            .families()
            .flat_map(|family| dns.scope.servers(family))
            .map(|s| (Some(Cidr::host(s.value)), s.source.clone()))
            .collect(),
    }
}

fn whose(server: Option<&Cidr>) -> String {
    server
        .map_or_else(|| "all DNS queries".to_owned(), |s| format!("DNS queries to {}", s.address()))
}

/// The redirects to the proxy's DNS port, TCP first.
fn redirects(b: &mut Builder<'_>, dns: &DnsCapture, servers: &[(Option<Cidr>, Source)]) {
    for query in [to_tcp(DNS), to_udp(DNS)] {
        for (server, source) in servers {
            // The reference names the protocol once more where all TCP queries are meant.
            let protocol = (server.is_none() && query == to_tcp(DNS)).then(super::tcp);
            let asks = server.map(to).into_iter().chain(protocol).chain([query.clone()]).collect();
            let purpose = format!("{} go to port {}", whose(server.as_ref()), dns.port.value);
            let redirect = rule(asks, Statement::Redirect(dns.port.value));
            b.user(Table::Nat, &b.layout.output_dns, redirect, why(source, purpose));
        }
    }
}

/// Zones for what the proxy sends.
fn proxy_zones(b: &mut Builder<'_>, dns: &DnsCapture) {
    let proxy = &b.policy.proxy;
    let uids = proxy.uids.iter().map(|u| (Owner::Uid(u.value), &u.source));
    let gids = proxy.gids.iter().map(|g| (Owner::Gid(g.value), &g.source));
    for (owner, source) in uids.chain(gids) {
        let of =
            Statement::Owner { negated: false, owners: vec![owner], spelling: OwnerSpelling::Meta };
        let reason = why(source, "the proxy's own queries are tracked apart");
        zone(b, vec![to_udp(DNS), of.clone()], UPSTREAM, reason);
        let reason = why(source, "the proxy's answers belong to the application's queries");
        zone(b, vec![from_udp(dns.port.value.port()), of], DOWNSTREAM, reason);
    }
}

/// Zones for what the application asks and the servers answer.
fn application_zones(b: &mut Builder<'_>, dns: &DnsCapture, servers: &[(Option<Cidr>, Source)]) {
    if servers.is_empty() {
        return;
    }
    let layout = b.layout;
    let reason = why(&dns.source, "answers to DNS queries get conntrack zones");
    b.hook(Table::Raw, Hook::Prerouting, rule(vec![], jump(&layout.inbound)), reason);
    for (server, source) in servers {
        let asks = [to_udp(DNS)].into_iter().chain(server.map(to)).collect();
        let purpose = format!("{} are tracked apart from the proxy's", whose(server.as_ref()));
        zone(b, asks, DOWNSTREAM, why(source, purpose));
        let answers = [from_udp(DNS)].into_iter().chain(server.map(from)).collect();
        let reason = why(source, "the server's answers belong to the proxy's own queries");
        let answers = rule(answers, Statement::Zone(UPSTREAM));
        b.user(Table::Raw, &layout.inbound, answers, reason);
    }
}

fn zone(b: &mut Builder<'_>, conditions: Vec<Statement>, zone: Zone, reason: Reason) {
    let rule = rule(conditions, Statement::Zone(zone));
    b.user(Table::Raw, &b.layout.output_dns, rule, reason);
}
