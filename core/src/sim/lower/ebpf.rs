//! What eBPF programs decide, as rules that can be walked: the decisions of the capture program,
//! each with the class that it counts (`millrace_ebpf_common::decide`).

use std::collections::{BTreeMap, BTreeSet};

use millrace_ebpf_common::Class;

use super::super::program::{Base, Beside, Kind, Policy, SourceChain, SourceRule, SourceTable};
use super::super::question;
use super::super::ranges::Ranges;
use super::super::rule::{Action, Field, Notice, Step, Test, Way};
use super::iptables::number;
use super::words::words;
use super::{addresses, is, protocol};
use crate::capture::{
    self, Addresses, Branch, Condition, Decision, Listener, Path, Role, Verdict, purpose,
};
use crate::policy::{CapturePolicy, InboundSelection, Local, NetworkSelection};
use crate::ruleset::{Hook, Owner, Placement, Protocol, Reason, Side, Table};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, Family, Groups, InterfacePattern, ListenPort, PortRange};

const TCP: Condition = Condition::Protocol(Protocol::Tcp);

/// The table's name, and what holds it.
pub const EBPF: &str = "ebpf";

/// Where the proxy listens for inbound connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Whether it listens for inbound connections of IPv4.
    pub v4: bool,
    /// Whether it listens for inbound connections of IPv6.
    pub v6: bool,
}

impl Listening {
    /// For connections of IPv4 and of IPv6.
    pub const ALL: Self = Self { v4: true, v6: true };
}

/// What the programs do with the connections of a pod that has this policy. `groups` are the numbers
/// of groups that it names.
pub fn of_ebpf(policy: &CapturePolicy, groups: &Groups, listening: Listening) -> Vec<SourceTable> {
    let program = capture::program(policy);
    let table = |family| {
        let listens = match family {
            Family::V4 => listening.v4,
            Family::V6 => listening.v6,
        };
        let chain = |name: &str, hook| {
            let mut pod = Pod { policy, program: &program, family, groups, listens, rules: vec![] };
            if program.families.contains(&family) {
                match hook {
                    Hook::Output => pod.outbound(),
                    _ => pod.inbound(),
                }
            } else {
                let source = &policy.ipv6.source;
                pod.add(Class::Ipv6Off, vec![], Action::Return, source, "IPv6 is not captured");
            }
            let base = Base { hook, kind: Kind::Socket, priority: 0, policy: Policy::Accept };
            SourceChain { name: name.to_owned(), base: Some(base), rules: pod.rules }
        };
        let chains = vec![chain("outbound", Hook::Output), chain("inbound", Hook::Input)];
        let families = vec![family];
        SourceTable { holder: EBPF.to_owned(), name: EBPF.to_owned(), families, chains }
    };
    Family::ALL.into_iter().map(table).collect()
}

/// A pod, as one family's programs see it.
struct Pod<'p> {
    policy: &'p CapturePolicy,
    program: &'p capture::Program,
    family: Family,
    groups: &'p Groups,
    /// Whether the proxy listens for inbound connections.
    listens: bool,
    rules: Vec<SourceRule>,
}

/// What decisions that one source caused ask for: one of these.
#[derive(Default)]
struct Values<'p> {
    ports: Vec<PortRange>,
    networks: Vec<Cidr>,
    groups: Vec<&'p Owner>,
}

impl<'p> Values<'p> {
    /// Take a condition in, if it is what decisions of this role differ in.
    fn take(&mut self, role: Role, condition: &'p Condition) -> bool {
        match (role, condition) {
            (
                Role::ExcludedPort | Role::IncludedPort | Role::ExcludedInboundPort | Role::Inbound,
                Condition::ToPorts { negated: false, ports },
            ) => self.ports.extend(ports),
            (
                Role::ExcludedNetwork | Role::Network | Role::Dns | Role::ExcludedSource,
                Condition::Address { negated: false, of: Addresses::Network(network), .. },
            ) => self.networks.push(*network),
            (Role::Group, Condition::Owner { negated: false, owner }) => {
                self.groups.push(owner);
            }
            _ => return false,
        }
        true
    }

