//! Tables, hooks and chains.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A table of iptables. The order is the alphabetical one in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// Packet filtering; Millrace only ever removes from it what istio-iptables left.
    Filter,
    /// Packet marks, and TPROXY for what arrives.
    Mangle,
    /// REDIRECT and DNAT. Only the first packet of a connection meets its rules.
    Nat,
    /// Conntrack zones: its hooks are ahead of connection tracking.
    Raw,
}

impl Table {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Filter, Self::Mangle, Self::Nat, Self::Raw];

    /// The name that iptables uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Raw => "raw",
        }
    }

    /// The table with this name in lower case; none for others, such as `security`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == name)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A place in the kernel where a builtin chain is called (`linux/netfilter.h`, `nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Every packet that arrives, before routing.
    Prerouting,
    /// A packet for a local socket.
    Input,
    /// A packet that passes through.
    Forward,
    /// A packet from a local socket.
    Output,
    /// Every packet that leaves, routed or from a local socket, after routing.
    Postrouting,
}

impl Hook {
    /// All of them, in the order in which iptables lists them.
    pub const ALL: [Self; 5] =
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    /// The name of the builtin chain.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        }
    }

    /// What a base chain of nftables at this hook is called.
    pub const fn base_chain(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    /// The kernel's number (`enum nf_inet_hooks`).
    pub const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    /// The hook whose builtin chain is called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|h| h.as_str() == name)
    }
}

/// The name of a chain that is not builtin: 1 to 28 printable ASCII characters, as iptables
/// limits it (`XT_EXTENSION_MAXNAMELEN`, one for the zero), no blank, quote, `-` or `!` in front,
/// and not the name of a hook or of a standard target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Cow<'static, str>);

/// A text is not a chain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a chain name: 1 to 28 printable ASCII characters without blanks or quotes")]
pub struct BadChainName(String);

impl ChainName {
    /// The chain called `name`, which must be good: for the names that a dialect is made of.
    ///
    /// # Panics
    /// At compile time when used in a `const`, if the name is empty or longer than 28.
    pub const fn known(name: &'static str) -> Self {
        assert!(!name.is_empty() && name.len() <= 28, "not a chain name");
        Self(Cow::Borrowed(name))
    }

    /// Checked when it was made: up to 28 bytes, nothing that iptables-restore would read otherwise.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChainName {
    type Err = BadChainName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let standard = ["ACCEPT", "DROP", "RETURN", "QUEUE"].contains(&text);
        let good = (1..=28).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\".contains(&b))
            && !text.starts_with(['-', '!'])
            && !standard
            && Hook::from_name(text).is_none();
        if good {
            Ok(Self(Cow::Owned(text.to_owned())))
        } else {
            Err(BadChainName(text.to_owned()))
        }
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A chain of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    /// A chain that the kernel calls.
    Builtin(Hook),
    /// A chain that rules jump to.
    User(ChainName),
}

impl Chain {
    /// As iptables has it: a built-in chain's is its hook, in capitals.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Builtin(hook) => hook.as_str(),
            Self::User(name) => name.as_str(),
        }
    }
}

impl FromStr for Chain {
    type Err = BadChainName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Hook::from_name(text) {
            Some(hook) => Ok(Self::Builtin(hook)),
            None => text.parse().map(Self::User),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_name_is_not_a_hook_a_verdict_or_an_option() {
        assert!("ISTIO_OUTPUT".parse::<ChainName>().is_ok());
        for bad in ["", "PREROUTING", "ACCEPT", "-j", "a b", "!x", "a\"", &"x".repeat(29)] {
            assert!(bad.parse::<ChainName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tables_sort_as_they_are_written() {
        let mut all = Table::ALL;
        all.sort();
        assert_eq!(all.map(Table::as_str), ["filter", "mangle", "nat", "raw"]);
    }
}
