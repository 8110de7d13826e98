//! What keeps rules from working that are whole, and that no effect of ours puts right.

use std::net::{IpAddr, Ipv4Addr};

use super::DesiredState;
use super::routing::{PASSTHROUGH_LINK, PASSTHROUGH_PEER, PASSTHROUGH_V6};
use crate::iptables::ChainDump;
use crate::observed::{Holding, InterfaceAddress, IpRule, Observed, Route, Variant};
use crate::ownership::{self, Footprint};
use crate::ruleset::{MarkedRoute, Masked, Table};
use crate::value::Family;

/// Table `main` (`linux/rtnetlink.h`, `RT_TABLE_MAIN`).
const MAIN: u32 = 254;

/// Rules of which nothing tells whose they are, each in a sentence that says whether it goes or stays.
pub(super) fn untold(observed: &Observed, footprints: &[Footprint]) -> Vec<String> {
    let of = |holding: &Holding| {
        let Holding { variant, family, dump } = holding;
        let told = |(ours, rule): (bool, String)| {
            let what = if ours {
                "goes, as it stands where those of the capture do: add it again if it is somebody else's"
            } else {
                "stays, as it does not stand with those of the capture: remove it if it is one of them"
            };
            format!("nothing tells whose this rule of {family} {variant} is: {rule}; it {what}")
        };
        ownership::untold(dump, footprints).into_iter().map(told).collect::<Vec<_>>()
    };
    observed.holdings.iter().flat_map(of).collect()
}

/// Each in a sentence, with what to do.
pub(super) fn obstacles(observed: &Observed, wanted: DesiredState<'_>) -> Vec<String> {
    let families = wanted.families();
    let mut found = Vec::new();
    if families.contains(&Family::V6) && lacks_loopback_v6(observed) {
        found.push(
            "IPv6 is switched off on lo, which has no address ::1, and connections of the pod are \
             redirected to it: set the sysctl net.ipv6.conf.lo.disable_ipv6 to 0"
                .to_owned(),
        );
    }
    if families.contains(&Family::V4) && lacks_loopback_v4(observed) {
        found.push(
            "lo has no address 127.0.0.1, and connections of the pod are redirected to it: \
             `ip addr add 127.0.0.1/8 dev lo`"
                .to_owned(),
        );
    }
    found.extend(families.iter().flat_map(|family| dropping(observed, *family)));
    if let Some(marked) = wanted.routing().and_then(|routing| routing.marked) {
        let what = if marked.transparent { "TPROXY" } else { "answers to the node's proxy" };
        // Nothing comes in by those.
        let ours = [PASSTHROUGH_LINK, PASSTHROUGH_PEER];
        let mut wary = observed.wary.iter().filter(|name| !ours.contains(&name.as_str()));
        if marked.transparent
            && families.contains(&Family::V4)
            && let Some(name) = wary.next()
        {
            found.push(format!(
                "the sysctl src_valid_mark holds for {name}: the kernel looks for the way back with \
                 TPROXY's mark, which leads here, takes every captured connection for a forged one and \
                 drops it: set net.ipv4.conf.all.src_valid_mark and \
                 net.ipv4.conf.{name}.src_valid_mark to 0"
            ));
        }
        for family in families {
            let rule = detour(observed, family, &marked);
            found.extend(rule.map(|rule| {
                format!(
                    "the {family} policy routing rule with priority {} comes before the one for \
                     {what} and leads elsewhere what that one should lead to lo: remove it, or \
                     give it a priority above {}",
                    rule.priority, marked.priority
                )
            }));
        }
    }
    found
}

/// Whether `lo` is up without `::1`, while there is IPv6 elsewhere.
fn lacks_loopback_v6(observed: &Observed) -> bool {
    let six = |loopback: bool| {
        // Where IPv6 is switched off, the address of the passthrough alone is there.
        let six = |address: &IpAddr| address.is_ipv6() && *address != PASSTHROUGH_V6;
        let mut six = observed.addresses.iter().filter(move |a| six(&a.address));
        six.any(|a| a.loopback == loopback && (!loopback || a.address.is_loopback()))
    };
    !observed.lo_down && six(false) && !six(true)
}

/// Whether `lo` is up without an address whose network has `127.0.0.1`.
fn lacks_loopback_v4(observed: &Observed) -> bool {
    let holds = |a: &InterfaceAddress| match a.address {
        IpAddr::V4(ip) if a.loopback => {
            let shift = 32_u32.saturating_sub(a.prefix.into());
            let differ = u32::from(ip) ^ u32::from(Ipv4Addr::LOCALHOST);
            ip.is_loopback() && differ.checked_shr(shift).unwrap_or(0) == 0
        }
        _ => false,
    };
    // A pod of which no address is known was not looked at.
    let four = |a: &InterfaceAddress| a.address.is_ipv4() && !a.loopback;
    let mut addresses = observed.addresses.iter();
    !observed.lo_down && addresses.clone().any(four) && !addresses.any(holds)
}

/// Builtin chains of a nat table that drop what no rule of theirs has decided, such as the proxy's own
/// connections. iptables refuses such a policy (`nat` is not for filtering); `nft` sets it.
fn dropping(observed: &Observed, family: Family) -> Vec<String> {
    let dump = observed.holding(Variant::Nft, family);
    let nat = dump.and_then(|dump| dump.table(Table::Nat.as_str()));
    let drops = |chain: &&ChainDump| chain.policy.as_deref() == Some("DROP");
    let chains = nat.into_iter().flat_map(|nat| &nat.chains).filter(drops);
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let sentence = |chain: &ChainDump| {
        let name = &chain.name;
        format!(
            "the policy of chain {name} of {family} nat is to drop, so that connections are dropped which \
             no rule redirects, such as the proxy's own: `nft add chain {ip} nat {name} '{{ policy accept; }}'`"
        )
    };
    chains.map(sentence).collect()
}

/// A rule that takes what is marked before ours does.
fn detour<'o>(observed: &'o Observed, family: Family, wanted: &MarkedRoute) -> Option<&'o IpRule> {
    let Masked { value: mark, mask: bits } = wanted.mark;
    let table = wanted.table.get();
    // Of bits that the mark leaves open, some packet has those.
    let marked = |rule: &&IpRule| {
        rule.mark_only
            && rule.fwmark.is_some_and(|(value, mask)| mark & mask & bits == value & mask & bits)
    };
    let ours = observed.ip_rules.iter().filter(marked);
    let ours = ours.filter(|rule| rule.family == family && rule.table == table);
    let priority = ours.map(|rule| rule.priority).min().unwrap_or(wanted.priority);
    let leads = |rule: &&IpRule| {
        let route = |r: &Route| r.family == family && r.table == rule.table;
        rule.table != table && (matches!(rule.table, 0 | MAIN) || observed.routes.iter().any(route))
    };
    let others = observed.ip_rules.iter().filter(marked).chain(&observed.catch_alls);
    let earlier = others.filter(|rule| rule.family == family && rule.priority < priority);
    earlier.filter(leads).min_by_key(|rule| rule.priority)
}
