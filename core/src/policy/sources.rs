//! Where the parts of a policy came from.

use super::{
    CapturePolicy, DnsScope, DnsTarget, GroupSelection, InboundMode, InboundSelection,
    NetworkSelection,
};
use crate::source::{Source, Sourced};

impl CapturePolicy {
    /// Visit where every part came from, to say it in other words.
    pub fn each_source(&mut self, visit: &mut dyn FnMut(&mut Source)) {
        visit(&mut self.ipv6.source);
        visit_all(&mut self.proxy.uids, visit);
        visit_all(&mut self.proxy.gids, visit);
        visit(&mut self.inbound.port.source);
        if let Some(port) = &mut self.inbound.tunnel_port {
            visit(&mut port.source);
        }
        visit_all(&mut self.inbound.except_sources, visit);
        visit_all(&mut self.inbound.probes, visit);
        if let InboundMode::Tproxy { mark, table, source } = &mut self.inbound.mode {
            visit(&mut mark.source);
            visit(&mut table.source);
            visit(source);
        }
        match &mut self.inbound.selection {
            InboundSelection::Nothing => {}
            InboundSelection::AllExcept { source, except } => {
                visit(source);
                visit_all(except, visit);
            }
            InboundSelection::Only { ports, except } => {
                visit_all(ports, visit);
                visit_all(except, visit);
            }
        }
        let outbound = &mut self.outbound;
        visit(&mut outbound.port.source);
        match &mut outbound.networks {
            NetworkSelection::All(source) => visit(source),
            NetworkSelection::Only(networks) => visit_all(networks, visit),
        }
        visit_all(&mut outbound.ports, visit);
        visit_all(&mut outbound.except_ports, visit);
        visit_all(&mut outbound.except_networks, visit);
        visit_all(&mut outbound.except_users, visit);
        visit_all(&mut outbound.except_flows, visit);
        if let Some(address) = &mut outbound.localhost_to {
            visit(&mut address.source);
        }
        match &mut outbound.groups {
            GroupSelection::AllExcept(groups) => visit_all(groups, visit),
            GroupSelection::Only { groups, source } => {
                visit(source);
                visit_all(groups, visit);
            }
        }
        visit_all(&mut self.interfaces.excluded, visit);
        visit_all(&mut self.interfaces.rerouted, visit);
        visit(&mut self.localhost.source);
        if let Some(dns) = &mut self.dns {
            match &mut dns.to {
                DnsTarget::Listener(port) => visit(&mut port.source),
                DnsTarget::Servers(servers) => visit_all(servers, visit),
            }
            visit(&mut dns.source);
            match &mut dns.scope {
                DnsScope::All(source) => visit(source),
                DnsScope::Servers(servers) => visit_all(servers, visit),
            }
        }
        if let Some(source) = &mut self.drop_invalid {
            visit(source);
        }
    }
}

fn visit_all<T>(list: &mut [Sourced<T>], visit: &mut dyn FnMut(&mut Source)) {
    for item in list {
        visit(&mut item.source);
    }
}
