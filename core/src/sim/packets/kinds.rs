//! The kinds of packets that rules can tell apart by what is known of their connection.

use std::collections::HashSet;

use super::super::namespace::unicast;
use super::super::question::Protocol;
use super::super::ranges::Ranges;
use super::super::rule::{States, Test};
use super::Stage;
use super::asked::Asked;
use crate::value::Family;

/// Where packets come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Between {
    /// Any addresses, of one host or of many.
    All,
    /// To many hosts or to none, or from no host: multicast, broadcast, reserved and unspecified addresses.
    Many,
}

/// Packets that rules tell from others by tracking, flags of TCP or type of ICMP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// What tracking says of them.
    pub(super) state: States,
    /// Whether they go back in their connection; none where they have none.
    pub(super) back: Option<bool>,
    /// Whether rules of translation are asked.
    pub(super) asks: bool,
    /// Whether they are TCP's with SYN alone; none where they are of any protocol, and TCP's not.
    pub(super) syn: bool,
    /// The type of a message of ICMP.
    pub(super) icmp: Option<u8>,
    /// Which protocols are meant, where not all.
    only: Option<Only>,
    between: Between,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Only {
    Tcp,
    NotTcp,
    /// No ICMP, whose types rules tell apart.
    NotIcmp,
    NotTcpNorIcmp,
    Icmp,
}

impl Only {
    fn protocols(self, family: Family) -> Ranges {
        let all = Ranges::up_to(u8::MAX.into());
        let one = |protocol: Protocol| Ranges::one(protocol.0.into());
        let icmp = one(icmp(family));
        match self {
            Self::Tcp => one(Protocol::TCP),
            Self::NotTcp => all.without(&one(Protocol::TCP)),
            Self::NotIcmp => all.without(&icmp),
            Self::NotTcpNorIcmp => all.without(&icmp).without(&one(Protocol::TCP)),
            Self::Icmp => icmp,
        }
    }
}

const fn icmp(family: Family) -> Protocol {
    match family {
        Family::V4 => Protocol::ICMP,
        Family::V6 => Protocol::ICMPV6,
    }
}

impl Kind {
    const fn new(name: &'static str, state: States, back: Option<bool>) -> Self {
        let (asks, syn, icmp, only, between) = (false, false, None, None, Between::All);
        Self { name, state, back, asks, syn, icmp, only, between }
    }

    /// Protocols, sources and destinations; `groups` are addresses of many hosts beside those that always
    /// are.
    pub(super) fn fields(&self, family: Family, groups: &Ranges) -> Vec<(Ranges, Ranges, Ranges)> {
        let protocols = match self.only {
            Some(only) => only.protocols(family),
            None => Ranges::up_to(u8::MAX.into()),
        };
        let all = Ranges::up_to(u128::MAX >> (128 - u32::from(family.bits())));
        if self.between == Between::All {
            return vec![(protocols, all.clone(), all)];
        }
        let single = unicast(family).without(groups);
        let others = all.without(&single);
        vec![(protocols.clone(), all, others.clone()), (protocols, others, single)]
    }

    /// Whether what rules ask holds.
    fn holds(&self, test: &Test) -> bool {
        match test {
            Test::State { negated, states } => states.meets(self.state) != *negated,
            Test::Original { negated } => self.back.is_some_and(|back| back == *negated),
            Test::Syn { negated } => self.syn != *negated,
            Test::Icmp { negated, types } => {
                self.icmp.is_some_and(|kind| types.contains(kind.into()) != *negated)
            }
            _ => false,
        }
    }
}

