//! A pod's entry, and what only the pod itself can tell: its addresses and its user namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use millrace_ebpf_common::{Address, MAX_ADDRESSES, More, Pod, PodFlags, PortChunk};

/// Everything that is looked up of a pod. `pod.id` is the loader's to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Flags, ports, ids and addresses, which are found by the netns cookie.
    pub pod: Pod,
    /// What only some policies say.
    pub more: More,
    /// Networks by address and length (of 128), with what holds there: also what holds in the
    /// networks around it, since only the smallest one is found.
    pub networks: BTreeMap<([u8; 16], u8), u32>,
    /// Bitmaps of 512 ports each, by the port divided by 512.
    pub ports: BTreeMap<u16, PortChunk>,
    /// Ports of `more.flows`, by the place of the flow and by chunk.
    pub flow_ports: BTreeMap<(u32, u16), PortChunk>,
    /// Groups that are captured or excluded, by number.
    pub groups: BTreeSet<u32>,
    /// Users that are excluded, by number.
    pub users: BTreeSet<u32>,
}

/// A pod's addresses, as they are when it is enrolled. What they are later, the kernel tells the
/// programs; these are for where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// All of them; those that are loopback by nature need not be there.
    pub own: Vec<IpAddr>,
    /// Which of them connections to elsewhere come from, one of each family.
    pub sources: Vec<IpAddr>,
}

/// Ids of a user namespace and what they are in the initial one (`user_namespaces(7)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap(Vec<(u32, u32, u32)>);

impl IdMap {
    /// The map of the initial user namespace, in which every id stands for itself.
    pub fn identity() -> Self {
        Self(vec![(0, 0, u32::MAX)])
    }

    /// From the text of `/proc/PID/uid_map` or `gid_map`; none if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let line = |line: &str| {
            let numbers: Option<Vec<u32>> =
                line.split_ascii_whitespace().map(|n| n.parse().ok()).collect();
            match numbers?.as_slice() {
                [inside, outside, count] => Some((*inside, *outside, *count)),
                _ => None,
            }
        };
        text.lines().map(line).collect::<Option<Vec<_>>>().map(Self)
    }

    /// What an id outside is inside; none if it is nobody there.
    pub fn inside(&self, id: u32) -> Option<u32> {
        self.mapped([id; 2], Way::In).map(|[id, _]| id)
    }

    /// What an id inside is outside; none if it is nobody there.
    pub fn outside(&self, id: u32) -> Option<u32> {
        self.mapped([id; 2], Way::Out).map(|[id, _]| id)
    }

    /// The same of ids from a first to a last one, if one line of the map has them all.
    fn mapped(&self, [first, last]: [u32; 2], way: Way) -> Option<[u32; 2]> {
        self.0.iter().find_map(|&(inside, outside, count)| {
            let (from, to) = match way {
                Way::In => (outside, inside),
                Way::Out => (inside, outside),
            };
            let at = |id: u32| id.checked_sub(from).filter(|at| *at < count)?.checked_add(to);
            Some([at(first)?, at(last)?])
        })
    }
}

/// Into a user namespace, or out of it.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

impl fmt::Display for IdMap {
    /// The ids inside as ranges `FIRST-LAST`, one for each line of the map, or `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (at, (first, _, count)) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{first}-{}", first.saturating_add(count.saturating_sub(1)))?;
        }
        Ok(())
    }
}

/// An entry can't be completed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// An id is nobody in the pod's user namespace.
    #[error("{kind} {id} is not mapped in the pod's user namespace")]
    Unmapped {
        /// `user` or `group`, as the message says it.
        kind: &'static str,
        /// The id that has no counterpart, as the entry had it.
        id: u32,
    },
    /// Users that are one range in the pod are several outside, or the other way round.
    #[error(
        "users {first}-{last} are not one range in another user namespace than the pod's: name each part \
         of them that its map has in a line"
    )]
    Split {
        /// The first user of the range, as the entry had it.
        first: u32,
        /// The last of them, itself included.
        last: u32,
    },
}

