//! Kuma's `kumactl install transparent-proxy`: its settings, its rules, the text of its dry run; and whom
//! its CNI plugin captures.

pub mod annotations;
mod comment;
mod file;
mod flags;
mod flows;
mod footprint;
mod manifest;
mod options;
mod resolve;
mod text;

pub use crate::dialect::raw::FileValues;
pub use annotations::SIDECAR;
pub use file::{FileError, read_file};
pub use flags::{Kuma, Uninstall};
pub use manifest::{INJECTOR, init_container};
pub use options::{Options, Programs};
pub use resolve::{Raw, Resolved, resolve, said};
pub use text::dry_run;

use crate::capture::to_iptables;
use crate::dialect::flags::Words as _;
use crate::dialect::{Dialect, Mesh, native};
use crate::nft::NftLayout;
use crate::ownership::Footprint;
use crate::policy::CapturePolicy;
use crate::ruleset::{
    Chain, ChainName, Emission, Home, Hook, Layout, Match, Placement, Role, Ruleset, Style, Table,
    Target,
};
use crate::source::Source;

/// Kuma, where `kumactl install transparent-proxy` captures pods.
pub static MESH: Mesh = Mesh {
    name: "Kuma",
    conventions: resolve::CONVENTIONS,
    tunnels: false,
    nobody: false,
    always_outbound: true,
    marks: None,
    usual: "kuma install transparent-proxy --kuma-dp-user 5678 --redirect-all-dns-traffic",
};

/// kumactl's rules, and what Millrace adds in its place.
pub const DIALECT: Dialect = Dialect {
    name: "Kuma",
    footprint: footprint::FOOTPRINT,
    nft_layout: &NFT_LAYOUT,
    mesh: &MESH,
    source_of,
    modernize: |_| None,
};

/// The same rules, written from outside of a pod while it is made.
pub static POD_DIALECT: Dialect =
    Dialect { footprint: Footprint { layout: &POD_LAYOUT, ..footprint::FOOTPRINT }, ..DIALECT };

/// The chains that kumactl makes, and the rules in them: those of DNS stand in builtin chains, and so does
/// what drops packets.
pub static LAYOUT: Layout = layout(Home::Loopback);

/// The same, but that nothing is put on the pod's loopback interface.
static POD_LAYOUT: Layout = layout(Home::Own);

const INLINED: &[ChainName] = &[ChainName::known("KUMA_MESH_DROP")];

const fn layout(passthrough: Home) -> Layout {
    Layout {
        inbound: ChainName::known("KUMA_MESH_INBOUND"),
        redirect: ChainName::known("KUMA_MESH_OUTBOUND_REDIRECT"),
        in_redirect: ChainName::known("KUMA_MESH_INBOUND_REDIRECT"),
        output: ChainName::known("KUMA_MESH_OUTBOUND"),
        output_dns: ChainName::known("KUMA_MESH_DNS"),
        divert: ChainName::known("KUMA_MESH_DIVERT"),
        tproxy: ChainName::known("KUMA_MESH_TPROXY"),
        drop: ChainName::known("KUMA_MESH_DROP"),
        tagged: false,
        guard: None,
        passthrough,
        style: Style {
            inlined: INLINED,
            tcp: &[Role::StaysInPod],
            sources_first: true,
            comment: Some(comment::comment),
            ..Style::PLAIN
        },
    }
}

/// The one table of native nftables. kumactl has none: this is Millrace's own form.
pub static NFT_LAYOUT: NftLayout = native::one_table("kuma-transparent-proxy");

/// The rules of iptables that carry out `policy` as `options` want them.
pub fn rules(policy: &CapturePolicy, options: &Options) -> Ruleset {
    let mut ruleset = to_iptables(policy, &LAYOUT);
    for emissions in [Some(&mut ruleset.v4), ruleset.v6.as_mut()].into_iter().flatten() {
        for (hook, in_front) in [
            (Hook::Prerouting, options.inbound_in_front),
            (Hook::Output, options.outbound_in_front),
        ] {
            if in_front {
                put_in_front(emissions, hook);
            }
        }
        for Emission { chain, rule, .. } in emissions.iter_mut() {
            // What else stands in a builtin chain is known by its comment alone.
            let may_go = matches!(chain, Chain::User(_)) || matches!(rule.target, Target::Jump(_));
            if may_go && !options.comments {
                rule.matches.retain(|condition| !matches!(condition, Match::Comment(_)));
            } else {
                // Behind the protocol and addresses, in front of what modules ask, as kumactl has it.
                rule.matches.sort_by_key(|condition| match condition {
                    Match::Protocol(_) | Match::Address { .. } | Match::OutInterface { .. } => 0,
                    Match::Comment(_) => 1,
                    _ => 2,
                });
            }
        }
    }
    ruleset
}

/// Put everything in a builtin chain of nat in front of rules that are there, in its order.
fn put_in_front(emissions: &mut [Emission], hook: Hook) {
    let is_there = |e: &Emission| e.table == Table::Nat && e.chain == Chain::Builtin(hook);
    let is_last = |e: &Emission| is_there(e) && e.placement == Placement::Append;
    let before = emissions.iter().filter(|e| is_there(e) && !is_last(e)).count();
    for (place, emission) in (before + 1..).zip(emissions.iter_mut().filter(|e| is_last(e))) {
        emission.placement = Placement::Insert(u32::try_from(place).unwrap_or(u32::MAX));
    }
}

/// The flag that sets what a flag of Millrace's own commands sets.
fn source_of(flag: &str, value: &str) -> Source {
    let (mut name, mut value) = (flag, value);
    match flag {
        // A switch, which captures everything or nothing.
        "include-inbound-ports" if value == "*" => (name, value) = ("redirect-inbound", "true"),
        "include-outbound-cidrs" if value == "*" => (name, value) = ("redirect-outbound", "true"),
        "dns" if value == "all" => (name, value) = ("redirect-all-dns-traffic", "true"),
        "dns" if value == "none" => value = "false",
        _ => {}
    }
    let name = match name {
        "inbound-port" => "redirect-inbound-port",
        "outbound-port" => "redirect-outbound-port",
        "proxy-uid" => "kuma-dp-user",
        "exclude-inbound-cidrs" => "exclude-inbound-ips",
        "exclude-outbound-cidrs" => "exclude-outbound-ips",
        "exclude-outbound-flows" => "exclude-outbound-ports-for-uids",
        "dns" => "redirect-dns",
        "dns-port" => "redirect-dns-port",
        "drop-invalid" => "drop-invalid-packets",
        "include-inbound-ports" => "redirect-inbound",
        "include-outbound-cidrs" => "redirect-outbound",
        same => same,
    };
    // Nobody chooses anything else.
    Kuma::find(name).map_or(Source::Always, |flag| flag.source(value))
}
