//! The text of iptables: what `iptables-restore` reads and what `iptables-save` prints.

mod dump;
mod parse;

pub use dump::{ChainDump, Counters, Dump, DumpError, DumpRule, TableDump};
pub use parse::{UnknownRule, parse_rule};
