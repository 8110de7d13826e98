//! The maps, by name and type.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use millrace_ebpf_common::{
    COUNTERS, Flow, FlowKey, GroupKey, KEPT, ListenerKey, More, NetworkKey, Plain, Pod, PodFlags,
    PortChunk, PortKey, SHARES, Settings, most_places,
};
use nix::errno::Errno;

use super::error::EbpfError;
use super::sys_bpf;

/// A map of plain values.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    name: &'static str,
    fd: OwnedFd,
    kinds: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Open a map where it is pinned.
    pub(super) fn open(folder: &Path, name: &'static str) -> Result<Self, EbpfError> {
        let fd = open(folder, name)?;
        let info = sys_bpf::map_info(fd.as_fd()).map_err(|e| EbpfError::io(name, e))?;
        let same = |size: u32, wanted: usize| usize::try_from(size).is_ok_and(|s| s == wanted);
        if !same(info.key_size, size_of::<K>()) || !same(info.value_size, size_of::<V>()) {
            return Err(EbpfError::OtherVersion { name, folder: folder.to_owned() });
        }
        Ok(Self { name, fd, kinds: PhantomData })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn failed(&self, error: io::Error) -> EbpfError {
        match error.raw_os_error().map(Errno::from_raw) {
            // LPM tries say ENOSPC, hash tables E2BIG.
            Some(Errno::E2BIG | Errno::ENOSPC) => EbpfError::Full(self.name),
            _ => EbpfError::io(format!("map {}", self.name), error),
        }
    }

    pub(super) fn set(&self, key: &K, value: &V) -> Result<(), EbpfError> {
        sys_bpf::update(self.fd(), key.bytes(), value.bytes()).map_err(|e| self.failed(e))
    }

    /// The same, unless there is an entry.
    pub(super) fn insert(&self, key: &K, value: &V) -> Result<(), EbpfError> {
        sys_bpf::insert(self.fd(), key.bytes(), value.bytes()).or_else(|error| {
            match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EEXIST) => Ok(()),
                _ => Err(self.failed(error)),
            }
        })
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>, EbpfError> {
        let mut bytes = vec![0; size_of::<V>()];
        let found = sys_bpf::lookup(self.fd(), key.bytes(), &mut bytes);
        let found = found.map_err(|e| self.failed(e))?;
        Ok(found.then(|| V::from_bytes(&bytes)).flatten())
    }

    pub(super) fn remove(&self, key: &K) -> Result<bool, EbpfError> {
        sys_bpf::delete(self.fd(), key.bytes()).map_err(|e| self.failed(e))
    }

    /// The key behind another one.
    pub(super) fn next(&self, key: &K) -> Result<Option<K>, EbpfError> {
        let mut next = vec![0; size_of::<K>()];
        let found = sys_bpf::next_key(self.fd(), Some(key.bytes()), &mut next);
        Ok(found.map_err(|e| self.failed(e))?.then(|| K::from_bytes(&next)).flatten())
    }

    /// All keys. Others may add and remove some meanwhile; then one may be told twice.
    pub(super) fn keys(&self) -> Result<Vec<K>, EbpfError> {
        keys(self.fd()).map_err(|e| self.failed(e))
    }
}

/// All keys of a map.
fn keys<K: Plain>(map: BorrowedFd<'_>) -> io::Result<Vec<K>> {
    let mut keys: Vec<K> = Vec::new();
    let mut next = vec![0; size_of::<K>()];
    while sys_bpf::next_key(map, keys.last().map(Plain::bytes), &mut next)? {
        let Some(key) = K::from_bytes(&next) else { break };
        keys.push(key);
        if keys.len() > 1 << 22 {
            break;
        }
    }
    Ok(keys)
}

fn open(folder: &Path, name: &'static str) -> Result<OwnedFd, EbpfError> {
    let path = folder.join(name);
    let found = sys_bpf::pinned(&path).map_err(|e| EbpfError::io(path.display().to_string(), e))?;
    let not_loaded = || EbpfError::NotLoaded(folder.parent().unwrap_or(folder).to_owned());
    found.ok_or_else(not_loaded)
}

