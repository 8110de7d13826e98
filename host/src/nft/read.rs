//! What `nf_tables` holds. Asking makes nothing: neither a process nor a table.

use std::collections::BTreeMap;

use millrace_core::iptables::{ChainDump, Dump, TableDump};
use millrace_core::nft::set::{Set, SetKind, predecessor};
use millrace_core::nft::tables::{Base, NativeChain, NativeTable, NativeTables, named};
use millrace_core::value::Family;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, ListAttribute, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementFlags, SetElementList,
    SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::attributes::decode;
use super::socket::{Connection, NftError};
use super::xtables;

/// The family of a table that Millrace has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// `ip` or `ip6`, as iptables-nft makes them.
    Ip(Family),
    /// `inet`
    Inet,
}

/// What a namespace's `nf_tables` holds.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The number of the last change of anything.
    pub generation: Option<u32>,
    /// All tables, by name.
    pub tables: Vec<(TableFamily, String)>,
    /// Native tables, of those that were asked for.
    pub native: NativeTables,
    /// Tables of iptables-nft.
    pub iptables: Vec<(Family, Dump)>,
}

/// Which rules are read.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Native tables of family `inet` with these names.
    pub native: &'a [&'a str],
    /// Whether those of iptables-nft are.
    pub iptables: bool,
}

/// How often to look again when somebody changes what is looked at.
const TRIES: usize = 20;

/// Look; `None` when the kernel has no `nf_tables`. All that is seen was there at one moment.
///
/// # Errors
/// When the kernel can't be asked, or others never stop making changes.
pub fn look(wanted: Wanted<'_>) -> Result<Option<Look>, NftError> {
    let Some(connection) = Connection::open()? else { return Ok(None) };
    for _ in 0..TRIES {
        match look_once(&connection, wanted) {
            Err(NftError::Changed) => {}
            result => return result,
        }
    }
    Err(NftError::Changed)
}

fn look_once(connection: &Connection, wanted: Wanted<'_>) -> Result<Option<Look>, NftError> {
    let generation = connection.generation()?;
    let request = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    let Some(answers) = connection.dump(NetfilterProtoFamily::Unspec, request, "tables")? else {
        return Ok(None);
    };
    let tables: Vec<(TableFamily, String)> = answers.iter().filter_map(table).collect();
    let mut found = Look { generation, ..Look::default() };
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
    if found.native.is_empty() && found.iptables.is_empty() {
        return Ok(Some(found));
    }
    let dump = |request, what| {
        let answers = connection.dump(NetfilterProtoFamily::Unspec, request, what)?;
        let inner = answers.unwrap_or_default().into_iter();
        let inner = inner.filter_map(|answer| match answer.inner {
            NetfilterMessageInner::NfTables(message) => Some((answer.header.family, message)),
            _ => None,
        });
        Ok::<_, NftError>(inner.collect::<Vec<_>>())
    };
    let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    for (family, message) in dump(request, "chains")? {
        let NfTablesMessage::NewChain(chain) = message else { continue };
        match ip_family(family) {
            None if family == NetfilterProtoFamily::Inet => add_chain(&mut found.native, &chain),
            Some(family) => add_iptables_chain(&mut found.iptables, family, &chain),
            None => {}
        }
    }
    let mut sets = Vec::new();
    for (table, _) in &found.native {
        sets.push((table.clone(), read_sets(table, connection)?));
    }
    let request = NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() });
    for (family, message) in dump(request, "rules")? {
        let NfTablesMessage::NewRule(rule) = message else { continue };
        match ip_family(family) {
            None if family == NetfilterProtoFamily::Inet => {
                add_rule(&mut found.native, &rule, &sets);
            }
            Some(family) => add_iptables_rule(&mut found.iptables, family, &rule),
            None => {}
        }
    }
    if connection.generation()? == generation { Ok(Some(found)) } else { Err(NftError::Changed) }
}

