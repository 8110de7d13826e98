//! How the tools of the meshes are told what to capture. Only here has a mesh a name.

pub mod alone;
pub mod ambient;
pub mod appmesh;
pub mod balancers;
pub mod consul;
mod error;
mod findings;
pub mod flags;
mod go;
mod init_container;
pub mod injector;
pub mod istio;
pub mod kuma;
pub mod linkerd;
pub mod lint;
mod list;
pub mod native;
pub mod osm;
pub mod others;
mod parts;
mod raw;
mod resolv_conf;
pub mod sidecar;

pub use error::{ConfigError, ConfigErrors};
pub use init_container::NotStated;
pub use list::ValueReader;
pub use raw::{FileValues, Raw};

use crate::iptables::Dump;
use crate::nft::NftLayout;
use crate::ownership::Footprint;
use crate::policy::{Conventions, ProxyMarks};
use crate::source::Source;

/// A mesh, and what its rules mean that is not written in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// As it is printed; that of the project, not of a tool.
    pub name: &'static str,
    /// What it takes for granted.
    pub conventions: Conventions,
    /// Whether its proxy takes tunnels on a port of their own.
    pub tunnels: bool,
    /// Whether its tool takes a proxy that is known by no user and no group.
    pub nobody: bool,
    /// Whether its tool captures connections from the pod whatever it is told.
    pub always_outbound: bool,
    /// The marks by which its proxy is known, where it is no process of the pod.
    pub marks: Option<ProxyMarks>,
    /// What captures a pod of it for which nobody has set anything, as a command line.
    pub usual: &'static str,
}

/// A dialect whose rules can be met in a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// As `status` prints it: the name of a mesh's tool or agent, or Millrace's own.
    pub name: &'static str,
    /// How its rules are known.
    pub footprint: Footprint,
    /// What its nftables tables and chains are called.
    pub nft_layout: &'static NftLayout,
    /// The mesh that its rules are for.
    pub mesh: &'static Mesh,
    /// What in this dialect sets what a flag of Millrace's own commands, without its dashes, sets to this
    /// value; the default, where it is that.
    pub source_of: fn(&str, &str) -> Source,
    /// Rules of older releases as the newest one writes them, with the forms in which they were; none
    /// where they are in no older form that is known.
    pub modernize: fn(&Dump) -> Option<Modernized>,
}

/// Rules of older releases as the newest one writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modernized {
    /// The same dump with rules in the newest form.
    pub dump: Dump,
    /// The forms in which they were; none where it is not known which releases wrote them so.
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

/// Every dialect, in the order in which rules are held against them.
pub static DIALECTS: &[Dialect] = &[
    Dialect {
        name: "istio-iptables",
        footprint: istio::FOOTPRINT,
        nft_layout: &istio::NFT_LAYOUT,
        mesh: &istio::MESH,
        source_of: istio::source_of,
        modernize: istio::modernize,
    },
    linkerd::DIALECT,
    kuma::DIALECT,
    consul::DIALECT,
    osm::DIALECT,
    appmesh::DIALECT,
    ambient::DIALECT,
    ambient::CILIUM_DIALECT,
    native::DIALECT,
];

/// How rules of every dialect are known.
pub static FOOTPRINTS: &[Footprint] = &[
    istio::FOOTPRINT,
    linkerd::FOOTPRINT,
    kuma::DIALECT.footprint,
    consul::FOOTPRINT,
    osm::DIALECT.footprint,
    appmesh::DIALECT.footprint,
    ambient::DIALECT.footprint,
    ambient::CILIUM_DIALECT.footprint,
    native::FOOTPRINT,
];

/// Marks with their routing tables that belong to a mesh's capture, whoever wrote its rules.
pub const MARKS: [(u32, u32); 1] = [istio::TPROXY_DEFAULTS];

/// The names of the nftables tables of every dialect.
pub static NFT_TABLES: &[&str] = &[
    istio::NFT_LAYOUT.nat,
    istio::NFT_LAYOUT.mangle,
    istio::NFT_LAYOUT.raw,
    istio::NFT_GUARD,
    linkerd::NFT_LAYOUT.nat,
    kuma::NFT_LAYOUT.nat,
    consul::NFT_LAYOUT.nat,
    osm::NFT_LAYOUT.nat,
    appmesh::NFT_LAYOUT.nat,
    ambient::NFT_LAYOUT.nat,
    ambient::NFT_LAYOUT.mangle,
    ambient::NFT_LAYOUT.raw,
    ambient::CILIUM_NFT_LAYOUT.nat,
    native::NFT_LAYOUT.nat,
];

/// The name of the dialect that has an nftables table of this name.
pub fn dialect_of_table(name: &str) -> &'static str {
    let of = |dialect: &&Dialect| dialect.nft_layout.names().any(|table| table == name);
    DIALECTS.iter().find(of).map_or(native::DIALECT.name, |dialect| dialect.name)
}
