//! What istio-iptables leaves in builtin chains without a jump or a mark of its own. Such a rule
//! is known by its exact shape, and only beside chains that are istio-iptables' own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::{older, refusal};
use crate::iptables::Dump;
use crate::ownership::{Footprint, Owned, Rival};
use crate::ruleset::{Hook, Masked, Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::{Cidr, InterfacePattern};

/// How rules of istio-iptables are known.
pub const FOOTPRINT: Footprint =
    Footprint { rival: Some(AMBIENT), unmarked, ..Footprint::of(&super::LAYOUT) };

/// Ambient mode's chains in a pod. Its rules of the chain for what the pod sends ask for its marks or for
/// its probes' address, or accept.
const AMBIENT: Rival = Rival { by: "ISTIO_PRERT", shared: "ISTIO_OUTPUT", is_ours: is_of_sidecar };

fn is_of_sidecar(rule: &Rule, chains: &[&str]) -> bool {
    let marked = |m: &Match| matches!(m, Match::Mark { .. } | Match::Connmark { .. });
    let plain = !rule.matches.iter().any(marked);
    match &rule.target {
        Target::Return => plain,
        Target::Jump(chain) => chains.contains(&chain.as_str()),
        _ => false,
    }
}

fn unmarked(dump: &Dump, owned: &mut Owned) {
    let istio = super::LAYOUT.chains();
    let present = |owned: &Owned, table: Table| {
        istio.iter().any(|chain| owned.has_chain(table, chain.as_str()))
    };
    let present = present(owned, Table::Nat) || present(owned, Table::Mangle);
    if present {
        bookkeeping(dump, owned);
        older::direct_dns(dump, owned);
        older::direct_drop(dump, owned);
        notices(dump, owned);
        interface_returns(dump, Table::Nat, owned);
        interface_returns(dump, Table::Mangle, owned);
    } else {
        older::orphan_dns(dump, owned);
    }
    refusal::rejection_v6(dump, owned);
    guardrails(dump, present, owned);
}

/// The rules of a builtin chain that are understood, with their indices.
pub(super) fn rules(dump: &Dump, table: Table, hook: Hook) -> impl Iterator<Item = (usize, &Rule)> {
    dump.table(table.as_str())
        .and_then(|t| t.chain(hook.as_str()))
        .into_iter()
        .flat_map(|c| c.rules.iter().enumerate())
        .filter_map(|(i, r)| Some((i, r.rule.as_ref().ok()?)))
}

/// Whether the kernel made a rule of a builtin chain before the first of our chains.
fn is_older(dump: &Dump, table: Table, hook: Hook, index: usize, owned: &Owned) -> bool {
    let Some(content) = dump.table(table.as_str()) else { return false };
    let rule = content.chain(hook.as_str()).and_then(|chain| chain.rules.get(index));
    let made = rule.and_then(|rule| Some(rule.kernel.as_ref()?.handle));
    let chains = content.chains.iter().filter(|c| owned.has_chain(table, &c.name));
    let first = chains.filter_map(|c| c.handle).min();
    first.zip(made).is_some_and(|(first, made)| made < first)
}

/// Whether a rule of a builtin chain can have been written with ours: together with them in front of
/// our jump, and not made after it or before the first of our chains.
fn comes_with_ours(dump: &Dump, table: Table, hook: Hook, index: usize, owned: &Owned) -> bool {
    let Some(content) = dump.table(table.as_str()) else { return false };
    let Some(chain) = content.chain(hook.as_str()) else { return false };
    let ours = |at: &usize| owned.has_rule(table, hook.as_str(), *at);
    let handle = |at: usize| Some(chain.rules.get(at)?.kernel.as_ref()?.handle);
    if is_older(dump, table, hook, index, owned) {
        return false;
    }
    // The jumps that reroute an interface stand in front of everything.
    let of_all = |at: &usize| {
        let rule = chain.rules.get(*at).and_then(|r| r.rule.as_ref().ok());
        !rule.is_some_and(|r| r.matches.iter().any(|m| matches!(m, Match::InInterface { .. })))
    };
    let mut jumps = (0..chain.rules.len()).rev().filter(ours);
    let Some(jump) = jumps.find(of_all) else { return true };
    let of_an_interface = |at: usize| {
        matches!(chain.rules.get(at).map(|r| &r.rule), Some(Ok(Rule { matches, target: Target::Return }))
            if matches!(matches.as_slice(), [Match::InInterface { .. } | Match::OutInterface { .. }]))
    };
    index < jump
        && handle(index).zip(handle(jump)).is_none_or(|(made, jump)| made < jump)
        && (index..jump).all(|at| ours(&at) || of_an_interface(at))
}

/// Whether what goes out by an interface has a RETURN, as that of an excluded one.
fn leaves_by(dump: &Dump, table: Table, name: &InterfacePattern) -> bool {
    rules(dump, table, Hook::Output).any(|(_, rule)| {
        rule.target == Target::Return
            && matches!(rule.matches.as_slice(), [Match::OutInterface { negated: false, name: n }] if n == name)
    })
}

/// Rules that tell whoever traces of what is led to our chains, and of what comes by an excluded or rerouted
/// interface, each in front of the rule that it tells of: releases from 1.12 to 1.24 write them where they
/// are asked to (`IPTABLES_TRACE_LOGGING`). What is told and the group are constants of theirs.
fn notices(dump: &Dump, owned: &mut Owned) {
    for (table, hook) in [Table::Nat, Table::Mangle, Table::Raw]
        .into_iter()
        .flat_map(|table| [Hook::Prerouting, Hook::Output].map(|hook| (table, hook)))
    {
        let chain = dump.table(table.as_str()).and_then(|t| t.chain(hook.as_str()));
        for (index, rule) in chain.into_iter().flat_map(|chain| chain.rules.iter().enumerate()) {
            if is_notice(&rule.text, hook) {
                owned.add_rule(table, hook.as_str(), index);
            }
        }
    }
}

fn is_notice(text: &str, hook: Hook) -> bool {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [
        asks @ ..,
        "-j",
        "NFLOG",
        "--nflog-prefix",
        what,
        "--nflog-group",
        "1337",
        "--nflog-size" | "--nflog-range",
        "20",
    ] = words.as_slice()
    else {
        return false;
    };
    matches!(
        (what.trim_matches(['"', '\\']), asks, hook),
        ("ExcludeInterfaceCommand" | "KubevirtCommand", [.., "-i" | "-o", _], _)
            | ("JumpInbound", ["-p", "tcp"], Hook::Prerouting)
            | ("JumpOutbound", ["-p", "tcp" | "udp"], Hook::Output)
    )
}

/// An excluded interface has a RETURN on the way in and one on the way out. A rerouted one has
/// its RETURN at the head of the chain, with or without redirects in front.
fn interface_returns(dump: &Dump, table: Table, owned: &mut Owned) {
    let before = owned.clone();
    let with_ours = |hook: Hook, index: &usize| comes_with_ours(dump, table, hook, *index, &before);
    let incoming: Vec<(usize, &InterfacePattern)> = rules(dump, table, Hook::Prerouting)
        .filter_map(|(i, r)| match (r.matches.as_slice(), &r.target) {
            ([Match::InInterface { negated: false, name }], Target::Return) => Some((i, name)),
            _ => None,
        })
        .collect();
    let paired = |name: &InterfacePattern| {
        let with_ours =
            |(i, n): &&(usize, &InterfacePattern)| *n == name && with_ours(Hook::Prerouting, i);
        incoming.iter().any(|found| with_ours(&found))
    };
    let outgoing: Vec<(usize, &InterfacePattern)> = rules(dump, table, Hook::Output)
        .filter_map(|(i, r)| match (r.matches.as_slice(), &r.target) {
            ([Match::OutInterface { negated: false, name }], Target::Return) => Some((i, name)),
            _ => None,
        })
        .filter(|(index, _)| with_ours(Hook::Output, index))
        .collect();
    for (index, name) in &outgoing {
        if paired(name) {
            owned.add_rule(table, Hook::Output.as_str(), *index);
        }
    }
    let chain = Hook::Prerouting.as_str();
    for (index, name) in &incoming {
        let pair = outgoing.iter().any(|(_, n)| n == name) && with_ours(Hook::Prerouting, index);
        // In front of it are only redirects of interfaces, and others like it.
        let of_an_interface = |i: usize| {
            let chain = dump.table(table.as_str()).and_then(|t| t.chain(chain));
            let Some(found) = chain.and_then(|chain| chain.rules.get(i)) else { return false };
            let asks = |r: &Rule| matches!(r.matches.first(), Some(Match::InInterface { .. }));
            found.rule.as_ref().map_or_else(|_| is_notice(&found.text, Hook::Prerouting), asks)
        };
        let at_head = || {
            !leaves_by(dump, table, name)
                && (0..*index).all(|i| owned.has_rule(table, chain, i) && of_an_interface(i))
                && !is_older(dump, table, Hook::Prerouting, *index, &before)
        };
        let rerouted = || {
            rules(dump, table, Hook::Prerouting).any(|(i, r)| {
                owned.has_rule(table, chain, i)
                    && r.matches.iter().any(|m| {
                        matches!(m, Match::InInterface { negated: false, name: n } if n == *name)
                    })
            })
        };
        if pair || (table == Table::Nat && (rerouted() || at_head())) {
            owned.add_rule(table, chain, *index);
        }
    }
}

/// What TPROXY mode writes in builtin chains. Others save and restore marks too, so the mark must
/// be known to be istio-iptables'.
fn bookkeeping(dump: &Dump, owned: &mut Owned) {
    let hooks = [Hook::Prerouting, Hook::Output];
    let found: Vec<(Hook, usize, Role)> = hooks
        .into_iter()
        .flat_map(|hook| {
            let rules = rules(dump, Table::Mangle, hook);
            rules.filter_map(move |(index, rule)| Some((hook, index, role(hook, rule)?)))
        })
        .collect();
    let marks = marks(dump);
    for (hook, index, role) in &found {
        let ours = match role {
            Role::SelfCall => true,
            Role::FromLocalhost(mark) => marks.contains(mark),
            Role::Save(mark) | Role::Skip(mark) | Role::Restore(mark) => {
                let whole = [Role::Save(*mark), Role::Skip(*mark), Role::Restore(*mark)];
                marks.contains(mark)
                    || whole.iter().all(|wanted| found.iter().any(|(_, _, role)| role == wanted))
            }
        };
        if ours {
            owned.add_rule(Table::Mangle, hook.as_str(), *index);
        }
    }
}

/// The marks that istio-iptables' own chains set or look for, and its default.
fn marks(dump: &Dump) -> BTreeSet<Masked> {
    let mut marks = BTreeSet::from([Masked::exact(super::TPROXY_DEFAULTS.0)]);
    let chains = dump.table(Table::Mangle.as_str()).into_iter().flat_map(|table| {
        super::LAYOUT.chains().into_iter().filter_map(|name| table.chain(name.as_str()))
    });
    for rule in chains.flat_map(|chain| &chain.rules).filter_map(|r| r.rule.as_ref().ok()) {
        if let Target::Tproxy { mark, .. } | Target::SetMark(mark) = rule.target {
            marks.insert(mark);
        }
        marks.extend(rule.matches.iter().filter_map(|m| match m {
            Match::Mark { negated: false, mark } => Some(*mark),
            _ => None,
        }));
    }
    marks
}

/// What a rule of TPROXY mode in a builtin chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Keeps the mark of the proxy's connections.
    Save(Masked),
    /// Leaves the proxy's connections to its own pod alone.
    Skip(Masked),
    /// Gives answers the mark of their connection.
    Restore(Masked),
    /// Marks the proxy's calls to its own pod that are to come in by the inbound port.
    SelfCall,
    /// Marks what goes from localhost elsewhere (1.6 to 1.8).
    FromLocalhost(Masked),
}

