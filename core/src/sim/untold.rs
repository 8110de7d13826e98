//! What can't be told of connections, whatever the rules say that are walked.

use std::net::IpAddr;

use super::namespace::{Namespace, unicast};
use super::program::{Call, Program};
use super::question::{Direction, Question};
use super::ranges::number;
use crate::value::Family;

/// What is not known of what a program stands for.
#[derive(Clone, Debug, Default)]
pub(super) struct Untold {
    /// Families of which no rules were given.
    families: Vec<Family>,
    /// Why nothing can be told of any connection to the pod, and whether of those from it either.
    obscured: Option<(String, bool)>,
    /// Tables of ARP.
    pub(super) arp: Vec<String>,
}

/// Whether there are calls whose order is not known.
pub(super) fn is_unordered(calls: &[Call]) -> bool {
    calls.iter().any(|call| match call {
        Call::Unordered(_) => true,
        Call::Translate(chains) => is_unordered(chains),
        Call::Track | Call::Chain { .. } => false,
    })
}

impl Program {
    /// The same for who walks it on a stack that has room for more jumps in each other than usual.
    #[must_use]
    pub const fn nested_to(mut self, deepest: usize) -> Self {
        self.deepest = deepest;
        self
    }

    /// The same where no rules of some families were given: of their connections nothing can be told.
    #[must_use]
    pub fn without(mut self, families: Vec<Family>) -> Self {
        self.untold.families = families;
        self
    }

    /// The same where something that can't be looked into decides about every connection to the pod,
    /// or, with `both`, about those from it as well.
    #[must_use]
    pub fn obscured(mut self, why: String, both: bool) -> Self {
        self.untold.obscured = Some((why, both));
        self
    }

    /// Whether something decides about connections that is in no rule.
    pub(super) const fn is_obscured(&self) -> bool {
        self.untold.obscured.is_some() || !self.untold.arp.is_empty()
    }

    /// Whether the kernel calls chains in an order that is not known.
    pub(super) fn has_unordered(&self) -> bool {
        self.calls.iter().flatten().any(|calls| is_unordered(calls))
    }

    /// What decides about connections and can't be looked into.
    pub fn obscured_by(&self) -> Option<&str> {
        self.untold.obscured.as_ref().map(|(why, _)| why.as_str())
    }

    /// The same where rules of ARP, which are not walked, decide whether a next hop is found.
    #[must_use]
    pub fn asking_arp(mut self, tables: Vec<String>) -> Self {
        self.untold.arp = tables;
        self
    }

    /// The families of which no rules were given.
    pub fn untold(&self) -> &[Family] {
        &self.untold.families
    }

    /// Why of a connection nothing can be told, wherever it would go.
    pub(super) fn unanswerable(&self, namespace: &Namespace, q: &Question) -> Option<String> {
        let routing = namespace.routing();
        let is_one = |address: &IpAddr| {
            let (family, number) = (Family::of(*address), number(*address));
            unicast(family).contains(number) && !routing.is_group(family, number)
        };
        let family = q.family();
        if let Some((why, both)) = &self.untold.obscured
            && (*both || q.direction == Direction::In)
        {
            return Some(why.clone());
        }
        if self.untold.families.contains(&family) {
            return Some(format!("no rules of {family} were given"));
        }
        let one = [Some(q.destination), q.source].iter().flatten().all(is_one);
        (!one).then(|| "the way of multicast, broadcast and unspecified addresses".to_owned())
    }
}
