//! What eBPF programs decide, as rules that can be walked: the questions of
//! `millrace_ebpf_common::decide`, in its order, each with the class that it counts.

use millrace_ebpf_common::Class;

use super::super::namespace::loopback;
use super::super::program::{Base, Kind, Policy, SourceChain, SourceRule, SourceTable};
use super::super::question::Protocol;
use super::super::ranges::{Ranges, number};
use super::super::rule::{Action, Field, Notice, Step, Test, Way};
use super::words::words;
use super::{is, protocol};
use crate::compile::purpose;
use crate::plan::Groups;
use crate::policy::{
    self, CapturePolicy, DnsScope, GroupSelection, IdentityMatching, InboundSelection,
    NetworkSelection,
};
use crate::ruleset::{Hook, Owner, Reason, Side};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, Family, InterfacePattern, PortRange};

/// The table's name, and what holds it.
pub const EBPF: &str = "ebpf";

/// The port of DNS (RFC 1035, 4.2).
const DNS: u128 = 53;

/// Where the proxy listens for inbound connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// For those of IPv4.
    pub v4: bool,
    /// For those of IPv6.
    pub v6: bool,
}

impl Listening {
    /// For all.
    pub const ALL: Self = Self { v4: true, v6: true };
}

/// What the programs do with the connections of a pod that has this policy. `groups` are the numbers
/// of groups that it names.
pub fn of_ebpf(policy: &CapturePolicy, groups: &Groups, listening: Listening) -> Vec<SourceTable> {
    let table = |family| {
        let localhost = match family {
            Family::V4 => Ranges::network(policy.localhost.value),
            Family::V6 => loopback(family),
        };
        let listens = match family {
            Family::V4 => listening.v4,
            Family::V6 => listening.v6,
        };
        let pod = Pod { policy, family, groups, localhost, listens };
        let chain = |name: &str, hook, rules| SourceChain {
            name: name.to_owned(),
            base: Some(Base { hook, kind: Kind::Socket, priority: 0, policy: Policy::Accept }),
            rules,
        };
        let chains = vec![
            chain("outbound", Hook::Output, pod.outbound()),
            chain("inbound", Hook::Input, pod.inbound()),
        ];
        let families = vec![family];
        SourceTable { holder: EBPF.to_owned(), name: EBPF.to_owned(), families, chains }
    };
    Family::ALL.into_iter().map(table).collect()
}

/// The address that what the proxy passes on comes from.
fn passthrough(family: Family) -> Ranges {
    Ranges::one(number(policy::passthrough(family)))
}

/// A pod, as one family's programs see it.
struct Pod<'p> {
    policy: &'p CapturePolicy,
    family: Family,
    groups: &'p Groups,
    /// Addresses that are localhost.
    localhost: Ranges,
    /// Whether the proxy listens for inbound connections.
    listens: bool,
}

/// Rules, one after the other.
#[derive(Default)]
struct Rules(Vec<SourceRule>);

impl Rules {
    fn add(
        &mut self,
        class: Class,
        tests: Vec<Test>,
        action: Action,
        source: &Source,
        purpose: impl Into<String>,
    ) {
        let tests = tests.into_iter().map(Step::from);
        let steps: Vec<Step> = tests.chain([Step::from(action)]).collect();
        let text = format!("{}: {}", class.as_str(), words(&steps));
        let reason = Some(Reason { source: source.clone(), purpose: purpose.into() });
        self.0.push(SourceRule { text, reason, counters: None, steps });
    }
}

/// To an address that the pod has.
const STAYS: Test = Test::Local { side: Side::Destination, negated: false };

fn tcp() -> Test {
    protocol(Protocol::TCP, false)
}

fn port(set: Ranges) -> Test {
    is(Field::Port, false, set)
}

fn not_port(set: Ranges) -> Test {
    is(Field::Port, true, set)
}

/// Which of several things that one source names.
fn listed<T: ToString>(items: &[&T]) -> String {
    const MOST: usize = 4;
    let mut words: Vec<String> = items.iter().take(MOST).map(|item| item.to_string()).collect();
    if let Some(more) = items.len().checked_sub(MOST).filter(|more| *more > 0) {
        words.push(format!("and {more} more"));
    }
    words.join(",")
}

