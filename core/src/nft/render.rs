//! The text of nftables, as `nft -f` takes it.

use std::net::SocketAddr;

use super::{NftEmission, NftLayout, NftRuleset, OwnerSpelling, Statement};
use crate::ruleset::{Chain, Hook, Masked, Owner, Side, Table};
use crate::value::{Family, InterfacePattern, PortRange};

/// One transaction that makes the ruleset whatever was there of it: each table is made if it is
/// not there, emptied, and filled.
pub fn render_transaction(ruleset: &NftRuleset) -> String {
    render(ruleset, false)
}

/// The same with the reason of each rule in front of it, as a comment.
pub fn render_with_reasons(ruleset: &NftRuleset) -> String {
    render(ruleset, true)
}

fn render(ruleset: &NftRuleset, reasons: bool) -> String {
    let mut text = String::new();
    let mut last = "";
    for table in ruleset.tables() {
        let Some(name) = ruleset.layout.table(table) else { continue };
        if name != last {
            text.push_str(&format!("add table inet {name}\nflush table inet {name}\n"));
            last = name;
        }
        let called = |chain: &Chain| ruleset.layout.chain(table, chain);
        for chain in ruleset.chains(table) {
            text.push_str(&format!("add chain inet {name} {}", called(&chain.chain)));
            if let Chain::Builtin(hook) = chain.chain {
                let (kind, priority) = base_chain(table, hook);
                let hook = hook.base_chain();
                text.push_str(&format!(" {{ type {kind} hook {hook} priority {priority} ; }}"));
            }
            text.push('\n');
        }
        let mut written: Vec<&NftEmission> = Vec::new();
        for emission in ruleset.emissions.iter().filter(|e| e.table == table) {
            let chain = called(&emission.chain);
            let rule = rule_text(ruleset.layout, table, &emission.rule);
            if reasons {
                text.push_str(&format!("# {}\n", emission.reason));
            }
            let before = written.iter().filter(|e| e.chain == emission.chain).count();
            match emission.before {
                Some(index) if index < before => {
                    let line = format!("insert rule inet {name} {chain} index {index} {rule}\n");
                    text.push_str(&line);
                }
                _ => text.push_str(&format!("add rule inet {name} {chain} {rule}\n")),
            }
            written.push(emission);
        }
    }
    text
}

/// The text of a rule of a table.
pub fn rule_text(layout: &NftLayout, table: Table, rule: &[Statement]) -> String {
    let called = |chain: &Chain| layout.chain(table, chain);
    let words: Vec<String> = rule.iter().map(|s| statement(s, &called)).collect();
    words.join(" ")
}

/// Type and priority of a base chain (`nft(8)`, standard priority names).
pub const fn base_chain(table: Table, hook: Hook) -> (&'static str, i32) {
    match (table, hook) {
        (Table::Nat, _) => ("nat", -100),
        // The packet is routed again when its mark was changed.
        (Table::Mangle, Hook::Output) => ("route", -150),
        (Table::Mangle, _) => ("filter", -150),
        (Table::Raw, _) => ("filter", -300),
        // Right behind what marks the packets that a transparent proxy takes.
        (Table::Filter, Hook::Prerouting) => ("filter", -149),
        (Table::Filter, _) => ("filter", 0),
    }
}

const fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn statement(statement: &Statement, called: &impl Fn(&Chain) -> String) -> String {
    let not = |negated: bool| if negated { "!= " } else { "" };
    match statement {
        Statement::Family(Family::V4) => "meta nfproto ipv4".to_owned(),
        Statement::Family(Family::V6) => "meta nfproto ipv6".to_owned(),
        Statement::InInterface(names) => format!("iifname {}", set(names, interface)),
        Statement::OutInterface(names) => format!("oifname {}", set(names, interface)),
        Statement::NotOutInterface(name) => format!("oifname != {}", interface(name)),
        Statement::Protocol(protocol) => format!("meta l4proto {protocol}"),
        Statement::Address { side, negated, cidrs } => {
            let field = match side {
                Side::Source => "saddr",
                Side::Destination => "daddr",
            };
            let family = cidrs.first().map_or(Family::V4, |cidr| cidr.family());
            let networks = set(cidrs, ToString::to_string);
            format!("{} {field} {}{networks}", ip(family), not(*negated))
        }
        Statement::Ports { protocol, side, negated, ports } => {
            let field = match side {
                Side::Source => "sport",
                Side::Destination => "dport",
            };
            format!("{protocol} {field} {}{}", not(*negated), set(ports, |ports| range(*ports)))
        }
        Statement::Owner { negated, owners, spelling } => {
            let meta = match spelling {
                OwnerSpelling::Short => "",
                OwnerSpelling::Meta => "meta ",
            };
            let field = match owners.first() {
                Some(Owner::Uid(_) | Owner::Uids(_)) => "skuid",
                _ => "skgid",
            };
            let name = |owner: &Owner| match owner {
                Owner::Uid(uid) => uid.to_string(),
                Owner::Uids(uids) => uids.to_string(),
                Owner::Gid(gid) => gid.to_string(),
                Owner::Group(name) => name.to_string(),
            };
            format!("{meta}{field} {}{}", not(*negated), set(owners, name))
        }
        Statement::Syn { negated } => {
            let how = if *negated { "!=" } else { "==" };
            format!("tcp flags & (fin | syn | rst | ack) {how} syn")
        }
        Statement::Local { side, negated } => {
            let field = match side {
                Side::Source => "saddr",
                Side::Destination => "daddr",
            };
            format!("fib {field} type {}local", not(*negated))
        }
        Statement::State(states) => {
            let names: Vec<String> =
                states.iter().map(|s| s.as_str().to_ascii_lowercase()).collect();
            format!("ct state {}", names.join(","))
        }
        Statement::Mark { negated, mark } => format!("mark {}", marked(*negated, *mark)),
        Statement::Connmark(mark) => format!("ct mark {}", marked(false, *mark)),
        Statement::Counter => "counter".to_owned(),
        Statement::SetMark(mark) => format!("meta mark set {mark}"),
        Statement::SetConnmark(mark) => {
            format!("ct mark set ct mark and {:#x} or {:#x}", !mark.mask, mark.value)
        }
        Statement::SaveMark => "ct mark set mark".to_owned(),
        Statement::RestoreMark => "meta mark set ct mark".to_owned(),
        Statement::Zone(zone) => format!("ct zone set {zone}"),
        Statement::Dnat { address, port } => {
            let to = port.map_or_else(
                || address.to_string(),
                |port| SocketAddr::new(*address, port.get()).to_string(),
            );
            format!("dnat {} to {to}", ip(Family::of(*address)))
        }
        Statement::Redirect(port) => format!("redirect to :{port}"),
        Statement::Tproxy { family, port } => format!("tproxy {} to :{port}", ip(*family)),
        Statement::Return => "return".to_owned(),
        Statement::Accept => "accept".to_owned(),
        Statement::Drop => "drop".to_owned(),
        Statement::Jump(chain) => format!("jump {}", called(&Chain::User(chain.clone()))),
    }
}

/// All of a mark, or bits of it.
fn marked(negated: bool, mark: Masked) -> String {
    match (negated, mark) {
        (false, Masked { value, mask: u32::MAX }) => value.to_string(),
        (true, Masked { value, mask: u32::MAX }) => format!("!= {value}"),
        (false, Masked { value, mask }) => format!("and {mask:#x} == {value:#x}"),
        (true, Masked { value, mask }) => format!("and {mask:#x} != {value:#x}"),
    }
}

/// One value as it is, several in braces.
fn set<T>(values: &[T], text: impl Fn(&T) -> String) -> String {
    match values {
        [one] => text(one),
        several => format!("{{ {} }}", several.iter().map(text).collect::<Vec<_>>().join(", ")),
    }
}

fn range(ports: PortRange) -> String {
    match (ports.first(), ports.last()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    }
}

/// A name that nft would take for something else is quoted; `+` at the end is nft's `*`.
fn interface(name: &InterfacePattern) -> String {
    let (stem, star) = match name.as_str().strip_suffix('+') {
        Some(stem) => (stem, "*"),
        None => (name.as_str(), ""),
    };
    let plain = stem.starts_with(|c: char| c.is_ascii_alphabetic())
        && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if plain { format!("{stem}{star}") } else { format!("\"{stem}{star}\"") }
}
