//! How Kuma's rules are known: by its chains, by its comments, and those of DNS without comments by all
//! that they ask for, beside each other.

use super::{LAYOUT, comment};
use crate::iptables::{ChainDump, Dump, DumpRule};
use crate::ownership::{Footprint, Owned, known_tables};
use crate::ruleset::{Chain, Hook, Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::{Cidr, ListenPort, Port, Uid, Zone};

/// What kumactl left, with comments and without.
pub(super) const FOOTPRINT: Footprint = Footprint { unmarked, ..Footprint::of(&LAYOUT) };

/// Rules of builtin chains that lead to none of Kuma's.
fn unmarked(dump: &Dump, owned: &mut Owned) {
    let builtins = || {
        known_tables(dump).flat_map(|(table, content)| {
            let hook = |chain: &ChainDump| match chain.name.parse() {
                Ok(Chain::Builtin(hook)) => Some(hook),
                _ => None,
            };
            content.chains.iter().filter_map(move |chain| Some((table, hook(chain)?, chain)))
        })
    };
    let mut says = Vec::new();
    for (table, _, chain) in builtins() {
        let said = chain.rules.iter().enumerate().filter(|(_, rule)| is_said(rule));
        says.extend(said.map(|(index, _)| (table, chain, index)));
    }
    // Where comments are, they tell: what has none is somebody else's.
    if says.is_empty()
        && let Some(dns) = Dns::find(dump)
    {
        for (table, hook, chain) in builtins() {
            for (index, rule) in chain.rules.iter().enumerate() {
                if rule.rule.as_ref().is_ok_and(|rule| dns.has(table, hook, index, rule)) {
                    says.push((table, chain, index));
                }
            }
        }
    }
    for (table, chain, index) in says {
        owned.add_rule(table, &chain.name, index);
    }
}

/// Whether a rule says that it is Kuma's.
fn is_said(rule: &DumpRule) -> bool {
    match &rule.rule {
        Ok(rule) => rule
            .matches
            .iter()
            .any(|m| matches!(m, Match::Comment(c) if c.as_str().starts_with(comment::PREFIX))),
        Err(_) => rule.text.contains(&format!("--comment \"{}", comment::PREFIX)),
    }
}

/// The proxy's user, as the rules of Kuma's own chain name it.
fn proxy(dump: &Dump) -> Option<Uid> {
    let (_, nat) = known_tables(dump).find(|(table, _)| *table == Table::Nat)?;
    let rules = &nat.chain(LAYOUT.output.as_str())?.rules;
    rules.iter().find_map(|rule| match rule.rule.as_ref().ok()? {
        Rule { matches, target: Target::Return } => matches.iter().find_map(|m| match m {
            Match::Owner { negated: false, owner: Owner::Uid(uid) } => Some(*uid),
            _ => None,
        }),
        _ => None,
    })
}

/// Capture of DNS queries without comments. It is known by two things side by side in nat's OUTPUT: what
/// lets the proxy's own queries go, and behind it what redirects all others, to one port. Whatever is not
/// exactly as kumactl writes it beside these is somebody else's.
struct Dns {
    proxy: Uid,
    port: ListenPort,
    /// Where what lets the proxy's queries go stands in nat's OUTPUT.
    at: usize,
    /// The servers whose queries are redirected by what follows, in its order; one `None` when all are.
    servers: Vec<Option<Cidr>>,
}

impl Dns {
    fn find(dump: &Dump) -> Option<Self> {
        let proxy = proxy(dump)?;
        let (_, nat) = known_tables(dump).find(|(table, _)| *table == Table::Nat)?;
        let rules = &nat.chain(Hook::Output.as_str())?.rules;
        let spared = [udp(), asks(Side::Destination, 53), is_of(proxy)];
        let starts = rules.iter().enumerate().filter(|(_, rule)| match &rule.rule {
            Ok(rule) => rule.target == Target::Return && is_exactly(rule, &spared),
            Err(_) => false,
        });
        let of_start = |at: usize| {
            let mut to = None;
            let redirects = rules.iter().skip(at + 1).map_while(|rule| {
                let (server, port) = redirected(rule.rule.as_ref().ok()?)?;
                (*to.get_or_insert(port) == port).then_some(server)
            });
            let servers: Vec<_> = redirects.collect();
            Some(Self { proxy, port: to.filter(|_| !servers.is_empty())?, at, servers })
        };
        // More than one can't be told apart.
        let mut found = starts.filter_map(|(at, _)| of_start(at));
        found.next().filter(|_| found.next().is_none())
    }

    /// Whether a rule in a builtin chain belongs to it.
    fn has(&self, table: Table, hook: Hook, index: usize, rule: &Rule) -> bool {
        let to = |server: &Option<Cidr>, side, rest: &[Match]| {
            let address = server.map(|cidr| Match::Address { side, negated: false, cidr });
            is_exactly(rule, &[rest, address.as_slice()].concat())
        };
        let any_server = |side| {
            let rest = [udp(), asks(side, 53)];
            self.servers.iter().any(|server| to(server, side, &rest))
        };
        match (table, hook, &rule.target) {
            (Table::Nat, Hook::Output, Target::Return) if index != self.at => {
                let others = Match::Owner { negated: true, owner: Owner::Uid(self.proxy) };
                let tcp = Match::Protocol(Protocol::Tcp);
                is_exactly(rule, &[tcp, asks(Side::Destination, 53), others])
            }
            (Table::Nat, Hook::Output, _) => {
                (self.at..=self.at + self.servers.len()).contains(&index)
            }
            (Table::Raw, Hook::Output, Target::Zone(Zone(1))) => {
                is_exactly(rule, &[udp(), asks(Side::Destination, 53), is_of(self.proxy)])
            }
            (Table::Raw, Hook::Output, Target::Zone(Zone(2))) => {
                let answers = asks(Side::Source, self.port.get());
                is_exactly(rule, &[udp(), answers, is_of(self.proxy)])
                    || any_server(Side::Destination)
            }
            (Table::Raw, Hook::Prerouting, Target::Zone(Zone(1))) => any_server(Side::Source),
            _ => false,
        }
    }
}

/// Whether a rule asks for these things and for nothing else.
fn is_exactly(rule: &Rule, all: &[Match]) -> bool {
    rule.matches.len() == all.len() && all.iter().all(|one| rule.matches.contains(one))
}

/// Whose queries a rule redirects, and to which port; none where it does anything else.
fn redirected(rule: &Rule) -> Option<(Option<Cidr>, ListenPort)> {
    let Target::Redirect { port, .. } = rule.target else { return None };
    let server = rule.matches.iter().find_map(|condition| match condition {
        Match::Address { side: Side::Destination, negated: false, cidr } => Some(*cidr),
        _ => None,
    });
    let of_server = |cidr| Match::Address { side: Side::Destination, negated: false, cidr };
    let all: Vec<Match> =
        [udp(), asks(Side::Destination, 53)].into_iter().chain(server.map(of_server)).collect();
    // A server is one address.
    let one = server.is_none_or(|cidr| cidr == Cidr::host(cidr.address()));
    (one && is_exactly(rule, &all)).then_some((server, port))
}

const fn udp() -> Match {
    Match::Protocol(Protocol::Udp)
}

fn asks(side: Side, port: u16) -> Match {
    Match::Port { side, negated: false, ports: Port::new(port).into() }
}

const fn is_of(user: Uid) -> Match {
    Match::Owner { negated: false, owner: Owner::Uid(user) }
}