    /// In words, instead of what one decision says of one value.
    fn purpose(&self, Decision { role, verdict, reason, .. }: &Decision) -> String {
        let one = &reason.purpose;
        let (ports, networks) = (listed(&self.ports), listed(&self.networks));
        match *role {
            Role::ExcludedPort => purpose::not_captured("outbound port", ports),
            Role::IncludedPort => purpose::captured_everywhere(ports),
            Role::ExcludedInboundPort => purpose::not_captured("inbound port", ports),
            Role::Inbound if !self.ports.is_empty() => purpose::captured("inbound port", ports),
            Role::ExcludedNetwork => purpose::not_captured("outbound network", networks),
            Role::ExcludedSource => purpose::not_captured("inbound network", networks),
            Role::Network if !self.networks.is_empty() => {
                purpose::captured("outbound network", networks)
            }
            Role::Dns if *verdict == Verdict::Pass => one.clone(),
            Role::Dns if self.networks.is_empty() => "every DNS query is captured".to_owned(),
            Role::Dns => {
                let servers: Vec<_> = self.networks.iter().map(|s| s.address()).collect();
                format!("DNS queries to {} are captured", listed(&servers))
            }
            _ => one.clone(),
        }
    }
}

/// Decisions with one role, the same end and the same cause, as one.
struct Merged<'p> {
    decision: &'p Decision,
    protocols: BTreeSet<Protocol>,
    /// Their conditions beside the protocol and the values that are put together.
    rest: Vec<&'p Condition>,
    values: Values<'p>,
}

/// Decisions in a row with one role, in as few as there are causes: the maps of the programs know
/// sets of values.
fn merged<'p>(decisions: &[&'p Decision]) -> Vec<Merged<'p>> {
    let protocol = |condition: &&Condition| matches!(condition, Condition::Protocol(_));
    // What is asked of TCP and UDP alike is asked of both.
    let mut asked: BTreeMap<Vec<&Condition>, BTreeSet<Protocol>> = BTreeMap::new();
    let mut order = Vec::new();
    for decision in decisions {
        let (protocols, rest): (Vec<&Condition>, Vec<_>) = decision.when.iter().partition(protocol);
        let known = asked.entry(rest.clone()).or_insert_with(|| {
            order.push((*decision, rest));
            BTreeSet::new()
        });
        known.extend(protocols.iter().filter_map(|condition| match condition {
            Condition::Protocol(protocol) => Some(*protocol),
            _ => None,
        }));
    }
    let mut done: Vec<Merged<'p>> = Vec::new();
    for (decision, conditions) in order {
        let protocols = asked.remove(&conditions).unwrap_or_default();
        let mut values = Values::default();
        let rest: Vec<&Condition> =
            conditions.into_iter().filter(|c| !values.take(decision.role, c)).collect();
        let whole =
            values.ports.is_empty() && values.networks.is_empty() && values.groups.is_empty();
        let alike = done.iter_mut().find(|other| {
            !whole
                && other.decision.reason.source == decision.reason.source
                && other.protocols == protocols
                && other.rest == rest
        });
        match alike {
            Some(other) => {
                other.values.ports.append(&mut values.ports);
                other.values.networks.append(&mut values.networks);
                other.values.groups.append(&mut values.groups);
            }
            None => done.push(Merged { decision, protocols, rest, values }),
        }
    }
    done
}

/// At most four items with commas between, and how many more there are.
fn listed<T: ToString>(items: &[T]) -> String {
    const MOST: usize = 4;
    let mut words: Vec<String> = items.iter().take(MOST).map(ToString::to_string).collect();
    if let Some(more) = items.len().checked_sub(MOST).filter(|more| *more > 0) {
        words.push(format!("and {more} more"));
    }
    words.join(",")
}

