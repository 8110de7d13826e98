//! A proof that a pod is captured as its configuration says: which real connections it takes, where
//! each has to arrive, and whether what was seen is that. Where they have to arrive is what the
//! rules of the configuration do in the simulator, not what the pod's own rules say. What is too many
//! to be tried is compared there.

mod answered;
mod bypassed;
mod compared;
mod detour;
mod finding;
mod sample;

pub use answered::unanswered;
pub use compared::{Compared, Otherwise, compared};
pub use detour::detours;
pub use finding::{Finding, Seen};

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;

use crate::policy::{
    CapturePolicy, DnsScope, GroupSelection, InboundSelection, NetworkSelection, passthrough,
};
use crate::ruleset::Owner;
use crate::sim::{Fate, How, Identity, Namespace, Program, Protocol, Question, RuleId};
use crate::value::{Cidr, Family, Groups};
use sample::{member, nobodys};

/// Who makes a connection, which decides its direction and the owner of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Maker {
    /// A process of the pod that is no proxy.
    Application,
    /// A process with a user or group id of the proxy.
    Proxy,
    /// A host outside the pod, whose connection arrives by an interface.
    Outside,
}

impl fmt::Display for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Application => "application",
            Self::Proxy => "proxy",
            Self::Outside => "outside",
        })
    }
}

/// Where a connection has to arrive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "fate")]
pub enum Expected {
    /// At a socket of this pod, the proxy's or the application's.
    Arrives {
        /// The port of the socket that gets it.
        port: u16,
        /// The destination that the receiver can ask for.
        original: SocketAddr,
        /// Untouched, translated, or handed to another socket.
        how: How,
    },
    /// Outside, where it was meant to go.
    Leaves,
    /// Nowhere: a rule drops or refuses it, or nobody listens.
    Dropped {
        /// In words, what drops or refuses it.
        why: String,
    },
    /// At the proxy, but what is around the rules drops it because it is captured.
    Lost {
        /// In words, what drops it; no rule does.
        why: String,
    },
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrives { port, original, .. } => {
                write!(f, "at port {port} with original destination {original}")
            }
            Self::Leaves => f.write_str("outside, untouched"),
            Self::Dropped { why } => write!(f, "nowhere: {why}"),
            Self::Lost { why } => write!(f, "at the proxy, but it is lost: {why}"),
        }
    }
}

/// A connection that `verify` makes, and where it has to arrive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// The part of the configuration that it tests, such as `excluded networks`.
    pub proves: &'static str,
    /// The application, the proxy, or somebody outside the pod.
    pub maker: Maker,
    /// The user and group that its socket belongs to; none outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Identity>,
    /// TCP or UDP, by its IP protocol number.
    pub protocol: Protocol,
    /// Where it comes from, where that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The destination that the maker asks for, before any translation.
    pub to: SocketAddr,
    /// The port that nobody may listen on meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unheard: Option<u16>,
    /// Whether connection tracking holds an earlier one with its addresses and ports.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reused: bool,
    /// Where it has to arrive.
    pub expected: Expected,
    /// Why: the reasons of the rules that decide.
    pub because: Vec<String>,
}

impl Check {
    /// Whether somebody else than whom it was meant for has to get it: it proves that there is a capture.
    pub const fn is_captured(&self) -> bool {
        matches!(self.expected, Expected::Arrives { port, .. } if port != self.to.port())
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.maker)?;
        if let Some(owner) = self.owner {
            write!(f, "({owner}) ")?;
        }
        if let Some(source) = self.source {
            write!(f, "from {source} ")?;
        }
        write!(f, "to {}/{}", self.to, self.protocol)?;
        if self.reused {
            f.write_str(" with an earlier one's addresses and ports")?;
        }
        self.unheard.map_or(Ok(()), |port| write!(f, " without a listener on port {port}"))
    }
}

/// What a proof is about.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What is to be captured.
    pub policy: &'a CapturePolicy,
    /// The rules that carry the policy out, as the simulator walks them.
    pub program: &'a Program,
    /// Group names and their numbers.
    pub groups: &'a Groups,
    /// The pod's interfaces, addresses, routes and sysctls, in which the program runs.
    pub namespace: &'a Namespace,
    /// Addresses that others reach it at.
    pub addresses: &'a [IpAddr],
    /// Addresses of somebody outside, of each family that there is one of.
    pub outside: &'a [IpAddr],
    /// The port that connections go to where the port does not matter.
    pub port: u16,
    /// The effective user and group id of this process.
    pub user: Identity,
}

