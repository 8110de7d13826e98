//! Address families and networks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ValueError;

/// An IP version. iptables, routes and policy routing rules keep the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4, with addresses of 32 bits (RFC 791).
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6, with addresses of 128 bits (RFC 4291).
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    /// Both, in the order in which they are written.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bits in an address: 32 or 128.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An IP network `address/length` (RFC 4632, RFC 4291). Host bits are kept as they were typed,
/// since iptables takes them and the text must stay what the user knows; [`Cidr::network`] clears
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

impl Cidr {
    /// The network of `address` with `length` leading bits, or `None` when the family has fewer.
    pub const fn new(address: IpAddr, length: u8) -> Option<Self> {
        if length > Family::of(address).bits() { None } else { Some(Self { address, length }) }
    }

    /// The network that holds only `address`: `/32` or `/128`.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, length: Family::of(address).bits() }
    }

    /// The address as it was given, host bits included.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// The number of leading bits that are compared, 0 to 32 or 128.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// The family of the address; one in `::ffff:0:0/96` counts as IPv6 where it was not unmapped.
    pub const fn family(self) -> Family {
        Family::of(self.address)
    }

    /// The same network with its host bits cleared, as the kernel compares it.
    #[must_use]
    pub fn network(self) -> Self {
        let address = match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask))
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask))
            }
        };
        Self { address, length: self.length }
    }

    /// The same network; of IPv4 if all its addresses are those by which sockets of IPv6 name hosts of
    /// IPv4 (`::ffff:0:0/96`, RFC 4291, 2.5.5.2): what is sent to these are packets of IPv4.
    #[must_use]
    pub const fn to_canonical(self) -> Self {
        match (self.address.to_canonical(), self.length.checked_sub(96)) {
            (address @ IpAddr::V4(_), Some(length)) if self.address.is_ipv6() => {
                Self { address, length }
            }
            _ => self,
        }
    }

    /// As it stands in the text of a rule: a rule of IPv6 asks about addresses of IPv6, whatever they
    /// mean to sockets.
    ///
    /// # Errors
    /// When it is no network.
    pub fn in_rule(text: &str) -> Result<Self, ValueError> {
        let bad =
            || ValueError::new("a network is address/length, such as 10.0.0.0/8 or 2001:db8::/32");
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_e| bad())?;
        let digits = length.bytes().all(|b| b.is_ascii_digit());
        if length.is_empty() || !digits || (length.len() > 1 && length.starts_with('0')) {
            return Err(bad());
        }
        let length: u8 = length.parse().map_err(|_e| bad())?;
        Self::new(address, length).ok_or_else(bad)
    }

    /// Whether `address` is in the network. An address of the other family never is.
    pub fn contains(self, address: IpAddr) -> bool {
        Self::new(address, self.length).is_some_and(|other| {
            other.family() == self.family() && other.network() == self.network()
        })
    }

    /// Whether the network is every address of its family.
    pub const fn is_everything(self) -> bool {
        self.length == 0
    }
}

/// As somebody writes it who says what is wanted; see [`Cidr::to_canonical`].
impl FromStr for Cidr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::in_rule(text).map(Self::to_canonical)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_host_bits_and_can_clear_them() {
        let c: Cidr = "10.1.2.3/8".parse().unwrap();
        assert_eq!(c.to_string(), "10.1.2.3/8");
        assert_eq!(c.network().to_string(), "10.0.0.0/8");
        assert_eq!(
            "2001:db8::1/32".parse::<Cidr>().unwrap().network().to_string(),
            "2001:db8::/32"
        );
        assert_eq!("1.2.3.4/0".parse::<Cidr>().unwrap().network().to_string(), "0.0.0.0/0");
        assert_eq!("::5/0".parse::<Cidr>().unwrap().network().to_string(), "::/0");
    }

    #[test]
    fn refuses_what_is_no_network() {
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "fe80::1%eth0/64",
            "10.0.0.0/8 ",
            " 10.0.0.0/8",
            "*",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "010.0.0.0/8",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?}");
        }
    }

    /// Verify that what is sent to by IPv4 is asked about by rules of IPv4, and that rules of others stay
    /// what they are.
    #[test]
    fn ipv4_networks_in_ipv6_are_the_former() {
        for (text, means) in [
            ("::ffff:10.1.2.3/104", "10.1.2.3/8"),
            ("::ffff:a00:1/128", "10.0.0.1/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:0:0/95", "::ffff:0.0.0.0/95"),
            ("::/0", "::/0"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("::10.0.0.1/128", "::a00:1/128"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), means, "{text}");
            let exact = Cidr::in_rule(text).unwrap();
            assert_eq!(exact.family() == Family::V6, text.contains(':'), "{text}");
        }
    }

    #[test]
    fn compatible_addresses_print_in_hexadecimal() {
        let c = Cidr::host("::127.0.0.53".parse().unwrap());
        assert_eq!(c.to_string(), "::7f00:35/128");
        assert_eq!(Cidr::host("::6".parse().unwrap()).to_string(), "::6/128");
    }

    #[test]
    fn contains_compares_the_leading_bits_of_one_family() {
        let c: Cidr = "10.1.2.3/8".parse().unwrap();
        assert!(c.contains("10.9.9.9".parse().unwrap()));
        assert!(!c.contains("11.0.0.0".parse().unwrap()));
        assert!(!c.contains("::1".parse().unwrap()));
    }
}
