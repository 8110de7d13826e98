//! What `nf_tables` holds, or is to hold, in the kernel's own terms: the form in which the wanted
//! rules and those that are there can be compared.

use super::expr::{Comparison, Expr, MetaField, NftVerdict, NoGroup, expressions, nfproto};
use super::{NftRuleset, base_chain, render_transaction};
use crate::ruleset::{Chain, ChainName, Hook, Masked, Routing, Table};
use crate::value::{Family, Groups};

/// Where a base chain hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// `nat`, `filter` or `route`.
    pub kind: String,
    /// The hook, as in `enum nf_inet_hooks`.
    pub hook: u32,
    /// The priority, low first.
    pub priority: i32,
}

/// A chain with its rules, without its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativeChain {
    /// Where it hangs; none for one that is only jumped to.
    pub base: Option<Base>,
    /// Whether packets that no rule decides about are dropped.
    pub drops: bool,
    /// Its rules; what is not understood of one is in words.
    pub rules: Vec<Result<Vec<Expr>, String>>,
}

/// Chains with their names, in the order in which they were made.
pub type NativeTable = Vec<(String, NativeChain)>;

/// Tables of family `inet` with their names, in the order in which they were made.
pub type NativeTables = Vec<(String, NativeTable)>;

/// Whether a table only guards what other rules capture: all that is in it hangs where a guard does.
pub fn is_guard(table: &NativeTable) -> bool {
    let (kind, priority) = base_chain(Table::Filter, Hook::Prerouting);
    let hangs = |chain: &NativeChain| {
        let base = chain.base.as_ref();
        base.is_some_and(|base| base.kind == kind && base.priority == priority)
    };
    !table.is_empty() && table.iter().all(|(_, chain)| hangs(chain))
}

/// The content under this name in a list; none where the name is not in it.
pub fn named<'l, T>(list: &'l [(String, T)], name: &str) -> Option<&'l T> {
    list.iter().find(|(n, _)| n == name).map(|(_, content)| content)
}

/// Rules that are wanted, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Native {
    /// The tables of family `inet`, which replace those that are there.
    pub tables: NativeTables,
    /// Policy routing rules, routes and addresses that are needed beside the rules.
    pub routing: Routing,
    /// The families that are captured.
    pub families: Vec<Family>,
    /// The same rules as text.
    pub text: String,
}

/// Whether a rule lets IPv6 past.
pub(crate) fn exempts_v6(rule: &[Expr]) -> bool {
    let counted: Vec<&Expr> = rule.iter().filter(|expr| **expr != Expr::Counter).collect();
    matches!(counted.as_slice(), [
        Expr::LoadMeta(MetaField::Family),
        Expr::Compare(Comparison::Eq, family),
        Expr::Verdict(NftVerdict::Return),
    ] if *family == [nfproto(Family::V6)])
}

/// The families that rules capture: IPv6 is not where base chains begin by letting it past.
pub fn families(tables: &NativeTables) -> Vec<Family> {
    let chains = tables.iter().flat_map(|(_, chains)| chains);
    let mut first = chains.filter(|(_, c)| c.base.is_some()).filter_map(|(_, c)| c.rules.first());
    if first.any(|rule| rule.as_ref().is_ok_and(|rule| exempts_v6(rule))) {
        return vec![Family::V4];
    }
    if tables.is_empty() { Vec::new() } else { Family::ALL.to_vec() }
}

/// The marks that rules set or look for.
pub fn marks(tables: &NativeTables) -> Vec<Masked> {
    let rules = tables.iter().flat_map(|(_, chains)| chains).flat_map(|(_, chain)| &chain.rules);
    let mut marks = Vec::new();
    for pair in rules.flatten().flat_map(|rule| rule.windows(2)) {
        let ([Expr::LoadMeta(MetaField::Mark), Expr::Compare(_, bytes)]
        | [Expr::Load(bytes), Expr::StoreMeta(MetaField::Mark)]) = pair
        else {
            continue;
        };
        let value = bytes.as_slice().try_into().ok().map(u32::from_ne_bytes);
        marks.extend(value.map(Masked::exact));
    }
    marks
}

impl NftRuleset {
    /// The rules, ready to be written, without text.
    ///
    /// # Errors
    /// When a group's name has no number.
    pub fn ready(&self, groups: &Groups) -> Result<Native, NoGroup> {
        Ok(Native {
            tables: self.native(groups)?,
            routing: self.routing.clone(),
            families: self.families.clone(),
            text: String::new(),
        })
    }

    /// The same with the text that says what is done.
    ///
    /// # Errors
    /// When a group's name has no number.
    pub fn ready_with_text(&self, groups: &Groups) -> Result<Native, NoGroup> {
        Ok(Native { text: render_transaction(self), ..self.ready(groups)? })
    }

    /// The tables in the kernel's terms.
    ///
    /// # Errors
    /// When a group's name has no number.
    pub fn native(&self, groups: &Groups) -> Result<NativeTables, NoGroup> {
        let mut tables = NativeTables::new();
        for table in self.tables() {
            let Some(name) = self.layout.table(table) else { continue };
            if tables.last().is_none_or(|(last, _): &(String, NativeTable)| last != name) {
                tables.push((name.to_owned(), NativeTable::new()));
            }
            let Some((_, chains)) = tables.last_mut() else { continue };
            let called = |chain: &ChainName| self.layout.chain(table, &Chain::User(chain.clone()));
            for chain in self.chains(table) {
                let base = match &chain.chain {
                    Chain::User(_) => None,
                    Chain::Builtin(hook) => {
                        let (kind, priority) = base_chain(table, *hook);
                        Some(Base { kind: kind.to_owned(), hook: hook.number(), priority })
                    }
                };
                let mut rules = Vec::new();
                for rule in &chain.rules {
                    rules.push(Ok(expressions(&rule.rule, groups, &called)?));
                }
                let name = self.layout.chain(table, &chain.chain);
                chains.push((name, NativeChain { base, drops: false, rules }));
            }
        }
        Ok(tables)
    }
}