/// The user and group of `nobody`, who runs no proxy (`passwd(5)` on Debian).
const NOBODY: u32 = 65_534;
/// The first user id of people and their applications (`login.defs(5)`).
const USERS: u32 = 1000;
/// How many items of each list of exceptions are tried.
const SAMPLES: usize = 3;
const DNS: u16 = 53;

/// The connections that prove it.
pub fn checks(asked: &Asked<'_>) -> Vec<Check> {
    let mut maker = Checks { asked, list: Vec::new() };
    for family in Family::ALL {
        if family == Family::V4 || asked.policy.ipv6.value && maker.address(family).is_some() {
            maker.outbound(family);
            maker.local(family);
            maker.inbound(family);
            maker.dns(family);
        } else if maker.address(family).is_some() {
            maker.untouched(family);
        }
    }
    maker.list
}

struct Checks<'a> {
    asked: &'a Asked<'a>,
    list: Vec<Check>,
}

impl Checks<'_> {
    /// The pod's first address of a family.
    fn address(&self, family: Family) -> Option<IpAddr> {
        self.asked.addresses.iter().copied().find(|a| Family::of(*a) == family)
    }

    /// An address outside that nobody has (RFC 5737, RFC 3849), and that nothing is said about.
    fn nowhere(&self, family: Family) -> IpAddr {
        let [first, others @ ..] = nobodys(family);
        let free = |a: &IpAddr| {
            let outbound = &self.asked.policy.outbound;
            !self.asked.addresses.contains(a)
                && !outbound.except_networks.iter().any(|c| c.value.contains(*a))
        };
        if free(&first) { first } else { others.into_iter().find(free).unwrap_or(first) }
    }

    /// Who plays a part: first who does it in every check, then others that rules may tell from them.
    fn owners(&self, maker: Maker) -> Vec<Option<Identity>> {
        let proxy = &self.asked.policy.proxy;
        let uids: Vec<u32> = proxy.uids.iter().map(|u| u.value.get()).collect();
        let gids: Vec<u32> = proxy.gids.iter().map(|g| g.value.get()).collect();
        let user = self.asked.user;
        let is_proxy = uids.contains(&user.uid) || gids.contains(&user.gid);
        let owners = match maker {
            Maker::Outside => return vec![None],
            Maker::Proxy => {
                let by_uid = uids.iter().map(|uid| (*uid, gids.first().copied().unwrap_or(*uid)));
                // The first group came with the users; alone, it has a user of its number.
                let by_gid = gids.iter().skip(usize::from(!uids.is_empty()));
                let by_gid = by_gid.map(|gid| (if uids.is_empty() { *gid } else { NOBODY }, *gid));
                let named = by_uid.chain(by_gid).map(|(uid, gid)| Identity { uid, gid });
                is_proxy.then_some(user).into_iter().chain(named).collect()
            }
            Maker::Application => {
                let is_free = |id: &u32| !uids.contains(id) && !gids.contains(id);
                let other = (USERS..NOBODY).find(is_free).map(|id| Identity { uid: id, gid: id });
                let mut owners = match user {
                    _ if is_proxy => vec![Identity { uid: NOBODY, gid: NOBODY }],
                    Identity { uid: 0, .. } => std::iter::once(user).chain(other).collect(),
                    _ => vec![user],
                };
                if let GroupSelection::Only { groups, .. } = &self.asked.policy.outbound.groups {
                    let gid = groups.iter().find_map(|g| match &g.value {
                        Owner::Gid(gid) => Some(gid.get()),
                        Owner::Group(name) => self.asked.groups.get(name).map(|gid| gid.get()),
                        Owner::Uid(_) | Owner::Uids(_) => None,
                    });
                    for owner in &mut owners {
                        owner.gid = gid.unwrap_or(owner.gid);
                    }
                }
                owners
            }
        };
        let mut found: Vec<Option<Identity>> = Vec::new();
        for owner in owners.into_iter().map(Some) {
            if !found.contains(&owner) {
                found.push(owner);
            }
        }
        found
    }

    /// A connection of who plays the part first.
    fn add(
        &mut self,
        proves: &'static str,
        maker: Maker,
        protocol: Protocol,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) {
        if let Some(owner) = self.owners(maker).first() {
            self.add_of(proves, (maker, *owner), protocol, source, to);
        }
    }

    /// A connection of each who plays the part.
    fn add_of_all(
        &mut self,
        proves: &'static str,
        maker: Maker,
        protocol: Protocol,
        to: SocketAddr,
    ) {
        for owner in self.owners(maker) {
            self.add_of(proves, (maker, owner), protocol, None, to);
        }
    }

    fn add_of(
        &mut self,
        proves: &'static str,
        (maker, owner): (Maker, Option<Identity>),
        protocol: Protocol,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) {
        let mut question = match (owner, source) {
            (Some(owner), _) => Question::out(owner, protocol, to),
            (None, Some(from)) => Question::inward(from, protocol, to),
            (None, None) => return,
        };
        question.source = source;
        let same = |c: &Check| {
            (c.maker, c.owner, c.protocol, c.source, c.to) == (maker, owner, protocol, source, to)
        };
        if self.list.iter().any(same) {
            return;
        }
        let answer = self.asked.program.answer(self.asked.namespace, &question);
        let expected = match answer.fate {
            Fate::Delivered { port, original, how, .. } => {
                // No option of a UDP socket tells it: it is read where it was sent to.
                let original = if protocol == Protocol::UDP { to } else { original };
                Expected::Arrives { port, original, how }
            }
            Fate::Passed { .. } => Expected::Leaves,
            Fate::Dropped { rule: None, why } if self.begins_without(&question) => {
                Expected::Lost { why }
            }
            Fate::Dropped { why, .. } => Expected::Dropped { why },
            Fate::Refused { .. } => Expected::Dropped { why: "it is refused".to_owned() },
            // Nothing is promised, so nothing is to be proved.
            Fate::Unknown { .. } => return,
        };
        let rule = |id: &RuleId| self.asked.program.rule(*id).reason.as_ref();
        let reasons = answer.decided.iter().filter_map(rule);
        let because = reasons.map(ToString::to_string).collect();
        let (unheard, reused) = (None, false);
        self.list.push(Check {
            proves,
            maker,
            owner,
            protocol,
            source,
            to,
            unheard,
            reused,
            expected,
            because,
        });
    }

    /// Whether there is such a connection where nothing is captured. What a pod can't begin, or what never
    /// comes to it, can't be captured either.
    fn begins_without(&self, question: &Question) -> bool {
        let nothing = Program::new(Vec::new());
        let fate = nothing.answer(self.asked.namespace, question).fate;
        matches!(fate, Fate::Delivered { .. } | Fate::Passed { .. })
    }

    fn outbound(&mut self, family: Family) {
        let port = self.asked.port;
        let outbound = &self.asked.policy.outbound;
        let nowhere = self.nowhere(family);
        let to = SocketAddr::new(nowhere, port);
        self.add_of_all("outbound connections", Maker::Application, Protocol::TCP, to);
        self.add_of_all("the proxy's own connections", Maker::Proxy, Protocol::TCP, to);
        if let NetworkSelection::Only(_) = &outbound.networks {
            let networks: Vec<Cidr> = outbound.networks.of(family).map(|c| c.value).collect();
            for network in networks.into_iter().take(SAMPLES) {
                let to = SocketAddr::new(member(network), port);
                self.add("included networks", Maker::Application, Protocol::TCP, None, to);
            }
        }
        let excepted: Vec<Cidr> = outbound
            .except_networks
            .iter()
            .map(|c| c.value)
            .filter(|c| c.family() == family)
            .take(SAMPLES)
            .collect();
        for network in excepted {
            let to = SocketAddr::new(member(network), port);
            self.add("excluded networks", Maker::Application, Protocol::TCP, None, to);
        }
        for user in outbound.except_users.iter().take(SAMPLES) {
            let id = user.value.get();
            let user = (Maker::Application, Some(Identity { uid: id, gid: id }));
            self.add_of("excluded users", user, Protocol::TCP, None, to);
        }
        let ports = |list: &[crate::source::Sourced<crate::value::PortRange>]| {
            list.iter().map(|p| p.value.first().get()).take(SAMPLES).collect::<Vec<_>>()
        };
        for port in ports(&outbound.ports) {
            let to = SocketAddr::new(nowhere, port);
            self.add("included outbound ports", Maker::Application, Protocol::TCP, None, to);
        }
        for port in ports(&outbound.except_ports) {
            let to = SocketAddr::new(nowhere, port);
            self.add("excluded outbound ports", Maker::Application, Protocol::TCP, None, to);
        }
    }

    /// What a family that is not captured is to be: as it would be without any rules.
    fn untouched(&mut self, family: Family) {
        let (app, tcp) = (Maker::Application, Protocol::TCP);
        let to = SocketAddr::new(self.nowhere(family), self.asked.port);
        self.add("outbound connections", app, tcp, None, to);
        let from = self.asked.outside.iter().copied().find(|a| Family::of(*a) == family);
        let (Some(own), Some(_)) = (self.address(family), from) else { return };
        let to = SocketAddr::new(own, self.asked.port);
        self.add("inbound connections", Maker::Outside, tcp, from, to);
    }

    /// Connections that the pod makes to itself.
    fn local(&mut self, family: Family) {
        let localhost = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let to = SocketAddr::new(localhost, self.asked.port);
        self.add("connections to localhost", Maker::Application, Protocol::TCP, None, to);
        let Some(own) = self.address(family) else { return };
        let to = SocketAddr::new(own, self.asked.port);
        let (app, proxy, tcp) = (Maker::Application, Maker::Proxy, Protocol::TCP);
        self.add_of_all("the application's calls to its own pod", app, tcp, to);
        self.add_of_all("the proxy's calls to its own pod", proxy, tcp, to);
        if self.asked.policy.conventions.passthrough {
            let passed = "what the proxy passes on to the application";
            self.add(passed, proxy, tcp, Some(passthrough(family)), to);
        }
    }

    fn inbound(&mut self, family: Family) {
        let inbound = &self.asked.policy.inbound;
        let outside = self.asked.outside.iter().copied().filter(|a| Family::of(*a) == family);
        let (excluded, others): (Vec<IpAddr>, Vec<_>) = outside
            .partition(|from| inbound.except_sources.iter().any(|c| c.value.contains(*from)));
        let Some(own) = self.address(family) else { return };
        if let Some(from) = excluded.first() {
            let to = SocketAddr::new(own, self.asked.port);
            self.add("excluded inbound networks", Maker::Outside, Protocol::TCP, Some(*from), to);
        }
        let from = others.first().copied();
        if from.is_none() {
            return;
        }
        let mut ports = vec![("inbound connections", self.asked.port)];
        ports.extend(inbound.tunnel_port.as_ref().map(|port| ("tunnels", port.value.get())));
        let (only, except) = match &inbound.selection {
            InboundSelection::Nothing => (&[][..], &[][..]),
            InboundSelection::AllExcept { except, .. } => (&[][..], &except[..]),
            InboundSelection::Only { ports, except } => (&ports[..], &except[..]),
        };
        for (proves, list) in [("excluded inbound ports", except), ("included inbound ports", only)]
        {
            ports.extend(list.iter().take(SAMPLES).map(|p| (proves, p.value.first().get())));
        }
        for (proves, port) in ports {
            let to = SocketAddr::new(own, port);
            self.add(proves, Maker::Outside, Protocol::TCP, from, to);
            if port == self.asked.port {
                self.unheard();
            }
        }
        let to = SocketAddr::new(own, self.asked.port);
        self.add("inbound UDP", Maker::Outside, Protocol::UDP, from, to);
    }

    /// What is captured reaches nobody else while the proxy does not listen; where a transparent socket
    /// takes it, also with the addresses and ports of an earlier connection.
    fn unheard(&mut self) {
        let Some(last) = self.list.last().cloned() else { return };
        let Expected::Arrives { port, how, .. } = last.expected else { return };
        if how == How::Unchanged {
            return;
        }
        let why = format!("nobody listens on port {port}");
        let expected = Expected::Dropped { why };
        let proves = "inbound connections while the proxy does not listen";
        let unheard = Check { proves, unheard: Some(port), expected, ..last.clone() };
        self.list.push(unheard.clone());
        if how == How::Transparent {
            let proves = "inbound connections with the addresses and ports of earlier ones";
            self.list.push(Check { proves, reused: true, ..last });
            self.list.push(Check { proves, reused: true, ..unheard });
        }
    }

    fn dns(&mut self, family: Family) {
        let scope = self.asked.policy.dns.as_ref().map(|dns| &dns.scope);
        let servers: Vec<IpAddr> = match scope {
            Some(scope @ DnsScope::Servers(_)) => scope.servers(family).map(|s| s.value).collect(),
            _ => Vec::new(),
        };
        let nowhere = self.nowhere(family);
        for server in servers.into_iter().take(1).chain([nowhere]) {
            let to = SocketAddr::new(server, DNS);
            self.add_of_all("DNS queries", Maker::Application, Protocol::UDP, to);
            self.add("DNS queries by TCP", Maker::Application, Protocol::TCP, None, to);
            self.add_of_all("the proxy's own DNS queries", Maker::Proxy, Protocol::UDP, to);
        }
        let to = SocketAddr::new(nowhere, self.asked.port);
        self.add("outbound UDP", Maker::Application, Protocol::UDP, None, to);
    }
}