/// An address as the programs know it.
pub(super) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address::from_octets(ip.to_ipv6_mapped().octets()),
        IpAddr::V6(ip) => Address::from_octets(ip.octets()),
    }
}

impl Entry {
    /// The same for a pod with these addresses, whose ids are mapped like this.
    ///
    /// # Errors
    /// When an id is nobody's.
    pub fn for_pod(
        mut self,
        addresses: &Addresses,
        users: &IdMap,
        groups: &IdMap,
    ) -> Result<Self, IdError> {
        let mut own: Vec<Address> = Vec::new();
        if self.pod.has(PodFlags::IPV6) && !self.pod.has(PodFlags::NO_PASSTHROUGH) {
            // Capture puts it on `lo`.
            own.push(Address::PASSTHROUGH6);
        }
        for ip in &addresses.own {
            let address = address(*ip);
            if !address.is_loopback() && !own.contains(&address) {
                own.push(address);
            }
        }
        // Of those of a link the kernel tells least.
        own.sort_by_key(|address| !address.is_link_local());
        own.truncate(MAX_ADDRESSES);
        self.pod.own_count = u32::try_from(own.len()).unwrap_or(0);
        for (place, address) in self.pod.own.iter_mut().zip(own) {
            *place = address;
        }
        for ip in addresses.sources.iter().map(IpAddr::to_canonical) {
            match ip {
                IpAddr::V4(_) => self.pod.source4 = address(ip),
                IpAddr::V6(_) => self.pod.source6 = address(ip),
            }
        }
        self.with_ids(users, groups, Way::Out)
    }

    /// The same as the pod has it: with the ids of its own user namespace.
    ///
    /// # Errors
    /// When an id is nobody's there.
    pub fn of_pod(self, users: &IdMap, groups: &IdMap) -> Result<Self, IdError> {
        self.with_ids(users, groups, Way::In)
    }

    fn with_ids(mut self, users: &IdMap, groups: &IdMap, way: Way) -> Result<Self, IdError> {
        let one = |map: &IdMap, kind, id: u32| {
            let found = map.mapped([id; 2], way);
            found.map(|[id, _]| id).ok_or(IdError::Unmapped { kind, id })
        };
        let user = |id: u32| one(users, "user", id);
        let group = |id: u32| one(groups, "group", id);
        let count = |count: u32| usize::try_from(count).unwrap_or(0);
        for uid in self.pod.uids.iter_mut().take(count(self.pod.uid_count)) {
            *uid = user(*uid)?;
        }
        for gid in self.pod.gids.iter_mut().take(count(self.pod.gid_count)) {
            *gid = group(*gid)?;
        }
        self.groups = self.groups.iter().map(|gid| group(*gid)).collect::<Result<_, _>>()?;
        self.users = self.users.iter().map(|uid| user(*uid)).collect::<Result<_, _>>()?;
        for flow in self.more.flows.iter_mut().take(count(self.more.flow_count)) {
            let [first, last] = *flow;
            user(first).and(user(last))?;
            *flow = users.mapped(*flow, way).ok_or(IdError::Split { first, last })?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_range_by_range() {
        let map = IdMap::parse("         0     100000       1000\n  1337  5 1\n").unwrap();
        assert_eq!(map.outside(0), Some(100_000));
        assert_eq!(map.outside(999), Some(100_999));
        assert_eq!(map.outside(1000), None);
        assert_eq!(map.outside(1337), Some(5));
        assert_eq!(IdMap::identity().outside(4_294_967_294), Some(4_294_967_294));
        assert_eq!(map.mapped([0, 999], Way::Out), Some([100_000, 100_999]));
        assert_eq!(map.mapped([999, 1337], Way::Out), None);
        assert_eq!(map.inside(5), Some(1337));
        assert_eq!(map.to_string(), "0-999, 1337-1337");
        assert_eq!(IdMap::parse("0 1\n"), None);
        assert_eq!(IdMap::parse("0 x 1\n"), None);
    }
}
