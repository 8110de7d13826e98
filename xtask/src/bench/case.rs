//! What is measured: an operation, for which families, with what that carries rules out.

use std::fmt;

use serde_json::{Value, json};

/// What carries rules out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Variant {
    /// iptables-nft, by its programs.
    Nft,
    /// iptables-legacy.
    Legacy,
    /// The tables of iptables-nft, by netlink.
    Netlink,
    /// No iptables at all: the reference's native nftables, one text for both families.
    Native,
    /// Millrace's own nftables table.
    Own,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Nft, Self::Legacy, Self::Netlink, Self::Native, Self::Own];

    /// The name on the command line and in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
            Self::Netlink => "netlink",
            Self::Native => "native",
            Self::Own => "own",
        }
    }

    /// Whether one text is for both families.
    pub fn is_native(self) -> bool {
        matches!(self, Self::Native | Self::Own)
    }

    /// Whether no program is needed.
    pub fn is_by_netlink(self) -> bool {
        self.is_native() || self == Self::Netlink
    }
}

/// An address family, as far as program names go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl Family {
    /// The program that writes rules: `iptables-nft-restore` and so on, or nft.
    pub fn restore(self, variant: Variant) -> Vec<String> {
        match variant {
            Variant::Native | Variant::Own => ["nft", "-f", "-"].map(str::to_owned).to_vec(),
            _ => vec![self.program(variant, "restore")],
        }
    }

    /// The program that prints rules, without counters or with some that can be left out.
    pub fn save(self, variant: Variant) -> Vec<String> {
        match variant {
            Variant::Native | Variant::Own => {
                ["nft", "--stateless", "list", "ruleset", "inet"].map(str::to_owned).to_vec()
            }
            _ => vec![self.program(variant, "save")],
        }
    }

    fn program(self, variant: Variant, verb: &str) -> String {
        let base = match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        };
        let which = if variant == Variant::Legacy { "legacy" } else { "nft" };
        format!("{base}-{which}-{verb}")
    }
}

/// The addresses that the pod has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv4 and IPv6.
    Dual,
}

impl Families {
    /// The families one by one, in the order they are restored.
    pub fn each(self) -> &'static [Family] {
        match self {
            Self::V4 => &[Family::V4],
            Self::Dual => &[Family::V4, Family::V6],
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::Dual => "dual",
        }
    }
}

/// What is done to a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Capture a pod that has no rules.
    FirstApply,
    /// The same again.
    NoOp,
    /// The same with one port more excluded, over the rules that are there.
    Change,
    /// Take the rules away.
    Cleanup,
}

impl Operation {
    /// All of them, in the order they are reported.
    pub const ALL: [Self; 4] = [Self::FirstApply, Self::NoOp, Self::Change, Self::Cleanup];

    fn as_str(self) -> &'static str {
        match self {
            Self::FirstApply => "first apply",
            Self::NoOp => "no-op",
            Self::Change => "change",
            Self::Cleanup => "cleanup",
        }
    }

    /// Does it find the pod captured already?
    pub fn on_captured_pod(self) -> bool {
        self != Self::FirstApply
    }
}

/// One row of the benchmark.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Case {
    /// By what.
    pub variant: Variant,
    /// In what pod.
    pub families: Families,
    /// Doing what.
    pub operation: Operation,
}

impl Case {
    /// The texts that the rules consist of: one for each family, or one for both.
    pub fn texts(self) -> &'static [Family] {
        match self.variant {
            Variant::Native | Variant::Own => &[Family::V4],
            _ => self.families.each(),
        }
    }

    /// The case as JSON object members.
    pub fn to_json(self) -> Value {
        json!({
            "operation": self.operation.as_str(),
            "families": self.families.as_str(),
            "variant": self.variant.as_str(),
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variant, families, operation } = self;
        write!(f, "{} {} {}", operation.as_str(), families.as_str(), variant.as_str())
    }
}
