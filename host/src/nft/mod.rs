//! Native nftables: rules written and read by netlink, without any program. The messages are those
//! of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`.

mod attributes;
mod batch;
mod decode;
mod list;
mod raw;
mod read;
mod socket;
mod terms;
#[cfg(test)]
mod tests;
mod trace;
mod xtables;

pub use batch::{Changes, change, rehearse, set_dormant};
pub use list::{interfaces, list};
pub(crate) use raw::{Answer, Attributes};
pub use read::{Listing, ReadScope, TableFamily, is_supported, look, unchanged_since};
pub use socket::{NftError, is_missing};
pub(crate) use trace::{OwnedTable, TraceBatch, TraceSocket, drain, interface};
pub use trace::{generation, handles};
pub(crate) use xtables::netlink_family;
