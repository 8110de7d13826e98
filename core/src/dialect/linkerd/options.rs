//! What proxy-init is asked to do besides what is captured.

use std::time::Duration;

use crate::value::Family;

/// Which iptables carries the rules out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// iptables-legacy.
    Legacy,
    /// iptables-nft.
    Nft,
    /// Whichever the host calls `iptables`.
    Plain,
}

impl Mode {
    /// The name of a family's program.
    pub const fn program(self, family: Family) -> &'static str {
        match (family, self) {
            (Family::V4, Self::Legacy) => "iptables-legacy",
            (Family::V4, Self::Nft) => "iptables-nft",
            (Family::V4, Self::Plain) => "iptables",
            (Family::V6, Self::Legacy) => "ip6tables-legacy",
            (Family::V6, Self::Nft) => "ip6tables-nft",
            (Family::V6, Self::Plain) => "ip6tables",
        }
    }
}

/// What proxy-init is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Touch nothing.
    pub simulate: bool,
    /// The namespace to work in.
    pub netns: Option<String>,
    /// Whether commands end in `-w`.
    pub wait_flag: bool,
    /// Seconds that connection tracking keeps connections in `CLOSE_WAIT`.
    pub close_wait: Option<u32>,
    /// Which iptables.
    pub mode: Mode,
    /// Native nftables instead of iptables.
    pub native: bool,
    /// How long to wait for locks.
    pub wait: Duration,
}
