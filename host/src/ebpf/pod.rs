//! Enrolling a pod, leaving it, and finding what is left of pods that are gone.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::fd::AsFd as _;

use millrace_core::ebpf::Entry;
use millrace_ebpf_common::{
    Address, Class, GROUP_NAMED, GROUP_USER, GroupKey, LISTENER_PLACES, ListenerKey, More,
    NetworkKey, POD_ID_BITS, PORTS_IN_CHUNK, Pod, PodFlags, PortKey, Settings, flow_key,
};

use super::error::EbpfError;
use super::node::{Node, show, unpin};
use super::preloaded::after;
use super::target::Target;
use super::{listener, sys_bpf};

/// What [`Node::enrol`] changed for the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// The pod is captured from now on.
    Added,
    /// It is captured otherwise than before.
    Changed,
    /// It was captured like this.
    Unchanged,
}

/// A pod with an entry in the maps of the node's programs.
#[derive(Clone, Debug)]
pub struct EnrolledPod {
    /// `SO_NETNS_COOKIE` of its network namespace, the key of its entry.
    pub cookie: u64,
    /// Its policy as the eBPF programs have it.
    pub pod: Pod,
    /// The inode of its network namespace; none if that is gone.
    pub netns: Option<u32>,
    /// Whether its program knows by its number whose it is.
    pub known: bool,
    /// How often each class of verdict was given.
    pub counters: Vec<(Class, u64)>,
    /// How many connections of it are known, and how many there may be.
    pub connections: (u64, u64),
}

impl EnrolledPod {
    /// What lets inbound connections past.
    pub const fn fault(&self) -> Option<&'static str> {
        match (self.netns, self.known) {
            (None, _) => Some("its program for inbound connections is not attached"),
            (_, false) => Some("its program for inbound connections does not find its entry"),
            _ => None,
        }
    }
}

/// How many entries the maps have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Keys of PODS: pods that are enrolled or about to be, and gone ones not yet collected.
    pub pods: usize,
    /// Networks of all of them; a pod that has any has one more, which is nobody's.
    pub networks: usize,
    /// Bitmaps of 512 ports.
    pub ports: usize,
    /// Groups and excluded users.
    pub groups: usize,
    /// Policies that say more than most.
    pub more: usize,
    /// Keys of COUNTERS: pods whose verdicts are counted.
    pub counters: usize,
    /// `sk_lookup` programs that are a pod's.
    pub lookups: usize,
}

/// The first network of a pod in NETWORKS. The kernel lists a trie's networks from the left, so all
/// others of the pod are behind it. It says nothing of its address, which is nobody's.
const fn first_network(pod: u32) -> NetworkKey {
    NetworkKey { bits: POD_ID_BITS + 128, pod, address: Address([0; 4]) }
}

impl Node {
    /// Capture the pod that the calling thread is in, from one moment to the next.
    ///
    /// # Errors
    /// When a map is full, or the kernel refuses something. Then nothing has changed for the pod.
    pub fn enrol(&self, target: &Target, entry: &Entry) -> Result<Enrolled, EbpfError> {
        self.try_to_enrol(target, entry).or_else(|error| match error {
            // What is left of pods that are gone may be all that is in the way.
            EbpfError::Full(_) if self.collect()? > 0 => self.try_to_enrol(target, entry),
            error => Err(error),
        })
    }

