//! What each rule of proxy-init says of itself.

use crate::ruleset::{Chain, Comment, Hook, Match, Owner, Rule, Side, Target};

/// The comment of a rule in a chain.
pub(super) fn comment(chain: &Chain, rule: &Rule) -> Option<Comment> {
    format!("proxy-init/{}", label(chain, rule)?).parse().ok()
}

/// What a rule is there for, in one word.
fn label(chain: &Chain, rule: &Rule) -> Option<String> {
    let outbound = *chain == Chain::User(super::LAYOUT.output.clone());
    let about = rule.matches.iter().find_map(|condition| match condition {
        Match::DestinationPorts { ports, .. } => {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            Some(format!("ignore-port-{}", ports.join(",")))
        }
        Match::Port { side: Side::Destination, ports, .. } => {
            Some(format!("redirect-port-{ports}-to-proxy-port"))
        }
        Match::Address { side: Side::Source, cidr, .. } => Some(format!("ignore-subnet-{cidr}")),
        Match::Owner { owner: Owner::Uid(_), .. } => Some("ignore-proxy-user-id".to_owned()),
        Match::Owner { .. } => Some("ignore-proxy-group-id".to_owned()),
        Match::OutInterface { .. } => Some("ignore-loopback".to_owned()),
        _ => None,
    });
    about.or_else(|| {
        let word = match (chain, &rule.target) {
            (Chain::Builtin(Hook::Prerouting), _) => "install-proxy-init-prerouting",
            (Chain::Builtin(Hook::Output), _) => "install-proxy-init-output",
            (_, Target::Redirect { .. }) if outbound => "redirect-all-outgoing-to-proxy-port",
            (_, Target::Redirect { .. }) => "redirect-all-incoming-to-proxy-port",
            _ => return None,
        };
        Some(word.to_owned())
    })
}
