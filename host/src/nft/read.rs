//! What `nf_tables` holds. Asking makes nothing: neither a process nor a table.

use std::collections::BTreeMap;

use millrace_core::iptables::{ChainDump, Dump, TableDump};
use millrace_core::nft::set::{Set, SetKind, predecessor};
use millrace_core::nft::tables::{Base, NativeChain, NativeTable, NativeTables, named};
use millrace_core::nft::xtables::builtin_chain;
use millrace_core::observed::{ForeignChain, TableId};
use millrace_core::ruleset::{Hook, Table};
use millrace_core::value::Family;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementList,
    SetElementMessage, SetMessage, TableMessage,
};

use super::decode::{changes, decides, decode};
use super::list::devices;
use super::raw::{Answer, Attributes, kind};
use super::socket::{Connection, NftError};
use super::xtables;

/// `NFTA_TABLE_NAME`, `NFTA_TABLE_FLAGS`
pub(super) const TABLE: (u16, u16) = (1, 2);
/// `NFT_TABLE_F_DORMANT`
const DORMANT: u32 = 1;
/// `NFTA_TABLE_OWNER`, which only a table has that belongs to somebody.
const TABLE_OWNER: u16 = 7;
/// `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME`, `NFTA_CHAIN_HOOK`, `NFTA_CHAIN_POLICY`, `NFTA_CHAIN_TYPE`
pub(super) const CHAIN: (u16, u16, u16, u16, u16) = (1, 3, 4, 5, 7);
/// `NFTA_CHAIN_HANDLE`
const CHAIN_HANDLE: u16 = 2;
/// `NFTA_HOOK_HOOKNUM`, `NFTA_HOOK_PRIORITY`
const HOOK: (u16, u16) = (1, 2);
/// `NFTA_RULE_TABLE`, `NFTA_RULE_CHAIN`
const RULE: (u16, u16) = (1, 2);
/// `NFTA_RULE_HANDLE`
pub(super) const RULE_HANDLE: u16 = 3;
/// `NFTA_RULE_EXPRESSIONS`
pub(super) const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_RULE_COMPAT`
pub(super) const RULE_COMPAT: u16 = 5;
/// `NFTA_RULE_USERDATA`
pub(super) const RULE_USER_DATA: u16 = 7;
/// `NFTA_SET_NAME`, `NFTA_SET_FLAGS`, `NFTA_SET_KEY_TYPE`
const SET: (u16, u16, u16) = (2, 3, 4);
/// `NFT_SET_INTERVAL`
const INTERVAL: u32 = 4;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`
const ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_KEY`, `NFTA_SET_ELEM_FLAGS`
const ELEMENT: (u16, u16) = (1, 3);
/// `NFT_SET_ELEM_INTERVAL_END`
const INTERVAL_END: u32 = 1;
/// `NFTA_DATA_VALUE`
const DATA_VALUE: u16 = 1;

/// The family of a table that Millrace has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// `ip` or `ip6`, as iptables-nft makes them.
    Ip(Family),
    /// `inet`: both families in one table.
    Inet,
}

impl TableFamily {
    /// The table of this family called `name`.
    pub const fn table(self, name: String) -> TableId {
        match self {
            Self::Inet => TableId::inet(name),
            Self::Ip(family) => TableId::ip(family, name),
        }
    }
}

/// What a namespace's `nf_tables` holds.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The number of the last change of anything.
    pub generation: Option<u32>,
    /// Every table of the families `ip`, `ip6` and `inet`, by its name.
    pub tables: Vec<(TableFamily, String)>,
    /// Native tables, of those that were asked for.
    pub native: NativeTables,
    /// Tables with the names that iptables-nft uses; one dump for each family that has any.
    pub iptables: Vec<(Family, Dump)>,
    /// Which of all the kernel does not call.
    pub dormant: Vec<TableId>,
    /// Chains of other native tables that the kernel calls.
    pub foreign: Vec<ForeignChain>,
    /// Whether there are tables of family `netdev`, which are nobody's that is known here.
    pub netdev: bool,
    /// Chains that hang at interfaces and can do something to a packet there, in words.
    pub at_interfaces: Vec<String>,
}

/// Which tables [`look`] reads in full; the names of all are listed anyway.
#[derive(Clone, Copy, Debug)]
pub struct ReadScope<'a> {
    /// Native tables of family `inet` with these names.
    pub native: &'a [&'a str],
    /// Whether those of iptables-nft are.
    pub iptables: bool,
    /// Whether what is in chains is read too; without it, no chain has rules.
    pub rules: bool,
}

/// How often to look again when somebody changes what is looked at.
const TRIES: usize = 20;

/// Look; `None` when the kernel has no `nf_tables`. All that is seen was there at one moment.
///
/// # Errors
/// When the kernel can't be asked, or others never stop making changes.
pub fn look(wanted: ReadScope<'_>) -> Result<Option<Listing>, NftError> {
    let Some(connection) = Connection::open()? else { return Ok(None) };
    for _ in 0..TRIES {
        match look_once(&connection, wanted) {
            Err(NftError::Changed) => {}
            result => return result,
        }
    }
    Err(NftError::Changed)
}

fn look_once(connection: &Connection, wanted: ReadScope<'_>) -> Result<Option<Listing>, NftError> {
    let generation = connection.generation()?;
    let request = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    let Some(answers) = connection.dump(NetfilterProtoFamily::Unspec, request, "tables")? else {
        return Ok(None);
    };
    let tables: Vec<(TableFamily, String)> = answers.iter().filter_map(table).collect();
    let mut found = Listing { generation, ..Listing::default() };
    let named = |(family, name): &(TableFamily, String)| match family {
        TableFamily::Inet => wanted.native.contains(&name.as_str()),
        TableFamily::Ip(_) => xtables::known(name),
    };
    let sleeps = answers.iter().filter(|answer| is_dormant(answer)).filter_map(table);
    found.dormant = sleeps.map(|(family, name)| family.table(name)).collect();
    let netdev = |answer: &Answer| {
        let family = NetfilterProtoFamily::from(answer.family);
        answer.kind == kind::TABLE && family == NetfilterProtoFamily::NetDev
    };
    found.netdev = answers.iter().any(netdev);
    for (family, name) in &tables {
        match family {
            TableFamily::Inet if wanted.native.contains(&name.as_str()) => {
                found.native.push((name.clone(), NativeTable::new()));
            }
            TableFamily::Ip(family) if wanted.iptables && xtables::known(name) => {
                let table = TableDump { name: name.clone(), chains: Vec::new() };
                match found.iptables.iter_mut().find(|(f, _)| f == family) {
                    Some((_, dump)) => dump.tables.push(table),
                    None => found.iptables.push((*family, Dump { tables: vec![table] })),
                }
            }
            _ => {}
        }
    }
    found.tables = tables;
    // Chains of others matter to rules of the kernel's own tables of iptables as well.
    if found.tables.is_empty() && !found.netdev {
        return Ok(Some(found));
    }
    let dump = |request, kind, what| {
        let answers = connection.dump(NetfilterProtoFamily::Unspec, request, what)?;
        let mut answers = answers.unwrap_or_default();
        answers.retain(|answer| answer.kind == kind);
        Ok::<_, NftError>(answers)
    };
    let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let mut elsewhere = Vec::new();
    let chains = dump(request, kind::CHAIN, "chains")?;
    for chain in &chains {
        let Some(family) = family_of(chain) else { continue };
        match family {
            TableFamily::Inet => add_chain(&mut found.native, chain.attributes()),
            TableFamily::Ip(family) => {
                add_iptables_chain(&mut found.iptables, family, chain.attributes());
                elsewhere.extend(misplaced(family, chain.attributes()));
            }
        }
        let foreign = foreign(family, chain.attributes());
        let foreign = foreign.filter(|f| !named(&(family, f.table.name.clone())));
        found.foreign.extend(foreign.filter(|f| !found.dormant.contains(&f.table)));
    }
    let read: &[Answer] = if wanted.rules { &chains } else { &[] };
    let asleep: Vec<(u8, &str)> = answers
        .iter()
        .filter(|answer| is_dormant(answer))
        .filter_map(|answer| Some((answer.family, answer.attributes().text(TABLE.0)?)))
        .collect();
    found.at_interfaces = at_interfaces(connection, read, &asleep)?;
    let mut sets = Vec::new();
    for (table, _) in found.native.iter().filter(|_| wanted.rules) {
        sets.push((table.clone(), read_sets(NetfilterProtoFamily::Inet, table, connection)?));
    }
    let is_foreign =
        |found: &Listing, table: &TableId| found.foreign.iter().any(|f| f.table == *table);
    for chain in read {
        let attributes = chain.attributes();
        let named_chain = attributes.text(CHAIN.0).zip(attributes.text(CHAIN.1));
        let Some((family, (table, name))) = family_of(chain).zip(named_chain) else { continue };
        let is_read = match family {
            TableFamily::Inet => found.native.iter().any(|(native, _)| native == table),
            TableFamily::Ip(_) => wanted.iptables && xtables::known(table),
        };
        if !is_read && !is_foreign(&found, &family.table(table.to_owned())) {
            continue;
        }
        let called = match family {
            TableFamily::Inet => true,
            TableFamily::Ip(family) => {
                !elsewhere.iter().any(|(f, t, c)| (*f, &**t, &**c) == (family, table, name))
            }
        };
        for rule in rules_of(connection, chain.family, table, name)? {
            let rule = rule.attributes();
            match family {
                TableFamily::Inet => add_rule(&mut found.native, rule, &sets),
                TableFamily::Ip(family) => {
                    add_iptables_rule(&mut found.iptables, family, rule, called);
                }
            }
            note_decision(&mut found.foreign, family, rule);
        }
    }
    if connection.generation()? == generation { Ok(Some(found)) } else { Err(NftError::Changed) }
}

/// Refuse when anything has changed since a look.
///
/// # Errors
/// [`NftError::Changed`] then, or when the kernel can't be asked.
pub fn unchanged_since(generation: Option<u32>) -> Result<(), NftError> {
    let connection = Connection::open()?.ok_or(NftError::Absent)?;
    if connection.generation()? == generation { Ok(()) } else { Err(NftError::Changed) }
}

/// Whether the kernel has `nf_tables`. Where it can't be asked, nothing says that it has not.
pub fn is_supported() -> bool {
    !matches!(look(ReadScope { native: &[], iptables: false, rules: false }), Ok(None))
}

pub(super) fn family_of(answer: &Answer) -> Option<TableFamily> {
    match NetfilterProtoFamily::from(answer.family) {
        NetfilterProtoFamily::Inet => Some(TableFamily::Inet),
        NetfilterProtoFamily::IPv4 => Some(TableFamily::Ip(Family::V4)),
        NetfilterProtoFamily::IPv6 => Some(TableFamily::Ip(Family::V6)),
        _ => None,
    }
}

pub(super) fn table(answer: &Answer) -> Option<(TableFamily, String)> {
    let family = family_of(answer).filter(|_| answer.kind == kind::TABLE)?;
    Some((family, answer.attributes().text(TABLE.0)?.to_owned()))
}

pub(super) fn is_dormant(table: &Answer) -> bool {
    table.attributes().number(TABLE.1).is_some_and(|flags| flags & DORMANT != 0)
}

/// A chain that the kernel calls.
fn foreign(family: TableFamily, chain: Attributes<'_>) -> Option<ForeignChain> {
    let table = family.table(chain.text(CHAIN.0)?.to_owned());
    let (name, base) = (chain.text(CHAIN.1)?.to_owned(), base(chain)?);
    Some(ForeignChain { table, name, base, decides: drops(chain) })
}

/// The chains that hang at interfaces, but for those of tables that are `asleep`, whose tables can do
/// something to a packet.
fn at_interfaces(
    connection: &Connection,
    chains: &[Answer],
    asleep: &[(u8, &str)],
) -> Result<Vec<String>, NftError> {
    let mut found = Vec::new();
    for chain in chains {
        let attributes = chain.attributes();
        let named = attributes.text(CHAIN.0).zip(attributes.text(CHAIN.1)).zip(base(attributes));
        let Some(((table, name), base)) = named else { continue };
        let (word, hook) = match (NetfilterProtoFamily::from(chain.family), base.hook) {
            (NetfilterProtoFamily::NetDev, 0) => ("netdev", "ingress"),
            (NetfilterProtoFamily::NetDev, 1) => ("netdev", "egress"),
            // NF_INET_INGRESS
            (NetfilterProtoFamily::Inet, 5) => ("inet", "ingress"),
            _ => continue,
        };
        if asleep.contains(&(chain.family, table)) {
            continue;
        }
        let of_table = chains.iter().filter(|other| {
            other.family == chain.family && other.attributes().text(CHAIN.0) == Some(table)
        });
        let mut acts = drops(attributes);
        for other in of_table {
            let Some(name) = other.attributes().text(CHAIN.1).filter(|_| !acts) else { break };
            let rules = rules_of(connection, chain.family, table, name)?;
            acts = rules.iter().any(|r| r.attributes().list(RULE_EXPRESSIONS).any(changes));
        }
        if acts {
            let at = devices(attributes);
            let at = if at.is_empty() { "interfaces".to_owned() } else { at.join(", ") };
            found.push(format!("chain {name} of table {word} {table} ({hook} of {at})"));
        }
    }
    Ok(found)
}

/// Note which tables have a rule that decides about packets.
fn note_decision(foreign: &mut [ForeignChain], family: TableFamily, rule: Attributes<'_>) {
    let Some((table, _)) = chain_of(rule) else { return };
    let of_table =
        |f: &&mut ForeignChain| f.table.name == table && f.table == family.table(table.to_owned());
    let mut chains = foreign.iter_mut().filter(of_table).peekable();
    if chains.peek().is_some() && rule.list(RULE_EXPRESSIONS).any(decides) {
        chains.for_each(|chain| chain.decides = true);
    }
}

/// A table that is a process's own, with the netlink port of that.
pub(super) fn owned_table(answer: &Answer) -> Option<(String, u32)> {
    let (_, name) = table(answer)?;
    Some((name, answer.attributes().number(TABLE_OWNER)?))
}

fn add_iptables_chain(found: &mut [(Family, Dump)], family: Family, chain: Attributes<'_>) {
    let policy = if drops(chain) { "DROP" } else { "ACCEPT" };
    let policy = chain.get(CHAIN.3).map(|_| policy.to_owned());
    let dump = found.iter_mut().find(|(f, _)| *f == family).map(|(_, dump)| dump);
    let (Some(dump), Some(table), Some(name)) = (dump, chain.text(CHAIN.0), chain.text(CHAIN.1))
    else {
        return;
    };
    if let Some(dump) = dump.tables.iter_mut().find(|t| t.name == *table) {
        let (name, handle) = (name.to_owned(), chain.long(CHAIN_HANDLE));
        dump.chains.push(ChainDump { name, policy, rules: Vec::new(), handle });
    }
}

/// The table and the name of a builtin chain that does not hang where iptables hangs it.
fn misplaced(family: Family, chain: Attributes<'_>) -> Option<(Family, String, String)> {
    let (table, name) = (chain.text(CHAIN.0)?, chain.text(CHAIN.1)?);
    let hook = Hook::from_name(name)?;
    let (kind, priority) = builtin_chain(Table::from_name(table)?, hook)?;
    let right = Base { kind: kind.to_owned(), hook: hook.number(), priority };
    (base(chain) != Some(right)).then(|| (family, table.to_owned(), name.to_owned()))
}

/// Of a rule in a chain that is not `called` as iptables' are, all that counts is where it jumps.
fn add_iptables_rule(
    found: &mut [(Family, Dump)],
    family: Family,
    rule: Attributes<'_>,
    called: bool,
) {
    let dump = found.iter_mut().find(|(f, _)| *f == family).map(|(_, dump)| dump);
    let (Some(dump), Some((table, chain))) = (dump, chain_of(rule)) else { return };
    let table = dump.tables.iter_mut().find(|t| t.name == *table);
    let chain = table.and_then(|t| t.chains.iter_mut().find(|c| c.name == *chain));
    if let Some(chain) = chain {
        chain.rules.push(xtables::read_rule(rule, family, called));
    }
}

/// The rules of one chain. The kernel answers in pieces of at most 32 KiB (`netlink_dump`), and walks to
/// where it was from the beginning of what was asked for: asked for one chain, it passes by no other.
pub(super) fn rules_of(
    connection: &Connection,
    family: u8,
    table: &str,
    chain: &str,
) -> Result<Vec<Answer>, NftError> {
    let attributes =
        vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(chain.to_owned())];
    let request = NfTablesMessage::GetRule(RuleMessage { attributes });
    let answers = connection.dump(NetfilterProtoFamily::from(family), request, "rules")?;
    let mut answers = answers.unwrap_or_default();
    // Kernels before 4.10 answer with all rules of all tables.
    answers.retain(|answer| {
        (answer.kind, answer.family) == (kind::RULE, family)
            && chain_of(answer.attributes()) == Some((table, chain))
    });
    Ok(answers)
}

/// A rule's table and chain.
pub(super) fn chain_of(rule: Attributes<'_>) -> Option<(&str, &str)> {
    rule.text(RULE.0).zip(rule.text(RULE.1))
}

/// Sets of one table by `NFTA_SET_NAME`, anonymous ones among them.
pub(super) type Sets = BTreeMap<String, Set>;

pub(super) fn read_sets(
    family: NetfilterProtoFamily,
    table: &str,
    connection: &Connection,
) -> Result<Sets, NftError> {
    let ask = |request, kind, what| {
        let answers = connection.dump(family, request, what)?;
        let mut answers = answers.unwrap_or_default();
        answers.retain(|answer| answer.kind == kind);
        Ok::<_, NftError>(answers)
    };
    let mut sets = Sets::new();
    let attributes = vec![SetAttribute::Table(table.to_owned())];
    let request = NfTablesMessage::GetSet(SetMessage { attributes });
    for set in ask(request, kind::SET, "sets")? {
        let set = set.attributes();
        let Some((name, kind)) = named_set(set) else { continue };
        let attributes =
            vec![SetElementList::Table(table.to_owned()), SetElementList::Set(name.to_owned())];
        let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let mut elements = Vec::new();
        for list in ask(request, kind::ELEMENTS, "elements of sets")? {
            elements.extend(list.attributes().list(ELEMENTS).filter_map(element));
        }
        elements.sort();
        let intervals = set.number(SET.1).is_some_and(|flags| flags & INTERVAL != 0);
        let ranges = if intervals { ranges_of(kind, elements) } else { singles(elements) };
        sets.insert(name.to_owned(), Set { kind, ranges });
    }
    Ok(sets)
}

fn named_set(set: Attributes<'_>) -> Option<(&str, SetKind)> {
    let number = set.number(SET.2)?;
    let kind = SetKind::ALL.into_iter().find(|kind| kind.number() == number)?;
    Some((set.text(SET.0)?, kind))
}

/// Keys, and whether they end a range.
type Elements = Vec<(Vec<u8>, bool)>;

fn singles(elements: Elements) -> Vec<(Vec<u8>, Vec<u8>)> {
    elements.into_iter().map(|(key, _)| (key.clone(), key)).collect()
}

/// What ends in front of a key ends with the value before it; what does not end goes on to the
/// last value.
fn ranges_of(kind: SetKind, elements: Elements) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut ranges: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (key, end) in elements {
        if !end {
            ranges.push((key, vec![u8::MAX; kind.length()]));
        } else if let (Some((_, last)), Some(before)) = (ranges.last_mut(), predecessor(&key)) {
            *last = before;
        }
    }
    ranges
}

fn element(element: Attributes<'_>) -> Option<(Vec<u8>, bool)> {
    let key = element.nested(ELEMENT.0)?.get(DATA_VALUE)?;
    let end = element.number(ELEMENT.1).is_some_and(|flags| flags & INTERVAL_END != 0);
    Some((key.to_vec(), end))
}

/// Whether a chain drops what no rule decides about (its policy is `NF_DROP`).
pub(super) fn drops(chain: Attributes<'_>) -> bool {
    chain.number(CHAIN.3) == Some(0)
}

/// Type, hook and priority of a base chain (`NFTA_CHAIN_HOOK`); none for any other.
pub(super) fn base(chain: Attributes<'_>) -> Option<Base> {
    let hook = chain.nested(CHAIN.2)?;
    Some(Base {
        kind: chain.text(CHAIN.4)?.to_owned(),
        hook: hook.number(HOOK.0)?,
        priority: hook.number(HOOK.1)?.cast_signed(),
    })
}

fn add_chain(found: &mut NativeTables, chain: Attributes<'_>) {
    let (base, drops) = (base(chain), drops(chain));
    let table = chain.text(CHAIN.0);
    let chains = table.and_then(|t| found.iter_mut().find(|(name, _)| name == t));
    if let Some(((_, chains), name)) = chains.zip(chain.text(CHAIN.1)) {
        chains.push((name.to_owned(), NativeChain { base, drops, rules: Vec::new() }));
    }
}

fn add_rule(found: &mut NativeTables, rule: Attributes<'_>, sets: &[(String, Sets)]) {
    let Some((table, chain)) = chain_of(rule) else { return };
    let sets = named(sets, table);
    let expressions = rule.list(RULE_EXPRESSIONS);
    let rule = expressions.map(|e| decode(e, |name| sets?.get(name).cloned())).collect();
    let chains = found.iter_mut().find(|(name, _)| name == table).map(|(_, chains)| chains);
    let chain = chains.and_then(|chains| chains.iter_mut().find(|(name, _)| name == chain));
    if let Some((_, chain)) = chain {
        chain.rules.push(rule);
    }
}
