//! The rules as `kumactl install transparent-proxy --dry-run` prints them: what `iptables-restore
//! --noflush` takes, a family after the other.

use super::LAYOUT;
use crate::iptables::{render_match, render_target};
use crate::ruleset::{
    Chain, ChainName, Emission, Hook, Match, Owner, Placement, Rule, Ruleset, Side, Table, Target,
};

/// The tables in Kuma's order.
const TABLES: [Table; 3] = [Table::Raw, Table::Nat, Table::Mangle];

/// The builtin chains in Kuma's order.
const BUILTIN: [Hook; 4] = [Hook::Prerouting, Hook::Input, Hook::Output, Hook::Postrouting];

/// The text of `ruleset`; `verbose` in long words, and with headings.
pub fn dry_run(ruleset: &Ruleset, verbose: bool) -> String {
    let of_family = |family| {
        let (emissions, between) = (ruleset.family(family), if verbose { "\n\n" } else { "\n" });
        let tables = TABLES.map(|table| of_table(emissions, table, verbose));
        let tables: Vec<String> = tables.into_iter().flatten().collect();
        format!("### {family} ###\n\n{}", tables.join(between))
    };
    let families: Vec<String> = ruleset.families().map(of_family).collect();
    families.join("\n\n") + "\n"
}

/// A table; none if it has no rules.
fn of_table(emissions: &[Emission], table: Table, verbose: bool) -> Option<String> {
    let own = [&LAYOUT.inbound, &LAYOUT.output, &LAYOUT.in_redirect, &LAYOUT.redirect];
    let rules = |chain: &Chain| -> Vec<String> {
        let inside = emissions.iter().filter(|e| e.table == table && e.chain == *chain);
        inside.map(|emission| line(emission, verbose)).collect()
    };
    let chains: Vec<(&ChainName, Vec<String>)> = own
        .into_iter()
        .map(|name| (name, rules(&Chain::User(name.clone()))))
        .filter(|(_, rules)| !rules.is_empty())
        .collect();
    let new = if verbose { "--new-chain" } else { "-N" };
    let mut made: Vec<String> = chains.iter().map(|(name, _)| format!("{new} {name}")).collect();
    let builtin = BUILTIN.iter().flat_map(|hook| rules(&Chain::Builtin(*hook)));
    let mut lines: Vec<String> =
        builtin.chain(chains.iter().flat_map(|(_, rules)| rules.clone())).collect();
    if lines.is_empty() {
        return None;
    }
    if verbose {
        lines.insert(0, "# Rules:".to_owned());
        if !made.is_empty() {
            made.insert(0, "# Custom Chains:".to_owned());
        }
    }
    let mut parts = vec![format!("* {table}")];
    if !made.is_empty() {
        parts.push(made.join("\n"));
    }
    parts.extend([lines.join("\n"), "COMMIT".to_owned()]);
    Some(parts.join(if verbose { "\n\n" } else { "\n" }))
}

fn line(emission: &Emission, verbose: bool) -> String {
    let say = |short, long| if verbose { long } else { short };
    let chain = &emission.chain;
    let place = match emission.placement {
        Placement::Append => format!("{} {chain}", say("-A", "--append")),
        Placement::Insert(position) => format!("{} {chain} {position}", say("-I", "--insert")),
    };
    format!("{place} {}", spelled(&emission.rule, verbose))
}

/// A rule in Kuma's words and their order.
fn spelled(rule: &Rule, verbose: bool) -> String {
    let mut words: Vec<(u8, String)> =
        rule.matches.iter().flat_map(|condition| asked(condition, verbose)).collect();
    words.sort_by_key(|(place, _)| *place);
    let jump = if verbose { "--jump" } else { "-j" };
    let target = match &rule.target {
        Target::Redirect { port, .. } => format!("{jump} REDIRECT --to-ports {port}"),
        Target::Jump(chain) => format!("{jump} {chain}"),
        Target::Zone(zone) => format!("{jump} CT --zone {zone}"),
        other => render_target(other).replacen("-j", jump, 1),
    };
    let words = words.into_iter().map(|(_, words)| words).chain([target]);
    words.collect::<Vec<_>>().join(" ")
}

/// The words of a condition, each with its place in the rule.
fn asked(condition: &Match, verbose: bool) -> Vec<(u8, String)> {
    let say = |short: &'static str, long: &'static str| if verbose { long } else { short };
    let module = say("-m", "--match");
    let not = |negated: bool| if negated { "! " } else { "" };
    let to_ports = say("--dport", "--destination-port");
    match condition {
        Match::Comment(comment) => {
            vec![(0, format!("{module} comment --comment \"{}\"", comment.as_str()))]
        }
        Match::DestinationPorts { ports, .. } => {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let ports = format!("{to_ports} {}", ports.join(","));
            vec![(1, format!("{module} multiport")), (5, ports)]
        }
        Match::Address { side, negated, cidr } => {
            let (place, option) = match side {
                Side::Source => (2, say("-s", "--source")),
                Side::Destination => (3, say("-d", "--destination")),
            };
            vec![(if *negated { 7 } else { place }, format!("{}{option} {cidr}", not(*negated)))]
        }
        Match::Protocol(protocol) => vec![(4, format!("{} {protocol}", say("-p", "--protocol")))],
        Match::Port { side, ports, .. } => {
            let option = match side {
                Side::Source => say("--sport", "--source-port"),
                Side::Destination => to_ports,
            };
            vec![(5, format!("{option} {ports}"))]
        }
        Match::OutInterface { name, .. } => {
            vec![(6, format!("{} {name}", say("-o", "--out-interface")))]
        }
        Match::Owner { negated, owner: Owner::Uid(uid) } => {
            vec![(8, format!("{module} owner {}--uid-owner {uid}", not(*negated)))]
        }
        Match::Owner { negated, owner: Owner::Uids(users) } => {
            let users = users.to_string().replace('-', ":");
            vec![(8, format!("{module} owner {}--uid-owner {users}", not(*negated)))]
        }
        Match::ConnState(_) => vec![(9, render_match(condition).replacen("-m", module, 1))],
        other => vec![(9, render_match(other))],
    }
}
