//! istio-iptables: its flags, its environment, its defaults (Istio 1.32).

mod dry_run;
pub mod flags;
mod footprint;
mod go;
mod raw;
mod resolve;

pub use dry_run::dry_run_log;
pub use footprint::FOOTPRINT;
pub use go::{parse_bool, parse_duration};
pub use raw::Raw;
pub use resolve::{ForcedVariant, Options, Resolved, resolve};

use crate::compile::Layout;
use crate::ruleset::ChainName;

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
};
