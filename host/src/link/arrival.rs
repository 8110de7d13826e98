//! New IPv6 addresses: the kernel gives packets to them a little after it has answered who added them, in
//! a work of its own (`addrconf_dad_work()` of its `net/ipv6/addrconf.c`). On a busy machine the first
//! connections from such an address would fail.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use super::{KernelError, LinkError, Net};

/// The routes of IPv6 of every table, a line each: the destination in hexadecimal and its prefix, the source
/// likewise, the next hop, three numbers, flags, the interface (`rt6_info_route()` of the kernel's
/// `net/ipv6/route.c` and `ipv6_route_native_seq_show()` of `net/ipv6/ip6_fib.c`). Reading it is no
/// conversation, whose messages would be more or fewer each time.
const ROUTES: &str = "/proc/thread-self/net/ipv6_route";

/// A route to the machine's own sockets (`RTF_LOCAL` of the kernel's `include/uapi/linux/ipv6_route.h`).
const LOCAL: u32 = 0x8000_0000;

/// How long the kernel may take with an address that was just added, and with one that is there. Mostly the
/// first look is enough.
const PATIENCE: Duration = Duration::from_secs(5);
pub(super) const SETTLED: Duration = Duration::from_secs(1);

/// How long is waited between two looks.
const PAUSE: Duration = Duration::from_millis(1);

impl Net {
    /// Add an address, and wait until the kernel routes it.
    pub(super) async fn add_routed(
        &self,
        address: IpAddr,
        add: impl Future<Output = Result<(), LinkError>>,
    ) -> Result<(), LinkError> {
        add.await?;
        if is_routed_within(PATIENCE, address) {
            return Ok(());
        }
        let why = KernelError::Other(format!(
            "the kernel has not done that for {} s: its interface may be gone or have IPv6 switched off \
             by now, or the machine is too busy; try again",
            PATIENCE.as_secs()
        ));
        Err(LinkError::Request { what: format!("address {address} is added but not routed"), why })
    }
}

/// Whether the kernel gives packets to an address that is there to its own sockets, in the namespace of this
/// thread. With IPv4 it does so at once; with IPv6 it is given this time, as somebody may just have added it.
pub(super) fn is_routed_within(patience: Duration, address: IpAddr) -> bool {
    let IpAddr::V6(address) = address else { return true };
    let look = || Ok(leads_to(&fs::read_to_string(ROUTES)?, address));
    // Where it can't be seen, it can't be waited for either.
    is_so_within(patience, look).unwrap_or(true)
}

/// Whether a look says so within this time. There is one look at least.
fn is_so_within(
    patience: Duration,
    mut look: impl FnMut() -> io::Result<bool>,
) -> io::Result<bool> {
    let end = Instant::now() + patience;
    while !look()? {
        if Instant::now() >= end {
            return Ok(false);
        }
        // Nothing else goes on in this thread; and a timer would be more calls in some runs.
        thread::sleep(PAUSE);
    }
    Ok(true)
}

/// Whether packets to an address go to own sockets by these routes.
fn leads_to(routes: &str, address: Ipv6Addr) -> bool {
    let to = format!("{:032x} 80 ", address.to_bits());
    let is_local = |line: &str| {
        let flags = line.split_whitespace().nth(8);
        flags.and_then(|flags| u32::from_str_radix(flags, 16).ok()).is_some_and(|f| f & LOCAL != 0)
    };
    routes.lines().any(|line| line.starts_with(&to) && is_local(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_to_own_sockets_is_told_from_others() {
        let line = |flags: &str| {
            let to = "00000000000000000000000000000006 80 ";
            let rest = "00000000000000000000000000000000 00 00000000000000000000000000000000 \
                        00000000 00000001 00000000";
            format!("{to}{rest} {flags} millrace0\n")
        };
        let address = |text: &str| text.parse().unwrap();
        assert!(leads_to(&line("80200001"), address("::6")));
        // To the interface alone, as with a prefix; and another's.
        assert!(!leads_to(&line("00000001"), address("::6")));
        assert!(!leads_to(&line("80200001"), address("::1")));
        assert!(!leads_to("", address("::6")) && !leads_to("0 80\n", address("::6")));
    }

    #[test]
    fn the_wait_ends_with_the_route_or_with_the_time() {
        let mut looks = 0;
        let mut third = || {
            looks += 1;
            Ok(looks == 3)
        };
        assert!(is_so_within(Duration::from_mins(10), &mut third).unwrap());
        assert_eq!(looks, 3);
        assert!(!is_so_within(Duration::from_millis(5), || Ok(false)).unwrap());
        assert!(is_so_within(Duration::ZERO, || Ok(true)).unwrap(), "one look at least");
        let cannot = || Err(io::Error::from(io::ErrorKind::NotFound));
        assert!(is_so_within(Duration::from_mins(10), cannot).is_err());
    }
}
