//! A proxy that listens already when its pod is enrolled: its sockets are found, with who holds them,
//! and taken by `pidfd_getfd(2)`.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};

use millrace_ebpf_common::{LISTENER_PLACES, ListenerKey};
use nix::errno::Errno;

use super::error::EbpfError;
use super::maps::Maps;
use super::sockets::listeners;
use super::sys_sockets;

/// Give the pod that the calling thread is in its listeners on `port`; how many were found.
///
/// # Errors
/// When there are some that can't be taken, or the kernel can't be asked.
pub(super) fn adopt(maps: &Maps, netns: u64, port: u16) -> Result<usize, EbpfError> {
    let asked = listeners(port).map(|all| all.iter().map(|l| (l.family, l.inode)).collect());
    let listening: io::Result<Vec<(u16, u64)>> = asked.or_else(|_| listening_in_tables(port));
    let listening = listening.map_err(|e| EbpfError::io("which sockets listen", e))?;
    let mut found = 0;
    for family in [4, 6] {
        let inodes = listening.iter().filter(|(f, _)| *f == family).map(|(_, inode)| *inode);
        let inodes: Vec<u64> = inodes.collect();
        if inodes.is_empty() {
            continue;
        }
        let sockets = (0..LISTENER_PLACES).zip(inodes.iter().filter_map(|inode| holder(*inode)));
        let before = found;
        for (place, socket) in sockets {
            let key = ListenerKey { netns, family, place, port: port.into() };
            maps.set_listener(&key, socket.as_fd()).map_err(|error| on(port, error))?;
            found += 1;
        }
        if found == before {
            let why = "no process that may be looked at holds it (CAP_SYS_PTRACE)";
            let what = format!("the proxy's listener on port {port}");
            return Err(EbpfError::Io { what, source: io::Error::other(why) });
        }
    }
    Ok(found)
}

/// Why a listener can't be taken.
fn on(port: u16, error: EbpfError) -> EbpfError {
    match error {
        EbpfError::Io { source, .. }
            if source.raw_os_error().map(Errno::from_raw) == Some(Errno::EOPNOTSUPP) =>
        {
            let why = format!(
                "{source}: the kernel hands connections to sockets of plain TCP alone, and not of \
                 multipath TCP"
            );
            let what = format!("the proxy's listener on port {port}");
            EbpfError::Io { what, source: io::Error::other(why) }
        }
        error => error,
    }
}

/// The same of a kernel without `sock_diag` for TCP: from tables of all sockets, which takes long
/// where there are many.
fn listening_in_tables(port: u16) -> io::Result<Vec<(u16, u64)>> {
    let mut found = Vec::new();
    for (family, table) in [(4, "/proc/thread-self/net/tcp"), (6, "/proc/thread-self/net/tcp6")] {
        match fs::read_to_string(table) {
            Ok(text) => found.extend(listening(&text, port).into_iter().map(|n| (family, n))),
            // A kernel without IPv6 has no such table.
            Err(error) if error.kind() == io::ErrorKind::NotFound && family == 6 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The state of a listening socket in `/proc/net/tcp` (`TCP_LISTEN`).
const LISTENING: &str = "0A";

/// The inodes of the sockets that listen on a port, in a table of `/proc/net` (`proc_net_tcp`).
fn listening(table: &str, port: u16) -> Vec<u64> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let local = words.nth(1)?;
        let (_, local_port) = local.rsplit_once(':')?;
        let state = words.nth(1)?;
        let inode: u64 = words.nth(5)?.parse().ok()?;
        let matches = u16::from_str_radix(local_port, 16) == Ok(port) && state == LISTENING;
        matches.then_some(inode)
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// The socket with this inode, from any process that has it.
fn holder(inode: u64) -> Option<OwnedFd> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let number = descriptor.file_name().to_str().and_then(|n| n.parse::<RawFd>().ok());
            let target = fs::read_link(descriptor.path());
            if !target.is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
                continue;
            }
            if let Some(socket) = number.and_then(|n| sys_sockets::descriptor_of(pid, n).ok()) {
                return Some(socket);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 00000000:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 4711 1 0\n   \
            1: 0100007F:3A9E 0100007F:1234 01 00000000:00000000 00:00000000 00000000  1337        0 4712 1 0\n   \
            2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4713 1 0\n";
        assert_eq!(listening(table, 15006), [4711]);
        assert_eq!(listening(table, 80), [4713]);
        assert!(listening(table, 81).is_empty());
    }
}
