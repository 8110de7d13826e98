//! Open Service Mesh: what the script of its injector does, by settings of its configuration and annotations.

mod flags;
mod manifest;
mod resolve;
mod script;
mod written;

pub use flags::Osm;
pub use manifest::{INJECTOR, init_script};
pub use resolve::{Options, Raw, Resolved, resolve};
pub use script::script;

use crate::dialect::flags::Words as _;
use crate::dialect::{Dialect, Mesh, native};
use crate::nft::NftLayout;
use crate::ownership::Footprint;
use crate::ruleset::{ChainName, Home, Layout, Role, Style};
use crate::source::Source;

/// Open Service Mesh, which was archived in 2023.
pub static MESH: Mesh = Mesh {
    name: "Open Service Mesh",
    conventions: resolve::CONVENTIONS,
    tunnels: false,
    nobody: false,
    always_outbound: true,
    marks: None,
    usual: "osm",
};

/// Its script's rules, and what Millrace adds in its place.
pub const DIALECT: Dialect = Dialect {
    name: "Open Service Mesh",
    footprint: Footprint { unmarked: written::localhost, ..Footprint::of(&LAYOUT) },
    nft_layout: &NFT_LAYOUT,
    mesh: &MESH,
    source_of,
    modernize: written::modernize,
};

/// The chains that the script makes; the last four of these are met by nobody.
pub static LAYOUT: Layout = Layout {
    inbound: ChainName::known("OSM_PROXY_INBOUND"),
    redirect: ChainName::known("OSM_PROXY_OUT_REDIRECT"),
    in_redirect: ChainName::known("OSM_PROXY_IN_REDIRECT"),
    output: ChainName::known("OSM_PROXY_OUTBOUND"),
    output_dns: ChainName::known("OSM_PROXY_DNS"),
    divert: ChainName::known("OSM_PROXY_DIVERT"),
    tproxy: ChainName::known("OSM_PROXY_TPROXY"),
    drop: ChainName::known("OSM_PROXY_DROP"),
    tagged: false,
    guard: None,
    passthrough: Home::Own,
    style: Style { any_protocol: &[Role::SelfCall], ..Style::PLAIN },
};

/// The one table of native nftables. The script has none: this is Millrace's own form.
pub static NFT_LAYOUT: NftLayout = native::one_table("osm-init");

/// The flag that sets what a flag of Millrace's own commands sets.
fn source_of(flag: &str, value: &str) -> Source {
    let name = match flag {
        "exclude-inbound-ports" => "inbound-port-exclusion-list",
        "exclude-outbound-ports" => "outbound-port-exclusion-list",
        "exclude-outbound-cidrs" => "outbound-ip-range-exclusion-list",
        "include-outbound-cidrs" => "outbound-ip-range-inclusion-list",
        "exclude-interfaces" => "network-interface-exclusion-list",
        // Nobody chooses anything else.
        _ => return Source::Always,
    };
    let own = || Source::Flag(format!("--{name}"));
    Osm::find(name).map_or_else(own, |flag| flag.source(value))
}
