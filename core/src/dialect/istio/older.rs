//! What older releases of istio-iptables wrote in another form: DNS capture (up to 1.22) and the drop of
//! invalid packets (up to 1.23) stood in builtin chains, with no chain of their own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use super::footprint::rules;
use crate::iptables::{Dump, DumpRule};
use crate::ownership::Owned;
use crate::ruleset::{ConnState, Hook, Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::{Cidr, Family, InterfacePattern, PortRange, Zone};

/// The port of DNS, and the one on which the proxy answers.
pub(super) const DNS: u16 = 53;
const ANSWERS: u16 = 15053;
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
    for (table, hook) in
        [(Table::Nat, Hook::Output), (Table::Raw, Hook::Output), (Table::Raw, Hook::Prerouting)]
    {
        for (index, rule) in rules(dump, table, hook) {
            let Some((side, port, who)) = asked(rule) else { continue };
            let is_known = match (table, hook, side, port, &who, &rule.target) {
                (Table::Nat, _, Side::Destination, DNS, Asked::Proxy(_), Target::Return)
                | (
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
                (
                    Table::Nat,
                    _,
                    Side::Destination,
                    DNS,
                    Asked::Anybody,
                    Target::Redirect { port, .. },
                ) => port.port().get() == ANSWERS,
                _ => false,
            };
            let of_proxy = match &who {
                Asked::Proxy(owner) => proxies.contains(owner),
                Asked::Anybody => true,
            };
            strangers |= is_known && !of_proxy;
            if is_known && of_proxy {
                leads |= matches!(rule.target, Target::Redirect { .. })
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

/// The identities that are exempt in istio-iptables' chain for what the pod sends.
fn proxies(dump: &Dump) -> BTreeSet<Owner> {
    let default = [PROXY.parse().map(Owner::Uid).ok(), PROXY.parse().map(Owner::Gid).ok()];
    let mut proxies: BTreeSet<Owner> = default.into_iter().flatten().collect();
    let chain =
        dump.table(Table::Nat.as_str()).and_then(|t| t.chain(super::LAYOUT.output.as_str()));
    let rules = chain.into_iter().flat_map(|c| &c.rules).filter_map(|r| r.rule.as_ref().ok());
    proxies.extend(rules.filter_map(|rule| match (rule.matches.as_slice(), &rule.target) {
        ([Match::Owner { negated: false, owner }], Target::Return) => Some(owner.clone()),
        _ => None,
    }));
    proxies
}

/// How the shell script up to 1.6 refused IPv6 where it captured none of it: three rules in a row, in the
/// words of its time.
pub(super) fn rejection_v6(dump: &Dump, owned: &mut Owned) {
    if let Some(first) = find_rejection(dump) {
        for index in first..first + 3 {
            owned.add_rule(Table::Filter, Hook::Input.as_str(), index);
        }
    }
}

/// Where these three rules begin in INPUT of `filter`, counted from 0.
pub(super) fn find_rejection(dump: &Dump) -> Option<usize> {
    let chain = dump.table(Table::Filter.as_str())?.chain(Hook::Input.as_str())?;
    let known = |rule: &DumpRule| rule.rule.as_ref().ok().cloned();
    let rules: Vec<Option<Rule>> = chain.rules.iter().map(known).collect();
    let own = Cidr::host(IpAddr::V6(Ipv6Addr::LOCALHOST));
    let to_own = Match::Address { side: Side::Destination, negated: false, cidr: own };
    let by_lo = Match::InInterface { negated: false, name: InterfacePattern::loopback() };
    let is = |rule: &Rule, matches: &[Match], target: &Target| {
        rule.target == *target
            && rule.matches.len() == matches.len()
            && matches.iter().all(|m| rule.matches.contains(m))
    };
    rules.windows(3).position(|three| {
        let [Some(answers), Some(local), Some(rest)] = three else { return false };
        is(answers, &[Match::OldState(vec![ConnState::Established])], &Target::Accept)
            && is(local, &[to_own.clone(), by_lo.clone()], &Target::Accept)
            && is(rest, &[], &Target::Reject(Family::V6))
    })
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

#[cfg(test)]
mod tests {
    use super::super::FOOTPRINT;
    use super::*;
    use crate::ownership::known_tables;

    /// The rules that are not ours.
    fn left(text: &str) -> Vec<String> {
        let dump = Dump::parse(text).unwrap();
        let owned = Owned::find(&dump, &[FOOTPRINT]);
        let mut left = Vec::new();
        for (table, content) in known_tables(&dump) {
            for chain in &content.chains {
                let rules = chain.rules.iter().enumerate();
                let others = rules.filter(|(at, _)| !owned.has_rule(table, &chain.name, *at));
                left.extend(others.map(|(_, rule)| rule.text.clone()));
            }
        }
        left
    }

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

    #[test]
    fn the_refusal_of_ipv6_is_known_in_its_words() {
        let rules = |state: &str, before: &str| {
            format!(
                "*filter\n{before}-A INPUT -m {state} ESTABLISHED -j ACCEPT\n\
                 -A INPUT -d ::1/128 -i lo -j ACCEPT\n\
                 -A INPUT -j REJECT --reject-with icmp6-port-unreachable\nCOMMIT\n"
            )
        };
        assert_eq!(left(&rules("state --state", "")).len(), 0);
        assert_eq!(left(&rules("state --state", "-A INPUT -s fd00::/8 -j ACCEPT\n")).len(), 1);
        // The same of somebody who came later, and more than the same.
        assert_eq!(left(&rules("conntrack --ctstate", "")).len(), 3);
        assert_eq!(left(&rules("state --state RELATED,", "").replace(", E", ",E")).len(), 3);
        let open =
            rules("state --state", "").replace("-A INPUT -j REJECT", "-A INPUT -p tcp -j REJECT");
        assert_eq!(left(&open).len(), 3);
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
