//! New IPv6 addresses: the kernel gives packets to them a little after it has answered who added them, in
//! a work of its own (`addrconf_dad_work()` of its `net/ipv6/addrconf.c`). On a busy machine the first
//! connections from such an address would fail.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use super::{LinkError, Net, Refusal};

/// The routes of IPv6 of every table, a line each: the destination in hexadecimal and its prefix, the source
/// likewise, the next hop, three numbers, flags, the interface (`rt6_info_route()` of the kernel's
/// `net/ipv6/route.c` and `ipv6_route_native_seq_show()` of `net/ipv6/ip6_fib.c`). Reading it is no
/// conversation, whose messages would be more or fewer each time.
const ROUTES: &str = "/proc/thread-self/net/ipv6_route";

/// A route to the machine's own sockets (`RTF_LOCAL` of the kernel's `include/uapi/linux/ipv6_route.h`).
const LOCAL: u32 = 0x8000_0000;

/// How long the kernel may take, and how long is waited between two looks. Mostly the first is enough.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

impl Net {
    /// Add an address, and wait until the kernel routes it. With IPv4 it does so at once.
    pub(super) async fn add_routed(
        &self,
        address: IpAddr,
        add: impl Future<Output = Result<(), LinkError>>,
    ) -> Result<(), LinkError> {
        add.await?;
        let IpAddr::V6(address) = address else { return Ok(()) };
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match fs::read_to_string(ROUTES) {
                // Nothing else goes on in this thread; and a timer would be more calls in some runs.
                Ok(routes) if !leads_to(&routes, address) => thread::sleep(PAUSE),
                // Where it can't be seen, it can't be waited for either.
                Ok(_) | Err(_) => return Ok(()),
            }
        }
        let why = Refusal::Other(format!(
            "the kernel has not done that for {} s: its interface may be gone or have IPv6 switched off \
             by now, or the machine is too busy; try again",
            PATIENCE.as_secs()
        ));
        Err(LinkError::Request { what: format!("address {address} is added but not routed"), why })
    }
}

/// Whether the kernel gives packets to an address to its own sockets.
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
}
