//! What `nf_tables` holds. Asking makes nothing: neither a process nor a table.

use std::collections::BTreeMap;

use millrace_core::nft::set::{Set, SetKind, predecessor};
use millrace_core::nft::tables::{Base, NativeChain, NativeTable, NativeTables};
use millrace_core::value::Family;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, ExpressionAttribute, Hook, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute,
    SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute,
    TableMessage,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::attributes::decode;
use super::socket::{Connection, INET, NftError};

/// The family of a table that Millrace has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// `ip` or `ip6`, as iptables-nft makes them.
    Ip(Family),
    /// `inet`
    Inet,
}

/// The tables of `nf_tables` by name; `None` when the kernel has no `nf_tables`.
///
/// # Errors
/// When the kernel can't be asked.
pub fn tables() -> Result<Option<Vec<(TableFamily, String)>>, NftError> {
    let Some(connection) = Connection::open()? else { return Ok(None) };
    let request = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    let answers = connection.dump(NetfilterProtoFamily::Unspec, request, "tables")?;
    Ok(answers.map(|answers| answers.iter().filter_map(table).collect()))
}

/// The number of the last change of `nf_tables`; `None` when the kernel has none.
///
/// # Errors
/// When the kernel can't be asked.
pub fn generation() -> Result<Option<u32>, NftError> {
    Connection::open()?.map_or(Ok(None), |connection| connection.generation())
}

/// Whether the kernel has `nf_tables`. Where it can't be asked, nothing says that it has not.
pub fn is_supported() -> bool {
    !matches!(tables(), Ok(None))
}

fn table(message: &NetfilterMessage) -> Option<(TableFamily, String)> {
    let family = match message.header.family {
        NetfilterProtoFamily::IPv4 => TableFamily::Ip(Family::V4),
        NetfilterProtoFamily::IPv6 => TableFamily::Ip(Family::V6),
        NetfilterProtoFamily::Inet => TableFamily::Inet,
        _ => return None,
    };
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = &message.inner else {
        return None;
    };
    table.attributes.iter().find_map(|a| match a {
        TableAttribute::Name(name) => Some((family, name.clone())),
        _ => None,
    })
}

/// The tables of family `inet` among `names` that are there.
///
/// # Errors
/// When the kernel can't be asked.
pub fn read(names: &[&str]) -> Result<NativeTables, NftError> {
    let there = tables()?.unwrap_or_default();
    let there = there
        .into_iter()
        .filter(|(family, name)| *family == TableFamily::Inet && names.contains(&name.as_str()));
    let mut found: NativeTables = there.map(|(_, name)| (name, NativeTable::new())).collect();
    if found.is_empty() {
        return Ok(found);
    }
    let connection = Connection::open()?.ok_or(NftError::Absent)?;
    let ask = |request, what| -> Result<Vec<NfTablesMessage>, NftError> {
        let answers = connection.dump(INET, request, what)?.unwrap_or_default();
        let inner = answers.into_iter().filter_map(|answer| match answer.inner {
            NetfilterMessageInner::NfTables(message) => Some(message),
            _ => None,
        });
        Ok(inner.collect())
    };
    let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    for message in ask(request, "chains")? {
        let NfTablesMessage::NewChain(chain) = message else { continue };
        add_chain(&mut found, &chain);
    }
    let tables: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
    for table in tables {
        let sets = sets(&table, &ask)?;
        let attributes = vec![RuleAttribute::Table(table.clone())];
        let request = NfTablesMessage::GetRule(RuleMessage { attributes });
        for message in ask(request, "rules")? {
            let NfTablesMessage::NewRule(rule) = message else { continue };
            add_rule(&mut found, &table, &rule, &sets);
        }
    }
    Ok(found)
}

/// Sets by name.
type Sets = BTreeMap<String, Set>;

fn sets(
    table: &str,
    ask: &impl Fn(NfTablesMessage, &'static str) -> Result<Vec<NfTablesMessage>, NftError>,
) -> Result<Sets, NftError> {
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
    let text = |wanted: fn(&ChainAttribute) -> Option<&String>| {
        chain.attributes.iter().find_map(wanted).cloned()
    };
    let table = text(|a| if let ChainAttribute::Table(t) = a { Some(t) } else { None });
    let name = text(|a| if let ChainAttribute::Name(n) = a { Some(n) } else { None });
    let kind = text(|a| if let ChainAttribute::Type(t) = a { Some(t) } else { None });
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
        Some(Base { kind: kind?, hook: number, priority })
    });
    let chains = table.and_then(|table| found.iter_mut().find(|(name, _)| *name == table));
    if let Some(((_, chains), name)) = chains.zip(name) {
        chains.push((name, NativeChain { base, rules: Vec::new() }));
    }
}

fn add_rule(found: &mut NativeTables, table: &str, rule: &RuleMessage, sets: &Sets) {
    let chain = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Chain(name) => Some(name),
        _ => None,
    });
    let expressions = rule.attributes.iter().flat_map(|a| match a {
        RuleAttribute::Expressions(list) => list.as_slice(),
        _ => &[],
    });
    let data = expressions.filter_map(|element| match element {
        ListAttribute::Element(attributes) => attributes.iter().find_map(|a| match a {
            ExpressionAttribute::Data(data) => Some(data),
            _ => None,
        }),
        _ => None,
    });
    let rule = data.map(|data| decode(data, |name| sets.get(name).cloned())).collect();
    let chains = found.iter_mut().find(|(name, _)| name == table).map(|(_, chains)| chains);
    let chain = chains.and_then(|chains| chains.iter_mut().find(|(n, _)| Some(n) == chain));
    if let Some((_, chain)) = chain {
        chain.rules.push(rule);
    }
}
