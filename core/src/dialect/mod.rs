//! How the tools of the meshes are told what to capture. Only here has a mesh a name.

mod error;
pub mod flags;
mod go;
pub mod istio;
pub mod linkerd;
mod list;
pub mod native;
pub mod others;
mod parts;
mod raw;
mod resolv_conf;

pub use error::{ConfigError, ConfigErrors};
pub use list::Reader;
pub use raw::Raw;

use crate::iptables::Dump;
use crate::nft::NftLayout;
use crate::ownership::Footprint;
use crate::policy::CapturePolicy;
use crate::source::Source;

/// A dialect whose rules can be met in a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Its name.
    pub name: &'static str,
    /// How its rules are known.
    pub footprint: Footprint,
    /// What its nftables tables and chains are called.
    pub nft_layout: &'static NftLayout,
    /// How settings are read back from its rules.
    pub reading: Reading,
    /// Rules of older releases as the newest one writes them, with the forms in which they were; none
    /// where they are in no older form that is known.
    pub modernize: fn(&Dump) -> Option<Modernized>,
}

/// How settings are read back from rules, in the names of the footprint's layout.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// The rules are those that Millrace's own settings give, in other names; with what in this
    /// dialect sets what a flag of Millrace's own commands sets.
    Common(fn(&str) -> Source),
    /// By the dialect, from the rules of IPv4 and of IPv6; none where no settings give them.
    Own(fn([Option<&Dump>; 2]) -> Option<CapturePolicy>),
}

/// Rules of older releases as the newest one writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modernized {
    /// The rules.
    pub dump: Dump,
    /// The forms in which they were; at least one.
    pub forms: Vec<OldForm>,
}

/// A form in which older releases wrote a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OldForm {
    /// The last release that wrote it, `(1, 24)`.
    pub last: (u8, u8),
    /// What it does not do that the newest does; none where it means the same.
    pub lacks: Option<&'static str>,
}

/// Every dialect.
pub static DIALECTS: &[Dialect] = &[
    Dialect {
        name: "istio-iptables",
        footprint: istio::FOOTPRINT,
        nft_layout: &istio::NFT_LAYOUT,
        reading: Reading::Common(istio::source_of),
        modernize: istio::modernize,
    },
    linkerd::DIALECT,
    native::DIALECT,
];

/// How rules of every dialect are known.
pub static FOOTPRINTS: &[Footprint] = &[istio::FOOTPRINT, linkerd::FOOTPRINT, native::FOOTPRINT];

/// The names of the nftables tables of every dialect.
pub static NFT_TABLES: &[&str] = &[
    istio::NFT_LAYOUT.nat,
    istio::NFT_LAYOUT.mangle,
    istio::NFT_LAYOUT.raw,
    istio::NFT_GUARD,
    linkerd::NFT_LAYOUT.nat,
    native::NFT_LAYOUT.nat,
];

/// The name of the dialect that has an nftables table of this name.
pub fn dialect_of_table(name: &str) -> &'static str {
    let of = |dialect: &&Dialect| dialect.nft_layout.names().any(|table| table == name);
    DIALECTS.iter().find(of).map_or(native::DIALECT.name, |dialect| dialect.name)
}
