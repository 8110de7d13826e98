//! Whether a kernel would have loaded rules: what it refuses is nobody's, and how a packet would pass there
//! nobody can say. It looks at all that its own calls lead to (`nft_chain_validate()`,
//! `mark_source_chains()`), and refuses what goes round, what leads to a chain that it calls itself, and what
//! has no meaning at the hook.

use std::collections::HashMap;

use super::lower::{NATIVE, is_called};
use super::program::{Base, Kind, SourceChain, SourceRule, SourceTable};
use super::rule::{Action, Field, Step, Test};
use crate::ruleset::Hook;

/// The most jumps in each other that `nf_tables` loads (`NFT_JUMP_STACK_SIZE`).
const DEEPEST_NATIVE: usize = 15;
/// The most jumps in each other that are walked. The kernel's own iptables takes as many as there are chains.
pub const DEEPEST: usize = 10_000;

const TO_BASE: &str = "no rule can lead to a chain that the kernel calls itself";

/// Why no kernel would have loaded tables, by the rule or chain.
///
/// # Errors
/// The first rule or chain that is refused.
pub fn loadable(tables: &[SourceTable]) -> Result<(), String> {
    tables.iter().try_for_each(|table| Chains::of(table).check())
}

/// Chains of a table and where they lead.
struct Chains<'t> {
    table: &'t SourceTable,
    native: bool,
    places: HashMap<&'t str, usize>,
    /// Of each chain its rules that are looked at, with the chains that they lead to.
    leads: Vec<Vec<(usize, usize)>>,
    /// How many of its rules are looked at: behind one that ends the chain for all, the kernel's own iptables
    /// looks at none.
    looked_at: Vec<usize>,
}

/// Where a search is in a chain.
struct Place {
    chain: usize,
    /// The next of the chains that it leads to.
    next: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    New,
    Open,
    /// How many jumps in each other there are below it.
    Done(usize),
}

impl<'t> Chains<'t> {
    fn of(table: &'t SourceTable) -> Self {
        let native = table.holder == NATIVE;
        let places: HashMap<&'t str, usize> =
            table.chains.iter().enumerate().map(|(at, chain)| (chain.name.as_str(), at)).collect();
        let looked_at = |chain: &SourceChain| {
            let end = chain.rules.iter().position(ends).filter(|_| !native);
            end.map_or(chain.rules.len(), |end| end + 1)
        };
        let looked_at: Vec<usize> = table.chains.iter().map(looked_at).collect();
        let leads = |(chain, count): (&'t SourceChain, &usize)| {
            let rules = chain.rules.iter().take(*count).enumerate();
            let to = |(at, rule): (usize, &'t SourceRule)| {
                let names = rule.steps.iter().filter_map(|step| match step {
                    Step::Do(Action::Jump(name) | Action::Goto(name)) => Some(name.as_str()),
                    _ => None,
                });
                names.filter_map(|name| Some((at, *places.get(name)?))).collect::<Vec<_>>()
            };
            rules.flat_map(to).collect()
        };
        let leads: Vec<_> = table.chains.iter().zip(&looked_at).map(leads).collect();
        Self { table, native, places, leads, looked_at }
    }

    fn check(&self) -> Result<(), String> {
        for chain in &self.table.chains {
            for (at, rule) in chain.rules.iter().enumerate() {
                if let Some(why) = self.misplaced(rule).or_else(|| self.absent(rule)) {
                    return Err(self.refused(chain, at, &why));
                }
            }
        }
        let mut known = vec![Known::New; self.table.chains.len()];
        let based = self.table.chains.iter().enumerate();
        let based = based.filter_map(|(at, chain)| Some((at, chain.base.as_ref()?)));
        for (first, base) in based {
            let depth = self.depth(first, &mut known)?;
            if self.native && depth > DEEPEST_NATIVE {
                return Err(format!(
                    "chains of table {} are nested {depth} deep below {}, and nf_tables takes \
                     {DEEPEST_NATIVE}: no kernel loads this",
                    self.table.name, self.table.chains[first].name
                ));
            }
            if depth > DEEPEST {
                return Err(format!(
                    "chains of table {} are nested {depth} deep below {}, and no more than {DEEPEST} are \
                     followed here",
                    self.table.name, self.table.chains[first].name
                ));
            }
            self.hooked(first, base)?;
        }
        Ok(())
    }

