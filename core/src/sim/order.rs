//! Chains of the same hook and priority. The kernel calls the one that was registered last first
//! (`nf_hook_grow()`), and it says of the chains of one table alone in which order that was. What is
//! called in an order that nobody knows is told only where every order does the same.

use super::halt::Halt;
use super::packet::{Connection, Packet};
use super::program::{Call, Kind, Ordered};
use super::walk::Walk;
use super::witness::{Nobody, Witness};
use crate::ruleset::Hook;

/// The most of which all orders are tried, when more than one of them does something.
const MOST: usize = 4;

/// How that ends which is said where the order is not known.
pub(super) const UNORDERED: &str = "is called first: they have the same hook and priority";

/// What calls made of a packet.
#[derive(Clone, Debug, PartialEq)]
struct State<'a> {
    packet: Packet<'a>,
    connections: Vec<Connection>,
    /// Whether it is routed again.
    routed: bool,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Dropped,
    Refused,
    Unknown,
}

impl<'a, W: Witness> Walk<'a, W> {
    /// Go on if every order of these does the same with a packet. `side` is what translation settles
    /// where these are its chains: the first that does ends it.
    pub(super) fn in_any_order(
        &mut self,
        calls: &'a [Ordered],
        hook: Hook,
        packet: &Packet<'a>,
        side: Option<usize>,
    ) -> Result<(), Halt> {
        let alike = if W::LISTENS {
            // What is only tried is not told of.
            let mut nobody = Nobody;
            let mut walk = Walk::new(self.program, self.namespace, self.question, &mut nobody);
            walk.connections.clone_from(&self.connections);
            walk.unheard = self.unheard;
            (walk.preset, walk.paths) = (self.preset, self.paths);
            walk.alike(calls, hook, packet, side)
        } else {
            let before = (self.connections.clone(), self.decided.clone(), self.acted);
            let (stack, did) = (self.stack.clone(), self.did.clone());
            let alike = self.alike(calls, hook, packet, side);
            (self.connections, self.decided, self.acted) = before;
            (self.stack, self.did) = (stack, did);
            alike
        };
        if alike {
            return Ok(());
        }
        let names: Vec<String> = calls.iter().map(|ordered| self.name(&ordered.call)).collect();
        let what = format!("which of {} {UNORDERED}", names.join(", "));
        Err(Halt::Unknown { rule: None, what })
    }

    fn alike(
        &mut self,
        calls: &'a [Ordered],
        hook: Hook,
        packet: &Packet<'a>,
        side: Option<usize>,
    ) -> bool {
        let start = State {
            packet: *packet,
            connections: self.connections.clone(),
            routed: false,
            end: None,
        };
        let mut run = |order: &[usize]| self.state_after(order, calls, hook, &start, side);
        let all: Vec<usize> = (0..calls.len()).collect();
        let alone: Vec<State<'a>> = all.iter().map(|one| run(&[*one])).collect();
        let active: Vec<usize> = all.iter().copied().filter(|one| alone[*one] != start).collect();
        match active[..] {
            [] => true,
            // The others do nothing, neither before nor behind it.
            [one] => {
                let mut others = all.iter().filter(|other| **other != one);
                others.all(|other| run(&[one, *other]) == alone[one])
            }
            _ if calls.len() > MOST => false,
            _ => {
                let orders = orders(calls);
                let mut ends = orders.iter().map(|order| run(order));
                let first = ends.next();
                ends.all(|end| Some(end) == first)
            }
        }
    }

    fn state_after(
        &mut self,
        order: &[usize],
        calls: &'a [Ordered],
        hook: Hook,
        start: &State<'a>,
        side: Option<usize>,
    ) -> State<'a> {
        let mut packet = start.packet;
        self.connections.clone_from(&start.connections);
        let (mut routed, mut end) = (false, None);
        for at in order {
            let call = &calls[*at].call;
            let before = (packet.mark, packet.ends.destination);
            let ended = match call {
                Call::Chain { chain, kind: Kind::Nat, .. } => self.base(*chain, hook, &mut packet),
                call => self.call(call, hook, &mut packet),
            };
            let changed = before != (packet.mark, packet.ends.destination);
            routed |= changed && matches!(call, Call::Chain { kind: Kind::Route, .. });
            if let Err(halt) = ended {
                end = Some(match halt {
                    Halt::Dropped { .. } => End::Dropped,
                    Halt::Refused(_) => End::Refused,
                    Halt::Unknown { .. } => End::Unknown,
                });
                break;
            }
            let settled = |side: usize| {
                let at = packet.connection.map(|(at, _)| at);
                at.is_some_and(|at| self.connections[at].settled[side])
            };
            if side.is_some_and(settled) {
                break;
            }
        }
        let connections = std::mem::take(&mut self.connections);
        match end {
            // What it was before it met its end does not matter.
            Some(_) => State { end, ..start.clone() },
            None => State { packet, connections, routed, end },
        }
    }

    fn name(&self, call: &Call) -> String {
        match call {
            Call::Track => "connection tracking".to_owned(),
            Call::Chain { chain, .. } => {
                let info = self.program.chain(*chain);
                format!("{} {} ({})", info.table, info.name, info.holder)
            }
            Call::Translate(_) | Call::Unordered(_) => "address translation".to_owned(),
        }
    }
}

/// The orders that are possible: of one table's chains the order is known.
fn orders(calls: &[Ordered]) -> Vec<Vec<usize>> {
    let mut orders: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in calls {
        let mut longer = Vec::new();
        for order in &orders {
            for next in (0..calls.len()).filter(|next| !order.contains(next)) {
                let sooner = (0..next).filter(|other| calls[*other].table == calls[next].table);
                if sooner.into_iter().all(|other| order.contains(&other)) {
                    longer.push([&order[..], &[next]].concat());
                }
            }
        }
        orders = longer;
    }
    orders
}

/// Calls by their priority; in front of those whose order is not known stands that.
pub(super) fn by_priority(mut calls: Vec<(i32, Ordered)>) -> Vec<Call> {
    calls.sort_by_key(|(priority, _)| *priority);
    let mut all = Vec::new();
    for group in calls.chunk_by(|(one, _), (other, _)| one == other) {
        let group: Vec<Ordered> = group.iter().map(|(_, ordered)| ordered.clone()).collect();
        let several = group.iter().any(|ordered| ordered.table != group[0].table);
        let plain = group.iter().map(|ordered| ordered.call.clone()).collect::<Vec<_>>();
        all.extend(several.then_some(Call::Unordered(group)));
        all.extend(plain);
    }
    all
}