/// The class that the programs count it as.
const fn class(Decision { role, verdict, .. }: &Decision) -> Class {
    match role {
        Role::ExcludedPort => Class::ExcludedPort,
        Role::Passthrough => Class::Passthrough,
        Role::SelfCall => Class::SelfCall,
        Role::StaysInPod => Class::InPod,
        Role::Proxy => Class::Proxy,
        Role::Group => Class::Group,
        Role::Dns if matches!(verdict, Verdict::Pass) => Class::OtherDns,
        Role::Dns => Class::Dns,
        Role::ExcludedUser => Class::ExcludedUser,
        Role::ExcludedFlow => Class::ExcludedFlow,
        Role::ExcludedSource => Class::ExcludedSource,
        Role::OwnLocalhost => Class::OwnLocalhost,
        Role::Localhost => Class::Localhost,
        Role::ExcludedNetwork => Class::ExcludedNetwork,
        Role::IncludedPort => Class::IncludedPort,
        Role::Network => Class::Network,
        Role::Tunnel => Class::Tunnel,
        Role::Inbound => Class::Inbound,
        // The rest is refused before it comes here (`ebpf::compile`), or leads to others.
        Role::ExcludedInboundPort
        | Role::Enter
        | Role::ExcludedInterface
        | Role::Rerouted
        | Role::Invalid
        | Role::Deliver
        | Role::Probe
        | Role::Zone
        | Role::Mark => Class::OtherInboundPort,
    }
}

