//! What older releases of istio-iptables wrote in another form: DNS capture (up to 1.22) and the drop of
//! invalid packets (up to 1.23) stood in builtin chains, with no chain of their own.
//!
//! DNS capture by UDP had three forms: 1.6 redirected all queries to the proxy's port, 1.7 and 1.8 translated
//! them to localhost, and their source as well, and releases since 1.9 redirect those to the servers of the
//! pod's resolver, or all.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::footprint::rules;
use crate::iptables::Dump;
use crate::ownership::Owned;
use crate::ruleset::{ConnState, Hook, Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::{Cidr, Port, PortRange, Zone};

/// The port of DNS, and the one on which the proxy answers.
pub(super) const DNS: u16 = 53;
const ANSWERS: u16 = 15053;
/// The port on which it did where Envoy answered, and not the agent (1.6 and 1.7).
const OLD_ANSWERS: u16 = 15013;
/// The user and group of the proxy when nobody says otherwise.
pub(super) const PROXY: &str = "1337";

/// What a rule for DNS over UDP asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Queries or answers of the proxy.
    Proxy(Owner),
    /// Those of anybody, or to and from one server.
    Anybody,
}

/// The side that a port is on, the port, and who is meant.
pub(super) fn asked(rule: &Rule) -> Option<(Side, u16, Asked)> {
    let (mut port, mut who, mut udp) = (None, Asked::Anybody, false);
    for m in &rule.matches {
        match m {
            Match::Protocol(Protocol::Udp) => udp = true,
            Match::Port { side, negated: false, ports } => {
                let single = *ports == PortRange::from(ports.first());
                port = single.then(|| (*side, ports.first().get()));
            }
            Match::Owner { negated: false, owner } => who = Asked::Proxy(owner.clone()),
            Match::Address { negated: false, cidr, .. } if *cidr == Cidr::host(cidr.address()) => {}
            _ => return None,
        }
    }
    let (side, port) = port.filter(|_| udp)?;
    Some((side, port, who))
}

/// Rules for DNS in builtin chains. They are known when one of them asks for an identity that
/// istio-iptables' own chains name as the proxy's, or for its default.
pub(super) fn direct_dns(dump: &Dump, owned: &mut Owned) {
    dns(dump, owned, Beside::Chains);
}

/// The same where the chains are gone. Other meshes write these rules too, for another user: they are
/// known when the proxy is the default one in all of them.
pub(super) fn orphan_dns(dump: &Dump, owned: &mut Owned) {
    dns(dump, owned, Beside::Nothing);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Chains,
    Nothing,
}

