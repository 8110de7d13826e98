//! Transport ports.

use std::fmt;
use std::str::FromStr;

use super::ValueError;

/// A TCP or UDP port, 0 to 65535 (RFC 6335 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(u16);

impl Port {
    /// The port with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// From 0 to 65535: rules may name 0, nothing listens there.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl FromStr for Port {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_number(text)
            .map(Self)
            .ok_or_else(|| ValueError::new("a port is a number from 0 to 65535"))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A port that a proxy listens on, 1 to 65535: nothing can listen on port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenPort(Port);

impl ListenPort {
    /// The port with this number, unless it is 0.
    pub const fn new(number: u16) -> Option<Self> {
        if number == 0 { None } else { Some(Self(Port::new(number))) }
    }

    /// The port, as the type that rules match.
    pub const fn port(self) -> Port {
        self.0
    }

    /// From 1 to 65535.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl FromStr for ListenPort {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_number(text)
            .and_then(Self::new)
            .ok_or_else(|| ValueError::new("a listening port is a number from 1 to 65535"))
    }
}

impl fmt::Display for ListenPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One port, or a range `first:last` with both ends included, as iptables writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: Port,
    last: Port,
}

impl PortRange {
    /// A range of one port, written without a colon.
    pub const fn single(port: Port) -> Self {
        Self { first: port, last: port }
    }

    /// The range from `first` to `last`, or `None` when it is empty.
    pub fn new(first: Port, last: Port) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The first port of the range.
    pub const fn first(self) -> Port {
        self.first
    }

    /// The last port of the range.
    pub const fn last(self) -> Port {
        self.last
    }

    /// Whether `port` is in the range.
    pub fn contains(self, port: Port) -> bool {
        self.first <= port && port <= self.last
    }
}

impl From<Port> for PortRange {
    fn from(port: Port) -> Self {
        Self::single(port)
    }
}

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || {
            ValueError::new(
                "a port is a number from 0 to 65535, a range is first:last, low to high",
            )
        };
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        let first = parse_number(first).map(Port).ok_or_else(bad)?;
        let last = parse_number(last).map(Port).ok_or_else(bad)?;
        Self::new(first, last).ok_or_else(bad)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}:{}", self.first, self.last)
        }
    }
}

/// A decimal number without sign or blank; `u16::from_str` alone would take `+80`.
fn parse_number(text: &str) -> Option<u16> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_every_port_and_nothing_else() {
        for good in ["0", "1", "80", "65535", "00080"] {
            assert!(good.parse::<Port>().is_ok(), "{good}");
        }
        for bad in
            ["", "-1", "+80", "65536", "80 ", " 80", "http", "0x50", "80 -j ACCEPT", "8\u{660}"]
        {
            assert!(bad.parse::<Port>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_listener_is_never_on_port_zero() {
        assert!("0".parse::<ListenPort>().is_err());
        assert_eq!("15001".parse::<ListenPort>().unwrap().get(), 15001);
    }

    #[test]
    fn ranges_run_upwards() {
        assert_eq!("80:90".parse::<PortRange>().unwrap().to_string(), "80:90");
        assert_eq!("80:80".parse::<PortRange>().unwrap().to_string(), "80");
        for bad in ["90:80", "80:", ":90", "80:90:100", "80-90", "a:b"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad:?}");
        }
    }
}
