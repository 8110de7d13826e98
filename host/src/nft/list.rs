//! All native tables that a namespace holds, whoever made them.

use millrace_core::nft::listed::{ListedChain, ListedRule, ListedTable};
use millrace_core::value::Family;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleMessage, TableMessage,
};

use super::decode::{counters, decode};
use super::raw::kind;
use super::read::{
    CHAIN, RULE_EXPRESSIONS, Sets, TableFamily, base, family_of, place, read_sets, table,
};
use super::socket::{Connection, NftError};

/// The tables of the calling thread's namespace, with counters, but for those of iptables-nft that
/// `known` says are known already. None where the kernel has no `nf_tables`.
///
/// # Errors
/// When the kernel can't be asked, or others never stop making changes.
pub fn list(known: &dyn Fn(Family, &str) -> bool) -> Result<Vec<ListedTable>, NftError> {
    const TRIES: usize = 20;
    let Some(connection) = Connection::open()? else { return Ok(Vec::new()) };
    for _ in 0..TRIES {
        match list_once(&connection, known) {
            Err(NftError::Changed) => {}
            result => return result,
        }
    }
    Err(NftError::Changed)
}

fn list_once(
    connection: &Connection,
    known: &dyn Fn(Family, &str) -> bool,
) -> Result<Vec<ListedTable>, NftError> {
    let generation = connection.generation()?;
    let dump = |request, kind, what| {
        let answers = connection.dump(NetfilterProtoFamily::Unspec, request, what)?;
        let mut answers = answers.unwrap_or_default();
        answers.retain(|answer| answer.kind == kind);
        Ok::<_, NftError>(answers)
    };
    let mut found: Vec<(TableFamily, ListedTable, Sets)> = Vec::new();
    let request = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    for (family, name) in dump(request, kind::TABLE, "tables")?.iter().filter_map(table) {
        let (only, wire) = match family {
            TableFamily::Inet => (None, NetfilterProtoFamily::Inet),
            TableFamily::Ip(family) if known(family, &name) => continue,
            TableFamily::Ip(Family::V4) => (Some(Family::V4), NetfilterProtoFamily::IPv4),
            TableFamily::Ip(Family::V6) => (Some(Family::V6), NetfilterProtoFamily::IPv6),
        };
        let sets = read_sets(wire, &name, connection)?;
        found.push((family, ListedTable { family: only, name, chains: Vec::new() }, sets));
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    for answer in dump(request, kind::CHAIN, "chains")? {
        let chain = answer.attributes();
        let (family, name) = (family_of(&answer), chain.text(CHAIN.0));
        let owner = found.iter_mut().find(|(f, t, _)| Some(*f) == family && Some(&*t.name) == name);
        if let Some(((_, table, _), name)) = owner.zip(chain.text(CHAIN.1)) {
            let base = base(chain);
            // NF_DROP
            let drops = chain.number(CHAIN.3) == Some(0);
            let name = name.to_owned();
            table.chains.push(ListedChain { name, base, drops, rules: Vec::new() });
        }
    }
    let request = NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() });
    for answer in dump(request, kind::RULE, "rules")? {
        let (family, rule) = (family_of(&answer), answer.attributes());
        let Some((table, chain)) = place(rule) else { continue };
        let owner = found.iter_mut().find(|(f, t, _)| Some(*f) == family && t.name == *table);
        let Some((_, table, sets)) = owner else { continue };
        let Some(chain) = table.chains.iter_mut().find(|c| c.name == *chain) else { continue };
        let parts = rule.list(RULE_EXPRESSIONS);
        chain.rules.push(ListedRule {
            parts: parts.map(|part| decode(part, |name| sets.get(name).cloned())).collect(),
            counters: rule.list(RULE_EXPRESSIONS).find_map(counters),
        });
    }
    if connection.generation()? != generation {
        return Err(NftError::Changed);
    }
    Ok(found.into_iter().map(|(_, table, _)| table).collect())
}
