//! How releases of istio-iptables up to 1.6 refused IPv6 where they captured none of it, in the words of
//! their time.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;

use crate::iptables::{Dump, DumpRule};
use crate::ownership::Owned;
use crate::ruleset::{ConnState, Hook, Match, Rule, Side, Table, Target};
use crate::value::{Cidr, Family, InterfacePattern};

/// Note the rules that refuse IPv6.
pub(super) fn rejection_v6(dump: &Dump, owned: &mut Owned) {
    for index in find_rejection(dump).into_iter().flatten() {
        owned.add_rule(Table::Filter, Hook::Input.as_str(), index);
    }
}

/// Where these rules are in INPUT of `filter`, counted from 0: three in a row, or the two of 1.0 (and of
/// istio-cni 1.1). The two look like anybody's, so they are known where nothing else is in the table.
pub(super) fn find_rejection(dump: &Dump) -> Option<Range<usize>> {
    let table = dump.table(Table::Filter.as_str())?;
    let chain = table.chain(Hook::Input.as_str())?;
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
    let answers =
        |rule: &Rule| is(rule, &[Match::OldState(vec![ConnState::Established])], &Target::Accept);
    let rest = |rule: &Rule| is(rule, &[], &Target::Reject(Family::V6));
    let three = rules.windows(3).position(|three| {
        let [Some(first), Some(local), Some(last)] = three else { return false };
        answers(first) && is(local, &[to_own.clone(), by_lo.clone()], &Target::Accept) && rest(last)
    });
    if let Some(first) = three {
        return Some(first..first + 3);
    }
    let alone = table.chains.iter().all(|c| {
        (c.name == chain.name || c.rules.is_empty())
            && c.policy.as_deref().is_some_and(|policy| policy == "ACCEPT")
    });
    let two = |first: &Rule, last: &Rule| answers(first) && rest(last);
    matches!(rules.as_slice(), [Some(first), Some(last)] if alone && two(first, last))
        .then_some(0..2)
}

#[cfg(test)]
mod tests {
    use super::super::older::left;

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
    fn the_two_rules_of_the_first_release_stand_alone() {
        let rules = |input: &str, rest: &str| {
            format!(
                "*filter\n:INPUT {input} [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                 -A INPUT -m state --state ESTABLISHED -j ACCEPT\n\
                 -A INPUT -j REJECT --reject-with icmp6-port-unreachable\n{rest}COMMIT\n"
            )
        };
        assert_eq!(left(&rules("ACCEPT", "")), Vec::<String>::new());
        assert_eq!(left(&rules("DROP", "")).len(), 2);
        for more in ["-A INPUT -j ACCEPT\n", "-A OUTPUT -j ACCEPT\n", "-A FORWARD -j DROP\n"] {
            assert_eq!(left(&rules("ACCEPT", more)).len(), 3, "{more}");
        }
        let newer = rules("ACCEPT", "").replace("state --state", "conntrack --ctstate");
        assert_eq!(left(&newer).len(), 2);
    }
}
