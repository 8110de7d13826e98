//! One form for all rules that mean the same, so that what is desired can be compared with what
//! the kernel gives back.

use std::collections::BTreeMap;

use super::{Masked, Match, Owner, RedirectSpelling, Rule, Target};
use crate::value::{Gid, GroupName};

impl Rule {
    /// The rule with its matches sorted, networks without host bits, matches that every packet
    /// meets left out, and spellings forgotten. Groups that `groups` knows become numbers, as
    /// they do when a rule is written. Two rules that are equal in this form treat every packet
    /// alike.
    #[must_use]
    pub fn canonical(&self, groups: &BTreeMap<GroupName, Gid>) -> Self {
        let mut matches: Vec<Match> =
            self.matches.iter().filter_map(|m| canonical_match(m, groups)).collect();
        matches.sort();
        matches.dedup();
        let target = match &self.target {
            Target::Redirect { port, .. } => {
                Target::Redirect { port: *port, spelling: RedirectSpelling::ToPorts }
            }
            Target::Tproxy { mark, port } => Target::Tproxy { mark: masked(*mark), port: *port },
            other => other.clone(),
        };
        Self { matches, target }
    }
}

fn canonical_match(m: &Match, groups: &BTreeMap<GroupName, Gid>) -> Option<Match> {
    Some(match m {
        Match::Address { negated: false, cidr, .. } if cidr.is_everything() => return None,
        Match::Address { side, negated, cidr } => {
            Match::Address { side: *side, negated: *negated, cidr: cidr.network() }
        }
        Match::DestinationPorts { negated, ports } => {
            let mut ports = ports.clone();
            ports.sort();
            ports.dedup();
            Match::DestinationPorts { negated: *negated, ports }
        }
        Match::Owner { negated, owner: Owner::Group(name) } => {
            let owner =
                groups.get(name).map_or_else(|| Owner::Group(name.clone()), |gid| Owner::Gid(*gid));
            Match::Owner { negated: *negated, owner }
        }
        Match::ConnState(states) | Match::OldState(states) => {
            let mut states = states.clone();
            states.sort();
            states.dedup();
            Match::ConnState(states)
        }
        Match::Mark { negated, mark } => Match::Mark { negated: *negated, mark: masked(*mark) },
        Match::Connmark { negated, mark } => {
            Match::Connmark { negated: *negated, mark: masked(*mark) }
        }
        Match::Module(_) | Match::Comment(_) => return None,
        Match::Ours
        | Match::InInterface { .. }
        | Match::OutInterface { .. }
        | Match::Protocol(_)
        | Match::Port { .. }
        | Match::Syn { .. }
        | Match::LocalAddress { .. }
        | Match::Owner { .. } => m.clone(),
    })
}

/// Bits outside the mask don't count.
const fn masked(m: Masked) -> Masked {
    Masked { value: m.value & m.mask, mask: m.mask }
}