impl<'p> Pod<'p> {
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
        let (vague, beside) = (false, Beside::default());
        self.rules.push(SourceRule { text, reason, counters: None, steps, vague, beside });
    }

    /// The decisions of a branch about the first packet of a connection, for this family, with those
    /// of others that it leads to in their place.
    fn decisions(&self, branch: Branch) -> Vec<&'p Decision> {
        let asked = self.program.decisions.iter().filter(|decision| {
            decision.table == Table::Nat
                && decision.path == Path::from(branch)
                && self.program.concerns(decision, self.family)
        });
        let placed = asked.flat_map(|decision| match decision.verdict {
            Verdict::Ask(next) if !matches!(next, Branch::To(_)) => self.decisions(next),
            _ => vec![decision],
        });
        placed.collect()
    }

    /// The decisions about the first packet of a connection that leaves, up to what leads to those of
    /// [`Branch::Outbound`], and whether only TCP gets to these.
    fn leaving(&self) -> (Vec<&'p Decision>, bool) {
        let asked = self.program.decisions.iter().filter(|decision| {
            (decision.table, decision.path) == (Table::Nat, Path::Leaving)
                && self.program.concerns(decision, self.family)
        });
        let mut asked: Vec<&Decision> = asked.collect();
        asked.sort_by_key(|decision| match decision.placement {
            Placement::Insert(position) => position,
            Placement::Append => u32::MAX,
        });
        let enters = |d: &&Decision| d.verdict == Verdict::Ask(Branch::Outbound);
        let enter = asked.iter().position(enters);
        let only_tcp =
            enter.and_then(|at| asked.get(at)).is_some_and(|enter| enter.when.contains(&TCP));
        asked.truncate(enter.unwrap_or(asked.len()));
        (asked, only_tcp)
    }

    fn outbound(&mut self) {
        let both: Ranges = [question::Protocol::TCP, question::Protocol::UDP]
            .map(|p| (p.0.into(), p.0.into()))
            .into_iter()
            .collect();
        let other = vec![is(Field::Protocol, true, both)];
        let purpose = "programs look at TCP and UDP only";
        self.add(Class::NotTcp, other, Action::Return, &Source::Always, purpose);
        let (ahead, only_tcp) = self.leaving();
        self.write(&ahead, false);
        let nothing_else = "nothing but TCP and DNS is captured";
        if only_tcp {
            self.only_tcp(nothing_else);
        }
        let decisions = self.decisions(Branch::Outbound);
        let captured = |d: &&Decision| d.verdict == Verdict::Ask(Branch::To(Listener::Outbound));
        let before = decisions.iter().position(captured).unwrap_or(decisions.len());
        let (before, captured) = decisions.split_at(before);
        let (first, before) = match self.policy.conventions.local {
            Local::Addresses => before.split_at(
                before.iter().rposition(|d| d.role == Role::Proxy).map_or(0, |last| last + 1),
            ),
            _ => (before, &[][..]),
        };
        self.write(first, only_tcp);
        if self.policy.conventions.local == Local::Addresses {
            let own = vec![Test::Local { side: Side::Destination, negated: false }];
            self.add(Class::InPod, own, Action::Return, &Source::Always, purpose::IN_POD);
        }
        self.write(before, only_tcp);
        if !only_tcp {
            self.only_tcp(nothing_else);
        }
        self.write(captured, true);
        if let NetworkSelection::Only(networks) = &self.policy.outbound.networks {
            let source = networks.first().map_or(&Source::Always, |network| &network.source);
            let purpose = "no other outbound network is captured";
            self.add(Class::OtherNetwork, vec![], Action::Return, source, purpose);
        }
    }

    fn inbound(&mut self) {
        self.only_tcp("nothing but TCP is captured on its way in");
        let purpose = "what begins in the pod has been decided on its way out";
        let names = vec![InterfacePattern::loopback()];
        let by_lo = vec![Test::Interface { way: Way::In, negated: false, names: names.into() }];
        self.add(Class::InPod, by_lo, Action::Return, &Source::Always, purpose);
        let mut decisions = self.decisions(Branch::Inbound);
        // The programs ask for sources before ports; either lets past, so it comes to the same.
        decisions.sort_by_key(|decision| match decision.role {
            Role::Tunnel => 0,
            Role::ExcludedSource => 1,
            _ => 2,
        });
        self.write(&decisions, true);
        let (source, purpose) = match &self.policy.inbound.selection {
            InboundSelection::AllExcept { .. } => return,
            InboundSelection::Nothing => {
                self.needless_sources();
                (&Source::Always, "no inbound connection is captured")
            }
            InboundSelection::Only { ports, .. } => {
                let source = ports.first().map_or(&Source::Always, |port| &port.source);
                (source, "no other inbound port is captured")
            }
        };
        self.add(Class::OtherInboundPort, vec![], Action::Return, source, purpose);
    }

    /// The programs ask for sources also where nothing is captured, which no rule does.
    fn needless_sources(&mut self) {
        let policy = self.policy;
        let of_family = |source: &&Sourced<Cidr>| source.value.family() == self.family;
        let sources: Vec<_> = policy.inbound.except_sources.iter().filter(of_family).collect();
        let Some(first) = sources.first() else { return };
        let networks: Vec<Cidr> = sources.iter().map(|source| source.value).collect();
        let tests = vec![addresses(Side::Source, false, &networks, self.family)];
        let purpose = purpose::not_captured("inbound network", listed(&networks));
        self.add(Class::ExcludedSource, tests, Action::Return, &first.source, purpose);
    }

    fn only_tcp(&mut self, purpose: &str) {
        let other = vec![protocol(question::Protocol::TCP, true)];
        self.add(Class::NotTcp, other, Action::Return, &Source::Always, purpose);
    }

    /// Decisions, of which some ask for TCP; `tcp` where nothing else is left.
    fn write(&mut self, decisions: &[&'p Decision], tcp: bool) {
        for row in decisions.chunk_by(|one, next| one.role == next.role) {
            for merged in merged(row) {
                self.one(&merged, tcp);
            }
        }
    }

    fn one(&mut self, merged: &Merged<'p>, tcp: bool) {
        let Merged { decision, protocols, rest, values } = merged;
        let mut tests: Vec<Test> = rest.iter().map(|condition| self.test(condition)).collect();
        if !values.groups.is_empty() {
            tests.push(self.groups(&values.groups, false));
        }
        if let ([one], false) = (Vec::from_iter(protocols).as_slice(), tcp) {
            tests.push(protocol(number(**one), false));
        }
        if !values.ports.is_empty() {
            tests.push(is(Field::Port, false, Ranges::ports(&values.ports)));
        }
        if !values.networks.is_empty() {
            let inbound = decision.role == Role::ExcludedSource;
            let side = if inbound { Side::Source } else { Side::Destination };
            tests.push(addresses(side, false, &values.networks, self.family));
        }
        let source = &decision.reason.source;
        let purpose = values.purpose(decision);
        let connect = |port: ListenPort| Action::Connect { address: None, port: Some(port.get()) };
        let inbound = self.policy.inbound.port.value;
        let (class, action, purpose) = match decision.verdict {
            Verdict::Ask(Branch::To(Listener::Outbound)) => {
                (class(decision), connect(self.policy.outbound.port.value), purpose)
            }
            Verdict::Redirect(port) => (class(decision), connect(port), purpose),
            Verdict::Translate { address, port } => {
                let port = port.map(ListenPort::get);
                (class(decision), Action::Connect { address: Some(address), port }, purpose)
            }
            // Of the pod's own: it is sent to the listener as it connects.
            Verdict::Ask(Branch::To(Listener::Inbound)) if decision.role != Role::Inbound => {
                (class(decision), connect(inbound), purpose)
            }
            Verdict::Ask(Branch::To(Listener::Inbound)) if self.listens => {
                (class(decision), Action::Hand(inbound.get()), purpose)
            }
            Verdict::Ask(Branch::To(Listener::Inbound)) => {
                let family = self.family;
                let purpose =
                    format!("{purpose}, and nobody listens on port {inbound} for {family}");
                (Class::Refused, Action::Reject(Notice::Unheard), purpose)
            }
            Verdict::Pass => (class(decision), Action::Return, purpose),
            other => {
                let what = format!("{other:?} by eBPF");
                (class(decision), Action::Unknown(what), purpose)
            }
        };
        self.add(class, tests, action, source, purpose);
    }

    /// What the programs ask instead of a condition.
    fn test(&self, condition: &Condition) -> Test {
        match condition {
            Condition::Protocol(asked) => protocol(number(*asked), false),
            Condition::ToPorts { negated, ports } => {
                is(Field::Port, *negated, Ranges::ports(ports))
            }
            Condition::Address { side, negated, of } => {
                let networks: Vec<Cidr> =
                    self.program.network(*of, self.family).into_iter().collect();
                addresses(*side, *negated, &networks, self.family)
            }
            Condition::Owner { negated, owner: Owner::Uid(uid) } => {
                is(Field::Uid, *negated, Ranges::one(uid.get().into()))
            }
            Condition::Owner { negated, owner: Owner::Uids(uids) } => {
                let ids = (uids.first().get().into(), uids.last().get().into());
                is(Field::Uid, *negated, [ids].into_iter().collect())
            }
            Condition::Owner { negated, owner } => self.groups(&[owner], *negated),
            Condition::Local { side, negated } => Test::Local { side: *side, negated: *negated },
            // To an address that the pod has: what goes there goes over `lo`.
            Condition::LeavesBy { negated, name } if *name == InterfacePattern::loopback() => {
                Test::Local { side: Side::Destination, negated: *negated }
            }
            // Policies with these are refused (`ebpf::compile`).
            other => Test::Unknown(format!("{other:?} by eBPF")),
        }
    }

    fn groups(&self, owners: &[&Owner], negated: bool) -> Test {
        let numbers = owners.iter().filter_map(|owner| match owner {
            Owner::Gid(gid) => Some(u128::from(gid.get())),
            Owner::Group(name) => self.groups.get(name).map(|gid| gid.get().into()),
            Owner::Uid(_) | Owner::Uids(_) => None,
        });
        is(Field::Gid, negated, numbers.map(|gid| (gid, gid)).collect())
    }
}