fn dns(dump: &Dump, owned: &mut Owned, beside: Beside) {
    let proxies = proxies(dump);
    let (mut leads, mut strangers) = (false, false);
    let mut found = Vec::new();
    // Up to 1.24 the answers' rule stood in the builtin chain, while the others had a chain.
    let mut named = owned.has_chain(Table::Raw, super::LAYOUT.output.as_str());
    // Whose queries went past before the rule that is looked at, and where the others were translated to.
    let (mut past, mut translated) = (false, BTreeSet::new());
    for (table, hook) in [
        (Table::Nat, Hook::Output),
        (Table::Nat, Hook::Postrouting),
        (Table::Raw, Hook::Output),
        (Table::Raw, Hook::Prerouting),
    ] {
        for (index, rule) in rules(dump, table, hook) {
            if hook == Hook::Output && table == Table::Nat && exempts_groups(dump, rule) {
                found.push((table, hook, index));
                continue;
            }
            let Some((side, port, who)) = asked(rule) else { continue };
            let is_known = match (table, hook, side, port, &who, &rule.target) {
                (Table::Nat, Hook::Output, Side::Destination, DNS, _, target) => {
                    leads_queries(rule, &who, target, past)
                }
                (
                    Table::Nat,
                    Hook::Postrouting,
                    Side::Destination,
                    to,
                    _,
                    Target::Snat { address },
                ) => translated.contains(&to) && is_for_all(rule) && *address == LOCALHOST,
                (
                    Table::Raw,
                    Hook::Output,
                    Side::Destination,
                    DNS,
                    _,
                    Target::Zone(Zone(1 | 2)),
                )
                | (
                    Table::Raw,
                    Hook::Output,
                    Side::Source,
                    _,
                    Asked::Proxy(_),
                    Target::Zone(Zone(2)),
                )
                | (
                    Table::Raw,
                    Hook::Prerouting,
                    Side::Source,
                    DNS,
                    Asked::Anybody,
                    Target::Zone(Zone(1)),
                ) => true,
                _ => false,
            };
            let of_proxy = match &who {
                Asked::Proxy(owner) => proxies.contains(owner),
                Asked::Anybody => true,
            };
            strangers |= is_known && !of_proxy;
            if is_known && of_proxy {
                past |= table == Table::Nat && who != Asked::Anybody;
                if let Target::Dnat { port: Some(port), .. } = rule.target {
                    translated.insert(port.get());
                }
                leads |= matches!(rule.target, Target::Redirect { .. } | Target::Dnat { .. })
                    || (side, port) == (Side::Source, ANSWERS);
                named |= who != Asked::Anybody;
                found.push((table, hook, index));
            }
        }
    }
    if named && (beside == Beside::Chains || leads && !strangers) {
        for (table, hook, index) in found {
            owned.add_rule(table, hook.as_str(), index);
        }
    }
}

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Whether a rule for queries by UDP in OUTPUT of `nat` is one of istio-iptables, whoever the proxy is.
/// What 1.6 to 1.8 wrote for everybody's queries is known behind a rule that lets the proxy's past.
fn leads_queries(rule: &Rule, who: &Asked, target: &Target, past: bool) -> bool {
    match (who, target) {
        (Asked::Proxy(_), Target::Return) => true,
        (Asked::Anybody, Target::Redirect { port, .. }) => match port.get() {
            ANSWERS => true,
            OLD_ANSWERS => past && is_for_all(rule),
            _ => false,
        },
        (Asked::Anybody, Target::Dnat { address, port: Some(port) }) => {
            past && is_for_all(rule)
                && *address == LOCALHOST
                && matches!(port.get(), ANSWERS | OLD_ANSWERS)
        }
        _ => false,
    }
}

/// Whether a rule asks for a protocol and a port, and for nothing else.
fn is_for_all(rule: &Rule) -> bool {
    rule.matches.len() == 2
}

/// Whether a rule lets past the queries of all groups but some, as 1.14 to 1.22 did where only some groups are
/// captured. istio-iptables' own chain exempts the same groups.
pub(super) fn exempts_groups(dump: &Dump, rule: &Rule) -> bool {
    let to_dns = Match::Port {
        side: Side::Destination,
        negated: false,
        ports: PortRange::from(Port::new(DNS)),
    };
    let of_queries = |m: &Match| *m == Match::Protocol(Protocol::Udp) || *m == to_dns;
    let (groups, others): (Vec<&Match>, Vec<&Match>) =
        rule.matches.iter().partition(|m| is_other_group(m));
    !groups.is_empty()
        && rule.target == Target::Return
        && others.len() == 2
        && others.into_iter().all(of_queries)
        && own_chain(dump).any(|own| {
            own.target == Target::Return && own.matches.iter().eq(groups.iter().copied())
        })
}

/// Whether a rule of istio-iptables' chain lets past what all groups but some send.
pub(super) fn is_of_other_groups(rule: &Rule) -> bool {
    rule.target == Target::Return
        && !rule.matches.is_empty()
        && rule.matches.iter().all(is_other_group)
}

const fn is_other_group(m: &Match) -> bool {
    matches!(m, Match::Owner { negated: true, owner: Owner::Gid(_) | Owner::Group(_) })
}

/// The rules of istio-iptables' chain for what the pod sends that are understood.
fn own_chain(dump: &Dump) -> impl Iterator<Item = &Rule> {
    let chain =
        dump.table(Table::Nat.as_str()).and_then(|t| t.chain(super::LAYOUT.output.as_str()));
    chain.into_iter().flat_map(|c| &c.rules).filter_map(|r| r.rule.as_ref().ok())
}

/// The identities that are exempt in istio-iptables' chain for what the pod sends.
fn proxies(dump: &Dump) -> BTreeSet<Owner> {
    let default = [PROXY.parse().map(Owner::Uid).ok(), PROXY.parse().map(Owner::Gid).ok()];
    let mut proxies: BTreeSet<Owner> = default.into_iter().flatten().collect();
    proxies.extend(own_chain(dump).filter_map(|rule| {
        match (rule.matches.as_slice(), &rule.target) {
            ([Match::Owner { negated: false, owner }], Target::Return) => Some(owner.clone()),
            _ => None,
        }
    }));
    proxies
}

