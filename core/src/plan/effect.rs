//! The few things that change a namespace.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::routing::{PASSTHROUGH_LINK, PASSTHROUGH_V6, localhost};
use super::tables::TableEdit;
use crate::nft::tables::NativeTables;
use crate::observed::{IpRule, Logger, TableId, Variant, Way};
use crate::value::Family;

/// Whether an effect puts something there or takes it away; either may be so already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Put it there; if it is there already, that is fine.
    Add,
    /// Take it away; if it is gone already, that is fine.
    Remove,
}

/// One change of a namespace. A plan is a list of them; they are carried out in order, and each
/// happens wholly or not at all, except that a restore commits table by table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Effect {
    /// Note in the namespace that a run has begun (an alternative name of `lo`), or that it has
    /// ended. A run that was killed in between leaves the note.
    Marker {
        /// Add when a run begins, remove when it ends.
        change: Change,
    },
    /// The address `::6` on `lo`, from which the proxy passes connections on.
    Address {
        /// Added before rules that need it are written, removed after they are gone.
        change: Change,
        /// The address, with the full prefix length.
        address: IpAddr,
    },
    /// The interface that has the address that the proxy passes connections on from.
    Passthrough {
        /// Add, as far as it is not there, or remove.
        change: Change,
    },
    /// The route to `127.0.0.1` or `::1` by an interface that is not `lo`, in the table `local`.
    Localhost {
        /// Added before rules that need it are written, removed after they are gone.
        change: Change,
        /// By which interface, in which family.
        way: Way,
    },
    /// The route `local default dev lo` of a table.
    Route {
        /// Added before rules that need it are written, removed after they are gone.
        change: Change,
        /// IPv4 or IPv6: each has a table of that number.
        family: Family,
        /// Number of the routing table (rtnetlink(7), `RTA_TABLE`).
        table: u32,
    },
    /// A policy routing rule that asks only for a mark.
    IpRule {
        /// Added before rules that need it are written, removed after they are gone.
        change: Change,
        /// Its priority, mark and table.
        rule: IpRule,
    },
    /// The interface `lo` itself, up or down.
    Loopback {
        /// Add sets it up; remove sets it down, only when rolling back.
        change: Change,
    },
    /// The flag of a table of `nf_tables` that keeps the kernel from calling its chains.
    Dormant {
        /// Add sets `NFT_TABLE_F_DORMANT`, only when rolling back; remove clears it.
        change: Change,
        /// The table, of family `inet`, `ip` or `ip6`.
        table: TableId,
    },
    /// Input for `iptables-restore --noflush`.
    Restore {
        /// Whose binaries take the input: iptables-nft or iptables-legacy.
        variant: Variant,
        /// Input for `iptables-restore`, or for `ip6tables-restore`.
        family: Family,
        /// The input, one or more tables.
        input: String,
        /// Whether rules carry counters (`--counters`).
        counters: bool,
    },
    /// Let those log packets again who did before a trace that was killed.
    Logger {
        /// Family and logger, as the kernel is to have them again.
        logger: Logger,
    },
    /// One transaction of `nf_tables`: all of it, or nothing.
    Native {
        /// The native tables that are there before: all of them go.
        names: Vec<String>,
        /// The native tables that are there afterwards.
        #[serde(skip)]
        tables: NativeTables,
        /// Edits of the tables of iptables-nft.
        #[serde(skip)]
        edits: Vec<TableEdit>,
        /// The rules as text; empty where there is none.
        text: String,
    },
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = |change: &Change| match change {
            Change::Add => "add",
            Change::Remove => "remove",
        };
        match self {
            Self::Marker { change: Change::Add } => {
                f.write_str("write the note that a change has begun")
            }
            Self::Marker { change: Change::Remove } => {
                f.write_str("remove the note that a change has begun")
            }
            Self::Address { change, address } => {
                write!(f, "{} address {address} on lo", verb(change))
            }
            Self::Passthrough { change } => write!(
                f,
                "{} interface {PASSTHROUGH_LINK} with address {PASSTHROUGH_V6}",
                verb(change)
            ),
            Self::Localhost { change, way: Way { family, interface } } => {
                let to = localhost(*family);
                write!(f, "{} route local {to} dev {interface} table local", verb(change))
            }
            Self::Loopback { change: Change::Add } => f.write_str("set lo up"),
            Self::Loopback { change: Change::Remove } => f.write_str("set lo down"),
            Self::Dormant { change: Change::Add, table } => {
                write!(f, "set the flag dormant of {table}")
            }
            Self::Dormant { change: Change::Remove, table } => {
                write!(f, "clear the flag dormant of {table}, whose rules the kernel does not call")
            }
            Self::Route { change, family, table } => {
                write!(f, "{} {family} route local default dev lo table {table}", verb(change))
            }
            Self::IpRule { change, rule } => {
                write!(f, "{} {} rule priority {}", verb(change), rule.family, rule.priority)?;
                if let Some((mark, mask)) = rule.fwmark {
                    write!(f, " fwmark {mark:#x}/{mask:#x}")?;
                }
                write!(f, " lookup {}", rule.table)
            }
            Self::Logger { logger: Logger { family, name } } => {
                write!(f, "{family} packets are logged by {name} again, as before a trace")
            }
            Self::Restore { variant, family, input, .. } => {
                let tables: Vec<&str> =
                    input.lines().filter_map(|l| l.strip_prefix('*')).map(str::trim).collect();
                write!(f, "{variant} {family} restore of {}", tables.join(", "))
            }
            Self::Native { names, tables, edits, .. } => {
                let mut parts = Vec::new();
                if !tables.is_empty() {
                    let names: Vec<&str> = tables.iter().map(|(name, _)| name.as_str()).collect();
                    parts.push(format!("nftables transaction of {}", names.join(", ")));
                }
                if !edits.is_empty() {
                    let tables: Vec<String> =
                        edits.iter().map(|e| format!("{} {}", e.family, e.table)).collect();
                    parts.push(format!("iptables-nft transaction of {}", tables.join(", ")));
                }
                if tables.is_empty() && !names.is_empty() {
                    parts.push(format!("nftables removal of {}", names.join(", ")));
                }
                f.write_str(&parts.join(", with "))
            }
        }
    }
}
