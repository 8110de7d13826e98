//! Settings read back from rules of proxy-init, whoever wrote them. A guess: the rules that the settings
//! give are held against those that are there.

use std::collections::BTreeMap;

use super::LAYOUT;
use super::resolve::{Raw, resolve};
use crate::iptables::{Dump, TableDump};
use crate::policy::CapturePolicy;
use crate::ruleset::{ChainName, Match, Owner, Rule, Side, Table, Target};
use crate::value::{Family, Groups, ListenPort, PortRange};

/// The policy of rules of IPv4 and IPv6; none where no settings give them.
pub(in crate::dialect) fn read(dumps: [Option<&Dump>; 2]) -> Option<CapturePolicy> {
    let [v4, v6] = dumps.map(|dump| {
        let table = dump?.table(Table::Nat.as_str())?;
        let chains = [&LAYOUT.inbound, &LAYOUT.output];
        chains.into_iter().any(|chain| table.chain(chain.as_str()).is_some()).then_some(table)
    });
    let main = v4.or(v6)?;
    let mut found = Found::default();
    inbound(main, &mut found);
    outbound(main, &mut found);
    for (table, family) in [(v4, Family::V4), (v6, Family::V6)] {
        for rule in table.into_iter().flat_map(|table| rules(table, &LAYOUT.inbound)) {
            network(&rule, family, &mut found);
        }
    }
    found.push("ipv6", &v6.is_some());
    resolve(&Raw::new(found.0, BTreeMap::new())).ok().map(|resolved| resolved.policy)
}

/// Flags that were read back.
#[derive(Default)]
struct Found(Vec<(String, String)>);

impl Found {
    fn push(&mut self, flag: &str, value: &impl ToString) {
        self.0.push((flag.to_owned(), value.to_string()));
    }

    /// Ports that are left alone.
    fn ignore(&mut self, flag: &str, ports: &[PortRange]) {
        for ports in ports {
            self.push(flag, &format!("{}-{}", ports.first(), ports.last()));
        }
    }
}

fn inbound(table: &TableDump, found: &mut Found) {
    for rule in rules(table, &LAYOUT.inbound) {
        let ports = ports(&rule);
        if let Some(port) = listener(table, &rule.target) {
            found.push("incoming-proxy-port", &port);
            for listed in ports {
                found.push("ports-to-redirect", listed);
            }
        } else if rule.target == Target::Return {
            found.ignore("inbound-ports-to-ignore", ports);
        }
    }
}

fn outbound(table: &TableDump, found: &mut Found) {
    for rule in rules(table, &LAYOUT.output) {
        if let Some(port) = listener(table, &rule.target) {
            found.push("outgoing-proxy-port", &port);
        } else if rule.target == Target::Return {
            found.ignore("outbound-ports-to-ignore", ports(&rule));
            match rule.matches.as_slice() {
                [Match::Owner { negated: false, owner: Owner::Uid(id) }] => {
                    found.push("proxy-uid", id);
                }
                [Match::Owner { negated: false, owner: Owner::Gid(id) }] => {
                    found.push("proxy-gid", id);
                }
                _ => {}
            }
        }
    }
}

/// A network whose connections are left alone. That of all addresses is asked for by nothing.
fn network(rule: &Rule, family: Family, found: &mut Found) {
    let everywhere = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    match (rule.matches.as_slice(), &rule.target) {
        ([Match::Address { side: Side::Source, negated: false, cidr }], Target::Return) => {
            found.push("subnets-to-ignore", cidr);
        }
        ([], Target::Return) => found.push("subnets-to-ignore", &everywhere),
        _ => {}
    }
}

/// The ports that a rule asks for.
fn ports(rule: &Rule) -> &[PortRange] {
    let ports = rule.matches.iter().find_map(|condition| match condition {
        Match::DestinationPorts { negated: false, ports } => Some(ports.as_slice()),
        Match::Port { side: Side::Destination, negated: false, ports } => {
            Some(std::slice::from_ref(ports))
        }
        _ => None,
    });
    ports.unwrap_or_default()
}

/// The port that a rule leads to, at once or by a chain.
fn listener(table: &TableDump, target: &Target) -> Option<ListenPort> {
    match target {
        Target::Redirect { port, .. } => Some(*port),
        Target::Jump(chain) => match rules(table, chain).next()?.target {
            Target::Redirect { port, .. } => Some(port),
            _ => None,
        },
        _ => None,
    }
}

/// The rules of a chain that are understood.
fn rules<'t>(table: &'t TableDump, chain: &ChainName) -> impl Iterator<Item = Rule> + 't {
    let chain = table.chain(chain.as_str()).into_iter();
    let rules = chain.flat_map(|chain| &chain.rules).filter_map(|rule| rule.rule.as_ref().ok());
    rules.map(|rule| rule.canonical(&Groups::new()))
}
