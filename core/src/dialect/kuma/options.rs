//! What kumactl is asked to do besides what is captured.

use std::time::Duration;

/// Which iptables is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// None: whichever fits.
    Any,
    /// iptables-nft.
    Nft,
    /// iptables-legacy.
    Legacy,
}

/// What `kumactl install transparent-proxy` is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Touch nothing, and print the rules.
    pub dry_run: bool,
    /// Print them in long words.
    pub verbose: bool,
    /// Whether rules say what they are.
    pub comments: bool,
    /// Whether what leads to inbound capture is put in front of rules that are there.
    pub inbound_in_front: bool,
    /// The same for outbound.
    pub outbound_in_front: bool,
    /// Which iptables.
    pub programs: Programs,
    /// Native nftables instead of iptables.
    pub native: bool,
    /// How long to wait for locks.
    pub wait: Duration,
}
