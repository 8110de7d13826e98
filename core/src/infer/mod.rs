//! Back from rules to the settings that give them: what a live namespace's rules are for, and
//! whether they are whole. The answer is a guess until it has been compiled and compared.

mod ahead;
mod facts;
mod marked;
pub(crate) mod native;
mod output;
mod read;
mod saved;
mod translated;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

pub use facts::policy;
pub use saved::of_saved;

use crate::capture::to_nft;
use crate::dialect::{Dialect, Mesh};
use crate::iptables::Dump;
use crate::nft::tables::NativeTables;
use crate::nft::{self, NftRuleset};
use crate::observed::IpRule;
use crate::ownership::Footprint;
use crate::policy::{CapturePolicy, DnsCapture, Flow, IdentityMatching, NetworkSelection, Probe};
use crate::ruleset::Layout;
use crate::ruleset::{ConnState, Hook, Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::{Family, Groups, PortRange};
use read::{Chains, tcp_to_port};

/// Settings that were read back. Lists are comma lists; what was not found is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inferred {
    /// The settings, by the flags of Millrace's own commands.
    pub settings: BTreeMap<&'static str, String>,
    /// Whether the dialect's chains are there for IPv6 as well.
    pub ipv6: bool,
    /// Servers whose DNS queries are captured.
    pub dns_servers: Vec<IpAddr>,
    /// What users send to ports that is left alone.
    pub flows: Vec<Flow>,
    /// From where the node probes the pod.
    pub probes: Vec<Probe>,
    /// Whether DNS queries have zones of connection tracking, where rules tell of it.
    pub zones: Option<bool>,
    /// How several proxy identities go together, when that can be seen.
    pub matching: Option<IdentityMatching>,
    /// DNS queries that are led to servers, and not to a port of the proxy.
    pub dns_translated: Option<DnsCapture>,
    /// Where the proxy's connections to localhost are led.
    pub localhost_to: Option<Ipv4Addr>,
    /// The mesh that they are for; none where it is that of Millrace's own settings.
    pub mesh: Option<&'static Mesh>,
}

/// Read the settings back from the rules of both families, as those of a mesh. `None` when there are no
/// chains of this dialect.
pub fn infer(
    v4: Option<&Dump>,
    v6: Option<&Dump>,
    ip_rules: &[IpRule],
    footprint: &Footprint,
    mesh: &'static Mesh,
) -> Option<Inferred> {
    let v4 = v4.map(|d| Chains::of(d, footprint)).filter(Chains::present);
    let v6 = v6.map(|d| Chains::of(d, footprint)).filter(Chains::present);
    let main = v4.as_ref().or(v6.as_ref())?;
    let layout = footprint.layout;
    let mut found = Inferred { ipv6: v6.is_some(), mesh: Some(mesh), ..Inferred::default() };
    if mesh.marks.is_some() {
        marked::settings([v4.as_ref(), v6.as_ref()], layout, &mut found);
        return Some(found);
    }
    ports(main, layout, mesh, &mut found);
    let table = inbound(main, (layout, mesh), ip_rules, &mut found);
    sources([v4.as_ref(), v6.as_ref()], table, layout, &mut found);
    interfaces(main, layout, mesh, &mut found);
    output::settings(v4.as_ref(), v6.as_ref(), (layout, mesh), &mut found);
    ahead::settings([v4.as_ref(), v6.as_ref()], mesh, &mut found);
    dns([v4.as_ref(), v6.as_ref()], layout, &mut found);
    found.dns_translated = translated::dns([v4.as_ref(), v6.as_ref()], layout);
    found.localhost_to = translated::localhost(main);
    let invalid = main.hook(Table::Mangle, Hook::Prerouting).iter().any(|r| {
        // The reference asks for TCP as well in native nftables.
        let (invalid, tcp) =
            (Match::ConnState(vec![ConnState::Invalid]), Match::Protocol(Protocol::Tcp));
        r.matches.contains(&invalid)
            && r.matches.iter().all(|m| *m == invalid || *m == tcp)
            && (r.target == Target::Jump(layout.drop.clone()) || r.target == Target::Drop)
    });
    if invalid {
        found.set("drop-invalid", "true");
    }
    Some(found)
}

/// Why rules of a dialect give no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRead {
    /// There are none of its chains.
    #[error("none of its chains are there")]
    Absent,
    /// The chains are there, and what they lack is needed.
    #[error("its rules are not whole: no settings give them")]
    NotWhole,
}

/// The policy of the rules of a dialect in both families.
///
/// # Errors
/// See [`NotRead`].
pub fn read(
    v4: Option<&Dump>,
    v6: Option<&Dump>,
    ip_rules: &[IpRule],
    dialect: &Dialect,
) -> Result<CapturePolicy, NotRead> {
    let found = infer(v4, v6, ip_rules, &dialect.footprint, dialect.mesh).ok_or(NotRead::Absent)?;
    let policy = policy(&found, dialect).map_err(|_e| NotRead::NotWhole)?;
    if is_of(dialect.mesh, &policy) { Ok(policy) } else { Err(NotRead::NotWhole) }
}

