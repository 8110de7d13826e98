//! What a family's tables are to hold of ours, and what they hold now, in a form that can be
//! compared.

use std::collections::BTreeMap;

use crate::iptables::{Counters, Dump, DumpRule, KernelRule, render_rule};
use crate::ownership::{Footprint, Owned, known_tables};
use crate::ruleset::{Chain, Masked, Match, Placement, Protocol, Rule, Ruleset, Table, Target};
use crate::value::{Family, Groups};

/// A rule as text, with what it means when that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The text, without `-A CHAIN`.
    pub text: String,
    /// The rule, if it is known.
    pub rule: Option<Rule>,
    /// Packets and bytes that matched it; none for a desired rule.
    pub counters: Option<Counters>,
    /// What the kernel has, when it was asked by netlink.
    pub kernel: Option<KernelRule>,
    /// The rule in the form in which rules are compared.
    pub(super) meaning: Option<Rule>,
}

impl Body {
    fn of_dump(rule: &DumpRule, groups: &Groups) -> Self {
        Self {
            text: rule.text.clone(),
            rule: rule.rule.as_ref().ok().cloned(),
            counters: rule.counters,
            kernel: rule.kernel.clone(),
            meaning: rule.rule.as_ref().ok().map(|r| r.canonical(groups)),
        }
    }

    /// Whether programs of every version of iptables find it by its text. That is the better way, for
    /// what others do in the meantime does not make it one of theirs.
    pub(super) fn has_text(&self) -> bool {
        self.kernel.as_ref().is_none_or(|kernel| self.rule.is_some() && !kernel.newer)
    }

    /// Whether both treat every packet alike; text is compared only where it is not understood.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (&self.meaning, &other.meaning) {
            (Some(a), Some(b)) => a == b,
            (None, None) => self.text == other.text,
            _ => false,
        }
    }
}

/// Whether two lists of rules do the same in the same order.
pub(super) fn same_rules<'a>(
    a: impl ExactSizeIterator<Item = &'a Body>,
    b: impl ExactSizeIterator<Item = &'a Body>,
) -> bool {
    a.len() == b.len() && a.zip(b).all(|(a, b)| a.same(b))
}

/// Whether some rules are among all of them, in the same order.
fn is_subsequence<'a>(
    mut some: impl Iterator<Item = &'a Body>,
    mut all: impl Iterator<Item = &'a Body>,
) -> bool {
    some.all(|rule| all.any(|other| rule.same(other)))
}

/// A rule of ours in a chain of others.
#[derive(Clone, Debug)]
pub(super) struct HookedRule {
    pub(super) body: Body,
    /// How many rules of others are in front of it; `None` for all of them.
    pub(super) behind: Option<usize>,
}

/// Everything of ours in one table.
#[derive(Clone, Debug, Default)]
pub(super) struct TableState {
    /// Chains of ours by name, each with its rules in order.
    pub(super) chains: BTreeMap<String, Vec<Body>>,
    /// Rules of ours in other chains.
    pub(super) hooked_rules: BTreeMap<String, Vec<HookedRule>>,
    /// The kernel's numbers of the rules of others in chains of others, when it was asked by netlink.
    pub(super) others: BTreeMap<String, Vec<Option<u64>>>,
}

impl TableState {
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hooked_rules.values().all(Vec::is_empty)
    }
}

/// Everything of ours in one family of one variant.
#[derive(Clone, Debug, Default)]
pub struct FamilyState {
    pub(super) tables: BTreeMap<Table, TableState>,
}

impl FamilyState {
    /// What the rules of a family are to leave.
    pub fn desired(ruleset: &Ruleset, family: Family, groups: &Groups) -> Self {
        let mut state = Self::default();
        for ((table, chain), rules) in ruleset.chains(family) {
            let table = state.tables.entry(table).or_default();
            let body = |rule: &Rule| Body {
                text: render_rule(rule),
                rule: Some(rule.clone()),
                counters: None,
                kernel: None,
                meaning: Some(rule.canonical(groups)),
            };
            match chain {
                Chain::User(name) => {
                    let bodies = rules.iter().map(|e| body(&e.rule)).collect();
                    table.chains.insert(name.as_str().to_owned(), bodies);
                }
                Chain::Builtin(hook) => {
                    let hooked_rules = rules
                        .iter()
                        .map(|e| HookedRule {
                            body: body(&e.rule),
                            behind: matches!(e.placement, Placement::Insert(_)).then_some(0),
                        })
                        .collect();
                    table.hooked_rules.insert(hook.as_str().to_owned(), hooked_rules);
                }
            }
        }
        state
    }