/// Whether the kernel has `nf_tables`. Where it can't be asked, nothing says that it has not.
pub fn is_supported() -> bool {
    !matches!(look(Wanted { native: &[], iptables: false }), Ok(None))
}

const fn ip_family(family: NetfilterProtoFamily) -> Option<Family> {
    match family {
        NetfilterProtoFamily::IPv4 => Some(Family::V4),
        NetfilterProtoFamily::IPv6 => Some(Family::V6),
        _ => None,
    }
}

fn table(message: &NetfilterMessage) -> Option<(TableFamily, String)> {
    let family = match message.header.family {
        NetfilterProtoFamily::Inet => TableFamily::Inet,
        family => TableFamily::Ip(ip_family(family)?),
    };
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = &message.inner else {
        return None;
    };
    table.attributes.iter().find_map(|a| match a {
        TableAttribute::Name(name) => Some((family, name.clone())),
        _ => None,
    })
}

fn chain_text(
    chain: &ChainMessage,
    wanted: fn(&ChainAttribute) -> Option<&String>,
) -> Option<&String> {
    chain.attributes.iter().find_map(wanted)
}

fn chain_table(chain: &ChainMessage) -> Option<&String> {
    chain_text(chain, |a| if let ChainAttribute::Table(t) = a { Some(t) } else { None })
}

fn chain_name(chain: &ChainMessage) -> Option<&String> {
    chain_text(chain, |a| if let ChainAttribute::Name(n) = a { Some(n) } else { None })
}

fn add_iptables_chain(found: &mut [(Family, Dump)], family: Family, chain: &ChainMessage) {
    let policy = chain.attributes.iter().find_map(|a| match a {
        // NF_DROP, NF_ACCEPT
        ChainAttribute::Policy(0) => Some("DROP".to_owned()),
        ChainAttribute::Policy(_) => Some("ACCEPT".to_owned()),
        _ => None,
    });
    let dump = found.iter_mut().find(|(f, _)| *f == family).map(|(_, dump)| dump);
    let (Some(dump), Some(table), Some(name)) = (dump, chain_table(chain), chain_name(chain))
    else {
        return;
    };
    if let Some(table) = dump.tables.iter_mut().find(|t| t.name == *table) {
        table.chains.push(ChainDump { name: name.clone(), policy, rules: Vec::new() });
    }
}

fn add_iptables_rule(found: &mut [(Family, Dump)], family: Family, rule: &RuleMessage) {
    let dump = found.iter_mut().find(|(f, _)| *f == family).map(|(_, dump)| dump);
    let (Some(dump), Some((table, chain))) = (dump, place(rule)) else { return };
    let table = dump.tables.iter_mut().find(|t| t.name == *table);
    let chain = table.and_then(|t| t.chains.iter_mut().find(|c| c.name == *chain));
    if let Some(chain) = chain {
        chain.rules.push(xtables::read_rule(rule, family));
    }
}

/// A rule's table and chain.
fn place(rule: &RuleMessage) -> Option<(&String, &String)> {
    let table = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Table(name) => Some(name),
        _ => None,
    });
    table.zip(rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Chain(name) => Some(name),
        _ => None,
    }))
}

/// Sets by name.
type Sets = BTreeMap<String, Set>;

