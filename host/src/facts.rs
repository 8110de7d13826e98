//! Gathering what the core needs to know of the host.

use std::fs;

use millrace_core::facts::{HostFacts, groups, users};

use crate::link::{LinkError, Net};

/// Read addresses, the resolver's configuration, users and groups. Users and groups come from
/// their files alone: the program is static, and a name service would be asked over the network
/// that is being set up.
///
/// # Errors
/// When the addresses can't be listed. A file that can't be read is a fact like any other.
pub fn gather(net: &Net) -> Result<HostFacts, LinkError> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Ok(HostFacts {
        addresses: net.addresses()?.into_iter().map(|a| a.address).collect(),
        resolv_conf: Some(fs::read_to_string("/etc/resolv.conf").map_err(|e| e.to_string())),
        users: users(&text("/etc/passwd")),
        groups: groups(&text("/etc/group")),
    })
}
