//! The tables of iptables-legacy, asked of the kernel itself: no program is run.
//!
//! The structs are those of a 64-bit program. Whatever can't be read here (another extension, a
//! 32-bit program, no permission) is left to `iptables-legacy-save`, which also says why not.

use std::os::fd::AsFd as _;

use millrace_core::iptables::{
    Dump, KernelTable, LeftOut, TableDump, left_out as rules_left_out, read_table,
};
use millrace_core::value::Family;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::sys_xtables::{Ask, get};

/// Bytes of `struct ipt_getinfo`.
const INFO: usize = 84;
/// Bytes of `struct ipt_get_entries` in front of the entries.
const ENTRIES: usize = 40;
/// How often a table is asked for that changes while it is.
const TRIES: usize = 3;

/// The tables with these names; none when anything in them is not understood. They must be there:
/// asking for a table makes it.
pub fn read(family: Family, names: &[&str]) -> Option<Dump> {
    if cfg!(not(target_pointer_width = "64")) {
        return None;
    }
    let tables: Option<Vec<TableDump>> =
        names.iter().map(|name| table(family, name, |table| read_table(table).ok())).collect();
    Some(Dump { tables: tables? })
}

/// What `iptables-save` leaves out of the rules of a table that is there; nothing where the table can't
/// be read.
pub fn left_out(family: Family, name: &str) -> Vec<LeftOut> {
    if cfg!(not(target_pointer_width = "64")) {
        return Vec::new();
    }
    table(family, name, |table| rules_left_out(table).ok()).unwrap_or_default()
}

fn table<T>(family: Family, name: &str, read: impl Fn(&KernelTable<'_>) -> Option<T>) -> Option<T> {
    for _ in 0..TRIES {
        match blob(family, name) {
            Ok((info, entries)) => {
                let number =
                    |at: usize| info.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
                let valid = number(32)?;
                // hook_entry is in front of underflow, five of each.
                let offsets = |from: usize| {
                    std::array::from_fn(|hook| {
                        (valid & (1 << hook) != 0).then(|| number(from + 4 * hook)).flatten()
                    })
                };
                let table = KernelTable {
                    family,
                    name,
                    hook_entry: offsets(36),
                    underflow: offsets(56),
                    entries: entries.get(ENTRIES..)?,
                };
                return read(&table);
            }
            // Its size changed between the two questions.
            Err(Errno::EAGAIN) => {}
            Err(_) => return None,
        }
    }
    None
}

/// The answers to both questions, headers included.
fn blob(family: Family, name: &str) -> Result<(Vec<u8>, Vec<u8>), Errno> {
    let (domain, level) = match family {
        Family::V4 => (AddressFamily::Inet, libc::SOL_IP),
        Family::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
    };
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = vec![0; INFO];
    write_name(&mut info, name)?;
    get(socket.as_fd(), level, Ask::Info, &mut info)?;
    let size = info.get(80..84).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let length = usize::try_from(size).map_err(|_e| Errno::E2BIG)?;
    let mut entries = vec![0; ENTRIES + length];
    write_name(&mut entries, name)?;
    entries.get_mut(32..36).ok_or(Errno::EINVAL)?.copy_from_slice(&size.to_ne_bytes());
    get(socket.as_fd(), level, Ask::Entries, &mut entries)?;
    Ok((info, entries))
}

fn write_name(buffer: &mut [u8], name: &str) -> Result<(), Errno> {
    let field = buffer.get_mut(..name.len()).filter(|field| field.len() < 32);
    field.ok_or(Errno::EINVAL)?.copy_from_slice(name.as_bytes());
    Ok(())
}
