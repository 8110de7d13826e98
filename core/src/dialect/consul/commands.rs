//! What Consul runs: a command of iptables for each rule, or one batch of nft.

use super::{LAYOUT, NFT_LAYOUT, Options};
use crate::capture::purpose::LOCALHOST;
use crate::iptables::{render_match, render_target};
use crate::nft::{NftEmission, NftRuleset, Statement, base_chain, rule_text};
use crate::ruleset::{
    Chain, ChainName, Emission, Hook, Layout, Match, Placement, Ruleset, Table, Target,
};
use crate::value::{Cidr, Family};

/// The chains of a layout in the order in which they are made.
fn made(layout: &Layout) -> [&ChainName; 5] {
    [&layout.inbound, &layout.in_redirect, &layout.output, &layout.redirect, &layout.output_dns]
}

/// Where the rules of a chain are written among those of others.
fn rank(layout: &Layout, chain: &Chain) -> usize {
    let order = [
        Chain::User(layout.redirect.clone()),
        Chain::User(layout.output_dns.clone()),
        Chain::Builtin(Hook::Output),
        Chain::User(layout.output.clone()),
        Chain::User(layout.in_redirect.clone()),
        Chain::Builtin(Hook::Prerouting),
        Chain::User(layout.inbound.clone()),
    ];
    order.iter().position(|of| of == chain).unwrap_or(order.len())
}

/// The commands that write `ruleset`, each a line, a family after the other.
pub fn commands(ruleset: &Ruleset, options: &Options) -> Vec<String> {
    let enter = options.netns.as_ref().map(|netns| format!("nsenter --net={} -- ", netns.value));
    let enter = enter.unwrap_or_default();
    let of_family = |family| {
        let program = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let mut words: Vec<String> =
            made(&LAYOUT).into_iter().map(|chain| format!("-N {chain}")).collect();
        let mut emissions: Vec<&Emission> = ruleset.family(family).iter().collect();
        emissions.sort_by_key(|emission| {
            let inserted = matches!(emission.placement, Placement::Insert(_));
            (rank(&LAYOUT, &emission.chain), inserted)
        });
        words.extend(emissions.into_iter().map(spelled));
        let enter = enter.clone();
        words.into_iter().map(move |words| format!("{enter}{program} -t nat {words}"))
    };
    ruleset.families().flat_map(of_family).collect()
}

/// A rule in Consul's words.
fn spelled(emission: &Emission) -> String {
    let verb = match emission.placement {
        Placement::Append => format!("-A {}", emission.chain),
        Placement::Insert(1) => format!("-I {}", emission.chain),
        Placement::Insert(position) => format!("-I {} {position}", emission.chain),
    };
    let target = match &emission.rule.target {
        Target::Redirect { port, .. } => format!("-j REDIRECT --to-port {port}"),
        other => render_target(other),
    };
    // An address stands between protocol and port.
    let mut matches: Vec<&Match> = emission.rule.matches.iter().collect();
    matches.sort_by_key(|m| match m {
        Match::Protocol(_) => 0,
        Match::Address { .. } => 1,
        _ => 2,
    });
    let words = matches.into_iter().map(render_match);
    let words: Vec<String> = std::iter::once(verb).chain(words).chain([target]).collect();
    let inserted = matches!(emission.placement, Placement::Insert(_));
    addressed(words.join(" "), &LAYOUT, &emission.chain, inserted)
}

/// The text of a rule with addresses as Consul writes them: localhost with a length, others without.
fn addressed(text: String, layout: &Layout, chain: &Chain, inserted: bool) -> String {
    if *chain == Chain::User(layout.output.clone()) && !inserted {
        return text;
    }
    let bare = |word: &str| match word.split_once('/') {
        Some((address, length)) => match address.parse() {
            Ok(ip) if Cidr::host(ip).length().to_string() == length => address.to_owned(),
            _ => word.to_owned(),
        },
        None => word.to_owned(),
    };
    text.split(' ').map(bare).collect::<Vec<_>>().join(" ")
}