    /// What a dump holds of ours.
    pub fn observed(dump: &Dump, footprints: &[Footprint], groups: &Groups) -> Self {
        let owned = Owned::find(dump, footprints);
        let mut state = Self::default();
        for (table, content) in known_tables(dump) {
            let mut found = TableState::default();
            for chain in &content.chains {
                let ours = |i: &usize| owned.has_rule(table, &chain.name, *i);
                if owned.has_chain(table, &chain.name) {
                    let bodies = chain.rules.iter().map(|r| Body::of_dump(r, groups)).collect();
                    found.chains.insert(chain.name.clone(), bodies);
                    continue;
                }
                let hooked_rules: Vec<HookedRule> = chain
                    .rules
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| ours(i))
                    .map(|(i, rule)| HookedRule {
                        body: Body::of_dump(rule, groups),
                        behind: Some((0..i).filter(|j| !ours(j)).count()),
                    })
                    .collect();
                if !hooked_rules.is_empty() {
                    found.hooked_rules.insert(chain.name.clone(), hooked_rules);
                }
                let others = chain.rules.iter().enumerate().filter(|(i, _)| !ours(i));
                let handle = |(_, rule): (usize, &DumpRule)| rule.kernel.as_ref().map(|k| k.handle);
                found.others.insert(chain.name.clone(), others.map(handle).collect());
            }
            state.tables.insert(table, found);
        }
        state
    }

    /// Chains of others that have the names of those that are wanted, each with its table.
    pub(super) fn clashes(&self, wanted: &Self) -> Vec<(Table, String)> {
        let chains = wanted.tables.iter().flat_map(|(table, state)| {
            state.chains.keys().map(move |chain| (*table, chain.clone()))
        });
        let his = |(table, chain): &(Table, String)| {
            self.tables.get(table).is_some_and(|found| {
                !found.chains.contains_key(chain) && found.others.contains_key(chain)
            })
        };
        chains.filter(his).collect()
    }

    /// Chains of others, none of them builtin, that hold rules of ours, each with its table.
    pub fn shared(&self) -> impl Iterator<Item = (Table, &str)> {
        let names = self.tables.iter().flat_map(|(table, state)| {
            let held =
                state.hooked_rules.iter().filter(|(_, hooked_rules)| !hooked_rules.is_empty());
            held.map(move |(name, _)| (*table, name.as_str()))
        });
        names.filter(|(_, name)| matches!(name.parse(), Ok(Chain::User(_))))
    }

    /// Whether there are chains of ours.
    pub fn has_chains(&self) -> bool {
        self.tables.values().any(|t| !t.chains.is_empty())
    }

    /// Whether there is nothing of ours.
    pub fn is_empty(&self) -> bool {
        self.tables.values().all(TableState::is_empty)
    }

    /// The tables that hold anything of ours.
    pub fn tables(&self) -> impl Iterator<Item = Table> + '_ {
        self.tables.iter().filter(|(_, t)| !t.is_empty()).map(|(t, _)| *t)
    }

    /// Whether rules of ours drop what goes through, as istio-iptables has it while it works.
    pub(super) fn drops_everything(&self) -> bool {
        let hooked_rules =
            self.tables.get(&Table::Filter).into_iter().flat_map(|t| t.hooked_rules.values());
        let drops = |g: &HookedRule| g.body.rule.as_ref().is_some_and(|r| r.target == Target::Drop);
        hooked_rules.flatten().any(drops)
    }

    /// Whether every table is either as desired or has nothing of ours: what a first run leaves
    /// when it is interrupted.
    pub fn is_part_of(&self, wanted: &Self) -> bool {
        let empty = TableState::default();
        self.tables.iter().all(|(table, found)| {
            found.is_empty()
                || !super::tables::differs(found, wanted.tables.get(table).unwrap_or(&empty))
        })
    }

    /// Whether all that is there is wanted, in that order, so that rules only have to be added. What
    /// drops everything while a change goes on is none of a capture's rules.
    pub fn is_within(&self, wanted: &Self) -> bool {
        let empty = TableState::default();
        let mut tables = self.tables.iter().filter(|(table, _)| **table != Table::Filter);
        tables.all(|(table, found)| {
            let wanted = wanted.tables.get(table).unwrap_or(&empty);
            let mut chains = found.chains.iter();
            let mut hooked_rules = found.hooked_rules.iter();
            chains.all(|(name, rules)| {
                wanted.chains.get(name).is_some_and(|all| is_subsequence(rules.iter(), all.iter()))
            }) && hooked_rules.all(|(name, hooked_rules)| {
                let all = wanted.hooked_rules.get(name).into_iter().flatten();
                is_subsequence(hooked_rules.iter().map(|g| &g.body), all.map(|g| &g.body))
            })
        })
    }

    /// Whether inbound connections are captured in a table: PREROUTING sends TCP to a chain of
    /// ours. What goes there only in some state of its connection is not captured but dropped.
    pub(super) fn captures_inbound(&self, table: Table) -> bool {
        self.tables.get(&table).and_then(|t| t.hooked_rules.get("PREROUTING")).is_some_and(
            |hooked_rules| {
                hooked_rules.iter().any(|g| {
                    g.body.meaning.as_ref().is_some_and(|r| {
                        matches!(&r.target, Target::Jump(_))
                            && r.matches == [Match::Protocol(Protocol::Tcp)]
                    })
                })
            },
        )
    }

    /// The marks that packets and connections get in any chain.
    pub(super) fn marks(&self) -> Vec<Masked> {
        let bodies = self.tables.values().flat_map(|t| {
            t.chains.values().flatten().chain(t.hooked_rules.values().flatten().map(|g| &g.body))
        });
        bodies
            .filter_map(|b| match &b.meaning.as_ref()?.target {
                Target::SetMark(m) | Target::Tproxy { mark: m, .. } => Some(Masked::exact(m.value)),
                Target::SetConnmark(m) => Some(*m),
                _ => None,
            })
            .collect()
    }
}
