//! What the operator says of pods that the node's proxy serves.

use std::net::IpAddr;
use std::path::PathBuf;

use millrace_core::dialect::ambient::enrol::Selectors;

/// What the operator says of all pods of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which pods are served.
    pub selectors: Selectors,
    /// Whether DNS queries go to the proxy where the pod doesn't say.
    pub dns_capture: bool,
    /// Whether IPv6 is captured.
    pub ipv6: bool,
    /// Whether the rules of pods that were enrolled before are compared when the agent starts.
    pub reconciles: bool,
    /// Where the proxy connects to the agent.
    pub socket: PathBuf,
    /// Addresses of the node beside those by which it reaches a pod, from which its probes come too.
    pub node_ips: Vec<IpAddr>,
}
