//! Which backend is used, and how its rules are written.

use std::fmt;

use serde::Serialize;

use super::target::{FamilyState, Groups};
use crate::observed::{Observed, Variant};
use crate::ownership::Footprint;
use crate::preflight::Backend;
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
    const fn has(self, means: Means) -> bool {
        match means {
            Means::NFTABLES | Means::IPTABLES_NFT => self.nf_tables,
            Means::NFT_PROGRAMS => self.nft && self.nf_tables,
            Means::LEGACY_PROGRAMS => self.legacy,
            Means { .. } => false,
        }
    }
}

/// A backend, and whether its rules are written by programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Means {
    /// The backend.
    pub backend: Backend,
    /// Whether rules are written by the programs of iptables; else they are by netlink.
    pub programs: bool,
}

impl Means {
    /// Native nftables.
    pub const NFTABLES: Self = Self { backend: Backend::Nftables, programs: false };
    /// iptables-nft, whose tables are written by netlink.
    pub const IPTABLES_NFT: Self = Self { backend: Backend::IptablesNft, programs: false };
    /// iptables-nft by its programs.
    pub const NFT_PROGRAMS: Self = Self { backend: Backend::IptablesNft, programs: true };
    /// iptables-legacy, which only its programs can write.
    pub const LEGACY_PROGRAMS: Self = Self { backend: Backend::IptablesLegacy, programs: true };
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Whatever fits, native nftables before iptables.
    Auto,
    /// Either iptables.
    Iptables,
    /// The programs of this iptables.
    Programs(Variant),
    /// This backend, by whatever means.
    Backend(Backend),
}

/// What is used, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The means.
    pub means: Means,
    /// Why.
    pub why: &'static str,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.means.backend.as_str())?;
        if self.means == Means::NFT_PROGRAMS {
            f.write_str(" by its programs")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// No backend can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBackend {
    /// The programs that were asked for are not there.
    #[error(
        "{0} was asked for, but its programs ({0}-save, {0}-restore) are not installed: install \
         the package iptables, or ask for the other one"
    )]
    Forced(Variant),
    /// The kernel lacks what was asked for.
    #[error(
        "{} was asked for, but the kernel has no nf_tables: load the module nf_tables \
         (CONFIG_NF_TABLES), or use iptables-legacy", .0.as_str()
    )]
    NoNfTables(Backend),
    /// The kernel can't, and no program is there.
    #[error(
        "the kernel has no nf_tables, and no iptables is installed: load the module nf_tables \
         (CONFIG_NF_TABLES), or install the package iptables for iptables-legacy"
    )]
    Nothing,
}

/// Choose: what is asked for; else what holds rules of ours already, so that a second run never
/// changes sides; else legacy if it holds rules of anybody and iptables is asked for; else
/// `nf_tables` if the kernel has it; else legacy. Looking has no effect: nothing is written to find
/// out. What was tried in vain is in `avoid`.
///
/// # Errors
/// When none can be used, what to install or load.
pub fn choose(
    observed: &Observed,
    wish: Wish,
    tooling: Tooling,
    footprints: &[Footprint],
    avoid: &[Means],
) -> Result<Choice, NoBackend> {
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
    let native = !observed.native.is_empty();
    let (auto, iptables) = (wish == Wish::Auto, matches!(wish, Wish::Auto | Wish::Iptables));
    let only = |backend| wish == Wish::Backend(backend);
    let (nft, legacy) = (only(Backend::IptablesNft), only(Backend::IptablesLegacy));
    let programs = |variant| wish == Wish::Programs(variant);
    let asked = "asked for";
    let ours = "it holds rules of an earlier run";
    let kernel = "the kernel has nf_tables";
    let order: [(Means, bool, &'static str); 12] = [
        (Means::NFTABLES, only(Backend::Nftables), asked),
        (Means::NFT_PROGRAMS, programs(Variant::Nft), asked),
        (Means::LEGACY_PROGRAMS, legacy || programs(Variant::Legacy), asked),
        (Means::IPTABLES_NFT, nft, asked),
        (Means::NFT_PROGRAMS, nft, "asked for, and the kernel lacks what netlink needs"),
        (Means::NFTABLES, auto && native, ours),
        (Means::IPTABLES_NFT, iptables && holds(Variant::Nft), ours),
        (Means::NFT_PROGRAMS, iptables && holds(Variant::Nft), ours),
        (Means::LEGACY_PROGRAMS, iptables && holds(Variant::Legacy), ours),
        (
            Means::LEGACY_PROGRAMS,
            wish == Wish::Iptables && has_rules(Variant::Legacy),
            "it holds rules of others",
        ),
        (if auto { Means::NFTABLES } else { Means::IPTABLES_NFT }, iptables, kernel),
        (Means::NFT_PROGRAMS, iptables, "the kernel lacks what netlink needs"),
    ];
    let last = (Means::LEGACY_PROGRAMS, iptables, "nf_tables can't be used here");
    order
        .into_iter()
        .chain([last])
        .find(|(means, applies, _)| *applies && tooling.has(*means) && !avoid.contains(means))
        .map(|(means, _, why)| Choice { means, why })
        .ok_or(match wish {
            Wish::Backend(backend @ (Backend::Nftables | Backend::IptablesNft)) => {
                NoBackend::NoNfTables(backend)
            }
            Wish::Programs(Variant::Nft) if !tooling.nf_tables => {
                NoBackend::NoNfTables(Backend::IptablesNft)
            }
            Wish::Programs(variant) => NoBackend::Forced(variant),
            Wish::Backend(Backend::IptablesLegacy) => NoBackend::Forced(Variant::Legacy),
            Wish::Auto | Wish::Iptables => NoBackend::Nothing,
        })
}
