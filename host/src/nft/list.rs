//! All native tables that a namespace holds, whoever made them.

use std::collections::BTreeMap;

use millrace_core::nft::listed::{Layer, ListedChain, ListedRule, ListedTable};
use millrace_core::value::Family;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{ChainMessage, NfTablesMessage, TableMessage};

use super::decode::counters;
use super::raw::{Answer, Attributes, kind};
use super::read::{CHAIN, RULE_EXPRESSIONS, TABLE, base, drops, is_dormant, rules_of};
use super::socket::{Connection, NftError};
use super::terms::{sets, term};

/// `NFTA_HOOK_DEV`, `NFTA_HOOK_DEVS`, `NFTA_DEVICE_NAME`
const HOOK_DEVICE: (u16, u16, u16) = (3, 4, 1);

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

/// The names of the calling thread's namespace's interfaces, by number.
pub fn interfaces() -> BTreeMap<u32, String> {
    let all = nix::net::if_::if_nameindex();
    let named =
        |one: &nix::net::if_::Interface| Some((one.index(), one.name().to_str().ok()?.to_owned()));
    all.map(|all| all.iter().filter_map(named).collect()).unwrap_or_default()
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
    let mut found: Vec<ListedTable> = Vec::new();
    let request = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    for answer in dump(request, kind::TABLE, "tables")? {
        let table = answer.attributes();
        let Some((layer, name)) = layer(&answer).zip(table.text(TABLE.0)) else { continue };
        if matches!(layer, Layer::Ip(family) if known(family, name)) {
            continue;
        }
        let wire = NetfilterProtoFamily::from(answer.family);
        found.push(ListedTable {
            layer,
            name: name.to_owned(),
            dormant: is_dormant(&answer),
            sets: sets(wire, name, connection)?,
            chains: Vec::new(),
        });
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    for answer in dump(request, kind::CHAIN, "chains")? {
        let chain = answer.attributes();
        let owner = owner(&mut found, &answer, chain.text(CHAIN.0));
        if let Some((table, name)) = owner.zip(chain.text(CHAIN.1)) {
            let rules = rules_of(connection, answer.family, &table.name, name)?;
            table.chains.push(ListedChain {
                name: name.to_owned(),
                base: base(chain),
                devices: devices(chain),
                drops: drops(chain),
                rules: rules.iter().map(|rule| listed(rule.attributes())).collect(),
            });
        }
    }
    if connection.generation()? != generation {
        return Err(NftError::Changed);
    }
    Ok(found)
}

fn listed(rule: Attributes<'_>) -> ListedRule {
    ListedRule {
        parts: rule.list(RULE_EXPRESSIONS).map(term).collect(),
        counters: rule.list(RULE_EXPRESSIONS).find_map(counters),
    }
}

fn layer(answer: &Answer) -> Option<Layer> {
    match NetfilterProtoFamily::from(answer.family) {
        NetfilterProtoFamily::Inet => Some(Layer::Inet),
        NetfilterProtoFamily::IPv4 => Some(Layer::Ip(Family::V4)),
        NetfilterProtoFamily::IPv6 => Some(Layer::Ip(Family::V6)),
        NetfilterProtoFamily::NetDev => Some(Layer::Netdev),
        NetfilterProtoFamily::ARP => Some(Layer::Arp),
        _ => None,
    }
}

fn owner<'t>(
    found: &'t mut [ListedTable],
    answer: &Answer,
    name: Option<&str>,
) -> Option<&'t mut ListedTable> {
    let layer = layer(answer)?;
    found.iter_mut().find(|table| table.layer == layer && Some(&*table.name) == name)
}

/// The interfaces that a chain hangs at.
pub(super) fn devices(chain: Attributes<'_>) -> Vec<String> {
    let Some(hook) = chain.nested(CHAIN.2) else { return Vec::new() };
    let several = hook.nested(HOOK_DEVICE.1).unwrap_or(Attributes(&[]));
    let several = several.iter().filter(|(kind, _)| *kind == HOOK_DEVICE.2);
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    let mut names: Vec<String> = several.map(|(_, name)| text(name)).collect();
    names.extend(hook.text(HOOK_DEVICE.0).map(str::to_owned));
    names.sort();
    names.dedup();
    names
}