    /// How many jumps in each other there are below a chain that the kernel calls.
    fn depth(&self, first: usize, known: &mut [Known]) -> Result<usize, String> {
        let mut way = vec![Place { chain: first, next: 0 }];
        known[first] = Known::Open;
        loop {
            let Some(Place { chain, next }) = way.last_mut() else { return Ok(0) };
            let here = *chain;
            if let Some((rule, to)) = self.leads[here].get(*next).copied() {
                *next += 1;
                let place = &self.table.chains[here];
                if self.table.chains[to].base.is_some() {
                    return Err(self.refused(place, rule, TO_BASE));
                }
                match known[to] {
                    Known::Open => {
                        let why = "chains lead to each other without end";
                        return Err(self.refused(place, rule, why));
                    }
                    Known::New => {
                        known[to] = Known::Open;
                        way.push(Place { chain: to, next: 0 });
                    }
                    Known::Done(_) => {}
                }
                continue;
            }
            let below = self.leads[here].iter().filter_map(|(_, to)| match known[*to] {
                Known::Done(depth) => Some(depth + 1),
                _ => None,
            });
            let depth = below.max().unwrap_or(0);
            known[here] = Known::Done(depth);
            way.pop();
            if way.is_empty() {
                return Ok(depth);
            }
        }
    }

    /// Look at all rules that a call of the kernel leads to: whether they have a meaning at its hook.
    fn hooked(&self, first: usize, base: &Base) -> Result<(), String> {
        let mut seen = vec![false; self.table.chains.len()];
        let mut left = vec![first];
        while let Some(at) = left.pop() {
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let chain = &self.table.chains[at];
            for (number, rule) in chain.rules.iter().take(self.looked_at[at]).enumerate() {
                if let Some(what) = rule.steps.iter().find_map(|step| self.elsewhere(step, base)) {
                    let hook = base.hook.as_str();
                    let why = format!("{what}, and the kernel comes here from {hook}");
                    return Err(self.refused(chain, number, &why));
                }
            }
            left.extend(self.leads[at].iter().map(|(_, to)| *to));
        }
        Ok(())
    }

    /// Where alone a part of a rule has a meaning, if it has none in chains that are called like this.
    fn elsewhere(&self, step: &Step, base: &Base) -> Option<&'static str> {
        let nat = base.kind == Kind::Nat;
        let at = |hooks: &[Hook]| hooks.contains(&base.hook);
        let (fits, what) = match step {
            Step::Do(Action::Redirect(_) | Action::Dnat(_)) => (
                nat && at(&[Hook::Prerouting, Hook::Output]),
                "a destination is translated in PREROUTING and OUTPUT of nat alone",
            ),
            Step::Do(Action::Snat(_)) => (
                nat && at(&[Hook::Input, Hook::Postrouting]),
                "a source is translated in INPUT and POSTROUTING of nat alone",
            ),
            Step::Do(Action::Masquerade(_)) => {
                (nat && at(&[Hook::Postrouting]), "MASQUERADE is for POSTROUTING of nat alone")
            }
            Step::Do(Action::Tproxy { .. }) if !self.native => {
                (at(&[Hook::Prerouting]), "TPROXY is for PREROUTING alone")
            }
            Step::Test(Test::Is { field: Field::Uid | Field::Gid, .. } | Test::Socket { .. })
                if !self.native =>
            {
                let sent = at(&[Hook::Output, Hook::Postrouting]);
                (sent, "the owner is asked for in OUTPUT and POSTROUTING alone")
            }
            _ => return None,
        };
        (!fits).then_some(what)
    }

    /// Whether a rule of iptables has no place in this table, wherever it is called from.
    fn misplaced(&self, rule: &SourceRule) -> Option<String> {
        let table = self.table.name.as_str();
        let only = |wanted: &str, what: &str| {
            (table != wanted && !self.native).then(|| format!("{what} is for table {wanted} alone"))
        };
        rule.steps.iter().find_map(|step| match step {
            Step::Do(Action::Redirect(_)) => only("nat", "REDIRECT"),
            Step::Do(Action::Dnat(_)) => only("nat", "DNAT"),
            Step::Do(Action::Snat(_)) => only("nat", "SNAT"),
            Step::Do(Action::Masquerade(_)) => only("nat", "MASQUERADE"),
            Step::Do(Action::Tproxy { .. }) => only("mangle", "TPROXY"),
            Step::Do(Action::Notrack) => only("raw", "NOTRACK"),
            Step::Do(Action::Zone(_)) => only("raw", "CT"),
            Step::Do(Action::Tos) => only("mangle", "a change of the type of service"),
            _ => None,
        })
    }

    /// Whether a rule of iptables leads to a chain that is the kernel's own, which it has whether or not it
    /// is declared, or goes to one that is not there. What it jumps to may be a target that is not known.
    fn absent(&self, rule: &SourceRule) -> Option<String> {
        let is_there = |name: &str| self.places.contains_key(name);
        rule.steps.iter().find_map(|step| match step {
            Step::Do(Action::Jump(name) | Action::Goto(name))
                if !self.native && !is_there(name) && is_called(&self.table.name, name) =>
            {
                Some(TO_BASE.to_owned())
            }
            Step::Do(Action::Goto(name)) if !self.native && !is_there(name) => {
                Some(format!("there is no chain {name} in the table"))
            }
            _ => None,
        })
    }

    fn refused(&self, chain: &SourceChain, at: usize, why: &str) -> String {
        let text = &chain.rules[at].text;
        format!(
            "{} {} {}: {text}: {why}; no kernel loads this",
            self.table.name,
            chain.name,
            at + 1
        )
    }
}

