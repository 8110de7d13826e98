//! Gathering what the core needs to know of the host.

use std::path::Path;

use millrace_core::facts::{self, HostFacts};
use millrace_core::value::Groups;

use crate::file;
use crate::link::{LinkError, Net};

/// The most that is read of a file of `/etc`, in bytes: those of users have long lists, rarely.
const MOST: usize = 16 * 1024 * 1024;

/// Read addresses, the resolver's configuration, users and groups. Users and groups come from
/// their files alone: the program is static, and a name service would be asked over the network
/// that is being set up. None of the files is waited for: a FIFO in its place has nothing to read.
///
/// # Errors
/// When the addresses can't be listed. A file that can't be read is a fact like any other.
pub fn gather(net: &Net) -> Result<HostFacts, LinkError> {
    Ok(HostFacts {
        addresses: net.addresses()?.into_iter().map(|a| a.address).collect(),
        resolv_conf: Some(resolv_conf()),
        users: facts::users(&text("/etc/passwd")),
        groups: groups(),
    })
}

/// The groups of this host alone, for who needs nothing else of it. None where they can't be read.
pub fn groups() -> Groups {
    facts::groups(&text("/etc/group"))
}

fn text(path: &str) -> String {
    file::regular_text(Path::new(path), MOST).unwrap_or_default()
}

/// The resolver's configuration of this host, or why it can't be read.
///
/// # Errors
/// The reason, in words.
pub fn resolv_conf() -> Result<String, String> {
    file::regular_text(Path::new("/etc/resolv.conf"), MOST).map_err(|error| error.to_string())
}
