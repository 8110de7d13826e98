//! Native nftables: rules written and read by netlink, without any program. The messages are those
//! of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`.

mod attributes;
mod batch;
mod read;
mod socket;
#[cfg(test)]
mod tests;

pub use batch::{rehearse, replace};
pub use read::{TableFamily, generation, is_supported, read, tables};
pub use socket::NftError;
