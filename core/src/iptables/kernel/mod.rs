//! The kernel's own form of a legacy iptables table (`linux/netfilter_ipv4/ip_tables.h`,
//! `linux/netfilter_ipv6/ip6_tables.h`, `linux/netfilter/x_tables.h`), read without iptables.
//!
//! Only what Millrace writes is understood. A table with anything else in it is refused as a
//! whole: `iptables-save` knows every extension, and is asked then.

mod bytes;
mod entry;
mod left_out;
mod matches;
mod targets;

pub use left_out::{LeftOut, left_out};
pub use matches::{
    MOST_PORTS, Ports, TooManyPorts, read as read_match, write as write_match, write_ports,
};
pub use targets::{read as read_target, write as write_target};

use std::collections::BTreeMap;

use self::bytes::{Bytes, Writer};
use self::entry::{Entry, EntryTarget};
use super::{ChainDump, DumpRule, TableDump, render_rule};
use crate::ruleset::{Hook, Rule, Target};
use crate::value::Family;

/// A table as the kernel gives it (`IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`).
#[derive(Clone, Copy, Debug)]
pub struct KernelTable<'b> {
    /// Says whether entries are `struct ipt_entry` or `struct ip6t_entry`.
    pub family: Family,
    /// At most 31 bytes (`XT_TABLE_MAXNAMELEN`).
    pub name: &'b str,
    /// Where the builtin chain of each hook starts, for the hooks that the table has. In the order
    /// of [`Hook::ALL`], which is that of `enum nf_inet_hooks`.
    pub hook_entry: [Option<u32>; 5],
    /// Where the policy of each builtin chain is.
    pub underflow: [Option<u32>; 5],
    /// Rules and heads of chains, one behind the other, in the machine's byte order.
    pub entries: &'b [u8],
}

/// The data of a match or a target, as both `ip_tables` and `nft_compat` take it: without the header
/// that says how long it is, and with the zeros that make it a multiple of eight bytes (`XT_ALIGN`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The name: at most 28 bytes.
    pub name: String,
    /// Which form of the data.
    pub revision: u8,
    /// The data, in the machine's byte order.
    pub data: Vec<u8>,
}

/// Something that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// A struct ends before its last field.
    #[error("the table ends within a struct")]
    TooShort,
    /// A text is not UTF-8.
    #[error("a text of the table is not UTF-8")]
    Text,
    /// A jump leads to no chain, or a chain has no end.
    #[error("the table's chains don't fit together")]
    Chains,
    /// A match or target, by name and revision, or an option of it.
    #[error("{0} is nothing that Millrace writes")]
    Feature(String),
}

impl Unknown {
    fn feature(text: impl Into<String>) -> Self {
        Self::Feature(text.into())
    }
}

/// Read a table.
///
/// # Errors
/// The first thing in it that is not understood.
pub fn read_table(table: &KernelTable<'_>) -> Result<TableDump, Unknown> {
    let entries = entry::walk(table.family, table.entries)?;
    let names = chain_names(table, &entries)?;
    let mut chains: Vec<ChainDump> = Vec::new();
    let mut rest = entries.iter().peekable();
    while let Some(entry) = rest.next() {
        if let EntryTarget::Head(name) = entry.verdict {
            // The last entry of every table is a head without a chain.
            if rest.peek().is_some() {
                chains.push(chain(name));
            }
            continue;
        }
        if let Some(hook) = hook_at(&table.hook_entry, entry.offset) {
            chains.push(chain(hook.as_str()));
        }
        let current = chains.last_mut().ok_or(Unknown::Chains)?;
        if hook_at(&table.underflow, entry.offset).is_some() {
            current.policy = Some(policy(&entry.verdict)?.to_owned());
        } else if matches!(rest.peek(), Some(Entry { verdict: EntryTarget::Head(_), .. })) {
            // The end of every chain that is not builtin is a RETURN that nobody wrote.
        } else {
            current.rules.push(rule(entry, &names)?);
        }
    }
    Ok(TableDump { name: table.name.to_owned(), chains })
}

fn chain(name: &str) -> ChainDump {
    ChainDump { name: name.to_owned(), policy: None, rules: Vec::new(), handle: None }
}

fn hook_at(offsets: &[Option<u32>; 5], offset: u32) -> Option<Hook> {
    let index = offsets.iter().position(|o| *o == Some(offset))?;
    Hook::ALL.get(index).copied()
}

fn policy(verdict: &EntryTarget<'_>) -> Result<&'static str, Unknown> {
    match verdict {
        EntryTarget::Rule(Target::Accept) => Ok("ACCEPT"),
        EntryTarget::Rule(Target::Drop) => Ok("DROP"),
        _ => Err(Unknown::Chains),
    }
}

/// The chains that can be jumped to, by the offset of their first rule.
fn chain_names<'b>(
    table: &KernelTable<'_>,
    entries: &[Entry<'b>],
) -> Result<BTreeMap<u32, &'b str>, Unknown> {
    let mut names = BTreeMap::new();
    for pair in entries.windows(2) {
        let [head, first] = pair else { return Err(Unknown::Chains) };
        if let EntryTarget::Head(name) = head.verdict {
            names.insert(first.offset, name);
        }
    }
    // Nothing jumps to a builtin chain.
    for offset in table.hook_entry.iter().flatten() {
        names.remove(offset);
    }
    Ok(names)
}

fn rule(entry: &Entry<'_>, names: &BTreeMap<u32, &str>) -> Result<DumpRule, Unknown> {
    let target = match &entry.verdict {
        EntryTarget::Rule(target) => target.clone(),
        EntryTarget::Jump(offset) => {
            let name = names.get(offset).ok_or(Unknown::Chains)?;
            Target::Jump(name.parse().map_err(|_e| Unknown::feature(format!("-j {name}")))?)
        }
        EntryTarget::Head(_) => return Err(Unknown::Chains),
    };
    let rule = Rule { matches: entry.matches.clone(), target };
    let text = render_rule(&rule);
    Ok(DumpRule { text, counters: Some(entry.counters), rule: Ok(rule), kernel: None })
}
