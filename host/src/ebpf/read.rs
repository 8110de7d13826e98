//! An enrolled pod's entry, as the maps hold it.

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::ebpf::Entry;
use millrace_core::sim::Listening;
use millrace_ebpf_common::{
    GROUP_NAMED, GROUP_USER, More, POD_ID_BITS, PORTS_IN_CHUNK, PodFlags, PortKey, flow_key,
};

use super::error::EbpfError;
use super::node::Node;
use super::sockets::listeners;
use super::target::Target;

impl Node {
    /// The entry of the pod that the calling thread is in, with the ids that the pod has; none if it
    /// is not enrolled.
    ///
    /// # Errors
    /// When the maps or the pod can't be read.
    pub fn entry(&self, target: &Target) -> Result<Option<Entry>, EbpfError> {
        let Some(pod) = self.maps.policy(target.cookie)? else { return Ok(None) };
        let mut entry = Entry {
            pod,
            networks: BTreeMap::new(),
            ports: BTreeMap::new(),
            more: More::default(),
            flow_ports: BTreeMap::new(),
            groups: BTreeSet::new(),
            users: BTreeSet::new(),
        };
        if pod.has(PodFlags::HAS_MORE) {
            let lost = || EbpfError::NotWhole {
                folder: self.folder.clone(),
                what: "what MORE has of this pod is lost".to_owned(),
            };
            entry.more = self.maps.more(pod.id)?.ok_or_else(lost)?;
        }
        for flow in 0..entry.more.flow_count {
            for chunk in 0..=u16::MAX / PORTS_IN_CHUNK {
                let key = flow_key(pod.id, flow, chunk.saturating_mul(PORTS_IN_CHUNK));
                if let Some(ports) = self.maps.ports.get(&key)? {
                    entry.flow_ports.insert((flow, chunk), ports);
                }
            }
        }
        if pod.has(PodFlags::HAS_NETWORKS) {
            for key in self.networks_of(&pod)? {
                let flags = self.maps.networks.get(&key)?;
                let length = key.bits.checked_sub(POD_ID_BITS).and_then(|l| u8::try_from(l).ok());
                if let Some((flags, length)) = flags.zip(length) {
                    entry.networks.insert((key.address.octets(), length), flags);
                }
            }
        }
        if pod.has(PodFlags::HAS_PORTS) {
            for chunk in 0..=u16::MAX / PORTS_IN_CHUNK {
                let key = PortKey { pod: pod.id, chunk: chunk.into() };
                if let Some(ports) = self.maps.ports.get(&key)? {
                    entry.ports.insert(chunk, ports);
                }
            }
        }
        if pod.has(PodFlags::HAS_GROUPS | PodFlags::HAS_USERS) {
            for key in self.maps.groups.keys()?.iter().filter(|key| key.pod == pod.id) {
                let flags = self.maps.groups.get(key)?.unwrap_or(0);
                entry.groups.extend((flags & GROUP_NAMED != 0).then_some(key.id));
                entry.users.extend((flags & GROUP_USER != 0).then_some(key.id));
            }
        }
        let (users, groups) = target.ids()?;
        Ok(Some(entry.of_pod(&users, &groups)?))
    }

    /// For which families the proxy gets the inbound connections of the pod that the calling thread is
    /// in.
    ///
    /// # Errors
    /// When the maps or the kernel can't be asked.
    pub fn listening(&self, target: &Target, port: u16) -> Result<Listening, EbpfError> {
        let known = self.maps.listening()?;
        let has = |family| {
            let mut of_pod = known.iter().filter(|key| key.netns == target.cookie);
            of_pod.any(|key| (key.family, key.port) == (family, port.into()))
        };
        let sockets = listeners(port).map_err(|e| EbpfError::io("which sockets listen", e))?;
        // One of IPv6 may take IPv4 as well.
        let both = sockets.iter().any(|listener| listener.family == 6 && !listener.v6_only);
        Ok(Listening { v4: has(4) || has(6) && both, v6: has(6) })
    }
}