/// Whether a mesh's tool can have been told this: rules that are not whole say other things as well.
fn is_of(mesh: &Mesh, policy: &CapturePolicy) -> bool {
    let outbound = &policy.outbound;
    let captures = |family: Family| match &outbound.networks {
        NetworkSelection::All(_) => true,
        networks @ NetworkSelection::Only(_) => {
            !outbound.ports.is_empty() || networks.of(family).next().is_some()
        }
    };
    let six = !policy.ipv6.value || captures(Family::V6);
    !mesh.always_outbound || captures(Family::V4) && six
}

/// The policy of native nftables, and its rules compiled again, with reasons. None where no settings give just
/// these rules: they are not whole, or were made in a way that can't be read back.
pub fn read_native(
    tables: &NativeTables,
    ip_rules: &[IpRule],
    dialect: &Dialect,
) -> Option<(CapturePolicy, NftRuleset)> {
    let layout = dialect.nft_layout;
    if !layout.names().any(|name| tables.iter().any(|(found, _)| found == name)) {
        return None;
    }
    let mesh = dialect.mesh;
    let [v4, v6] = native::dumps(tables, layout, dialect.footprint.layout, mesh);
    // Where IPv6 is not captured, the reference's tables have a part of its rules all the same.
    let both = v6.is_some().then_some((v4.as_ref(), v6.as_ref()));
    let candidates = both.into_iter().chain([(v4.as_ref(), None)]);
    candidates.into_iter().find_map(|(v4, v6)| {
        let mut found = infer(v4, v6, ip_rules, &dialect.footprint, mesh)?;
        if let Some(dump) = v4.or(v6) {
            in_order_of_dns(&Chains::of(dump, &dialect.footprint), dialect, &mut found);
        }
        let policy = policy(&found, dialect).ok().filter(|policy| is_of(mesh, policy))?;
        let guards = layout.guard.is_some_and(|name| tables.iter().any(|(found, _)| found == name));
        let rules =
            [true, false].map(|spares| nft::finished(to_nft(&policy, layout, spares), guards));
        let rules = rules.into_iter().find(|rules| {
            let compiled = rules.native(&Groups::new());
            compiled
                .is_ok_and(|c| native::same(&c, tables, (layout, dialect.footprint.layout), mesh))
        })?;
        Some((policy, rules))
    })
}

/// A set has no order, but DNS capture has rules for each identity of the proxy in the order in
/// which they were given.
fn in_order_of_dns(chains: &Chains, dialect: &Dialect, found: &mut Inferred) {
    let rules = chains.user(Table::Raw, &dialect.footprint.layout.output_dns);
    let owners = rules.iter().flat_map(|rule| &rule.matches).filter_map(|m| match m {
        Match::Owner { negated: false, owner: Owner::Uid(id) } => Some(("proxy-uid", id.get())),
        Match::Owner { negated: false, owner: Owner::Gid(id) } => Some(("proxy-gid", id.get())),
        _ => None,
    });
    let order: Vec<(&str, u32)> = owners.collect();
    for flag in ["proxy-uid", "proxy-gid"] {
        let Some(list) = found.settings.get_mut(flag) else { continue };
        let mut ids: Vec<&str> = list.split(',').collect();
        ids.sort_by_key(|id| {
            let is = |(f, number): &(&str, u32)| *f == flag && number.to_string() == **id;
            order.iter().position(is)
        });
        *list = ids.join(",");
    }
}

impl Inferred {
    fn set(&mut self, flag: &'static str, value: impl fmt::Display) {
        self.settings.insert(flag, value.to_string());
    }

    fn push(&mut self, flag: &'static str, value: impl fmt::Display) {
        let list = self.settings.entry(flag).or_default();
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(&value.to_string());
    }
}

fn ports(chains: &Chains, layout: &Layout, mesh: &Mesh, found: &mut Inferred) {
    for (chain, flag) in
        [(&layout.redirect, "outbound-port"), (&layout.in_redirect, "inbound-port")]
    {
        if let Some(Target::Redirect { port, .. }) =
            chains.user(Table::Nat, chain).first().map(|r| &r.target)
        {
            found.set(flag, port);
        }
    }
    if !mesh.tunnels {
        return;
    }
    let first = chains.user(Table::Nat, &layout.inbound).first();
    if let Some(port) = first.filter(|r| r.target == Target::Return).and_then(tcp_to_port) {
        found.set("tunnel-port", port);
    }
}

