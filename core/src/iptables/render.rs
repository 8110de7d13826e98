//! From rules to text. The only place where rule text is made, and from types alone.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::layout::{Line, Verb};
use super::parse::COMMENT;
use crate::ruleset::{
    ConnState, Emission, Masked, Match, Owner, Placement, RedirectSpelling, Rule, Side, Target,
};
use crate::value::Family;

/// The text of a rule, without `-A CHAIN`.
pub fn render_rule(rule: &Rule) -> String {
    let mut words: Vec<String> = rule.matches.iter().map(render_match).collect();
    words.push(render_target(&rule.target));
    words.join(" ")
}

/// A rule as a line of a layout.
pub fn render_line(emission: &Emission) -> Line {
    let jump = match &emission.rule.target {
        Target::Jump(chain) => Some(chain.as_str().to_owned()),
        _ => None,
    };
    Line {
        table: emission.table.as_str().to_owned(),
        chain: emission.chain.as_str().to_owned(),
        verb: match emission.placement {
            Placement::Append => Verb::Append,
            Placement::Insert(position) => Verb::Insert(position),
        },
        body: render_rule(&emission.rule),
        jump,
    }
}

/// A condition in the words of iptables.
pub(crate) fn render_match(m: &Match) -> String {
    let not = |negated: bool| if negated { "! " } else { "" };
    match m {
        Match::Address { side, negated, cidr } => {
            let option = match side {
                Side::Source => "-s",
                Side::Destination => "-d",
            };
            format!("{}{option} {cidr}", not(*negated))
        }
        Match::InInterface { negated, name } => format!("{}-i {name}", not(*negated)),
        Match::OutInterface { negated, name } => format!("{}-o {name}", not(*negated)),
        Match::Protocol(protocol) => format!("-p {protocol}"),
        Match::Module(protocol) => format!("-m {protocol}"),
        Match::Port { side, negated, ports } => {
            let option = match side {
                Side::Source => "--sport",
                Side::Destination => "--dport",
            };
            format!("{}{option} {ports}", not(*negated))
        }
        Match::DestinationPorts { negated, ports } => {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            format!("-m multiport {}--dports {}", not(*negated), ports.join(","))
        }
        Match::Syn { negated } => format!("{}--syn", not(*negated)),
        Match::Owner { negated, owner } => {
            let not = not(*negated);
            match owner {
                Owner::Uid(uid) => format!("-m owner {not}--uid-owner {uid}"),
                Owner::Uids(uids) => format!("-m owner {not}--uid-owner {uids}"),
                Owner::Gid(gid) => format!("-m owner {not}--gid-owner {gid}"),
                Owner::Group(name) => format!("-m owner {not}--gid-owner {name}"),
            }
        }
        Match::LocalAddress { side, negated } => {
            let option = match side {
                Side::Source => "--src-type",
                Side::Destination => "--dst-type",
            };
            format!("-m addrtype {}{option} LOCAL", not(*negated))
        }
        Match::ConnState(states) => format!("-m conntrack --ctstate {}", render_states(states)),
        Match::OldState(states) => format!("-m state --state {}", render_states(states)),
        Match::Mark { negated, mark } => {
            format!("-m mark {}--mark {}", not(*negated), render_masked(*mark))
        }
        Match::Connmark { negated, mark } => {
            format!("-m connmark {}--mark {}", not(*negated), render_masked(*mark))
        }
        Match::Ours => format!("-m comment --comment {COMMENT}"),
        Match::Comment(comment) => format!("-m comment --comment {}", comment.quoted()),
    }
}

fn render_states(states: &[ConnState]) -> String {
    let names: Vec<&str> = states.iter().map(|s| s.as_str()).collect();
    names.join(",")
}

/// What REJECT tells by itself.
pub(super) const fn port_unreachable(family: Family) -> &'static str {
    match family {
        Family::V4 => "icmp-port-unreachable",
        Family::V6 => "icmp6-port-unreachable",
    }
}

/// A mark in decimal, its mask only when it is not all ones.
fn render_masked(m: Masked) -> String {
    let mut text = m.value.to_string();
    if m.mask != u32::MAX {
        write!(text, "/{:#x}", m.mask).expect("a String takes all");
    }
    text
}

/// What follows, in the words of iptables.
pub(crate) fn render_target(target: &Target) -> String {
    match target {
        Target::Return => "-j RETURN".to_owned(),
        Target::Accept => "-j ACCEPT".to_owned(),
        Target::Drop => "-j DROP".to_owned(),
        Target::Reject(family) => {
            format!("-j REJECT --reject-with {}", port_unreachable(*family))
        }
        Target::Jump(chain) => format!("-j {chain}"),
        Target::Redirect { port, spelling } => {
            let option = match spelling {
                RedirectSpelling::ToPorts => "--to-ports",
                RedirectSpelling::ToPort => "--to-port",
            };
            format!("-j REDIRECT {option} {port}")
        }
        Target::Dnat { address, port } => {
            let to = port.map_or_else(
                || address.to_string(),
                |port| SocketAddr::new(*address, port.get()).to_string(),
            );
            format!("-j DNAT --to-destination {to}")
        }
        Target::Snat { address } => format!("-j SNAT --to-source {address}"),
        Target::Tproxy { mark, port } => {
            format!("-j TPROXY --tproxy-mark {}/{:#x} --on-port {port}", mark.value, mark.mask)
        }
        Target::SetMark(mark) => format!("-j MARK --set-mark {}", render_masked(*mark)),
        Target::SetConnmark(mark) => {
            format!("-j CONNMARK --set-xmark {:#x}/{:#x}", mark.value, mark.mask)
        }
        Target::SaveMark => "-j CONNMARK --save-mark".to_owned(),
        Target::RestoreMark => "-j CONNMARK --restore-mark".to_owned(),
        Target::Zone(zone) => format!("-j CT --zone {zone}"),
    }
}
