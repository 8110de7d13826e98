//! What one look at a network namespace found. `host` fills it, everything else reads it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::iptables::Dump;
use crate::nft::tables::{Base, NativeTables, is_guard};
use crate::ruleset::Table;
use crate::value::Family;

/// One of the two implementations of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Rules in the kernel's `nf_tables`.
    Nft,
    /// Rules in the kernel's own iptables tables.
    Legacy,
}

impl Variant {
    /// Both, in the order in which they are looked through.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The name, as in `iptables-nft` and `iptables-legacy`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "iptables-{}", self.as_str())
    }
}

/// The tables of one family in one variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// iptables-nft or iptables-legacy: both can hold tables at the same time.
    pub variant: Variant,
    /// IPv4 or IPv6: the two have binaries and tables of their own.
    pub family: Family,
    /// The tables, chains and rules.
    pub dump: Dump,
}

/// A policy routing rule (`ip-rule(8)`), as far as Millrace tells rules apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct IpRule {
    /// IPv4 or IPv6: policy rules of the two are kept apart (`ip -6 rule`).
    pub family: Family,
    /// The priority, low first.
    pub priority: u32,
    /// The mark it looks for, with its mask.
    pub fwmark: Option<(u32, u32)>,
    /// The table it looks in.
    pub table: u32,
    /// Whether it asks for nothing but the mark.
    pub mark_only: bool,
}

/// A route of a table that is neither `main` nor `local` nor `default`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Route {
    /// IPv4 or IPv6: routes of the two are kept apart (`ip -6 route`).
    pub family: Family,
    /// Number of the routing table, 254 being `main` (rtnetlink(7), `RTA_TABLE`).
    pub table: u32,
    /// Whether it is `local default dev lo`, which is all that TPROXY needs.
    pub local_default: bool,
    /// The route as `ip-route(8)` shows it, as far as it says where packets go.
    pub text: String,
}

impl Route {
    /// The route `local default dev lo` of a table, which delivers every packet locally.
    pub fn local_default(family: Family, table: u32) -> Self {
        Self { family, table, local_default: true, text: "local default dev lo".to_owned() }
    }
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct InterfaceAddress {
    /// Whether it is on `lo`.
    pub loopback: bool,
    /// Without its prefix length, as a packet has it.
    pub address: IpAddr,
    /// The length of its network's prefix in bits, 0 to 32 or 128.
    pub prefix: u8,
}

/// Who logs packets of a family in a namespace (`/proc/net/netfilter/nf_log`), among others those that
/// are traced in the kernel's own tables of iptables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Logger {
    /// The family whose packets it logs: the kernel has one logger for each.
    pub family: Family,
    /// The kernel's name of it; `NONE` for nobody.
    pub name: String,
}

/// A table of `nf_tables` of family `inet`, `ip` or `ip6`, by family and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TableId {
    /// The family; none for `inet`.
    pub family: Option<Family>,
    /// Unique within its family, as the kernel has it.
    pub name: String,
}

impl TableId {
    /// A table of family `inet`.
    pub const fn inet(name: String) -> Self {
        Self { family: None, name }
    }

    /// A table of family `ip` or `ip6`.
    pub const fn ip(family: Family, name: String) -> Self {
        Self { family: Some(family), name }
    }
}

impl std::fmt::Display for TableId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            None => "inet",
            Some(Family::V4) => "ip",
            Some(Family::V6) => "ip6",
        };
        write!(f, "table {family} {}", self.name)
    }
}

/// A chain of somebody else's table of `nf_tables` that the kernel calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignChain {
    /// The table that holds the chain, by family and name.
    pub table: TableId,
    /// Unique within its table.
    pub name: String,
    /// Its type, hook and priority.
    pub base: Base,
    /// Whether a packet can meet its end there, or another destination, or is not tracked from there on:
    /// by the chain's policy, or by a rule of its table.
    pub decides: bool,
}

/// Everything that one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The iptables tables that exist. A family and variant without any table is not listed.
    pub holdings: Vec<Holding>,
    /// Policy routing rules of both families.
    pub ip_rules: Vec<IpRule>,
    /// Policy routing rules that ask for nothing; one that ends a packet's way has table 0.
    pub catch_alls: Vec<IpRule>,
    /// Routes of tables other than the kernel's own.
    pub routes: Vec<Route>,
    /// Addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
    /// Whether the interface that Millrace makes for the address that the proxy passes connections on
    /// from has that address; none where there is no such interface.
    pub passthrough_link: Option<bool>,
    /// The interfaces that are up, for each family that is not switched off there, with their addresses
    /// of it: where a backend needs localhost to be reached by each, and was looked for it.
    pub ways: BTreeMap<Way, Vec<IpAddr>>,
    /// Where Millrace has made that so.
    pub localhost_ways: Vec<Way>,
    /// Whether the kernel has `nf_tables`.
    pub nf_tables: bool,
    /// Native nftables tables that are called as ours are.
    pub native: NativeTables,
    /// All tables of `nf_tables` of families `inet`, `ip` and `ip6`.
    pub tables: Vec<TableId>,
    /// Tables of `nf_tables` whose chains the kernel does not call (flag `dormant`), whoever made them.
    pub dormant: Vec<TableId>,
    /// Chains of others in other tables of `nf_tables`.
    pub foreign: Vec<ForeignChain>,
    /// Whether there are tables of `nf_tables` whose chains hang at interfaces (family `netdev`).
    pub netdev: bool,
    /// Chains of others that hang at interfaces (`netdev`, and `ingress` of `inet`), in words, where a packet
    /// can meet its end, another way, another header or another mark in them.
    pub at_interfaces: Vec<String>,
    /// Tables of iptables-legacy that ours are never in (`security`), and that its programs alone can read.
    pub unread: Vec<(Family, String)>,
    /// Whether `lo`, to which all is redirected that the pod sends, is down.
    pub lo_down: bool,
    /// The interfaces by which the kernel takes for forged, by IPv4, what comes from where a mark has a route
    /// to this host (`src_valid_mark` without `accept_local`).
    pub wary: Vec<String>,
    /// Whether a run that changes the namespace started here and did not end.
    pub interrupted: bool,
    /// Who logged before a trace that was killed.
    pub loggers: Vec<Logger>,
}

/// An interface that is not `lo`, and a family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Way {
    /// IPv4 or IPv6: localhost is `127.0.0.1` or `::1`.
    pub family: Family,
    /// At most 15 bytes (`IFNAMSIZ`).
    pub interface: String,
}

impl Observed {
    /// Whether native nftables of ours capture here: more than a guard beside rules of iptables.
    pub fn captures_natively(&self) -> bool {
        self.native.iter().any(|(_, table)| !is_guard(table))
    }

    /// Each dormant table that can hold rules of ours, in a sentence.
    pub fn asleep(&self) -> impl Iterator<Item = String> + '_ {
        let ours = |table: &&TableId| match table.family {
            None => self.native.iter().any(|(name, _)| *name == table.name),
            Some(_) => Table::from_name(&table.name).is_some(),
        };
        self.dormant.iter().filter(ours).map(|table| {
            format!("{table} is dormant (flag dormant): the kernel calls none of its chains")
        })
    }

    /// The tables of a family in a variant, if there are any.
    pub fn holding(&self, variant: Variant, family: Family) -> Option<&Dump> {
        self.holdings.iter().find(|h| h.variant == variant && h.family == family).map(|h| &h.dump)
    }
}
