//! Linkerd's proxy-init: its flags, its rules, the commands that it logs; and whom its CNI plugin
//! captures.

pub mod annotations;
mod comment;
mod flags;
mod manifest;
mod options;
mod resolve;
mod simulate;

pub use annotations::SIDECAR;
pub use flags::Linkerd;
pub use manifest::INJECTOR;
pub use options::{Mode, Options};
pub use resolve::{Raw, Resolved, resolve, said};
pub use simulate::commands;

use crate::dialect::flags::Words as _;
use crate::dialect::init_container::{NotStated, words};
use crate::dialect::{Dialect, Mesh, native};
use crate::nft::NftLayout;
use crate::ownership::Footprint;
use crate::pod::PodFacts;
use crate::ruleset::{ChainName, Home, Layout, Role, Style};
use crate::source::Source;

/// Linkerd with a proxy in each pod.
pub static MESH: Mesh = Mesh {
    name: "Linkerd",
    conventions: resolve::CONVENTIONS,
    tunnels: false,
    nobody: true,
    always_outbound: true,
    marks: None,
    usual: "linkerd -p 4143 -o 4140 -u 2102 --inbound-ports-to-ignore 4190,4191,4567,4568 \
            --outbound-ports-to-ignore 4567,4568",
};

/// proxy-init's rules, and what Millrace adds in its place.
pub const DIALECT: Dialect = Dialect {
    name: "Linkerd",
    footprint: FOOTPRINT,
    nft_layout: &NFT_LAYOUT,
    mesh: &MESH,
    source_of,
    modernize: |_| None,
};

/// How its rules are known: all of them are in its chains, or jump to them.
pub const FOOTPRINT: Footprint = Footprint::of(&LAYOUT);

/// The chains that proxy-init makes: it writes what leads to the proxy's ports into the chains of the
/// two directions, and knows no more roles than these.
pub static LAYOUT: Layout = Layout {
    inbound: ChainName::known("PROXY_INIT_REDIRECT"),
    redirect: ChainName::known("PROXY_INIT_TO_OUTBOUND"),
    in_redirect: ChainName::known("PROXY_INIT_TO_INBOUND"),
    output: ChainName::known("PROXY_INIT_OUTPUT"),
    output_dns: ChainName::known("PROXY_INIT_DNS"),
    divert: ChainName::known("PROXY_INIT_DIVERT"),
    tproxy: ChainName::known("PROXY_INIT_TPROXY"),
    drop: ChainName::known("PROXY_INIT_DROP"),
    tagged: false,
    guard: None,
    passthrough: Home::Own,
    style: Style {
        inlined: &[
            ChainName::known("PROXY_INIT_TO_OUTBOUND"),
            ChainName::known("PROXY_INIT_TO_INBOUND"),
        ],
        multiport: &[Role::ExcludedPort, Role::ExcludedInboundPort],
        tcp_jump: false,
        comment: Some(comment::comment),
        ..Style::PLAIN
    },
};

/// The one table of native nftables. proxy-init has none: this is Millrace's own form.
pub static NFT_LAYOUT: NftLayout = native::one_table("linkerd-proxy-init");

/// The flags that a pod's init container is given; none where the pod has no such container.
///
/// # Errors
/// When the manifest does not tell them.
pub fn init_container(pod: &PodFacts) -> Option<Result<Vec<String>, NotStated>> {
    let container = pod.container("linkerd-init").filter(|container| container.init)?;
    Some(words(container, &["linkerd2-proxy-init", "proxy-init"], 1))
}

/// The flag that sets what a flag of Millrace's own commands sets.
fn source_of(flag: &str, value: &str) -> Source {
    let value = match (flag, value) {
        // All are captured when none is given.
        ("include-inbound-ports", "*") => "",
        (_, value) => value,
    };
    let name = match flag {
        "inbound-port" => "incoming-proxy-port",
        "outbound-port" => "outgoing-proxy-port",
        "include-inbound-ports" => "ports-to-redirect",
        "exclude-inbound-ports" => "inbound-ports-to-ignore",
        "exclude-outbound-ports" => "outbound-ports-to-ignore",
        "exclude-inbound-cidrs" => "subnets-to-ignore",
        same => same,
    };
    // What no flag of it sets is its own way.
    Linkerd::find(name).map_or(Source::Always, |flag| flag.source(value))
}
