//! Network interface names as iptables matches them.

use std::fmt;
use std::str::FromStr;

use super::ValueError;

/// `IFNAMSIZ` less its terminating zero (Linux `include/uapi/linux/if.h`).
const MAX: usize = 15;

/// An interface name of 1 to 15 bytes, or a prefix with a `+` behind it, as `iptables -i` takes
/// it. Only printable ASCII without `/`, `:`, quotes, backslash, `!` and `,`: the kernel allows
/// some of these in a name, but no tool that prints rules writes them so that they read back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfacePattern(String);

impl InterfacePattern {
    /// The loopback interface, `lo`.
    pub fn loopback() -> Self {
        Self("lo".to_owned())
    }

    /// The pattern as iptables writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an interface called `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('+') {
            Some(prefix) => name.starts_with(prefix),
            None => self.0 == name,
        }
    }
}

impl FromStr for InterfacePattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_graphic() && !b"/:\"'`\\!,$".contains(&b);
        let good = (1..=MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with('-')
            && text != "."
            && text != ".."
            && text != "+"
            && !text[..text.len() - 1].contains('+');
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValueError::new(
                "an interface name has 1 to 15 printable ASCII characters, no blank, / : , ! $, \
                 quote or backslash, does not start with -, and may end in + to mean every name \
                 that starts so",
            ))
        }
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_and_prefixes() {
        for good in ["eth0", "lo", "cali+", "net1.100", "br-lan", "a", "123456789012345"] {
            assert!(good.parse::<InterfacePattern>().is_ok(), "{good}");
        }
    }

    #[test]
    fn refuses_what_the_kernel_or_a_rule_text_cannot_hold() {
        for bad in [
            "",
            "1234567890123456",
            "a b",
            "a/b",
            "a\tb",
            "a\nb",
            "\u{e9}th0",
            "!eth0",
            "-j",
            ".",
            "..",
            "e\"x",
            "a\\b",
            "a:1",
            "+",
            "a+b",
            "eth0 -j ACCEPT",
            "a\0b",
        ] {
            assert!(bad.parse::<InterfacePattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_plus_means_a_prefix() {
        let p: InterfacePattern = "cali+".parse().unwrap();
        assert!(p.matches("cali123") && p.matches("cali") && !p.matches("eth0"));
        assert!(!"cali".parse::<InterfacePattern>().unwrap().matches("cali1"));
    }
}