/// The kinds that rules tell apart at a stage. With `unsaid`, those that start a connection are among them;
/// with `looped` they were tracked on their way out, and are known as that in front of tracking as well
/// (`loopback_xmit()` of the kernel's `drivers/net/loopback.c`, which leaves a packet its connection).
pub(super) fn kinds(asked: &Asked, stage: Stage, unsaid: bool, looped: bool) -> Vec<Kind> {
    let mut kinds = match stage {
        Stage::Untracked => {
            let mut kinds = vec![Kind::new("of any kind", States::INVALID, None)];
            if looped {
                let known = |kind: &Kind| kind.back.is_some() && kind.between == Between::All;
                kinds.extend(tracked(asked, false).into_iter().filter(known));
            }
            kinds
        }
        _ => tracked(asked, unsaid),
    };
    if stage == Stage::Translation {
        // What belongs to a connection goes as the first packet of it did; and where nothing is asked about
        // the state, a connection that was announced goes as any other.
        let by_state = asked.tests.iter().any(|test| matches!(test, Test::State { .. }));
        kinds.retain(|kind| kind.asks && (by_state || kind.state != States::RELATED));
    }
    let has = |asks: fn(&Test) -> bool| asked.tests.iter().any(asks);
    if has(|test| matches!(test, Test::Syn { .. })) {
        // What goes to many hosts is not of TCP.
        let of_tcp = |kind: &&Kind| kind.between == Between::All;
        let also: Vec<Kind> = kinds
            .iter()
            .filter(of_tcp)
            .map(|kind| Kind { syn: true, only: Some(Only::Tcp), ..*kind })
            .collect();
        kinds.extend(also);
    }
    if has(|test| matches!(test, Test::Icmp { .. })) {
        kinds = kinds.into_iter().flat_map(|kind| by_type(kind, asked)).collect();
    }
    let mut known = HashSet::new();
    kinds.retain(|kind| {
        let told: Vec<bool> = asked.tests.iter().map(|test| kind.holds(test)).collect();
        known.insert((told, kind.back.is_some(), kind.asks, kind.only, kind.between))
    });
    kinds
}

fn tracked(asked: &Asked, unsaid: bool) -> Vec<Kind> {
    let starts = |name| Kind { asks: true, ..Kind::new(name, States::NEW, Some(false)) };
    let mut kinds = Vec::new();
    if unsaid {
        kinds.push(starts("that start a connection"));
    }
    kinds.extend([
        Kind::new("of an established connection", States::ESTABLISHED, Some(false)),
        Kind::new("that answer in an established connection", States::ESTABLISHED, Some(true)),
        Kind {
            asks: true,
            ..Kind::new("that another connection announced", States::RELATED, Some(false))
        },
        Kind::new("that answer in an announced connection", States::RELATED, Some(true)),
        Kind::new("that belong to no connection", States::INVALID, None),
        Kind::new("that are not tracked", States::UNTRACKED, None),
    ]);
    kinds.push(Kind {
        between: Between::Many,
        only: Some(Only::NotTcp),
        ..starts("to many hosts or none, or from none")
    });
    let asks = |test: &Test| matches!(test, Test::Syn { .. });
    if asked.tests.iter().any(asks) && !unsaid {
        kinds
            .push(Kind { only: Some(Only::Tcp), ..starts("that enter a connection in its midst") });
    }
    // Of connections whose addresses were translated.
    for state in [States::SNAT, States::DNAT] {
        let asks = |test: &Test| matches!(test, Test::State { states, .. } if states.meets(state));
        if asked.tests.iter().any(asks) {
            let of = kinds.iter().filter(|kind| kind.back.is_some() && !kind.asks);
            let of: Vec<Kind> =
                of.map(|kind| Kind { state: kind.state.or(state), ..*kind }).collect();
            kinds.extend(of);
        }
    }
    kinds
}

/// A kind once without ICMP, and once for each of the types that rules tell apart.
fn by_type(kind: Kind, asked: &Asked) -> Vec<Kind> {
    let without = match kind.only {
        None => Only::NotIcmp,
        Some(Only::NotTcp) => Only::NotTcpNorIcmp,
        Some(only) => only,
    };
    let mut kinds = vec![Kind { only: Some(without), ..kind }];
    if kind.only != Some(Only::Tcp) {
        let types = 0..=u8::MAX;
        let of = types.map(|of| Kind { icmp: Some(of), only: Some(Only::Icmp), ..kind });
        let mut known = HashSet::new();
        let told = |kind: &Kind| asked.tests.iter().map(|t| kind.holds(t)).collect::<Vec<_>>();
        kinds.extend(of.filter(|kind| known.insert(told(kind))));
    }
    kinds
}