/// Things by who named them, in order.
fn by_source<T>(items: &[Sourced<T>]) -> Vec<(&Source, Vec<&T>)> {
    let mut groups: Vec<(&Source, Vec<&T>)> = Vec::new();
    for item in items {
        match groups.iter_mut().find(|(source, _)| **source == item.source) {
            Some((_, list)) => list.push(&item.value),
            None => groups.push((&item.source, vec![&item.value])),
        }
    }
    groups
}

/// Who a process may be.
type Identities<'p> = Vec<(Field, Vec<(u128, &'p Source)>)>;

impl Pod<'_> {
    fn to(&self, set: Ranges) -> Test {
        let family = Some(self.family);
        Test::Is { field: Field::Destination, negated: false, set, family, socket: false }
    }

    fn from(&self, set: Ranges) -> Test {
        let family = Some(self.family);
        Test::Is { field: Field::Source, negated: false, set, family, socket: false }
    }

    /// To an address that is not localhost.
    fn not_localhost(&self) -> Test {
        let family = Some(self.family);
        let set = self.localhost.clone();
        Test::Is { field: Field::Destination, negated: true, set, family, socket: false }
    }

    /// Whether the family is let past as a whole.
    fn is_off(&self, rules: &mut Rules) -> bool {
        let off = self.family == Family::V6 && !self.policy.ipv6.value;
        if off {
            let source = &self.policy.ipv6.source;
            let purpose = "IPv6 is not captured";
            rules.add(Class::Ipv6Off, Vec::new(), Action::Return, source, purpose);
        }
        off
    }

    fn outbound(&self) -> Vec<SourceRule> {
        let mut rules = Rules::default();
        let both: Ranges =
            [Protocol::TCP, Protocol::UDP].map(|p| (p.0.into(), p.0.into())).into_iter().collect();
        let purpose = "programs look at TCP and UDP only";
        let other = vec![is(Field::Protocol, true, both)];
        rules.add(Class::NotTcp, other, Action::Return, &Source::Always, purpose);
        if self.is_off(&mut rules) {
            return rules.0;
        }
        for (source, ports) in by_source(&self.policy.outbound.except_ports) {
            let purpose = purpose::not_captured("outbound port", listed(&ports));
            let tests = vec![port(Ranges::ports(ports))];
            rules.add(Class::ExcludedPort, tests, Action::Return, source, purpose);
        }
        let tests = vec![STAYS, self.from(passthrough(self.family))];
        let (class, always) = (Class::Passthrough, &Source::Always);
        rules.add(class, tests, Action::Return, always, purpose::PASSTHROUGH);
        self.identity(&mut rules);
        self.group(&mut rules);
        self.networks(&mut rules);
        rules.0
    }

    /// What the proxy's identities say.
    fn identity(&self, rules: &mut Rules) {
        let proxy = &self.policy.proxy;
        let uids: Vec<_> = proxy.uids.iter().map(|u| (u.value.get().into(), &u.source)).collect();
        let gids: Vec<_> = proxy.gids.iter().map(|g| (g.value.get().into(), &g.source)).collect();
        let all: Identities<'_> = vec![(Field::Uid, uids), (Field::Gid, gids)];
        match proxy.matching {
            IdentityMatching::Any => {
                for (field, ids) in &all {
                    self.self_calls(rules, *field, ids, true);
                }
                for (field, ids) in &all {
                    proxies(rules, *field, ids);
                }
                self.stays_in_pod(rules, &Source::Always);
            }
            // Each identity brings its rules with it, and the first one's let past what stays in
            // the pod.
            IdentityMatching::OneByOne => {
                for (field, ids) in &all {
                    let Some(((id, source), rest)) = ids.split_first() else { continue };
                    let first = [(*id, *source)];
                    // DNS is spared for users only.
                    let spares = *field == Field::Uid;
                    self.self_calls(rules, *field, &first, spares);
                    proxies(rules, *field, &first);
                    self.stays_in_pod(rules, source);
                    self.self_calls(rules, *field, rest, spares);
                    proxies(rules, *field, rest);
                }
            }
        }
    }

    fn self_calls(
        &self,
        rules: &mut Rules,
        field: Field,
        ids: &[(u128, &Source)],
        spares_dns: bool,
    ) {
        let policy = self.policy;
        let mut spared = Ranges::one(policy.inbound.tunnel_port.value.get().into());
        if spares_dns && policy.dns.is_some() {
            spared = spared.or(&Ranges::one(DNS));
        }
        for (id, source) in ids {
            let who = is(field, false, Ranges::one(*id));
            let tests = vec![who, STAYS, self.not_localhost(), tcp(), not_port(spared.clone())];
            let to = Action::Connect(policy.inbound.port.value.get());
            rules.add(Class::SelfCall, tests, to, source, purpose::SELF_CALL);
        }
    }

    fn stays_in_pod(&self, rules: &mut Rules, source: &Source) {
        if self.policy.outbound.networks.names_loopback() {
            return;
        }
        let mut tests = vec![STAYS];
        if self.policy.dns.is_some() {
            tests.extend([tcp(), not_port(Ranges::one(DNS))]);
        }
        rules.add(Class::InPod, tests, Action::Return, source, purpose::IN_POD);
    }

    fn group(&self, rules: &mut Rules) {
        let gid = |owner: &Owner| match owner {
            Owner::Gid(gid) => Some(u128::from(gid.get())),
            Owner::Group(name) => self.groups.get(name).map(|gid| gid.get().into()),
            Owner::Uid(_) => None,
        };
        let set = |groups: &[&Owner]| -> Ranges {
            groups.iter().filter_map(|group| gid(group)).map(|gid| (gid, gid)).collect()
        };
        match &self.policy.outbound.groups {
            GroupSelection::AllExcept(groups) => {
                for (source, groups) in by_source(groups) {
                    let tests = vec![is(Field::Gid, false, set(&groups))];
                    let purpose = purpose::NOT_GROUP;
                    rules.add(Class::Group, tests, Action::Return, source, purpose);
                }
            }
            GroupSelection::Only { groups, source } => {
                let groups: Vec<&Owner> = groups.iter().map(|group| &group.value).collect();
                let tests = vec![is(Field::Gid, true, set(&groups))];
                rules.add(Class::Group, tests, Action::Return, source, purpose::ONLY_GROUPS);
            }
        }
    }

    /// The networks of this family, by who named them.
    fn of_family<'n>(&self, networks: &'n [Sourced<Cidr>]) -> Vec<(&'n Source, Vec<&'n Cidr>)> {
        let mut groups = by_source(networks);
        for (_, networks) in &mut groups {
            networks.retain(|network| network.family() == self.family);
        }
        groups.retain(|(_, networks)| !networks.is_empty());
        groups
    }

    fn to_networks(&self, networks: &[&Cidr]) -> Test {
        self.to(networks
            .iter()
            .flat_map(|n| Ranges::network(**n).iter().collect::<Vec<_>>())
            .collect())
    }

    fn networks(&self, rules: &mut Rules) {
        let outbound = &self.policy.outbound;
        if let Some(dns) = &self.policy.dns {
            let to = Action::Connect(dns.port.value.get());
            let query = port(Ranges::one(DNS));
            match &dns.scope {
                DnsScope::All(source) => {
                    let purpose = "every DNS query is captured";
                    rules.add(Class::Dns, vec![query], to, source, purpose);
                }
                DnsScope::Servers(servers) => {
                    for (source, servers) in by_source(servers) {
                        let servers: Vec<_> = servers
                            .into_iter()
                            .filter(|s| Family::of(**s) == self.family)
                            .collect();
                        let set = servers.iter().map(|ip| (number(**ip), number(**ip))).collect();
                        if servers.is_empty() {
                            continue;
                        }
                        let purpose = format!("DNS queries to {} are captured", listed(&servers));
                        let tests = vec![query.clone(), self.to(set)];
                        rules.add(Class::Dns, tests, to.clone(), source, purpose);
                    }
                }
            }
        }
        let tests = vec![self.to(self.localhost.clone())];
        let source = &self.policy.localhost.source;
        rules.add(Class::Localhost, tests, Action::Return, source, purpose::LOCALHOST);
        for (source, networks) in self.of_family(&outbound.except_networks) {
            let purpose = purpose::not_captured("outbound network", listed(&networks));
            let tests = vec![self.to_networks(&networks)];
            rules.add(Class::ExcludedNetwork, tests, Action::Return, source, purpose);
        }
        let udp = vec![protocol(Protocol::TCP, true)];
        let purpose = "nothing but TCP and DNS is captured";
        rules.add(Class::NotTcp, udp, Action::Return, &Source::Always, purpose);
        let to = || Action::Connect(outbound.port.value.get());
        for (source, ports) in by_source(&outbound.ports) {
            let purpose = purpose::captured_everywhere(listed(&ports));
            rules.add(Class::IncludedPort, vec![port(Ranges::ports(ports))], to(), source, purpose);
        }
        match &outbound.networks {
            NetworkSelection::All(source) => {
                rules.add(Class::Network, Vec::new(), to(), source, purpose::EVERY_OTHER);
            }
            NetworkSelection::Only(networks) => {
                for (source, networks) in self.of_family(networks) {
                    let purpose = purpose::captured("outbound network", listed(&networks));
                    let tests = vec![self.to_networks(&networks)];
                    rules.add(Class::Network, tests, to(), source, purpose);
                }
                let source = networks.first().map_or(&Source::Always, |network| &network.source);
                let purpose = "no other outbound network is captured";
                rules.add(Class::OtherNetwork, Vec::new(), Action::Return, source, purpose);
            }
        }
    }

    fn inbound(&self) -> Vec<SourceRule> {
        let mut rules = Rules::default();
        let inbound = &self.policy.inbound;
        if self.is_off(&mut rules) {
            return rules.0;
        }
        let other = vec![protocol(Protocol::TCP, true)];
        let purpose = "nothing but TCP is captured on its way in";
        rules.add(Class::NotTcp, other, Action::Return, &Source::Always, purpose);
        let purpose = "what begins in the pod has been decided on its way out";
        let names = vec![InterfacePattern::loopback()];
        let tests = vec![Test::Interface { way: Way::In, negated: false, names }];
        rules.add(Class::InPod, tests, Action::Return, &Source::Always, purpose);
        let tunnel = &inbound.tunnel_port;
        let tests = vec![port(Ranges::one(tunnel.value.get().into()))];
        let purpose = purpose::tunnel(tunnel.value);
        rules.add(Class::Tunnel, tests, Action::Return, &tunnel.source, purpose);
        let other = Class::OtherInboundPort;
        match &inbound.selection {
            InboundSelection::Nothing => {
                let purpose = "no inbound connection is captured";
                rules.add(other, Vec::new(), Action::Return, &Source::Always, purpose);
            }
            InboundSelection::AllExcept { source, except } => {
                for (source, ports) in by_source(except) {
                    let purpose = purpose::not_captured("inbound port", listed(&ports));
                    let tests = vec![port(Ranges::ports(ports))];
                    rules.add(other, tests, Action::Return, source, purpose);
                }
                self.hand(&mut rules, None, source);
            }
            InboundSelection::Only(ports) => {
                for (source, ports) in by_source(ports) {
                    self.hand(&mut rules, Some(&ports), source);
                }
                let source = ports.first().map_or(&Source::Always, |port| &port.source);
                let purpose = "no other inbound port is captured";
                rules.add(other, Vec::new(), Action::Return, source, purpose);
            }
        }
        rules.0
    }

    /// To the proxy, if it is there.
    fn hand(&self, rules: &mut Rules, ports: Option<&[&PortRange]>, source: &Source) {
        let purpose = ports.map_or_else(
            || purpose::EVERY_PORT.to_owned(),
            |ports| purpose::captured("inbound port", listed(ports)),
        );
        let tests = ports.map(|ports| port(Ranges::ports(ports.iter().copied())));
        let tests = tests.into_iter().collect();
        let proxy = self.policy.inbound.port.value;
        if self.listens {
            rules.add(Class::Inbound, tests, Action::Hand(proxy.get()), source, purpose);
        } else {
            let family = self.family;
            let purpose = format!("{purpose}, and nobody listens on port {proxy} for {family}");
            rules.add(Class::Refused, tests, Action::Reject(Notice::Unheard), source, purpose);
        }
    }
}

fn proxies(rules: &mut Rules, field: Field, ids: &[(u128, &Source)]) {
    for (id, source) in ids {
        let tests = vec![is(field, false, Ranges::one(*id))];
        rules.add(Class::Proxy, tests, Action::Return, source, purpose::PROXY);
    }
}
