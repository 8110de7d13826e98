//! Which of the rules that are there were left by Millrace or by a tool it replaces. Everything
//! else belongs to others and is not touched.

use std::collections::BTreeSet;

use crate::iptables::{ChainDump, Dump, DumpRule, TableDump};
use crate::ruleset::{Chain, ChainName, Layout, Masked, Match, Rule, Table, Target};

/// How the rules of one dialect are known.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// The names of its chains: these are ours, and so are rules that jump to them.
    pub layout: &'static Layout,
    /// A chain without which others of these names in a table are somebody else's.
    pub known_by: Option<&'static ChainName>,
    /// The mark and the routing table of the policy routing rule that its rules need, where nobody
    /// chooses them.
    pub route: Option<(Masked, u32)>,
    /// Somebody who calls a chain as the dialect does.
    pub rival: Option<Rival>,
    /// Finds rules in builtin chains that neither jump to the dialect's chains nor carry its
    /// comment. Called when the dump is there to be looked at as a whole; notes what it finds in
    /// the set.
    pub unmarked: fn(&Dump, &mut Owned),
}

impl Footprint {
    /// One whose chains are nobody else's, and of whose rules there are none in builtin chains that
    /// don't lead to them.
    pub const fn of(layout: &'static Layout) -> Self {
        let unmarked = |_dump: &Dump, _owned: &mut Owned| {};
        Self { layout, known_by: None, route: None, rival: None, unmarked }
    }
}

/// Somebody who calls one of his chains as a dialect does. Where he is, the chain is his, and only what he
/// never writes into it is the dialect's.
#[derive(Clone, Copy, Debug)]
pub struct Rival {
    /// A chain of his by which he is known in a table.
    pub by: &'static str,
    /// The name of the chain that both the dialect and he write rules into.
    pub shared: &'static str,
    /// Whether a rule in it is the dialect's; the chains of the dialect in the table are given.
    pub is_ours: fn(&Rule, &[&str]) -> bool,
}

/// Where a rule stands: table, chain, index counted from 0.
pub type RulePosition = (Table, String, usize);

/// What in a dump is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    chains: BTreeSet<(Table, String)>,
    rules: BTreeSet<RulePosition>,
}

impl Owned {
    /// Find what is ours in a dump. Rules with Millrace's comment are where a dialect is looked for that
    /// has it.
    pub fn find(dump: &Dump, footprints: &[Footprint]) -> Self {
        Self::look(dump, footprints, footprints.iter().any(|footprint| footprint.layout.tagged))
    }

    /// Find what is a dialect's in a dump that holds no other's, with all that has Millrace's comment.
    pub(crate) fn read(dump: &Dump, footprint: &Footprint) -> Self {
        Self::look(dump, std::slice::from_ref(footprint), true)
    }

    fn look(dump: &Dump, footprints: &[Footprint], tagged: bool) -> Self {
        let chains = own_chains(dump, footprints).into_iter();
        let chains = chains.map(|(table, chain)| (table, chain.to_owned())).collect();
        let mut owned = Self { chains, rules: BTreeSet::new() };
        for (table, content) in known_tables(dump) {
            for rival in footprints.iter().filter_map(|footprint| footprint.rival) {
                let names: Vec<String> = owned.chains_of(table).map(str::to_owned).collect();
                if content.chain(rival.by).is_some() && !names.is_empty() {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    owned.share(table, content, &rival, &names);
                }
            }
        }
        let is_tagged = |rule: &DumpRule| {
            tagged && rule.rule.as_ref().is_ok_and(|rule| rule.matches.contains(&Match::Ours))
        };
        for (table, content) in known_tables(dump) {
            for chain in &content.chains {
                let is_ours = owned.has_chain(table, &chain.name);
                for (index, rule) in chain.rules.iter().enumerate() {
                    if is_ours || is_tagged(rule) || owned.reaches(table, rule) {
                        owned.add_rule(table, &chain.name, index);
                    }
                }
            }
        }
        for footprint in footprints {
            (footprint.unmarked)(dump, &mut owned);
        }
        owned
    }

    /// Note which rules are ours in a chain that is somebody else's.
    fn share(&mut self, table: Table, content: &TableDump, rival: &Rival, ours: &[&str]) {
        for (index, rule) in
            content.chain(rival.shared).into_iter().flat_map(|c| c.rules.iter().enumerate())
        {
            if rule.rule.as_ref().is_ok_and(|rule| (rival.is_ours)(rule, ours)) {
                self.add_rule(table, rival.shared, index);
            }
        }
    }

    /// Whether a chain is ours.
    pub fn has_chain(&self, table: Table, chain: &str) -> bool {
        self.chains.contains(&(table, chain.to_owned()))
    }

