//! istio-iptables: its flags, its environment, its defaults (Istio 1.32).

pub mod annotations;
mod dry_run;
pub mod flags;
mod footprint;
mod init_container;
pub mod lint;
mod modern;
mod older;
mod refusal;
mod resolve;

pub use dry_run::dry_run_log;
pub use footprint::FOOTPRINT;
pub use init_container::{InitContainer, contradictions, init_container, writes_nothing};
pub use resolve::{ForcedVariant, Options, Resolved, resolve};

pub use crate::dialect::go::{parse_bool, parse_duration};
use crate::dialect::{Mesh, Modernized};
use crate::iptables::Dump;
use crate::nft::NftLayout;
use crate::policy::Conventions;
use crate::ruleset::{ChainName, Home, Layout, Style};
use crate::source::Source;

/// Flags and variables as they were typed.
pub type Raw = crate::dialect::raw::Raw<flags::Istio>;

/// The mark and the routing table of TPROXY when nobody says otherwise.
pub const TPROXY_DEFAULTS: (u32, u32) = (1337, 133);

/// Istio with a sidecar in each pod.
pub static MESH: Mesh = Mesh {
    name: "Istio",
    conventions: Conventions::OWN,
    tunnels: true,
    nobody: false,
    always_outbound: false,
    marks: None,
    usual: "istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i * -b * -d 15090,15021,15020",
};

/// The chains that istio-iptables makes.
pub static LAYOUT: Layout = Layout {
    inbound: ChainName::known("ISTIO_INBOUND"),
    redirect: ChainName::known("ISTIO_REDIRECT"),
    in_redirect: ChainName::known("ISTIO_IN_REDIRECT"),
    output: ChainName::known("ISTIO_OUTPUT"),
    output_dns: ChainName::known("ISTIO_OUTPUT_DNS"),
    divert: ChainName::known("ISTIO_DIVERT"),
    tproxy: ChainName::known("ISTIO_TPROXY"),
    drop: ChainName::known("ISTIO_DROP"),
    tagged: false,
    guard: Some(&NFT_LAYOUT),
    passthrough: Home::Loopback,
    style: Style::PLAIN,
};

/// The table that Millrace adds to them: istio-iptables has none of the kind.
pub const NFT_GUARD: &str = "istio-proxy-guard";

/// The tables and chains that istio-iptables makes with `--native-nftables`.
pub static NFT_LAYOUT: NftLayout = NftLayout {
    nat: "istio-proxy-nat",
    mangle: "istio-proxy-mangle",
    raw: "istio-proxy-raw",
    guard: Some(NFT_GUARD),
    chains: Layout {
        inbound: ChainName::known("istio-inbound"),
        redirect: ChainName::known("istio-redirect"),
        in_redirect: ChainName::known("istio-in-redirect"),
        output: ChainName::known("istio-output"),
        output_dns: ChainName::known("istio-output-dns"),
        divert: ChainName::known("istio-divert"),
        tproxy: ChainName::known("istio-tproxy"),
        drop: ChainName::known("istio-drop"),
        tagged: false,
        guard: None,
        passthrough: Home::Loopback,
        style: Style::PLAIN,
    },
    bases: None,
    bare_jumps: false,
    one_table: false,
    invalid_of_tcp: true,
};

/// Rules of an older release as the newest one writes them.
pub(super) fn modernize(dump: &Dump) -> Option<Modernized> {
    modern::modernize(dump)
}

/// The flag or variable that sets what a flag of Millrace's own commands sets.
pub fn source_of(flag: &str, value: &str) -> Source {
    let value = match (flag, value) {
        // Who is meant where nobody is named.
        ("proxy-uid" | "proxy-gid", older::PROXY) => "",
        (_, value) => value,
    };
    let long = match flag {
        "outbound-port" => "envoy-port",
        "inbound-port" => "inbound-capture-port",
        "tunnel-port" => "inbound-tunnel-port",
        "mode" => "istio-inbound-interception-mode",
        "tproxy-mark" => "istio-inbound-tproxy-mark",
        "tproxy-table" => "istio-inbound-tproxy-route-table",
        "include-inbound-ports" => "istio-inbound-ports",
        "exclude-inbound-ports" => "istio-local-exclude-ports",
        "include-outbound-cidrs" => "istio-service-cidr",
        "exclude-outbound-cidrs" => "istio-service-exclude-cidr",
        "include-outbound-ports" => "istio-outbound-ports",
        "exclude-outbound-ports" => "istio-local-outbound-ports-exclude",
        "exclude-interfaces" => "istio-exclude-interfaces",
        "reroute-interfaces" => "kube-virt-interfaces",
        "dns" => "redirect-dns",
        "ipv6" => "dual-stack",
        "include-groups" => return Source::Env("ISTIO_OUTBOUND_OWNER_GROUPS".to_owned()),
        "exclude-groups" => return Source::Env("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE".to_owned()),
        "localhost-cidr" => return loopback(value),
        "dns-servers" => return Source::Host("/etc/resolv.conf".to_owned()),
        same => same,
    };
    let own = || Source::Flag(format!("--{long}"));
    flags::find(long).map_or_else(own, |flag| flag.source(value))
}

/// The variable of the network that is localhost.
fn loopback(value: &str) -> Source {
    const NAME: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
    let default = |(name, default, _): &(&str, &str, &str)| *name == NAME && *default == value;
    let name = NAME.to_owned();
    if flags::VARIABLES.iter().any(default) { Source::Default(name) } else { Source::Env(name) }
}
