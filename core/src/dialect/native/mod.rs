//! Millrace's own settings: flags of its commands, and a configuration file in YAML or JSON.

mod file;
mod resolve;
mod schema;
pub mod settings;

pub use file::{FileError, read_file};
pub use resolve::{Raw, resolve};
pub use schema::schema;

use super::{Dialect, istio};
use crate::nft::NftLayout;
use crate::ownership::Footprint;
use crate::ruleset::{ChainName, Home, Layout, Style};
use crate::source::Source;

/// Millrace's own dialect: names of its own, and what Istio takes for granted.
pub const DIALECT: Dialect = Dialect {
    name: "millrace",
    footprint: FOOTPRINT,
    nft_layout: &NFT_LAYOUT,
    mesh: &istio::MESH,
    source_of,
    modernize: |_| None,
};

/// The chains that Millrace's own commands make.
pub static LAYOUT: Layout = Layout {
    inbound: ChainName::known("MILLRACE_INBOUND"),
    redirect: ChainName::known("MILLRACE_REDIRECT"),
    in_redirect: ChainName::known("MILLRACE_IN_REDIRECT"),
    output: ChainName::known("MILLRACE_OUTPUT"),
    output_dns: ChainName::known("MILLRACE_OUTPUT_DNS"),
    divert: ChainName::known("MILLRACE_DIVERT"),
    tproxy: ChainName::known("MILLRACE_TPROXY"),
    drop: ChainName::known("MILLRACE_DROP"),
    tagged: true,
    guard: None,
    passthrough: Home::Own,
    style: Style::PLAIN,
};

/// The one nftables table that Millrace's own commands make.
pub static NFT_LAYOUT: NftLayout = one_table("millrace");

/// One table for everything, in the form that is Millrace's own, with its name.
pub(super) const fn one_table(name: &'static str) -> NftLayout {
    NftLayout {
        nat: name,
        mangle: name,
        raw: name,
        guard: None,
        chains: Layout {
            inbound: ChainName::known("inbound"),
            redirect: ChainName::known("to-outbound-port"),
            in_redirect: ChainName::known("to-inbound-port"),
            output: ChainName::known("outbound"),
            output_dns: ChainName::known("dns"),
            divert: ChainName::known("divert"),
            tproxy: ChainName::known("tproxy"),
            drop: ChainName::known("drop"),
            tagged: false,
            guard: None,
            passthrough: Home::Own,
            style: Style::PLAIN,
        },
        bases: None,
        bare_jumps: false,
        one_table: true,
        invalid_of_tcp: false,
    }
}

/// How rules of Millrace's own commands are known: by their chains and their comment alone.
pub const FOOTPRINT: Footprint = Footprint::of(&LAYOUT);

/// The flag that sets a value of rules that are there, with its dashes; by a file it may have been set as well.
pub fn source_of(flag: &str, value: &str) -> Source {
    let name = format!("--{flag}");
    match flag {
        // They are of the resolver's configuration, unless somebody named them.
        "dns-servers" => Source::Rules,
        _ if value == default_of(flag) => Source::Default(name),
        _ => Source::Flag(name),
    }
}

/// The value of a setting that nobody sets.
pub fn default_of(flag: &str) -> &'static str {
    settings::find(flag).map_or("", |setting| setting.default)
}