/// Whether a rule ends its chain for all packets.
fn ends(rule: &SourceRule) -> bool {
    matches!(rule.steps[..], [Step::Do(Action::Accept | Action::Drop | Action::Return)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::Dump;
    use crate::value::{Family, Groups};

    fn of_dump(text: &str) -> Result<(), String> {
        let dump = Dump::parse(text).unwrap();
        let groups = Groups::new();
        loadable(&super::super::of_dump(&dump, Family::V4, "iptables", &groups, &mut |_, _, _| {
            None
        }))
    }

    /// Verify that what iptables-restore of both kinds refuses is refused by the rule, and what one of them
    /// loads is not.
    #[test]
    fn rules_that_no_kernel_has_are_refused() {
        let chains = ":X - [0:0]\n:Y - [0:0]\n";
        for (table, rules, wanted) in [
            ("filter", "-A OUTPUT -j X\n-A X -j INPUT", "filter X 1: -j INPUT"),
            ("filter", "-A OUTPUT -g INPUT", "calls itself"),
            ("filter", "-A OUTPUT -j FORWARD", "calls itself"),
            ("filter", "-A OUTPUT -g Z", "no chain Z"),
            ("filter", "-A OUTPUT -j X\n-A X -j Y\n-A Y -j X", "filter Y 1: -j X"),
            ("filter", "-A OUTPUT -j X\n-A X -g X", "without end"),
            ("filter", "-A X -p tcp -j REDIRECT --to-ports 1", "table nat"),
            ("nat", "-A POSTROUTING -p tcp -j REDIRECT --to-ports 1", "from POSTROUTING"),
            ("nat", "-A INPUT -j DNAT --to-destination 1.2.3.4", "PREROUTING and OUTPUT"),
            ("nat", "-A OUTPUT -j X\n-A X -j MASQUERADE", "nat X 1: -j MASQUERADE"),
            ("nat", "-A OUTPUT -j SNAT --to-source 1.2.3.4", "INPUT and POSTROUTING"),
            ("mangle", "-A OUTPUT -p tcp -j TPROXY --on-port 1", "PREROUTING"),
            ("nat", "-A PREROUTING -p tcp -j TPROXY --on-port 1", "table mangle"),
            ("filter", "-A OUTPUT -j NOTRACK", "table raw"),
            ("mangle", "-A OUTPUT -j CT --zone 7", "table raw"),
            ("nat", "-A PREROUTING -m owner --uid-owner 0 -j RETURN", "the owner"),
        ] {
            let builtin = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];
            let builtin = builtin.map(|name| format!(":{name} ACCEPT [0:0]\n")).concat();
            let text = format!("*{table}\n{builtin}{chains}{rules}\nCOMMIT\n");
            let why = of_dump(&text).expect_err(rules);
            assert!(why.contains(wanted) && why.contains("no kernel"), "{rules}: {why}");
        }
        for (table, rules) in [
            ("filter", "-A X -j Y\n-A Y -j X"),
            ("filter", "-A OUTPUT -j X\n-A X -j ACCEPT\n-A X -j X"),
            ("nat", "-A X -j MASQUERADE"),
            ("nat", "-A INPUT -j SNAT --to-source 1.2.3.4"),
            ("nat", "-A OUTPUT -j X\n-A POSTROUTING -j X\n-A X -j Y\n-A Y -j X2"),
            ("mangle", "-A OUTPUT -j MARK --set-mark 1"),
            ("nat", ":FORWARD - [0:0]\n-A OUTPUT -j FORWARD"),
        ] {
            let builtin = ":OUTPUT ACCEPT [0:0]\n";
            let text = format!("*{table}\n{builtin}{chains}{rules}\nCOMMIT\n");
            assert_eq!(of_dump(&text), Ok(()), "{rules}");
        }
    }

    /// Verify that `nf_tables` takes 15 jumps in each other, and iptables any number, without a stack of ours
    /// that ends before.
    #[test]
    fn chains_are_nested_as_deep_as_kernels_take_them() {
        let deep = |holder: &str, count: usize| {
            let mut text = String::from("*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j c1\n");
            for at in 1..count {
                text.push_str(&format!("-A c{at} -j c{}\n", at + 1));
            }
            text.push_str(&format!("-A c{count} -j DROP\nCOMMIT\n"));
            let dump = Dump::parse(&text).unwrap();
            let mut nobody = |_, _: &str, _: &_| None;
            let groups = Groups::new();
            loadable(&super::super::of_dump(&dump, Family::V4, holder, &groups, &mut nobody))
        };
        assert_eq!(deep(NATIVE, 15), Ok(()));
        assert!(deep(NATIVE, 16).unwrap_err().contains("16 deep"));
        assert_eq!(deep("iptables", 3000), Ok(()));
    }
}