/// The batch that makes `ruleset` whatever was there of it.
pub fn batch(ruleset: &NftRuleset) -> String {
    let table = NFT_LAYOUT.nat;
    let layout = &NFT_LAYOUT.chains;
    let mut text =
        format!("add table inet {table}\ndelete table inet {table}\nadd table inet {table}\n");
    for chain in made(layout) {
        text.push_str(&format!("add chain inet {table} {chain}\n"));
    }
    for hook in [Hook::Output, Hook::Prerouting] {
        let (kind, priority) = base_chain(Table::Nat, hook);
        let chain = NFT_LAYOUT.chain(Table::Nat, &Chain::Builtin(hook));
        let hook = hook.base_chain();
        text.push_str(&format!(
            "add chain inet {table} {chain} {{ type {kind} hook {hook} priority {priority} ; }}\n"
        ));
    }
    // What lets a family past is in front of everything, and so it is written.
    let dns = Chain::User(layout.output_dns.clone());
    let is_family = |e: &NftEmission| {
        matches!(e.rule.as_slice(), [Statement::Family(_), .., Statement::Return])
    };
    let mut emissions: Vec<&NftEmission> = ruleset.emissions.iter().collect();
    emissions.sort_by_key(|emission| {
        let chain = rank(layout, &emission.chain);
        let place = match asked(emission) {
            Some(family) => (rank(layout, &dns), family),
            None => (chain, Family::V4),
        };
        (!is_family(emission), place, chain, emission.before.is_some())
    });
    for emission in emissions {
        let inserted = emission.before.is_some() && !is_family(emission);
        let verb = if inserted { "insert" } else { "add" };
        let chain = NFT_LAYOUT.chain(Table::Nat, &emission.chain);
        let rule: Vec<Statement> = written(&emission.rule).cloned().collect();
        let mut rule = rule_text(&NFT_LAYOUT, Table::Nat, &rule);
        if emission.rule.iter().any(|statement| matches!(statement, Statement::Address { .. })) {
            rule = rule.replace(" dnat ip to ", " dnat to ").replace(" dnat ip6 to ", " dnat to ");
        }
        let rule = addressed(rule, layout, &emission.chain, inserted);
        let line = format!("{verb} rule inet {table} {chain} ");
        text.push_str(&format!("{line}{rule}\n"));
        // The rule for localhost is written for both families whatever is captured.
        let is_last = ruleset.families == [Family::V4] && emission.reason.purpose == LOCALHOST;
        if is_last {
            text.push_str(&format!("{line}ip6 daddr ::1/128 return\n"));
        }
    }
    text
}

/// The family of a rule about DNS that names an address: those of a family are written in a row.
fn asked(emission: &NftEmission) -> Option<Family> {
    let is_query = emission.rule.iter().any(|statement| match statement {
        Statement::Jump(to) => *to == NFT_LAYOUT.chains.output_dns,
        statement => matches!(statement, Statement::Dnat { .. }),
    });
    let family = emission.rule.iter().find_map(|statement| match statement {
        Statement::Address { cidrs, .. } => cidrs.first().map(|cidr| cidr.family()),
        _ => None,
    });
    family.filter(|_| is_query)
}

/// What Consul writes of a rule: no counter, no protocol that a port says, and no family that an address says.
fn written(rule: &[Statement]) -> impl Iterator<Item = &Statement> {
    let ports = rule.iter().any(|statement| matches!(statement, Statement::Ports { .. }));
    let leads = rule.iter().any(|statement| matches!(statement, Statement::Dnat { .. }));
    rule.iter().filter(move |statement| match statement {
        Statement::Counter => false,
        Statement::Protocol(_) => !ports,
        Statement::Family(_) => !leads,
        _ => true,
    })
}
