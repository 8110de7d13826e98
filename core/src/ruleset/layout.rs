//! What a dialect calls its chains.

use super::native::NftLayout;
use super::{ChainName, Home};

/// What a dialect calls its chains, and whether its rules in builtin chains carry a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Connections to the pod.
    pub inbound: ChainName,
    /// Redirects to the proxy's outbound port.
    pub redirect: ChainName,
    /// Redirects to the proxy's inbound port.
    pub in_redirect: ChainName,
    /// Connections from the pod.
    pub output: ChainName,
    /// DNS queries from the pod.
    pub output_dns: ChainName,
    /// Marks packets of connections that the proxy has.
    pub divert: ChainName,
    /// Hands packets to the transparent proxy.
    pub tproxy: ChainName,
    /// Drops.
    pub drop: ChainName,
    /// Whether rules in builtin chains that don't jump carry a comment, by which they are known.
    pub tagged: bool,
    /// What the table of nftables is called that is added beside the rules of iptables, where these are
    /// to stay as another tool writes them; none where they need none.
    pub guard: Option<&'static NftLayout>,
    /// Where the address is that the proxy passes connections on from.
    pub passthrough: Home,
}

impl Layout {
    /// The chains' names.
    pub fn chains(&self) -> [&ChainName; 8] {
        [
            &self.inbound,
            &self.redirect,
            &self.in_redirect,
            &self.output,
            &self.output_dns,
            &self.divert,
            &self.tproxy,
            &self.drop,
        ]
    }
}