    fn try_to_enrol(&self, target: &Target, entry: &Entry) -> Result<Enrolled, EbpfError> {
        let _lock = self.lock()?;
        self.is_whole()?;
        self.knows(entry)?;
        let cookie = target.cookie;
        let before = self.maps.policy(cookie)?;
        let mut pod = Pod { digest: digest(entry), ..entry.pod };
        let linked = match before {
            Some(old) if self.is_linked(cookie) && self.finds(cookie, &old)? => Some(old),
            _ => None,
        };
        if let Some(old) = before {
            (pod.id, pod.lookup) = (old.id, old.lookup);
            if with_addresses_of(&old, &pod) == old && linked.is_some() {
                // What the kernel tells as well is brought up to date by the way.
                if pod != old {
                    self.maps.pods.set(&cookie, &pod)?;
                }
                self.maps.start_counters(cookie)?;
                self.adopt_listener(cookie, &pod)?;
                return Ok(Enrolled::Unchanged);
            }
        }
        let mut settings = self.maps.settings.get(&0)?.unwrap_or_default();
        settings.last_id = after(settings.last_id);
        pod.id = settings.last_id;
        // Numbers are given once, also by a run that dies.
        self.maps.settings.set(&0, &settings)?;
        let enrolled = self.prepare(target, &pod, entry).and_then(|()| {
            if linked.is_none() {
                pod.lookup = self.attach(target, &mut settings)?;
            }
            if before.is_none() {
                // What begins to listen from now on is found as it does.
                self.maps.pods.set(&cookie, &Pod::waiting(pod.inbound_port, pod.lookup))?;
            }
            self.adopt_listener(cookie, &pod)?;
            self.maps.pods.set(&cookie, &pod)
        });
        if let Err(error) = enrolled {
            // What failed is told; that it can't be taken back either would hide it.
            drop(self.forget(&pod));
            if before.is_none() {
                drop(self.leave_locked(cookie));
                drop(self.maps.lookups.remove(&pod.lookup));
            }
            return Err(error);
        }
        let Some(old) = before else { return Ok(Enrolled::Added) };
        self.forget(&old)?;
        if old.inbound_port != pod.inbound_port {
            // It may have begun to listen on the other port at that moment.
            self.adopt_listener(cookie, &pod)?;
            self.drop_listeners(cookie, old.inbound_port)?;
        }
        Ok(Enrolled::Changed)
    }

    /// Capture a pod no longer. False if it was not captured.
    ///
    /// # Errors
    /// When something can't be removed.
    pub fn leave(&self, cookie: u64) -> Result<bool, EbpfError> {
        let _lock = self.lock()?;
        let left = self.leave_locked(cookie)?;
        // One for the next pod. Without it that one takes longer, and nothing else is wrong.
        drop(self.fill_preloaded(1));
        Ok(left)
    }

    fn leave_locked(&self, cookie: u64) -> Result<bool, EbpfError> {
        let pod = self.maps.pods.get(&cookie)?;
        self.maps.pods.remove(&cookie)?;
        if let Some(pod) = &pod {
            self.forget(pod)?;
            self.drop_listeners(cookie, pod.inbound_port)?;
        }
        self.detach(cookie, pod.map_or(0, |pod| pod.lookup))?;
        Ok(pod.is_some_and(|pod| pod.is_policy()))
    }

    /// Take away what is left of pods whose network namespace is gone, and of runs that died. How
    /// many pods that were.
    ///
    /// # Errors
    /// When something can't be listed or removed.
    pub fn collect(&self) -> Result<usize, EbpfError> {
        let _lock = self.lock()?;
        let mut gone = 0;
        let mut ids = BTreeSet::new();
        for cookie in self.maps.pods.keys()? {
            if let Some(pod) = self.maps.policy(cookie)?.filter(|_| self.is_linked(cookie)) {
                ids.insert(pod.id);
            } else {
                gone += usize::from(self.leave_locked(cookie)?);
            }
        }
        let known = |cookie: u64| self.maps.policy(cookie).map(|pod| pod.is_some());
        for (cookie, _) in self.pins()? {
            if !known(cookie)? {
                self.detach(cookie, 0)?;
            }
        }
        for number in self.maps.lookups.keys()? {
            let Some(cookie) = self.maps.lookups.get(&number)? else { continue };
            if self.maps.policy(cookie)?.is_none_or(|pod| pod.lookup != number) {
                self.maps.lookups.remove(&number)?;
            }
        }
        for cookie in self.maps.counted()? {
            if !known(cookie)? {
                self.maps.drop_counters(cookie)?;
            }
        }
        for key in self.maps.networks.keys()?.iter().filter(|key| !ids.contains(&key.pod)) {
            self.maps.networks.remove(key)?;
        }
        for key in self.maps.ports.keys()?.iter().filter(|key| !ids.contains(&key.pod)) {
            self.maps.ports.remove(key)?;
        }
        for key in self.maps.groups.keys()?.iter().filter(|key| !ids.contains(&key.pod)) {
            self.maps.groups.remove(key)?;
        }
        for id in self.maps.saying_more()?.into_iter().filter(|id| !ids.contains(id)) {
            self.maps.drop_more(id)?;
        }
        drop(self.fill_preloaded(usize::MAX));
        Ok(gone)
    }

