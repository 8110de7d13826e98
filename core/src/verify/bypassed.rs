//! What a configuration names as left alone, and so has to get where it was sent.

use crate::policy::{CapturePolicy, InboundSelection};
use crate::sim::{Change, Class, Field, Origin, Protocol, Ranges};
use crate::source::Sourced;
use crate::value::{Family, InterfacePattern, PortRange};

/// Ports, networks and interfaces that are excluded by name.
#[derive(Debug)]
pub(super) struct Bypassed<'p> {
    outbound: Ranges,
    networks: [Ranges; 2],
    inbound: Ranges,
    interfaces: &'p [Sourced<InterfacePattern>],
    /// Users and groups of the proxy, whose own connections nothing is excluded from.
    proxy: [Ranges; 2],
}

impl<'p> Bypassed<'p> {
    pub(super) fn by(policy: &'p CapturePolicy) -> Self {
        let ports = |list: &[Sourced<PortRange>]| Ranges::ports(list.iter().map(|one| &one.value));
        let inbound = match &policy.inbound.selection {
            InboundSelection::AllExcept { except, .. } | InboundSelection::Only { except, .. } => {
                ports(except)
            }
            InboundSelection::Nothing => Ranges::default(),
        };
        let networks = Family::ALL.map(|family| {
            let all = policy.outbound.except_networks.iter().map(|network| network.value);
            let of_family = all.filter(|network| network.family() == family);
            let ranges = of_family.map(Ranges::network);
            ranges.flat_map(|range| range.iter().collect::<Vec<_>>()).collect()
        });
        let interfaces = &policy.interfaces.excluded;
        let one = |id: u32| (id.into(), id.into());
        let uids = policy.proxy.uids.iter().map(|uid| one(uid.value.get())).collect();
        let gids = policy.proxy.gids.iter().map(|gid| one(gid.value.get())).collect();
        let proxy = [uids, gids];
        Self {
            outbound: ports(&policy.outbound.except_ports),
            networks,
            inbound,
            interfaces,
            proxy,
        }
    }

    /// Whether connections of a class are excluded.
    pub(super) fn has(&self, class: &Class<Change>) -> bool {
        let meets = |field: Field, ranges: &Ranges| {
            class.values(field).is_some_and(|values| !values.and(ranges).is_empty())
        };
        let carried: Ranges =
            [Protocol::TCP, Protocol::UDP].map(|p| (p.0.into(), p.0.into())).into_iter().collect();
        let of_ports = |ports| meets(Field::Protocol, &carried) && meets(Field::Port, ports);
        match class.origin() {
            Origin::Process => {
                let networks = &self.networks[usize::from(class.family() == Family::V6)];
                let is_proxy = |(field, ids): (Field, &Ranges)| {
                    class.values(field).is_some_and(|values| values.without(ids).is_empty())
                };
                let mut ids = [Field::Uid, Field::Gid].into_iter().zip(&self.proxy);
                let named = of_ports(&self.outbound) || meets(Field::Destination, networks);
                named && !ids.any(is_proxy)
            }
            Origin::Interface(name) => {
                let named = |one: &Sourced<InterfacePattern>| one.value.matches(name);
                of_ports(&self.inbound) || self.interfaces.iter().any(named)
            }
        }
    }
}
