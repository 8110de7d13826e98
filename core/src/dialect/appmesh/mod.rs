//! AWS App Mesh: what the init container `proxyinit` does, by its variables.

mod flags;
mod resolve;

pub use flags::AppMesh;
pub use resolve::{Options, Raw, options, policy};

use std::collections::BTreeMap;

use crate::capture::to_iptables;
use crate::dialect::flags::Words as _;
use crate::dialect::init_container::NotStated;
use crate::dialect::{Dialect, Mesh, Modernized, native};
use crate::iptables::{Dump, render_line};
use crate::nft::NftLayout;
use crate::ownership::Footprint;
use crate::pod::{Elsewhere, PodFacts};
use crate::policy::CapturePolicy;
use crate::ruleset::{ChainName, Home, Layout, Placement, Role, Style, Table};
use crate::source::Source;
use crate::value::Family;

/// AWS App Mesh, which ended in September 2026.
pub static MESH: Mesh = Mesh {
    name: "AWS App Mesh",
    conventions: resolve::CONVENTIONS,
    tunnels: false,
    nobody: false,
    always_outbound: true,
    marks: None,
    usual: "appmesh --start-enabled 1 --app-ports 8080",
};

/// Its script's rules, and what Millrace adds in its place.
pub const DIALECT: Dialect = Dialect {
    name: "AWS App Mesh",
    footprint: Footprint::of(&LAYOUT),
    nft_layout: &NFT_LAYOUT,
    mesh: &MESH,
    source_of,
    modernize,
};

/// The chains that the script makes; all others of these are met by nobody.
pub static LAYOUT: Layout = Layout {
    inbound: ChainName::known("APPMESH_INGRESS"),
    redirect: ChainName::known("APPMESH_EGRESS_REDIRECT"),
    in_redirect: ChainName::known("APPMESH_INGRESS_REDIRECT"),
    output: ChainName::known("APPMESH_EGRESS"),
    output_dns: ChainName::known("APPMESH_DNS"),
    divert: ChainName::known("APPMESH_DIVERT"),
    tproxy: ChainName::known("APPMESH_TPROXY"),
    drop: ChainName::known("APPMESH_DROP"),
    tagged: false,
    guard: None,
    passthrough: Home::Own,
    style: Style {
        inlined: &[
            ChainName::known("APPMESH_EGRESS_REDIRECT"),
            ChainName::known("APPMESH_INGRESS_REDIRECT"),
        ],
        multiport: &[Role::ExcludedPort, Role::Inbound],
        tcp: &[Role::ExcludedNetwork],
        ..Style::PLAIN
    },
};

/// The one table of native nftables. The script has none: this is Millrace's own form.
pub static NFT_LAYOUT: NftLayout = native::one_table("appmesh-proxyinit");

/// The commands of iptables that write the rules of a policy.
pub fn commands(policy: &CapturePolicy) -> String {
    let ruleset = to_iptables(policy, &LAYOUT);
    let mut lines = Vec::new();
    for family in ruleset.families() {
        let program = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let mut made: Vec<String> = Vec::new();
        for emission in ruleset.family(family) {
            let line = render_line(emission);
            let is_own = LAYOUT.chains().iter().any(|chain| chain.as_str() == line.chain);
            if is_own && !made.contains(&line.chain) {
                lines.push(format!("{program} -t {} -N {}", line.table, line.chain));
                made.push(line.chain.clone());
            }
        }
        // A chain has to be there before a rule leads to it.
        for emission in ruleset.family(family) {
            let line = render_line(emission);
            let verb = match emission.placement {
                Placement::Append => "-A".to_owned(),
                Placement::Insert(_) => "-I".to_owned(),
            };
            lines.push(format!("{program} -t {} {verb} {} {}", line.table, line.chain, line.body));
        }
    }
    lines.join("\n") + "\n"
}

/// Rules of older images, whose script made a chain of `mangle` as well, and led nothing to it.
fn modernize(dump: &Dump) -> Option<Modernized> {
    let mut modern = dump.clone();
    let mangle = modern.tables.iter_mut().find(|t| t.name == Table::Mangle.as_str())?;
    let before = mangle.chains.len();
    mangle.chains.retain(|c| c.name != LAYOUT.inbound.as_str() || !c.rules.is_empty());
    (mangle.chains.len() < before).then(|| Modernized { dump: modern, forms: Vec::new() })
}

/// The variables that a pod's init container has; none where the pod has no such container.
///
/// # Errors
/// When the manifest does not tell them.
pub fn init_container(pod: &PodFacts) -> Option<Result<Raw, NotStated>> {
    let container = pod.container("proxyinit").filter(|container| container.init)?;
    let words: Vec<&String> = container.command.iter().chain(&container.args).collect();
    if !words.is_empty() {
        let program = words.into_iter().take(2).cloned().collect::<Vec<_>>().join(" ");
        let (container, tool) = (container.name.clone(), "the script of its image");
        return Some(Err(NotStated::Program { container, program, tool }));
    }
    let matters = |name: &&String| name.ends_with('*') || AppMesh::is_variable(name);
    if let Some(name) = container.env_elsewhere.iter().find(matters) {
        let (container, source) = (container.name.clone(), Elsewhere(name.clone()));
        return Some(Err(NotStated::Elsewhere { container, source }));
    }
    let env: BTreeMap<String, String> = container.env.clone();
    Some(Ok(Raw::new([], env)))
}

/// The flag that sets what a flag of Millrace's own commands sets.
fn source_of(flag: &str, value: &str) -> Source {
    let name = match flag {
        "inbound-port" => "envoy-ingress-port",
        "outbound-port" => "envoy-egress-port",
        "include-inbound-ports" => "app-ports",
        "exclude-outbound-ports" => "egress-ignored-ports",
        "exclude-outbound-cidrs" => "egress-ignored-ip",
        "proxy-uid" => "ignore-uid",
        "proxy-gid" => "ignore-gid",
        // Nobody chooses anything else.
        _ => return Source::Always,
    };
    AppMesh::find(name).map_or(Source::Always, |flag| flag.source(value))
}
