//! What proxy-init logs with `--simulate`: every command that it would have run where nothing of it is
//! yet, a family after the other.

use super::options::Options;
use crate::iptables::{render_match, render_target};
use crate::ruleset::{Chain, Emission, Match, Rule, Ruleset, Side, Target};
use crate::value::Family;

/// The commands that write `ruleset`, each a line.
pub fn commands(ruleset: &Ruleset, options: &Options) -> Vec<String> {
    ruleset
        .families()
        .flat_map(|family| of_family(ruleset.family(family), family, options))
        .collect()
}

fn of_family(emissions: &[Emission], family: Family, options: &Options) -> Vec<String> {
    let enter = options.netns.as_ref().map(|path| format!("nsenter --net={path} -- "));
    let enter = enter.unwrap_or_default();
    let program = options.mode.program(family);
    let save = format!("{enter}{program}-save -t nat");
    let wait = if options.wait_flag { " -w" } else { "" };
    let mut lines = vec![save.clone()];
    for words in in_order(emissions) {
        lines.push(format!("{enter}{program} -t nat {words}{wait}"));
    }
    lines.push(save);
    lines
}

/// Each chain is made, gets its rules, and is jumped to.
fn in_order(emissions: &[Emission]) -> Vec<String> {
    let mut chains: Vec<&Chain> = Vec::new();
    for emission in emissions {
        if matches!(emission.chain, Chain::User(_)) && !chains.contains(&&emission.chain) {
            chains.push(&emission.chain);
        }
    }
    let mut words = Vec::new();
    for chain in chains {
        words.push(format!("-N {chain}"));
        let inside = emissions.iter().filter(|e| e.chain == *chain);
        let leads = emissions.iter().filter(
            |e| matches!(&e.rule.target, Target::Jump(to) if to.as_str() == chain.as_str()),
        );
        words.extend(inside.chain(leads).map(|e| format!("-A {} {}", e.chain, spelled(&e.rule))));
    }
    words
}

/// A rule in proxy-init's words: the comment stands behind the target, and so does a network.
fn spelled(rule: &Rule) -> String {
    let (mut before, mut behind) = (Vec::new(), Vec::new());
    for condition in &rule.matches {
        match condition {
            Match::Comment(comment) => behind.push(format!("-m comment --comment {comment}")),
            Match::Address { side: Side::Source, negated: false, cidr } => {
                before.push("-p all".to_owned());
                behind.insert(0, format!("-s {cidr}"));
            }
            Match::DestinationPorts { negated: false, ports } => {
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                before.push(format!("--match multiport --dports {}", ports.join(",")));
            }
            Match::Port { side: Side::Destination, negated: false, ports } => {
                before.push(format!("--destination-port {ports}"));
            }
            other => before.push(render_match(other)),
        }
    }
    let target = match &rule.target {
        Target::Redirect { port, .. } => format!("-j REDIRECT --to-port {port}"),
        other => render_target(other),
    };
    let words: Vec<String> = before.into_iter().chain([target]).chain(behind).collect();
    words.join(" ")
}
