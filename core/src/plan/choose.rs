//! Which of the two iptables is used.

use std::fmt;

use super::target::{FamilyState, Groups};
use crate::observed::{Observed, Variant};
use crate::ownership::Footprint;
use crate::value::Family;

/// What the host can work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tooling {
    /// Whether the programs of iptables-nft are there.
    pub nft: bool,
    /// Whether the programs of iptables-legacy are there.
    pub legacy: bool,
    /// Whether the kernel has `nf_tables`.
    pub nf_tables: bool,
}

impl Tooling {
    const fn has(self, variant: Variant) -> bool {
        match variant {
            Variant::Nft => self.nft && self.nf_tables,
            Variant::Legacy => self.legacy,
        }
    }
}

/// A variant, and why it is the one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The variant.
    pub variant: Variant,
    /// Why.
    pub why: &'static str,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variant, self.why)
    }
}

/// No variant can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoVariant {
    /// The one that was asked for is not there.
    #[error(
        "{0} was asked for, but its programs ({0}-save, {0}-restore) are not installed: install \
         the package iptables, or ask for the other one"
    )]
    Forced(Variant),
    /// The kernel lacks what the one that was asked for needs.
    #[error(
        "iptables-nft was asked for, but the kernel has no nf_tables: load the module nf_tables \
         (CONFIG_NF_TABLES), or ask for legacy"
    )]
    NoNfTables,
    /// None is there.
    #[error(
        "no iptables is installed (looked for iptables-nft-restore, iptables-legacy-restore and \
         iptables-restore): install the package iptables"
    )]
    Nothing,
    /// Only iptables-nft is there, and the kernel can't do it.
    #[error(
        "only iptables-nft is installed, and the kernel has no nf_tables: load the module \
         nf_tables (CONFIG_NF_TABLES), or install iptables-legacy"
    )]
    OnlyNft,
}

/// Choose a variant: the one that is asked for; else the one that holds rules of ours already,
/// so that a second run never changes sides; else legacy if it holds rules of anybody; else nft
/// if the kernel has it; else legacy. Looking has no effect: nothing is written to find out.
///
/// # Errors
/// When none can be used, what to install or load.
pub fn choose(
    observed: &Observed,
    forced: Option<Variant>,
    tooling: Tooling,
    footprints: &[Footprint],
) -> Result<Choice, NoVariant> {
    if let Some(variant) = forced {
        return match variant {
            Variant::Nft if !tooling.nf_tables => Err(NoVariant::NoNfTables),
            _ if !tooling.has(variant) => Err(NoVariant::Forced(variant)),
            _ => Ok(Choice { variant, why: "asked for" }),
        };
    }
    let groups = Groups::new();
    let holds = |variant| {
        Family::ALL.iter().any(|family| {
            observed
                .holding(variant, *family)
                .is_some_and(|d| !FamilyState::found(d, footprints, &groups).is_empty())
        })
    };
    let has_rules = |variant| {
        observed
            .holdings
            .iter()
            .filter(|h| h.variant == variant)
            .any(|h| h.dump.tables.iter().flat_map(|t| &t.chains).any(|c| !c.rules.is_empty()))
    };
    let order: [(Variant, bool, &'static str); 5] = [
        (Variant::Nft, holds(Variant::Nft), "it holds rules of an earlier run"),
        (Variant::Legacy, holds(Variant::Legacy), "it holds rules of an earlier run"),
        (Variant::Legacy, has_rules(Variant::Legacy), "it holds rules of others"),
        (Variant::Nft, true, "the kernel has nf_tables"),
        (Variant::Legacy, true, "iptables-nft can't be used here"),
    ];
    order
        .into_iter()
        .find(|(variant, applies, _)| *applies && tooling.has(*variant))
        .map(|(variant, _, why)| Choice { variant, why })
        .ok_or(if tooling.nft { NoVariant::OnlyNft } else { NoVariant::Nothing })
}
