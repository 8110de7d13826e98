//! Numbers and names that identify owners of sockets, packet marks, routing tables, zones.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::ValueError;

fn decimal(text: &str) -> Option<u32> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

macro_rules! owner_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);

        impl $name {
            /// The id with this number, unless it is 4294967295, which means «nobody» to the kernel.
            pub const fn new(number: u32) -> Option<Self> {
                if number == u32::MAX { None } else { Some(Self(number)) }
            }

            /// From 0 to 4294967294; 0 is root.
            pub const fn get(self) -> u32 {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                decimal(text).and_then(Self::new).ok_or_else(|| {
                    ValueError::new(concat!("a ", $what, " is a number from 0 to 4294967294"))
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

owner_id! {
    /// A user id, 0 to 4294967294 (`credentials(7)`).
    Uid, "user id"
}
/// User ids from a first to a last one, `106-108` or `106`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UidRange {
    first: Uid,
    last: Uid,
}

impl UidRange {
    /// The ids from the first to the last; none where the last is smaller.
    pub fn new(first: Uid, last: Uid) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest id, itself included.
    pub const fn first(self) -> Uid {
        self.first
    }

    /// The highest id, itself included; equal to the first where the range is one id.
    pub const fn last(self) -> Uid {
        self.last
    }
}

impl FromStr for UidRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let wrong = || ValueError::new("user ids are a number, or first-last, low to high");
        Self::new(first.parse()?, last.parse()?).ok_or_else(wrong)
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

owner_id! {
    /// A group id, 0 to 4294967294 (`credentials(7)`).
    Gid, "group id"
}

/// A group by name, as in `/etc/group`: what `useradd` accepts, at most 32 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(String);

impl GroupName {
    /// As in `/etc/group`, where its number has to be looked up.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = text.bytes();
        let good = text.len() <= 32
            && bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-$".contains(&b));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValueError::new(
                "a group is a number from 0 to 4294967294 or a name of at most 32 letters, \
                 digits, _ . - that starts with a letter or _",
            ))
        }
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A packet or connection mark, 1 to 4294967295. Mark 0 is what every packet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u32);

impl Mark {
    /// The mark with this value, unless it is 0.
    pub const fn new(value: u32) -> Option<Self> {
        if value == 0 { None } else { Some(Self(value)) }
    }

    /// From 1 to 4294967295, all 32 bits of the mark.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Mark {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        decimal(text)
            .and_then(Self::new)
            .ok_or_else(|| ValueError::new("a mark is a decimal number from 1 to 4294967295"))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A policy routing table, 1 to 4294967295 without 253, 254 and 255, which are the kernel's own
/// (`default`, `main`, `local`; `ip-route(8)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteTable(u32);

impl RouteTable {
    /// The table with this number, unless the number is the kernel's own or none.
    pub const fn new(number: u32) -> Option<Self> {
        match number {
            0 | 253..=255 => None,
            _ => Some(Self(number)),
        }
    }

    /// From 1 to 4294967295, never 253 to 255.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for RouteTable {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        decimal(text).and_then(Self::new).ok_or_else(|| {
            ValueError::new(
                "a routing table is a decimal number from 1 to 4294967295, but not 253, 254 or \
                 255, which belong to the kernel",
            )
        })
    }
}

impl fmt::Display for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A conntrack zone, 0 to 65535 (`iptables-extensions(8)`, CT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Zone(pub u16);

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Group names and their numbers, since a rule that was written by name is read back by number.
pub type Groups = BTreeMap<GroupName, Gid>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_decimal_numbers() {
        assert_eq!("1000670000".parse::<Uid>().unwrap().get(), 1_000_670_000);
        for bad in ["", "-1", "4294967295", "4294967296", "root", "1 2", "+1", "0x5"] {
            assert!(bad.parse::<Uid>().is_err(), "{bad:?}");
            assert!(bad.parse::<Gid>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn marks_and_tables_leave_out_what_would_break_the_pod() {
        assert!("0".parse::<Mark>().is_err() && "0x539".parse::<Mark>().is_err());
        for bad in ["0", "253", "254", "255", "main", "4294967296"] {
            assert!(bad.parse::<RouteTable>().is_err(), "{bad:?}");
        }
        assert!("133".parse::<RouteTable>().is_ok());
    }

    #[test]
    fn group_names_hold_no_blank_and_no_option() {
        assert!("java".parse::<GroupName>().is_ok());
        for bad in ["", "-j", "a b", "1a", "a\n", "a\"", &"x".repeat(33)] {
            assert!(bad.parse::<GroupName>().is_err(), "{bad:?}");
        }
    }
}