/// Which inbound connections are captured; tells in which table.
fn inbound(
    chains: &Chains,
    (layout, mesh): (&Layout, &Mesh),
    ip_rules: &[IpRule],
    found: &mut Inferred,
) -> Table {
    let mark = chains.hook(Table::Mangle, Hook::Prerouting).iter().find_map(|r| {
        match (r.matches.as_slice(), &r.target) {
            (
                [Match::Protocol(Protocol::Tcp), Match::Mark { negated: false, mark }],
                Target::SaveMark,
            ) => Some(mark.value),
            _ => None,
        }
    });
    let table = if mark.is_some() { Table::Mangle } else { Table::Nat };
    if let Some(mark) = mark {
        found.set("mode", "tproxy");
        found.set("tproxy-mark", mark);
        let rule = ip_rules.iter().find(|r| r.mark_only && r.fwmark == Some((mark, u32::MAX)));
        if let Some(rule) = rule {
            found.set("tproxy-table", rule.table);
        }
    }
    // Own nftables ask for TCP whatever the style of iptables is.
    let asks = |rule: &Rule| {
        let is_local = |m: &&Match| !matches!(m, Match::LocalAddress { .. });
        let matches: Vec<&Match> = rule.matches.iter().filter(is_local).collect();
        match matches[..] {
            [] => !layout.style.tcp_jump,
            _ => matches == [&Match::Protocol(Protocol::Tcp)],
        }
    };
    let enters = chains
        .hook(table, Hook::Prerouting)
        .iter()
        .any(|r| asks(r) && r.target == Target::Jump(layout.inbound.clone()));
    found.set("include-inbound-ports", "");
    if !enters {
        return table;
    }
    // In front of the selection stand the tunnel port's exemption, or the three of TPROXY.
    let skip = if mark.is_some() { 3 } else { usize::from(mesh.tunnels) };
    for rule in chains.user(table, &layout.inbound).iter().skip(skip) {
        match (tcp_to_port(rule), &rule.target) {
            (Some(port), Target::Return) => found.push("exclude-inbound-ports", port),
            (Some(port), Target::Jump(c)) if *c != layout.divert => {
                found.push("include-inbound-ports", port);
            }
            (None, Target::Jump(c))
                if *c != layout.divert && rule.matches == [Match::Protocol(Protocol::Tcp)] =>
            {
                found.set("include-inbound-ports", "*");
            }
            _ => {}
        }
    }
    table
}

/// Networks from which nothing is captured, of both families.
fn sources(chains: [Option<&Chains>; 2], table: Table, layout: &Layout, found: &mut Inferred) {
    for (chains, all) in chains.into_iter().zip(["0.0.0.0/0", "::/0"]) {
        for rule in chains.into_iter().flat_map(|chains| chains.user(table, &layout.inbound)) {
            match (rule.matches.as_slice(), &rule.target) {
                ([Match::Address { side: Side::Source, negated: false, cidr }], Target::Return) => {
                    found.push("exclude-inbound-cidrs", cidr);
                }
                ([], Target::Return) => found.push("exclude-inbound-cidrs", all),
                _ => {}
            }
        }
    }
}

/// Excluded interfaces have a RETURN on the way out, rerouted ones only on the way in, in front
/// of the others and the last one first.
fn interfaces(chains: &Chains, layout: &Layout, mesh: &Mesh, found: &mut Inferred) {
    if mesh.conventions.interfaces_last {
        for rule in chains.user(Table::Nat, &layout.inbound) {
            if let ([Match::InInterface { negated: false, name }], Target::Return) =
                (rule.matches.as_slice(), &rule.target)
            {
                found.push("exclude-interfaces", name);
            }
        }
        return;
    }
    let excluded: Vec<String> = chains
        .hook(Table::Nat, Hook::Output)
        .iter()
        .filter_map(|r| match (r.matches.as_slice(), &r.target) {
            ([Match::OutInterface { negated: false, name }], Target::Return) => {
                Some(name.to_string())
            }
            _ => None,
        })
        .collect();
    let mut rerouted: Vec<String> = chains
        .hook(Table::Nat, Hook::Prerouting)
        .iter()
        .filter_map(|r| match (r.matches.as_slice(), &r.target) {
            ([Match::InInterface { negated: false, name }], Target::Return) => {
                Some(name.to_string())
            }
            _ => None,
        })
        .collect();
    rerouted.truncate(rerouted.len().saturating_sub(excluded.len()));
    rerouted.reverse();
    for (flag, names) in [("exclude-interfaces", excluded), ("reroute-interfaces", rerouted)] {
        if !names.is_empty() {
            found.set(flag, names.join(","));
        }
    }
}

fn dns(families: [Option<&Chains>; 2], layout: &Layout, found: &mut Inferred) {
    let query: PortRange = crate::value::Port::new(53).into();
    for chains in families.into_iter().flatten() {
        let to_dns = Target::Jump(layout.output_dns.clone());
        if !chains.hook(Table::Raw, Hook::Output).iter().any(|r| r.target == to_dns) {
            continue;
        }
        found.settings.entry("dns").or_insert_with(|| "servers".to_owned());
        for rule in chains.user(Table::Nat, &layout.output_dns) {
            let Target::Redirect { port, .. } = rule.target else { continue };
            found.set("dns-port", port);
            match rule.matches.as_slice() {
                [Match::Protocol(Protocol::Tcp), Match::Port { ports, .. }] if *ports == query => {
                    found.set("dns", "all");
                }
                [
                    Match::Address { side: Side::Destination, cidr, .. },
                    Match::Protocol(Protocol::Tcp),
                    ..,
                ] => found.dns_servers.push(cidr.address()),
                _ => {}
            }
        }
    }
}