    /// A pod, if it is enrolled.
    ///
    /// # Errors
    /// When the maps can't be read.
    pub fn pod(&self, cookie: u64) -> Result<Option<EnrolledPod>, EbpfError> {
        let Some(pod) = self.maps.policy(cookie)? else { return Ok(None) };
        let counts = self.maps.counters(cookie)?.unwrap_or_default();
        let [.., connections] = counts;
        let counters = Class::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0);
        Ok(Some(EnrolledPod {
            cookie,
            pod,
            netns: self.netns_of(cookie),
            known: self.finds(cookie, &pod)?,
            counters: counters.collect(),
            connections: (connections, self.maps.share(&self.folder.join("maps"))?),
        }))
    }

    /// All pods that are enrolled.
    ///
    /// # Errors
    /// When the maps can't be read.
    pub fn pods(&self) -> Result<Vec<EnrolledPod>, EbpfError> {
        let cookies = self.maps.pods.keys()?;
        cookies.into_iter().filter_map(|cookie| self.pod(cookie).transpose()).collect()
    }

    /// How many entries the maps have, those of runs that died among them.
    ///
    /// # Errors
    /// When the maps can't be read.
    pub fn sizes(&self) -> Result<Sizes, EbpfError> {
        Ok(Sizes {
            pods: self.maps.pods.keys()?.len(),
            networks: self.maps.networks.keys()?.len(),
            ports: self.maps.ports.keys()?.len(),
            groups: self.maps.groups.keys()?.len(),
            more: self.maps.saying_more()?.len(),
            counters: self.maps.counted()?.len(),
            lookups: self.maps.lookups.keys()?.len(),
        })
    }

    /// Whether a pod's entry is as desired, but for its id, and for addresses that it has had: the
    /// kernel tells the programs which it has.
    ///
    /// # Errors
    /// When the maps can't be read.
    pub fn holds(&self, cookie: u64, entry: &Entry) -> Result<bool, EbpfError> {
        let Some(pod) = self.maps.policy(cookie)? else { return Ok(false) };
        let wanted = Pod { digest: digest(entry), id: pod.id, lookup: pod.lookup, ..entry.pod };
        Ok(pod == with_addresses_of(&pod, &wanted))
    }

    /// Everything but the link and the entry itself: nothing of it has an effect yet.
    fn prepare(&self, target: &Target, pod: &Pod, entry: &Entry) -> Result<(), EbpfError> {
        let id = pod.id;
        if !entry.networks.is_empty() {
            self.maps.networks.set(&first_network(id), &0)?;
        }
        for ((octets, length), flags) in &entry.networks {
            let bits = POD_ID_BITS + u32::from(*length);
            let address = Address::from_octets(*octets);
            self.maps.networks.set(&NetworkKey { bits, pod: id, address }, flags)?;
        }
        for (chunk, ports) in &entry.ports {
            self.maps.ports.set(&PortKey { pod: id, chunk: (*chunk).into() }, ports)?;
        }
        for ((flow, chunk), ports) in &entry.flow_ports {
            let key = flow_key(id, *flow, chunk.saturating_mul(PORTS_IN_CHUNK));
            self.maps.ports.set(&key, ports)?;
        }
        for one in entry.groups.union(&entry.users) {
            let named = if entry.groups.contains(one) { GROUP_NAMED } else { 0 };
            let user = if entry.users.contains(one) { GROUP_USER } else { 0 };
            self.maps.groups.set(&GroupKey { pod: id, id: *one }, &(named | user))?;
        }
        if pod.has(PodFlags::HAS_MORE) && !self.maps.set_more(id, &entry.more)? {
            return Err(EbpfError::OtherPrograms(self.folder.clone()));
        }
        self.maps.start_counters(target.cookie)
    }

    /// Give a pod a program of its own at its namespace, which lets everything past until the pod
    /// has an entry. Its number.
    fn attach(&self, target: &Target, settings: &mut Settings) -> Result<u32, EbpfError> {
        let (number, program) = self.take_lookup(target.cookie, settings)?;
        self.maps.settings.set(&0, settings)?;
        let attached = || {
            let link = sys_bpf::link_netns(program.as_fd(), target.netns.as_fd());
            let link = link.map_err(|source| EbpfError::Kernel {
                what: "sk_lookup programs",
                since: "5.9",
                source,
            })?;
            let pin = self.pin_of(target.cookie);
            let pinned = match sys_bpf::pin(link.as_fd(), &pin) {
                // Of a run that died, or of a namespace that is gone.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    unpin(&pin)?;
                    sys_bpf::pin(link.as_fd(), &pin)
                }
                pinned => pinned,
            };
            pinned.map_err(|e| EbpfError::io(show(&pin), e))
        };
        if let Err(error) = attached() {
            drop(self.maps.lookups.remove(&number));
            return Err(error);
        }
        Ok(number)
    }

    /// The keys of a policy's networks, which lie behind the first one.
    pub(super) fn networks_of(&self, pod: &Pod) -> Result<Vec<NetworkKey>, EbpfError> {
        let first = first_network(pod.id);
        let mut keys = Vec::new();
        let mut next = first;
        while self.maps.networks.get(&first)?.is_some() {
            let Some(key) = self.maps.networks.next(&next)? else { break };
            if key.pod != pod.id {
                break;
            }
            keys.push(key);
            next = key;
        }
        Ok(keys)
    }

    /// Take away a policy's networks, ports and groups.
    fn forget(&self, pod: &Pod) -> Result<(), EbpfError> {
        if pod.has(PodFlags::HAS_NETWORKS) {
            for key in self.networks_of(pod)?.iter().chain([&first_network(pod.id)]) {
                self.maps.networks.remove(key)?;
            }
        }
        if pod.has(PodFlags::HAS_PORTS) {
            for chunk in 0..=(u16::MAX / PORTS_IN_CHUNK).into() {
                self.maps.ports.remove(&PortKey { pod: pod.id, chunk })?;
            }
        }
        if pod.has(PodFlags::HAS_FLOWS) {
            let ours = |key: &&PortKey| key.pod == pod.id;
            for key in self.maps.ports.keys()?.iter().filter(ours) {
                self.maps.ports.remove(key)?;
            }
        }
        if pod.has(PodFlags::HAS_MORE) {
            self.maps.drop_more(pod.id)?;
        }
        if pod.has(PodFlags::HAS_GROUPS | PodFlags::HAS_USERS) {
            for key in self.maps.groups.keys()?.iter().filter(|key| key.pod == pod.id) {
                self.maps.groups.remove(key)?;
            }
        }
        Ok(())
    }

    /// Take away a pod's link and counters.
    fn detach(&self, cookie: u64, lookup: u32) -> Result<(), EbpfError> {
        self.maps.drop_counters(cookie)?;
        unpin(&self.pin_of(cookie))?;
        self.maps.lookups.remove(&lookup).map(drop)
    }

    /// Find the proxy's listeners, where connections are to come to them.
    fn adopt_listener(&self, cookie: u64, pod: &Pod) -> Result<(), EbpfError> {
        if pod.has(PodFlags::INBOUND) {
            listener::adopt(&self.maps, cookie, pod.inbound_port)?;
        }
        Ok(())
    }

    fn drop_listeners(&self, netns: u64, port: u16) -> Result<(), EbpfError> {
        for (family, place) in
            [4, 6].into_iter().flat_map(|f| (0..LISTENER_PLACES).map(move |p| (f, p)))
        {
            self.maps.drop_listener(&ListenerKey { netns, family, place, port: port.into() })?;
        }
        Ok(())
    }

    /// The inode of a pod's network namespace, if its link is there and the namespace as well.
    fn netns_of(&self, cookie: u64) -> Option<u32> {
        let link = sys_bpf::pinned(&self.pin_of(cookie)).ok()??;
        sys_bpf::link_info(link.as_fd()).ok().map(|info| info.netns).filter(|inode| *inode != 0)
    }

    /// Whether LOOKUPS has the number of a pod's program.
    fn finds(&self, cookie: u64, pod: &Pod) -> Result<bool, EbpfError> {
        Ok(self.maps.lookups.get(&pod.lookup)? == Some(cookie))
    }

    fn is_linked(&self, cookie: u64) -> bool {
        self.netns_of(cookie).is_some()
    }
}

/// An entry with the addresses of another one.
const fn with_addresses_of(other: &Pod, pod: &Pod) -> Pod {
    let Pod { own_count, own, source4, source6, .. } = *other;
    Pod { own_count, own, source4, source6, ..*pod }
}

/// By which a policy's networks, ports and groups are known.
fn digest(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    entry.networks.hash(&mut hasher);
    for (chunk, ports) in &entry.ports {
        (chunk, ports.words).hash(&mut hasher);
    }
    entry.groups.hash(&mut hasher);
    // Of a policy that says nothing of it, it is as an earlier version made it.
    if !entry.users.is_empty() {
        entry.users.hash(&mut hasher);
    }
    if entry.more != More::default() {
        entry.more.hash(&mut hasher);
        for (place, ports) in &entry.flow_ports {
            (place, ports.words).hash(&mut hasher);
        }
    }
    hasher.finish()
}
