//! The socket options by which the kernel gives its iptables tables
//! (`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`).

use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// Which `getsockopt(2)` option: a table's sizes and hooks, or its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`
    Info,
    /// `IPT_SO_GET_ENTRIES`, `IP6T_SO_GET_ENTRIES`
    Entries,
}

/// Ask, with a struct that begins with the table's name and is filled by the kernel. Gives the
/// number of bytes that it has then.
pub(crate) fn get(
    socket: BorrowedFd<'_>,
    level: i32,
    ask: Ask,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    let name = match ask {
        Ask::Info => 64,
        Ask::Entries => 65,
    };
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_e| Errno::E2BIG)?;
    // SAFETY: the pointer and the length are those of one live, writable buffer of plain bytes,
    // and the kernel writes no more than the length it is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(usize::try_from(length).unwrap_or(0).min(buffer.len()))
}
