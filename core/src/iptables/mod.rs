//! The text of iptables: what `iptables-restore` reads and what `iptables-save` prints.

mod dump;
mod kernel;
pub mod layout;
mod parse;
mod render;
mod words;

pub use dump::{
    ChainDump, Counters, Dump, DumpError, DumpRule, KernelRule, Part, TableDump, is_listing,
};
pub use kernel::{
    Extension, KernelTable, LeftOut, MOST_PORTS, Ports, TooManyPorts, Unknown, left_out,
    read_match, read_table, read_target, write_match, write_ports, write_target,
};
pub use parse::{UnknownRule, parse_rule};
pub use render::{render_line, render_rule};
pub(crate) use render::{render_match, render_target};

use crate::ruleset::Ruleset;
use crate::value::Family;

/// The input for `iptables-restore --noflush` that makes a family's rules where there are none,
/// as the reference writes it; empty when there are no rules.
pub fn render_restore(ruleset: &Ruleset, family: Family) -> String {
    let lines: Vec<layout::Line> = ruleset.family(family).iter().map(render_line).collect();
    layout::restore(&lines)
}
