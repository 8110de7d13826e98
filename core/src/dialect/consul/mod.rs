//! Consul's `connect redirect-traffic`: its flags, its settings as JSON, its rules, the commands and the
//! nftables batch that it runs; and whom its CNI plugin captures.

pub mod annotations;
mod commands;
mod flags;
mod json;
mod manifest;
mod resolve;

pub use annotations::SIDECAR;
pub use commands::{batch, commands};
pub use flags::Consul;
pub use manifest::{INJECTOR, InitContainer, init_container};
pub use resolve::{Options, Raw, Resolved, reads_input, resolve, said};

use crate::dialect::flags::Words as _;
use crate::dialect::{Dialect, Mesh};
use crate::nft::NftLayout;
use crate::ownership::Footprint;
use crate::ruleset::{ChainName, Home, Layout, Role, Style};
use crate::source::Source;

/// Consul with transparent proxies, on Kubernetes and elsewhere.
pub static MESH: Mesh = Mesh {
    name: "Consul",
    conventions: resolve::CONVENTIONS,
    tunnels: false,
    nobody: false,
    always_outbound: true,
    marks: None,
    usual: "consul connect redirect-traffic -proxy-uid=5995 -proxy-inbound-port=20000 -exclude-uid=5996",
};

/// Consul's rules, and what Millrace adds in its place.
pub const DIALECT: Dialect = Dialect {
    name: "Consul",
    footprint: FOOTPRINT,
    nft_layout: &NFT_LAYOUT,
    mesh: &MESH,
    source_of,
    modernize: |_| None,
};

/// How its rules are known: all of them are in its chains, or jump to them.
pub const FOOTPRINT: Footprint = Footprint::of(&LAYOUT);

/// Consul writes exclusions in front of all that its chains hold, and leaves it to what leads to them to ask for
/// TCP.
const STYLE: Style = Style {
    any_protocol: &[Role::ExcludedUser],
    at_head: &[
        Role::ExcludedInboundPort,
        Role::ExcludedPort,
        Role::ExcludedNetwork,
        Role::ExcludedUser,
    ],
    dns_chain: true,
    ..Style::PLAIN
};

/// The chains that Consul makes; the last three of these are met by nobody.
const CHAINS: Layout = Layout {
    inbound: ChainName::known("CONSUL_PROXY_INBOUND"),
    redirect: ChainName::known("CONSUL_PROXY_REDIRECT"),
    in_redirect: ChainName::known("CONSUL_PROXY_IN_REDIRECT"),
    output: ChainName::known("CONSUL_PROXY_OUTPUT"),
    output_dns: ChainName::known("CONSUL_DNS_REDIRECT"),
    divert: ChainName::known("CONSUL_PROXY_DIVERT"),
    tproxy: ChainName::known("CONSUL_PROXY_TPROXY"),
    drop: ChainName::known("CONSUL_PROXY_DROP"),
    tagged: false,
    guard: None,
    passthrough: Home::Own,
    style: STYLE,
};

/// The layout of its rules in iptables, with these chain names.
pub static LAYOUT: Layout = CHAINS;

/// The one table of native nftables, as Consul's newer releases make it; the others are met by nobody.
pub static NFT_LAYOUT: NftLayout = NftLayout {
    nat: "consul_tproxy",
    mangle: "consul_tproxy_marks",
    raw: "consul_tproxy_zones",
    guard: None,
    chains: CHAINS,
    bases: Some(["CONSUL_NAT_PREROUTING", "CONSUL_NAT_OUTPUT"]),
    bare_jumps: false,
    one_table: false,
    invalid_of_tcp: false,
};

/// The flag that sets what a flag of Millrace's own commands sets.
fn source_of(flag: &str, value: &str) -> Source {
    let name = match flag {
        "inbound-port" => "proxy-inbound-port",
        "outbound-port" => "proxy-outbound-port",
        "exclude-inbound-ports" => "exclude-inbound-port",
        "exclude-outbound-ports" => "exclude-outbound-port",
        "exclude-outbound-cidrs" => "exclude-outbound-cidr",
        "exclude-users" => "exclude-uid",
        "ipv6" => "dual-stack",
        same => same,
    };
    // Nobody chooses anything else.
    Consul::find(name).map_or(Source::Always, |flag| flag.source(value))
}