/// Those that are read and written from here.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) settings: Map<u32, Settings>,
    /// Pods by their netns cookies, also those that are only waiting for a policy.
    pub(super) pods: Map<u64, Pod>,
    pub(super) lookups: Map<u32, u64>,
    pub(super) networks: Map<NetworkKey, u32>,
    pub(super) ports: Map<PortKey, PortChunk>,
    pub(super) groups: Map<GroupKey, u32>,
    /// Programs of an earlier version have none.
    more: Option<Map<u32, More>>,
    pub(super) flows: Map<FlowKey, Flow>,
    counters: Map<u64, Counters>,
    listeners: OwnedFd,
}

/// The numbers in ROOM, as `ebpf/src/sys_maps.rs` has them.
const COMMON: u32 = 0;
const TAKEN: u32 = 1;
const OWN: u32 = 2;

/// Places in FLOWS: the most that a pod can have, those that are each pod's own, and those that are
/// everybody's.
struct Shares {
    most: u64,
    own: u64,
    common: u64,
}

/// A pod's counters, in the order of the classes.
type Counters = [u64; COUNTERS];

/// All maps of the object by name; what they hold is kept over an upgrade.
pub(super) const NAMES: [&str; 23] = [
    "SETTINGS",
    "PODS",
    "NETWORKS",
    "PORTS",
    "GROUPS",
    "MORE",
    "COUNTERS",
    "FLOWS",
    "LIMITS",
    "ROOM",
    "LATELY",
    "CONNECTING",
    "REFUSED",
    "REFUSES",
    "HANDOVER",
    "LISTENERS",
    "ENDS",
    "EVENTS",
    "LOOKUPS",
    "CURRENT",
    "INBOUND",
    "CLIENTS",
    "ACCEPTED",
];

impl Maps {
    /// Open them where they are pinned.
    pub(super) fn open(folder: &Path) -> Result<Self, EbpfError> {
        Ok(Self {
            settings: Map::open(folder, "SETTINGS")?,
            pods: Map::open(folder, "PODS")?,
            lookups: Map::open(folder, "LOOKUPS")?,
            networks: Map::open(folder, "NETWORKS")?,
            ports: Map::open(folder, "PORTS")?,
            groups: Map::open(folder, "GROUPS")?,
            more: match Map::open(folder, "MORE") {
                Err(EbpfError::NotLoaded(_)) => None,
                more => Some(more?),
            },
            flows: Map::open(folder, "FLOWS")?,
            counters: Map::open(folder, "COUNTERS")?,
            listeners: open(folder, "LISTENERS")?,
        })
    }

    /// How many places in FLOWS are for pods.
    fn shares(&self) -> Result<Shares, EbpfError> {
        let info = |map: BorrowedFd<'_>| sys_bpf::map_info(map).map_err(|e| self.flows.failed(e));
        let (all, pods) = (info(self.flows.fd())?.max_entries, info(self.pods.fd())?.max_entries);
        let kept = all / KEPT;
        Ok(Shares {
            most: (all / SHARES).max(1).into(),
            own: (kept / pods.max(1)).into(),
            common: (all - kept).into(),
        })
    }

    /// How many places in FLOWS a pod can have as long as the others have what they have now.
    pub(super) fn share(&self, folder: &Path) -> Result<u64, EbpfError> {
        let Shares { most, own, common } = self.shares()?;
        let room = match Map::<u32, u64>::open(folder, "ROOM") {
            // Programs of an earlier version don't count.
            Err(EbpfError::NotLoaded(_)) => return Ok(most),
            room => room?,
        };
        Ok(most_places(most, own, common, room.get(&TAKEN)?.unwrap_or(0)))
    }