fn role(hook: Hook, rule: &Rule) -> Option<Role> {
    let tcp = |m: &Match| *m == Match::Protocol(Protocol::Tcp);
    let lo = |m: &Match| matches!(m, Match::OutInterface { negated: false, name } if name.as_str() == "lo");
    let mark = rule.matches.iter().find_map(|m| match m {
        Match::Mark { negated: false, mark } | Match::Connmark { negated: false, mark } => {
            Some(*mark)
        }
        _ => None,
    });
    let marked = |m: &Match| matches!(m, Match::Mark { negated: false, .. });
    let connmarked = |m: &Match| matches!(m, Match::Connmark { negated: false, .. });
    let elsewhere = |m: &Match| {
        matches!(m, Match::Address { side: Side::Destination, negated: true, cidr }
            if cidr.address().is_loopback())
    };
    let own = Cidr::host(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let from_own =
        |m: &Match| *m == Match::Address { side: Side::Source, negated: false, cidr: own };
    let to_others =
        |m: &Match| *m == Match::Address { side: Side::Destination, negated: true, cidr: own };
    let proxy = |m: &Match| {
        matches!(m, Match::Owner { negated: false, owner: Owner::Uid(_) | Owner::Gid(_) })
    };
    let all = |wanted: &[&dyn Fn(&Match) -> bool]| {
        rule.matches.len() == wanted.len() && wanted.iter().all(|w| rule.matches.iter().any(w))
    };
    match (hook, &rule.target) {
        (Hook::Prerouting, Target::SaveMark) if all(&[&tcp, &marked]) => mark.map(Role::Save),
        (Hook::Output, Target::Return) if all(&[&tcp, &lo, &marked]) => mark.map(Role::Skip),
        (Hook::Output, Target::RestoreMark) if all(&[&tcp, &connmarked]) => mark.map(Role::Restore),
        (Hook::Output, Target::SetMark(m))
            if m.value == crate::capture::SELF_CALL_MARK
                && all(&[&tcp, &lo, &elsewhere, &proxy]) =>
        {
            Some(Role::SelfCall)
        }
        (Hook::Output, Target::SetMark(mark)) if all(&[&tcp, &from_own, &to_others]) => {
            Some(Role::FromLocalhost(*mark))
        }
        _ => None,
    }
}

/// `--reconcile` of istio-iptables drops all TCP and UDP at the head of INPUT, FORWARD and OUTPUT
/// while it works, and leaves that behind when it is killed. They are known when all six are
/// there, or when any is there beside istio-iptables' chains.
fn guardrails(dump: &Dump, beside_istio: bool, owned: &mut Owned) {
    let hooks = [Hook::Input, Hook::Forward, Hook::Output];
    let mut found = Vec::new();
    for hook in hooks {
        let mut seen = Vec::new();
        for (index, rule) in rules(dump, Table::Filter, hook) {
            match (rule.matches.as_slice(), &rule.target) {
                ([Match::Protocol(p)], Target::Drop)
                    if index == seen.len() && !seen.contains(p) =>
                {
                    seen.push(*p);
                    found.push((hook, index));
                }
                _ => break,
            }
        }
    }
    if beside_istio || found.len() == 2 * hooks.len() {
        for (hook, index) in found {
            owned.add_rule(Table::Filter, hook.as_str(), index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(text: &str) -> Owned {
        Owned::find(&Dump::parse(text).unwrap(), &[FOOTPRINT])
    }

    #[test]
    fn an_excluded_interface_is_known_by_its_pair() {
        let o = owned(
            "*nat\n:ISTIO_OUTPUT - [0:0]\n-A PREROUTING -d 10.0.0.1/32 -j DNAT --to-destination 10.0.0.2\n\
             -A PREROUTING -i eth1 -j RETURN\n-A PREROUTING -i eth2 -j RETURN\n\
             -A OUTPUT -o eth1 -j RETURN\n-A OUTPUT -o eth3 -j RETURN\nCOMMIT\n",
        );
        assert!(o.has_rule(Table::Nat, "PREROUTING", 1) && o.has_rule(Table::Nat, "OUTPUT", 0));
        assert!(!o.has_rule(Table::Nat, "PREROUTING", 0));
        assert!(!o.has_rule(Table::Nat, "PREROUTING", 2) && !o.has_rule(Table::Nat, "OUTPUT", 1));
    }

    /// Verify that what older releases write for traces goes with the interface that it tells of, and that
    /// somebody else's does not.
    #[test]
    fn notices_of_interfaces_come_with_them() {
        let notice = |by: &str, what: &str| {
            format!("{by} -j NFLOG --nflog-prefix {what} --nflog-group 1337 --nflog-size 20\n")
        };
        let text = format!(
            "*nat\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\n\
             -A PREROUTING {}-A PREROUTING -i net1 -j RETURN\n\
             -A PREROUTING {}-A PREROUTING -i tun0 -j RETURN\n-A PREROUTING -p tcp -j ISTIO_OUTPUT\n\
             -A OUTPUT {}-A OUTPUT -o tun0 -j RETURN\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
             -A OUTPUT {}COMMIT\n",
            notice("-i net1", "KubevirtCommand"),
            notice("-i tun0", "ExcludeInterfaceCommand"),
            notice("-o tun0", "\"\\\"ExcludeInterfaceCommand\\\"\""),
            notice("-o tun1", "mine"),
        );
        let o = owned(&text);
        for index in 0..5 {
            assert!(o.has_rule(Table::Nat, "PREROUTING", index), "{index}");
        }
        for index in 0..3 {
            assert!(o.has_rule(Table::Nat, "OUTPUT", index), "{index}");
        }
        assert!(!o.has_rule(Table::Nat, "OUTPUT", 3));
    }

    #[test]
    fn notices_of_jumps_are_ours() {
        let notice = |what: &str, group: &str| {
            format!("-j NFLOG --nflog-prefix {what} --nflog-group {group} --nflog-size 20\n")
        };
        let text = format!(
            "*nat\n:ISTIO_OUTPUT - [0:0]\n-A PREROUTING -p tcp {}-A PREROUTING -p tcp {}\
             -A OUTPUT -p tcp {}-A OUTPUT -p udp {}-A OUTPUT -p tcp --dport 80 {}-A OUTPUT -p tcp {}COMMIT\n\
             *raw\n-A OUTPUT -p udp {}COMMIT\n",
            notice("\"\\\"JumpInbound\\\"\"", "1337"),
            notice("JumpOutbound", "1337"),
            notice("JumpOutbound", "1337"),
            notice("JumpOutbound", "1337"),
            notice("JumpOutbound", "1337"),
            notice("JumpOutbound", "7"),
            notice("JumpOutbound", "1337"),
        );
        let o = owned(&text);
        assert!(
            o.has_rule(Table::Nat, "PREROUTING", 0) && !o.has_rule(Table::Nat, "PREROUTING", 1)
        );
        let found: Vec<bool> = (0..4).map(|at| o.has_rule(Table::Nat, "OUTPUT", at)).collect();
        assert_eq!(found, [true, true, false, false]);
        assert!(o.has_rule(Table::Raw, "OUTPUT", 0));
    }

    #[test]
    fn the_mark_of_what_goes_from_localhost_elsewhere_is_ours() {
        let rule = |from: &str, to: &str, mark: &str| {
            format!(
                "*mangle\n:ISTIO_DIVERT - [0:0]\n-A OUTPUT -s {from} ! -d {to} -p tcp -j MARK --set-xmark {mark}\n\
                 -A ISTIO_DIVERT -j MARK --set-xmark 0x77/0xffffffff\nCOMMIT\n"
            )
        };
        let ours = |text: &str| owned(text).has_rule(Table::Mangle, "OUTPUT", 0);
        let own = "127.0.0.1/32";
        assert!(ours(&rule(own, own, "0x539/0xffffffff")));
        assert!(ours(&rule(own, own, "0x77/0xffffffff")));
        assert!(!ours(&rule(own, own, "0x78/0xffffffff")));
        assert!(!ours(&rule("127.0.0.0/8", own, "0x539/0xffffffff")));
        assert!(!ours(&rule(own, "127.0.0.0/8", "0x539/0xffffffff")));
        assert!(!ours(&rule(own, own, "0x539/0xffffffff").replace("ISTIO_DIVERT", "THEIRS")));
    }

    #[test]
    fn nothing_is_ours_without_our_chains() {
        let o = owned(
            "*nat\n-A PREROUTING -i eth1 -j RETURN\n-A OUTPUT -o eth1 -j RETURN\nCOMMIT\n\
             *filter\n-A INPUT -p tcp -j DROP\nCOMMIT\n\
             *mangle\n-A OUTPUT -p tcp -m connmark --mark 0x1 -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\nCOMMIT\n",
        );
        assert!(o.is_empty());
    }

    #[test]
    fn six_guardrails_are_known_even_alone() {
        let six = "*filter\n-A INPUT -p tcp -j DROP\n-A INPUT -p udp -j DROP\n-A FORWARD -p tcp -j DROP\n\
                   -A FORWARD -p udp -j DROP\n-A OUTPUT -p udp -j DROP\n-A OUTPUT -p tcp -j DROP\n\
                   -A OUTPUT -p tcp -j DROP\nCOMMIT\n";
        let o = owned(six);
        assert!(o.has_rule(Table::Filter, "OUTPUT", 1) && !o.has_rule(Table::Filter, "OUTPUT", 2));
    }

    #[test]
    fn marks_that_others_save_and_restore_are_not_ours() {
        let pair = |mark: &str| {
            format!(
                "-A PREROUTING -p tcp -m mark --mark {mark} -j CONNMARK --save-mark\n\
                 -A OUTPUT -p tcp -m connmark --mark {mark} -j CONNMARK --restore-mark\n"
            )
        };
        let table = |own: &str, rules: &str| format!("*mangle\n{own}{rules}COMMIT\n");
        let chain = ":ISTIO_INBOUND - [0:0]\n";
        let seen = format!("{chain}-A ISTIO_INBOUND -p tcp -m mark --mark 0x77 -j RETURN\n");
        let skip = "-A OUTPUT -p tcp -o lo -m mark --mark 0x77 -j RETURN\n";
        for (text, ours) in [
            (table(chain, &pair("0x77")), 0),
            (table(chain, &pair("0x539")), 2),
            (table(&seen, &pair("0x77")), 2),
            (table(chain, &format!("{}{skip}", pair("0x77"))), 3),
            (table(chain, &format!("{}{skip}", pair("0x78"))), 0),
        ] {
            let o = owned(&text);
            let all = [("PREROUTING", 0), ("OUTPUT", 0), ("OUTPUT", 1)];
            let found = all.iter().filter(|(c, i)| o.has_rule(Table::Mangle, c, *i)).count();
            assert_eq!(found, ours, "{text}");
        }
    }

    #[test]
    fn look_alikes_are_not_ours() {
        let o = owned(
            "*nat\n:ISTIO_CUSTOM - [0:0]\n:XISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_CUSTOM\nCOMMIT\n",
        );
        assert!(o.is_empty());
    }

    #[test]
    fn a_jump_from_a_rule_of_another_kind_is_ours() {
        let o = owned(
            "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -m statistic --mode random -j ISTIO_OUTPUT\nCOMMIT\n",
        );
        assert!(o.has_rule(Table::Nat, "OUTPUT", 0));
    }
}
