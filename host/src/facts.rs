//! Gathering what the core needs to know of the host.

use std::path::Path;

use millrace_core::facts::{HostFacts, groups, users};

use crate::file;
use crate::link::{LinkError, Net};

/// The most that is read of a file of `/etc`, in bytes: those of users have long lists, rarely.
const MOST: usize = 16 * 1024 * 1024;

/// Read addresses, the resolver's configuration, users and groups. Users and groups come from
/// their files alone: the program is static, and a name service would be asked over the network
/// that is being set up.
///
/// # Errors
/// When the addresses can't be listed. A file that can't be read is a fact like any other.
pub fn gather(net: &Net) -> Result<HostFacts, LinkError> {
    let text = |path: &str| file::text(Path::new(path), MOST).unwrap_or_default();
    Ok(HostFacts {
        addresses: net.addresses()?.into_iter().map(|a| a.address).collect(),
        resolv_conf: Some(resolv_conf()),
        users: users(&text("/etc/passwd")),
        groups: groups(&text("/etc/group")),
    })
}

/// The resolver's configuration of this host, or why it can't be read.
///
/// # Errors
/// The reason, in words.
pub fn resolv_conf() -> Result<String, String> {
    file::text(Path::new("/etc/resolv.conf"), MOST).map_err(|error| error.to_string())
}