    /// Let the programs know how many these are.
    pub(super) fn limit(&self, folder: &Path) -> Result<(), EbpfError> {
        let Shares { most, own, common } = self.shares()?;
        let room = Map::<u32, u64>::open(folder, "ROOM")?;
        if room.get(&COMMON)?.is_none_or(|common| common == 0) {
            // Those that programs of an earlier version have not counted.
            let there = u64::try_from(self.flows.keys()?.len()).unwrap_or(u64::MAX);
            room.set(&TAKEN, &there.max(room.get(&TAKEN)?.unwrap_or(0)))?;
        }
        room.set(&OWN, &own)?;
        room.set(&COMMON, &common)?;
        Map::<u32, u64>::open(folder, "LIMITS")?.set(&0, &most)
    }

    /// A pod's policy, if it is enrolled.
    pub(super) fn policy(&self, netns: u64) -> Result<Option<Pod>, EbpfError> {
        Ok(self.pods.get(&netns)?.filter(Pod::is_policy))
    }

    /// What only some policies say, by the pod's id.
    pub(super) fn more(&self, id: u32) -> Result<Option<More>, EbpfError> {
        self.more.as_ref().map_or(Ok(None), |more| more.get(&id))
    }

    /// Note it. Without a map there is nothing that would ask for it: false.
    pub(super) fn set_more(&self, id: u32, value: &More) -> Result<bool, EbpfError> {
        self.more.as_ref().map_or(Ok(false), |more| more.set(&id, value).map(|()| true))
    }

    /// Remove the entry of MORE with the pod's id; that there is none is no error.
    pub(super) fn drop_more(&self, id: u32) -> Result<(), EbpfError> {
        self.more.as_ref().map_or(Ok(()), |more| more.remove(&id).map(drop))
    }

    /// The ids of policies that say more.
    pub(super) fn saying_more(&self) -> Result<Vec<u32>, EbpfError> {
        self.more.as_ref().map_or(Ok(Vec::new()), Map::keys)
    }

    /// Whether the map is gone in which pods have more.
    pub(super) fn has_lost_more(&self) -> Result<bool, EbpfError> {
        if self.more.is_some() {
            return Ok(false);
        }
        for cookie in self.pods.keys()? {
            if self.policy(cookie)?.is_some_and(|pod| pod.has(PodFlags::HAS_MORE)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A pod's counters, in the order of the classes.
    pub(super) fn counters(&self, netns: u64) -> Result<Option<Counters>, EbpfError> {
        self.counters.get(&netns)
    }

    /// Let a pod be counted, from zero if it was not.
    pub(super) fn start_counters(&self, netns: u64) -> Result<(), EbpfError> {
        self.counters.insert(&netns, &[0; COUNTERS])
    }

    pub(super) fn drop_counters(&self, netns: u64) -> Result<(), EbpfError> {
        self.counters.remove(&netns).map(drop)
    }

    /// The pods that are counted.
    pub(super) fn counted(&self) -> Result<Vec<u64>, EbpfError> {
        self.counters.keys()
    }

    /// Let a socket get the pod's inbound connections.
    pub(super) fn set_listener(
        &self,
        key: &ListenerKey,
        socket: BorrowedFd<'_>,
    ) -> Result<(), EbpfError> {
        use std::os::fd::AsRawFd as _;
        let value = socket.as_raw_fd().cast_unsigned();
        sys_bpf::update(self.listeners.as_fd(), key.bytes(), value.bytes())
            .map_err(|e| EbpfError::io("the proxy's listener", e))
    }

    /// The listeners that are known, of all pods.
    pub(super) fn listening(&self) -> Result<Vec<ListenerKey>, EbpfError> {
        keys(self.listeners.as_fd()).map_err(|e| EbpfError::io("the proxy's listener", e))
    }

    /// Take away the pod's listener; it may have gone by itself.
    pub(super) fn drop_listener(&self, key: &ListenerKey) -> Result<(), EbpfError> {
        let gone = sys_bpf::delete(self.listeners.as_fd(), key.bytes());
        gone.map(drop).map_err(|e| EbpfError::io("the proxy's listener", e))
    }
}
