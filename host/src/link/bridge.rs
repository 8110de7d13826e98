//! Bridges that give what they carry to the rules of IP as well (`net/bridge/br_netfilter_hooks.c`). The
//! socket that TPROXY finds there is taken off the packet again before it comes to the pod itself.

use std::fs;

use futures_util::stream::TryStreamExt as _;
use netlink_packet_route::link::{InfoBridge, InfoData, LinkAttribute, LinkInfo, LinkMessage};

use super::{LinkError, Net, request};

/// For IPv4 and IPv6, whether an interface is a bridge that gives packets to rules: by its own setting or
/// by that of all (`net.bridge.bridge-nf-call-iptables`, `bridge-nf-call-ip6tables`).
pub(crate) fn calls_rules(message: &LinkMessage) -> [bool; 2] {
    let data = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Bridge(data)) => Some(data),
            _ => None,
        }),
        _ => None,
    });
    let Some(data) = data else { return [false; 2] };
    let mut own = [false; 2];
    for info in data {
        match info {
            InfoBridge::NfCallIpTables(calls) => own[0] = *calls,
            InfoBridge::NfCallIp6Tables(calls) => own[1] = *calls,
            _ => {}
        }
    }
    let all = |which: &str| {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{which}");
        fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
    };
    [own[0] || all("iptables"), own[1] || all("ip6tables")]
}

impl Net {
    /// The bridges of the namespace that give packets to rules, of IPv4 and of IPv6.
    ///
    /// # Errors
    /// When the kernel does not list its interfaces.
    pub fn bridges(&self) -> Result<Vec<(String, [bool; 2])>, LinkError> {
        let failed = request("the interfaces can't be listed");
        let messages: Vec<LinkMessage> = self
            .runtime
            .block_on(self.handle.link().get().execute().try_collect())
            .map_err(failed)?;
        let bridge = |message: &LinkMessage| {
            let name = message.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })?;
            let calls = calls_rules(message);
            (calls != [false; 2]).then_some((name, calls))
        };
        Ok(messages.iter().filter_map(bridge).collect())
    }
}
