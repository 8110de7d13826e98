//! What a dialect calls its chains.

use super::native::NftLayout;
use super::{Chain, ChainName, Comment, Home, Role, Rule};

/// What a dialect calls its chains, and whether its rules in builtin chains carry a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Decides about connections to the pod; PREROUTING jumps to it.
    pub inbound: ChainName,
    /// Redirects to the proxy's outbound port.
    pub redirect: ChainName,
    /// Redirects to the proxy's inbound port.
    pub in_redirect: ChainName,
    /// Decides about connections from the pod; OUTPUT jumps to it.
    pub output: ChainName,
    /// DNS queries from the pod.
    pub output_dns: ChainName,
    /// Marks packets of connections that the proxy has.
    pub divert: ChainName,
    /// Hands packets to the transparent proxy.
    pub tproxy: ChainName,
    /// Drops packets that belong to no connection (state `INVALID`).
    pub drop: ChainName,
    /// Whether rules in builtin chains that don't jump carry a comment, by which they are known.
    pub tagged: bool,
    /// What the table of nftables is called that is added beside the rules of iptables, where these are
    /// to stay as another tool writes them; none where they need none.
    pub guard: Option<&'static NftLayout>,
    /// Where the address is that the proxy passes connections on from.
    pub passthrough: Home,
    /// In what its rules differ from others that mean the same.
    pub style: Style,
}

/// In what rules of iptables differ that treat every packet alike.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// The layout's chains that are not made: their rules stand in the place of the jump to them. Their
    /// names are met by nobody.
    pub inlined: &'static [ChainName],
    /// Roles whose ports are asked for by `multiport`, as many in a rule as it takes.
    pub multiport: &'static [Role],
    /// Whether the jump of what arrives asks for TCP, though the rules that it leads to do as well.
    pub tcp_jump: bool,
    /// Roles whose rules don't ask for TCP, since their chain is led nothing else.
    pub any_protocol: &'static [Role],
    /// Roles whose rules ask for TCP, though their chain is led nothing else.
    pub tcp: &'static [Role],
    /// Roles whose rules are put at the head of their chain when it is whole, in the order of these, so that
    /// the last one is the first.
    pub at_head: &'static [Role],
    /// Whether DNS queries that are asked for where packets leave are led to a chain of theirs first, which is
    /// made whether they are captured or not.
    pub dns_chain: bool,
    /// Whether excluded source networks stand before excluded ports.
    pub sources_first: bool,
    /// Whether jumps to chains without rules are written as well.
    pub empty_jumps: bool,
    /// The comment of a rule in a chain; none where rules have none.
    pub comment: Option<fn(&Chain, &Rule) -> Option<Comment>>,
}

/// Functions can't be compared: two styles are equal when all else is.
impl PartialEq for Style {
    fn eq(&self, other: &Self) -> bool {
        let functions = self.comment.is_some() == other.comment.is_some();
        let roles = |style: &Self| (style.any_protocol, style.tcp, style.at_head);
        let rest = |style: &Self| {
            let alike = (style.dns_chain, style.sources_first, style.empty_jumps);
            (style.inlined, style.multiport, style.tcp_jump, alike)
        };
        functions && roles(self) == roles(other) && rest(self) == rest(other)
    }
}

impl Eq for Style {}

impl Style {
    /// That of istio-iptables: every chain, a rule for each port, no comments.
    pub const PLAIN: Self = Self {
        inlined: &[],
        multiport: &[],
        tcp_jump: true,
        any_protocol: &[],
        tcp: &[],
        at_head: &[],
        dns_chain: false,
        sources_first: false,
        empty_jumps: false,
        comment: None,
    };
}

impl Layout {
    /// All eight names in the order of the fields, also of chains that a policy never makes.
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