    /// Our chains in a table.
    fn chains_of(&self, table: Table) -> impl Iterator<Item = &str> {
        self.chains.iter().filter(move |(t, _)| *t == table).map(|(_, chain)| chain.as_str())
    }

    /// Whether any of our chains is in a table.
    pub fn has_chains_in(&self, table: Table) -> bool {
        self.chains.iter().any(|(t, _)| *t == table)
    }

    /// Whether a rule is ours.
    pub fn has_rule(&self, table: Table, chain: &str, index: usize) -> bool {
        self.rules.contains(&(table, chain.to_owned(), index))
    }

    /// Note that a rule is ours.
    pub fn add_rule(&mut self, table: Table, chain: &str, index: usize) {
        self.rules.insert((table, chain.to_owned(), index));
    }

    /// Whether the dump holds neither chains nor rules of ours.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.rules.is_empty()
    }

    /// The tables that hold anything of ours.
    pub fn tables(&self) -> BTreeSet<Table> {
        let chains = self.chains.iter().map(|(t, _)| *t);
        chains.chain(self.rules.iter().map(|(t, ..)| *t)).collect()
    }

    /// Whether a rule goes to a chain of ours. A rule that is not understood can still be seen to
    /// jump.
    fn reaches(&self, table: Table, rule: &DumpRule) -> bool {
        if let Ok(rule) = &rule.rule {
            matches!(&rule.target, Target::Jump(c) if self.has_chain(table, c.as_str()))
        } else {
            let mut words = words(&rule.text);
            let jump = words.by_ref().find(|w| ["-j", "-g"].contains(w));
            jump.is_some() && words.next().is_some_and(|c| self.has_chain(table, c))
        }
    }
}

/// Rules that spare an interface, in builtin chains of tables with chains of ours, where neither their text nor
/// a number of the kernel's tells whose they are: whether each is taken for ours, and the rule.
pub fn untold(dump: &Dump, footprints: &[Footprint]) -> Vec<(bool, String)> {
    let owned = Owned::find(dump, footprints);
    let mut found = Vec::new();
    for (table, content) in known_tables(dump).filter(|(table, _)| owned.has_chains_in(*table)) {
        for chain in content.chains.iter().filter(|chain| !owned.has_chain(table, &chain.name)) {
            for (index, rule) in chain.rules.iter().enumerate() {
                let alike = rule.rule.as_ref().is_ok_and(|rule| {
                    let of_an_interface = matches!(
                        rule.matches.as_slice(),
                        [Match::InInterface { .. } | Match::OutInterface { .. }]
                    );
                    of_an_interface && rule.target == Target::Return
                });
                if alike && rule.kernel.is_none() {
                    let text = format!("-A {} {} (table {table})", chain.name, rule.text);
                    found.push((owned.has_rule(table, &chain.name, index), text));
                }
            }
        }
    }
    found
}

/// The words of a rule; what is quoted is one, with its quotes (`iptables-save` quotes what is not a
/// plain word, and puts a backslash in front of a quote in it).
fn words(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let between = move |c: char| {
        let is_escaped = std::mem::take(&mut escaped);
        match c {
            '\\' => escaped = !is_escaped,
            '"' if !is_escaped => quoted = !quoted,
            _ => {}
        }
        !quoted && c.is_ascii_whitespace()
    };
    text.split(between).filter(|word| !word.is_empty())
}

/// Whether a dump holds chains of a dialect. Their names tell, so this costs nothing with however many
/// rules.
pub fn has_chains(dump: &Dump, footprint: &Footprint) -> bool {
    !own_chains(dump, std::slice::from_ref(footprint)).is_empty()
}

fn own_chains<'d>(dump: &'d Dump, footprints: &[Footprint]) -> Vec<(Table, &'d str)> {
    let mut found = Vec::new();
    for (table, content) in known_tables(dump) {
        for footprint in footprints {
            let rival = footprint.rival.filter(|rival| content.chain(rival.by).is_some());
            if footprint.known_by.is_some_and(|name| content.chain(name.as_str()).is_none()) {
                continue;
            }
            let his = |c: &&ChainDump| rival.is_some_and(|rival| c.name == rival.shared);
            let chains = content.chains.iter().filter(|c| is_of(footprint.layout, &c.name));
            found.extend(chains.filter(|c| !his(c)).map(|chain| (table, chain.name.as_str())));
        }
    }
    found
}

/// The tables of a dump that ours can be in.
pub fn known_tables(dump: &Dump) -> impl Iterator<Item = (Table, &TableDump)> {
    dump.tables.iter().filter_map(|t| Some((Table::from_name(&t.name)?, t)))
}

fn is_of(layout: &Layout, name: &str) -> bool {
    matches!(name.parse(), Ok(Chain::User(name)) if layout.chains().contains(&&name))
}
