//! From the policy to the ruleset: the sidecar's chains, in the order in which istio-iptables
//! writes them. Names come from the dialect.

mod build;
mod dns;
mod inbound;
mod outbound;
pub(crate) mod purpose;
mod tproxy;

use build::Builder;

use crate::policy::{CapturePolicy, InboundMode};
use crate::ruleset::{ChainName, Home, Routing, Ruleset};
use crate::value::Family;

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

/// The mark of a proxy's connection to its own pod that is to come in by the inbound port.
pub const SELF_CALL_MARK: u32 = 1338;

/// The rules that carry out `policy`.
pub fn compile(policy: &CapturePolicy, layout: &Layout) -> Ruleset {
    let family = |family| {
        let mut b = Builder::new(policy, layout, family);
        inbound::interfaces(&mut b);
        inbound::drop_invalid(&mut b);
        inbound::chains(&mut b);
        inbound::capture(&mut b);
        outbound::enter(&mut b);
        outbound::identity(&mut b);
        outbound::groups(&mut b);
        dns::capture(&mut b);
        outbound::selection(&mut b);
        tproxy::bookkeeping(&mut b);
        b.emissions
    };
    Ruleset {
        v4: family(Family::V4),
        v6: policy.ipv6.value.then(|| family(Family::V6)),
        routing: routing(policy, layout.passthrough),
    }
}

/// The policy routing and addresses that `policy` needs, whatever the backend.
pub fn routing(policy: &CapturePolicy, passthrough: Home) -> Routing {
    let tproxy = match &policy.inbound.mode {
        InboundMode::Tproxy { mark, table, .. } if policy.inbound.selection.captures() => {
            Some((mark.value, table.value))
        }
        _ => None,
    };
    Routing { tproxy, passthrough_v6: policy.ipv6.value.then_some(passthrough) }
}
