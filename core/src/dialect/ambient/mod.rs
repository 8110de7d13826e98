//! Ambient mode: the rules in a pod that a proxy of the node, ztunnel, serves, as Istio's agent writes them
//! and as Cilium's does.

pub mod enrol;
mod flags;
mod resolve;
mod text;

pub use flags::Ambient;
pub use resolve::{Action, Flavour, Options, Raw, Resolved, netns_target, resolve};
pub use text::{dry_run, transaction};

use crate::dialect::flags::Words as _;
use crate::dialect::{Dialect, Mesh, native};
use crate::nft::NftLayout;
use crate::nft::tables::{NativeTable, named};
use crate::ownership::Footprint;
use crate::policy::ProxyMarks;
use crate::ruleset::{ChainName, Home, Layout, Masked, Style};
use crate::source::Source;
use crate::value::RouteTable;

const MESH_NAME: &str = "Istio's ambient mode";
const CILIUM_NAME: &str = "Cilium's ztunnel";

/// The marks of ztunnel: of what it sends, and of connections of which it sent something; and where
/// answers are looked up.
const MARKS: ProxyMarks = ProxyMarks {
    proxy: Masked { value: 0x539, mask: 0xfff },
    connection: Masked { value: 0x111, mask: 0xfff },
    table: match RouteTable::new(100) {
        Some(table) => table,
        None => panic!("a routing table"),
    },
    priority: 32_764,
};

/// Istio's ambient mode: the proxy runs on the node, with sockets in each pod.
pub static MESH: Mesh = MESH_DATA;

const MESH_DATA: Mesh = Mesh {
    name: "Ambient",
    conventions: resolve::CONVENTIONS,
    tunnels: true,
    nobody: true,
    always_outbound: true,
    marks: Some(MARKS),
    usual: "ambient rules",
};

/// Cilium with ztunnel as its proxy: other rules, and the same conventions.
pub static CILIUM: Mesh = Mesh { name: "Cilium", usual: "ambient rules --as cilium", ..MESH_DATA };

/// The rules that Istio's agent writes into a pod.
pub const DIALECT: Dialect = Dialect {
    name: MESH_NAME,
    footprint: footprint(&LAYOUT),
    nft_layout: &NFT_LAYOUT,
    mesh: &MESH,
    source_of,
    modernize: |_| None,
};

/// The rules that Cilium's agent writes into a pod.
pub const CILIUM_DIALECT: Dialect = Dialect {
    name: CILIUM_NAME,
    footprint: footprint(&CILIUM_LAYOUT),
    nft_layout: &CILIUM_NFT_LAYOUT,
    mesh: &CILIUM,
    ..DIALECT
};

/// Where its chain for what arrives is not, that for what leaves is a sidecar's, or one of the node.
const fn footprint(layout: &'static Layout) -> Footprint {
    let route = Some((MARKS.connection, MARKS.table.get()));
    Footprint { known_by: Some(&layout.inbound), route, ..Footprint::of(layout) }
}

/// A jump is written though its chain is empty, and nothing has a chain of its own but the two ways.
const STYLE: Style = Style { empty_jumps: true, ..Style::PLAIN };

/// The chains of Istio's agent; all but two of these are met by nobody.
pub static LAYOUT: Layout = Layout {
    inbound: ChainName::known("ISTIO_PRERT"),
    redirect: ChainName::known("ISTIO_PRERT_TO_OUTBOUND"),
    in_redirect: ChainName::known("ISTIO_PRERT_TO_INBOUND"),
    output: ChainName::known("ISTIO_OUTPUT"),
    output_dns: ChainName::known("ISTIO_PRERT_DNS"),
    divert: ChainName::known("ISTIO_PRERT_DIVERT"),
    tproxy: ChainName::known("ISTIO_PRERT_TPROXY"),
    drop: ChainName::known("ISTIO_PRERT_DROP"),
    tagged: false,
    guard: None,
    passthrough: Home::Own,
    style: STYLE,
};

/// The chains of Cilium's agent; likewise.
pub static CILIUM_LAYOUT: Layout = Layout {
    inbound: ChainName::known("CILIUM_PREROUTING"),
    redirect: ChainName::known("CILIUM_PRE_TO_OUTBOUND"),
    in_redirect: ChainName::known("CILIUM_PRE_TO_INBOUND"),
    output: ChainName::known("CILIUM_OUTPUT"),
    output_dns: ChainName::known("CILIUM_PRE_DNS"),
    divert: ChainName::known("CILIUM_PRE_DIVERT"),
    tproxy: ChainName::known("CILIUM_PRE_TPROXY"),
    drop: ChainName::known("CILIUM_PRE_DROP"),
    tagged: false,
    guard: None,
    passthrough: Home::Own,
    style: STYLE,
};

/// The tables and chains that Istio's agent makes with native nftables.
pub static NFT_LAYOUT: NftLayout = NftLayout {
    nat: "istio-ambient-nat",
    mangle: "istio-ambient-mangle",
    raw: "istio-ambient-raw",
    guard: None,
    chains: Layout {
        inbound: ChainName::known("istio-prerouting"),
        redirect: ChainName::known("istio-to-outbound"),
        in_redirect: ChainName::known("istio-to-inbound"),
        output: ChainName::known("istio-output"),
        output_dns: ChainName::known("istio-dns"),
        divert: ChainName::known("istio-divert"),
        tproxy: ChainName::known("istio-tproxy"),
        drop: ChainName::known("istio-drop"),
        tagged: false,
        guard: None,
        passthrough: Home::Own,
        style: STYLE,
    },
    bases: None,
    bare_jumps: true,
    one_table: false,
    invalid_of_tcp: false,
};

/// The one table of native nftables. Cilium's agent has none: this is Millrace's own form.
pub static CILIUM_NFT_LAYOUT: NftLayout = native::one_table("cilium-ztunnel");

/// Whether a table with the name of one in a pod is that of a node, whose probes get another address there:
/// it is the agent's, and not of a pod's capture.
pub fn is_of_node(name: &str, table: &NativeTable) -> bool {
    name == NFT_LAYOUT.nat && named(table, "postrouting").is_some()
}

/// The flag that sets what a flag of Millrace's own commands sets.
fn source_of(flag: &str, value: &str) -> Source {
    let name = match flag {
        "dns" => "dns-capture",
        "include-inbound-ports" => "bypass-inbound-capture",
        "reroute-interfaces" => "reroute-virtual-interfaces",
        same => same,
    };
    // All inbound ports are what there is without the switch.
    let value = match (flag, value) {
        ("include-inbound-ports", "*") => "false",
        _ => value,
    };
    // Nobody chooses anything else.
    Ambient::find(name).map_or(Source::Always, |flag| flag.source(value))
}