/// The drop of invalid packets, where nobody else has rules in its chain.
pub(super) fn direct_drop(dump: &Dump, owned: &mut Owned) {
    let (table, hook) = (Table::Mangle, Hook::Prerouting);
    let Some(chain) = dump.table(table.as_str()).and_then(|t| t.chain(hook.as_str())) else {
        return;
    };
    let invalid = |rule: &Rule| {
        rule.matches == [Match::ConnState(vec![ConnState::Invalid])] && rule.target == Target::Drop
    };
    let found = chain.rules.iter().position(|r| r.rule.as_ref().is_ok_and(invalid));
    let Some(index) = found else { return };
    let ours = |at: usize| at == index || owned.has_rule(table, hook.as_str(), at);
    if (0..chain.rules.len()).all(ours) {
        owned.add_rule(table, hook.as_str(), index);
    }
}

/// The rules of a text that are not ours.
#[cfg(test)]
pub(super) fn left(text: &str) -> Vec<String> {
    let dump = Dump::parse(text).unwrap();
    let owned = Owned::find(&dump, &[super::FOOTPRINT]);
    let mut left = Vec::new();
    for (table, content) in crate::ownership::known_tables(&dump) {
        for chain in &content.chains {
            let rules = chain.rules.iter().enumerate();
            let others = rules.filter(|(at, _)| !owned.has_rule(table, &chain.name, *at));
            left.extend(others.map(|(_, rule)| rule.text.clone()));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAT: &str = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
        -A ISTIO_OUTPUT -m owner --uid-owner 2000 -j RETURN\n";

    #[test]
    fn dns_in_builtin_chains_is_known_beside_our_chains() {
        for server in ["", "-d 10.44.0.1/32 "] {
            let from = server.replace("-d", "-s");
            let nat = format!(
                "-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 2000 -j RETURN\n\
                 -A OUTPUT -p udp -m udp --dport 53 -m owner --gid-owner 1337 -j RETURN\n\
                 -A OUTPUT {server}-p udp -m udp --dport 53 -j REDIRECT --to-ports 15053\nCOMMIT\n"
            );
            let raw = format!(
                "*raw\n-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 2000 -j CT --zone 1\n\
                 -A OUTPUT -p udp -m udp --sport 15053 -m owner --uid-owner 2000 -j CT --zone 2\n\
                 -A OUTPUT {server}-p udp -m udp --dport 53 -j CT --zone 2\n\
                 -A PREROUTING {from}-p udp -m udp --sport 53 -j CT --zone 1\nCOMMIT\n"
            );
            assert_eq!(left(&format!("{NAT}{nat}{raw}")), Vec::<String>::new());
            // Another mesh captures DNS in the same words.
            assert_eq!(left(&format!("*nat\n{nat}{raw}")).len(), 7);
        }
    }

    #[test]
    fn answers_of_dns_in_a_builtin_chain_are_known_beside_a_chain_of_their_queries() {
        let raw = "*raw\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -p udp -j ISTIO_OUTPUT\n\
            -A ISTIO_OUTPUT -d 10.44.0.1/32 -p udp -m udp --dport 53 -j CT --zone 2\n\
            -A PREROUTING -s 10.44.0.1/32 -p udp -m udp --sport 53 -j CT --zone 1\nCOMMIT\n";
        assert_eq!(left(&format!("{NAT}COMMIT\n{raw}")), Vec::<String>::new());
    }

    #[test]
    fn dns_without_our_chains_is_known_by_the_default_proxy() {
        let rules = |uid: &str| {
            format!(
                "*nat\n-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner {uid} -j RETURN\n\
                 -A OUTPUT -p udp -m udp --dport 53 -m owner --gid-owner 1337 -j RETURN\n\
                 -A OUTPUT -d 10.44.0.1/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053\nCOMMIT\n\
                 *raw\n-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner {uid} -j CT --zone 1\n\
                 -A OUTPUT -p udp -m udp --sport 15053 -m owner --uid-owner {uid} -j CT --zone 2\n\
                 -A OUTPUT -d 10.44.0.1/32 -p udp -m udp --dport 53 -j CT --zone 2\n\
                 -A PREROUTING -s 10.44.0.1/32 -p udp -m udp --sport 53 -j CT --zone 1\nCOMMIT\n"
            )
        };
        assert_eq!(left(&rules("1337")), Vec::<String>::new());
        // Kuma's user, and one that anybody may have.
        assert_eq!((left(&rules("5678")).len(), left(&rules("2000")).len()), (7, 7));
        // Who lets one user's queries past captures nothing by that.
        let past = "*nat\n-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 1337 -j RETURN\nCOMMIT\n";
        assert_eq!(left(past).len(), 1);
    }

    /// DNS capture by UDP of 1.7 and 1.8, for a proxy of this user and group.
    fn translated(id: &str, to: &str) -> String {
        format!(
            "-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner {id} -j RETURN\n\
             -A OUTPUT -p udp -m udp --dport 53 -m owner --gid-owner {id} -j RETURN\n\
             -A OUTPUT -p udp -m udp --dport 53 -j DNAT --to-destination {to}\n\
             -A POSTROUTING -p udp -m udp --dport 15053 -j SNAT --to-source 127.0.0.1\n"
        )
    }

    #[test]
    fn dns_that_is_translated_is_known_with_its_source() {
        let own = translated("2000", "127.0.0.1:15053");
        let all = |nat: &str, rules: &str| left(&format!("{nat}{rules}COMMIT\n"));
        // The group is nobody's that the chain names.
        let rest = all(NAT, &own);
        assert!(rest.len() == 1 && rest[0].contains("gid-owner 2000"), "{rest:?}");
        for port in ["15013", "15053"] {
            let default = translated("1337", "127.0.0.1:15053").replace("15053", port);
            assert_eq!(all(NAT, &default), Vec::<String>::new());
            assert_eq!(all("*nat\n", &default), Vec::<String>::new());
        }
        // Another user's, without a chain that names the user.
        assert_eq!(all("*nat\n", &own).len(), 4);
    }

    #[test]
    fn what_translates_dns_otherwise_is_not_ours() {
        for to in ["127.0.0.1:5353", "127.0.0.1", "127.0.0.2:15053", "10.0.0.1:15053"] {
            let rules = translated("1337", to);
            assert_eq!(left(&format!("*nat\n{rules}COMMIT\n")).len(), 4, "{to}");
            let rest = left(&format!("{NAT}{rules}COMMIT\n"));
            assert!(
                rest.len() == 2 && rest[0].contains(to) && rest[1].contains("SNAT"),
                "{rest:?}"
            );
        }
        let whole = translated("1337", "127.0.0.1:15053");
        for (what, other) in [
            ("--to-source 127.0.0.1", "--to-source 10.0.0.1"),
            ("--to-source 127.0.0.1", "--to-source 127.0.0.1 --random"),
            ("POSTROUTING -p udp", "POSTROUTING -o eth0 -p udp"),
            ("-m udp --dport 15053", "-m udp --dport 15054"),
        ] {
            let rest = left(&format!("*nat\n{}COMMIT\n", whole.replace(what, other)));
            assert!(rest.len() == 1 && rest[0].contains("SNAT"), "{other}: {rest:?}");
        }
        let server = whole.replace(
            "OUTPUT -p udp -m udp --dport 53 -j",
            "OUTPUT -d 10.0.0.9/32 -p udp -m udp --dport 53 -j",
        );
        assert_eq!(left(&format!("*nat\n{server}COMMIT\n")).len(), 4);
        // Without the rules for the proxy, or in front of them.
        let lines: Vec<&str> = whole.lines().collect();
        let bare = format!("{}\n{}\n", lines[2], lines[3]);
        let late = format!("{bare}{}\n{}\n", lines[0], lines[1]);
        for (rules, count) in [(&bare, 2), (&late, 2)] {
            let rest = left(&format!("{NAT}{rules}COMMIT\n"));
            assert_eq!(rest.len(), count, "{rest:?}");
        }
    }

    #[test]
    fn dns_of_the_first_release_that_captured_it_is_known() {
        let rules = |past: &str, server: &str| {
            format!(
                "*nat\n{past}-A OUTPUT {server}-p udp -m udp --dport 53 -j REDIRECT --to-ports 15013\nCOMMIT\n"
            )
        };
        let past = "-A OUTPUT -p udp -m udp --dport 53 -m owner --gid-owner 1337 -j RETURN\n";
        assert_eq!(left(&rules(past, "")), Vec::<String>::new());
        assert_eq!(left(&rules("", "")).len(), 1);
        assert_eq!(left(&rules(past, "-d 10.0.0.9/32 ")).len(), 2);
    }

    #[test]
    fn queries_of_groups_that_are_not_captured_are_known_beside_the_chain_that_exempts_them() {
        let groups = "-m owner ! --gid-owner 7 -m owner ! --gid-owner 8 -j RETURN\n";
        let rules = |groups: &str| {
            format!(
                "-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 2000 -j RETURN\n\
                 -A OUTPUT -p udp -m udp --dport 53 {groups}\
                 -A OUTPUT -d 10.44.0.1/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053\nCOMMIT\n"
            )
        };
        let chain = format!("{NAT}-A ISTIO_OUTPUT {groups}");
        assert_eq!(left(&format!("{chain}{}", rules(groups))), Vec::<String>::new());
        assert_eq!(left(&format!("{NAT}{}", rules(groups))).len(), 1);
        assert_eq!(left(&format!("{chain}{}", rules(&groups.replace('8', "9")))).len(), 1);
    }

    #[test]
    fn dns_of_others_is_not_ours() {
        let others = "-A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 53 -j RETURN\n\
            -A OUTPUT -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053\n\
            -A OUTPUT -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353\nCOMMIT\n";
        assert_eq!(left(&format!("{NAT}{others}")).len(), 3);
    }

    #[test]
    fn the_drop_of_invalid_packets_stands_alone() {
        let drop = "-A PREROUTING -m conntrack --ctstate INVALID -j DROP\n";
        assert_eq!(left(&format!("{NAT}COMMIT\n*mangle\n{drop}COMMIT\n")).len(), 0);
        assert_eq!(left(&format!("*mangle\n{drop}COMMIT\n")).len(), 1);
        let more = "-A PREROUTING -s 192.0.2.0/24 -j DROP\n";
        assert_eq!(left(&format!("{NAT}COMMIT\n*mangle\n{drop}{more}COMMIT\n")).len(), 2);
    }

    #[test]
    fn ambient_rules_are_left_whole() {
        let ambient = "*mangle\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
            -A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n\
            -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j RETURN\nCOMMIT\n\
            *nat\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\n\
            -A PREROUTING -j ISTIO_PRERT\n-A ISTIO_OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
        assert_eq!(left(ambient).len(), 6);
        // Where a sidecar is captured for as well, its own chains and rules are ours.
        let both = ambient.replace(
            "*nat\n",
            "*nat\n:ISTIO_REDIRECT - [0:0]\n-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n\
             -A ISTIO_OUTPUT -j ISTIO_REDIRECT\n-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n",
        );
        assert_eq!(left(&both), left(ambient));
    }

    #[test]
    fn an_excluded_interface_stands_in_front_of_our_jumps() {
        let table = |before: &str, behind: &str| {
            let jump = |from: &str| format!("-A {from} -p tcp -j ISTIO_OUTPUT\n");
            let rules = |list: &str| {
                let lines = list.split_terminator(';').map(|rule| format!("-A {rule}\n"));
                lines.collect::<String>()
            };
            format!(
                "*nat\n:ISTIO_OUTPUT - [0:0]\n{}{}{}{}COMMIT\n",
                rules(before),
                jump("PREROUTING"),
                jump("OUTPUT"),
                rules(behind)
            )
        };
        let pair = "PREROUTING -i tun0 -j RETURN;OUTPUT -o tun0 -j RETURN;";
        assert_eq!(left(&table(pair, "")).len(), 0);
        assert_eq!(left(&table("", pair)).len(), 2);
        let behind_others = "PREROUTING -i tun0 -j RETURN;PREROUTING -s 10.0.0.1/32 -j ACCEPT;\
            OUTPUT -o tun0 -j RETURN;OUTPUT -s 10.0.0.1/32 -j ACCEPT;";
        assert_eq!(left(&table(behind_others, "")).len(), 4);
    }

    #[test]
    fn what_a_comment_says_is_no_jump() {
        let comment = "-A OUTPUT -p tcp -m comment --comment \"skip \\\" -j ISTIO_OUTPUT for backup\" \
            -m tcp --dport 873 -j RETURN\n-A OUTPUT -m statistic --mode random -g ISTIO_OUTPUT\n";
        let left = left(&format!("{NAT}{comment}COMMIT\n"));
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].contains("873"));
    }
}
