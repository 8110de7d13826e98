//! What kumactl is asked to do besides what is captured.

use std::time::Duration;

/// Which iptables was asked for, by the file names of the binaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// None is named, or not all alike: whichever fits is used.
    Any,
    /// All that are named have `-nft` in their names.
    Nft,
    /// All that are named have `-legacy` in their names.
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
    /// Whether what leads to outbound capture is put in front of rules that are there.
    pub outbound_in_front: bool,
    /// The iptables that its binaries name, where rules are not native nftables.
    pub programs: Programs,
    /// Native nftables instead of iptables.
    pub native: bool,
    /// How long to wait for locks.
    pub wait: Duration,
}
