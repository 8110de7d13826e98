//! Addresses that stand for many.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::value::{Cidr, Family};

/// Addresses of documentation: no route of a pod leads to anybody who has them.
pub(super) const fn nobodys(family: Family) -> [IpAddr; 3] {
    match family {
        Family::V4 => [
            IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2)),
            IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
            IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        ],
        Family::V6 => [
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2)),
        ],
    }
}

/// The second address of a network, or the only one.
pub(super) fn member(network: Cidr) -> IpAddr {
    let first = network.network();
    if first.length() + 1 >= first.family().bits() {
        return first.address();
    }
    match first.address() {
        IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() | 2)),
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() | 2)),
    }
}