fn read_sets(table: &str, connection: &Connection) -> Result<Sets, NftError> {
    let ask = |request, what| -> Result<Vec<NfTablesMessage>, NftError> {
        let answers = connection.dump(NetfilterProtoFamily::Inet, request, what)?;
        let inner =
            answers.unwrap_or_default().into_iter().filter_map(|answer| match answer.inner {
                NetfilterMessageInner::NfTables(message) => Some(message),
                _ => None,
            });
        Ok(inner.collect())
    };
    let mut sets = Sets::new();
    let attributes = vec![SetAttribute::Table(table.to_owned())];
    for message in ask(NfTablesMessage::GetSet(SetMessage { attributes }), "sets")? {
        let NfTablesMessage::NewSet(set) = message else { continue };
        let Some((name, kind)) = named_set(&set) else { continue };
        let attributes =
            vec![SetElementList::Table(table.to_owned()), SetElementList::Set(name.clone())];
        let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let mut elements = Vec::new();
        for message in ask(request, "elements of sets")? {
            let NfTablesMessage::NewSetElement(list) = message else { continue };
            elements.extend(list.attributes.iter().flat_map(elements_of));
        }
        elements.sort();
        let intervals = set
            .attributes
            .iter()
            .any(|a| matches!(a, SetAttribute::Flags(flags) if flags.contains(SetFlags::Interval)));
        let ranges = if intervals { ranges_of(kind, elements) } else { singles(elements) };
        sets.insert(name, Set { kind, ranges });
    }
    Ok(sets)
}

fn named_set(set: &SetMessage) -> Option<(String, SetKind)> {
    let name = set.attributes.iter().find_map(|a| match a {
        SetAttribute::Name(name) => Some(name.clone()),
        _ => None,
    })?;
    let number = set.attributes.iter().find_map(|a| match a {
        SetAttribute::KeyType(number) => Some(*number),
        _ => None,
    })?;
    let kind = SetKind::ALL.into_iter().find(|kind| kind.number() == number)?;
    Some((name, kind))
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

fn elements_of(list: &SetElementList) -> Elements {
    let SetElementList::Elements(elements) = list else { return Elements::new() };
    let element = |element: &ListAttribute<SetElementAttribute>| {
        let ListAttribute::Element(attributes) = element else { return None };
        let key = attributes.iter().find_map(|attribute| match attribute {
            SetElementAttribute::Key(DataAttribute::Value(key)) => Some(key.clone()),
            _ => None,
        })?;
        let end = attributes.contains(&SetElementAttribute::Flags(SetElementFlags::IntervalEnd));
        Some((key, end))
    };
    elements.iter().filter_map(element).collect()
}

fn add_chain(found: &mut NativeTables, chain: &ChainMessage) {
    let kind = chain_text(chain, |a| if let ChainAttribute::Type(t) = a { Some(t) } else { None });
    let hook = chain.attributes.iter().find_map(|a| match a {
        ChainAttribute::Hook(hook) => Some(hook),
        _ => None,
    });
    let base = hook.and_then(|hook| {
        let number = hook.iter().find_map(|h| match h {
            Hook::Number(number) => Some(u32::from(*number)),
            _ => None,
        })?;
        let priority = hook.iter().find_map(|h| match h {
            Hook::Priority(priority) => Some(priority.cast_signed()),
            _ => None,
        })?;
        Some(Base { kind: kind?.clone(), hook: number, priority })
    });
    let chains = chain_table(chain).and_then(|t| found.iter_mut().find(|(name, _)| name == t));
    if let Some(((_, chains), name)) = chains.zip(chain_name(chain)) {
        chains.push((name.clone(), NativeChain { base, rules: Vec::new() }));
    }
}

fn add_rule(found: &mut NativeTables, rule: &RuleMessage, sets: &[(String, Sets)]) {
    let Some((table, chain)) = place(rule) else { return };
    let sets = named(sets, table);
    let expressions = rule.attributes.iter().flat_map(|a| match a {
        RuleAttribute::Expressions(list) => list.as_slice(),
        _ => &[],
    });
    let data = expressions.filter_map(xtables::expression);
    let rule = data.map(|data| decode(data, |name| sets?.get(name).cloned())).collect();
    let chains = found.iter_mut().find(|(name, _)| name == table).map(|(_, chains)| chains);
    let chain = chains.and_then(|chains| chains.iter_mut().find(|(name, _)| name == chain));
    if let Some((_, chain)) = chain {
        chain.rules.push(rule);
    }
}
