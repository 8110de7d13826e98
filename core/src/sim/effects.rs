//! What is done to a packet beside deciding where it goes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::packet::{Mark, Value};
use super::ranges::address;
use super::rule::{Field, States};
use super::walk::Walk;
use super::witness::Witness;
use crate::ruleset::Masked;

/// What is left on a packet and on its connection, and what rules did on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Effects {
    /// What rules did, in order, in words that are the same for the same.
    did: Vec<String>,
    /// The packet's mark as it became of the one that was asked for: `(asked & keep) ^ flip`.
    mark: (u32, u32),
    /// The same of its connection, where it has one.
    connection: Option<(u32, u32)>,
    /// The zone that it is tracked in.
    zone: u16,
    /// Whether it is not tracked.
    untracked: bool,
    /// The source that it was given, address and port.
    from: (Option<IpAddr>, Option<u128>),
}

impl Effects {
    /// What rules did with what does not get anywhere.
    pub(super) fn of(did: Vec<String>) -> Self {
        Self { did, ..Self::default() }
    }

    /// Only what rules did, without marks, zone and source.
    #[must_use]
    pub(super) fn without_marks(self) -> Self {
        Self::of(self.did)
    }

    /// The same of packets of whose marks it is known whether they are these.
    #[must_use]
    pub(super) fn knowing(mut self, marks: &BTreeMap<Masked, bool>) -> Self {
        let held = marks.iter().filter(|(_, holds)| **holds);
        let (mask, value) = held.fold((0, 0), |(mask, value), (mark, _)| {
            (mask | mark.mask, value | mark.value & mark.mask)
        });
        for (keep, flip) in [Some(&mut self.mark), self.connection.as_mut()].into_iter().flatten() {
            *flip ^= *keep & mask & value;
            *keep &= !mask;
        }
        self
    }

    /// What tells it from another one, of both.
    pub(super) fn differences(&self, other: &Self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let mut tell = |one: String, two: String| {
            if one != two {
                all.push((one, two));
            }
        };
        let did = |of: &Self| match &of.did[..] {
            [] => "nothing else is done".to_owned(),
            did => did.join("; "),
        };
        tell(did(self), did(other));
        tell(mark("mark", self.mark), mark("mark", other.mark));
        let connection = |of: &Self| match (of.connection, of.untracked) {
            (_, true) => "not tracked".to_owned(),
            (None, _) => "no connection".to_owned(),
            (Some(made), _) => mark("connection's mark", made),
        };
        tell(connection(self), connection(other));
        let zone = |of: &Self| format!("zone {}", of.zone);
        tell(zone(self), zone(other));
        let from = |of: &Self| {
            let (address, port) = of.from;
            let address = address.map_or_else(|| "its own address".to_owned(), |a| a.to_string());
            let port = port.map_or_else(String::new, |port| format!(", port {port}"));
            format!("from {address}{port}")
        };
        tell(from(self), from(other));
        all
    }
}

/// A mark as `(asked & keep) ^ flip` in words, in its shortest form.
fn mark(what: &str, (keep, flip): (u32, u32)) -> String {
    match (keep, flip) {
        (0, flip) => format!("{what} {flip:#x}"),
        (u32::MAX, 0) => format!("{what} as it was"),
        (keep, 0) => format!("{what} & {keep:#x}"),
        (u32::MAX, flip) => format!("{what} ^ {flip:#x}"),
        (keep, flip) => format!("{what} & {keep:#x} ^ {flip:#x}"),
    }
}

impl<W: Witness> Walk<'_, W> {
    /// What was done to the packet whose way has ended.
    pub(super) fn effects(&mut self) -> Effects {
        let did = std::mem::take(&mut self.did);
        let Some(packet) = self.last else { return Effects::of(did) };
        let parts = |mark: Mark| (mark.keep, mark.flip);
        let connection = packet.connection.map(|(at, _)| self.connections[at]);
        let made = |value: Value, own: Field| (value.origin != Some(own)).then_some(value.number);
        let from = connection.and_then(|connection| connection.from).map_or(
            (None, None),
            |(own, port)| {
                let own = made(own, Field::Source).map(|own| address(packet.family, own));
                (own, made(port, Field::SourcePort))
            },
        );
        Effects {
            did,
            mark: parts(packet.mark),
            connection: connection.map(|connection| parts(connection.mark)),
            zone: packet.zone,
            untracked: packet.state == States::UNTRACKED,
            from,
        }
    }
}
