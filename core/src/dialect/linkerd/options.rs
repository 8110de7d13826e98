//! What proxy-init is asked to do besides what is captured.

use std::time::Duration;

use crate::value::Family;

/// Which iptables carries the rules out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// iptables-legacy, by its binaries.
    Legacy,
    /// iptables-nft, by netlink or by its binaries.
    Nft,
    /// Whichever the host calls `iptables`.
    Plain,
}

impl Mode {
    /// The name of a family's program.
    pub fn program(self, family: Family) -> String {
        let six = if family == Family::V6 { "6" } else { "" };
        let suffix = match self {
            Self::Legacy => "-legacy",
            Self::Nft => "-nft",
            Self::Plain => "",
        };
        format!("ip{six}tables{suffix}")
    }
}

/// What proxy-init is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Change nothing, and log the commands instead.
    pub simulate: bool,
    /// The namespace to work in.
    pub netns: Option<String>,
    /// Whether commands end in `-w`.
    pub wait_flag: bool,
    /// Seconds that connection tracking keeps connections in `CLOSE_WAIT`.
    pub close_wait: Option<u32>,
    /// The iptables that writes the rules, where they are not native nftables.
    pub mode: Mode,
    /// Whether nobody asked for that one.
    pub mode_by_default: bool,
    /// Native nftables instead of iptables.
    pub native: bool,
    /// How long to wait for locks.
    pub wait: Duration,
}
