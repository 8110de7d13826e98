//! From settings that were read back to the policy they are.

use std::collections::BTreeMap;

use super::Inferred;
use crate::dialect::{ConfigErrors, Dialect, native};
use crate::facts::HostFacts;
use crate::policy::{CapturePolicy, Flow, Probe};
use crate::source::{Source, Sourced};

/// What stands for a value that was read back in a way of its own, and is no default.
const ELSEWHERE: &str = "?";

/// The policy of settings that were read back; every part says which flag of the dialect whose
/// rules these are would have set it, or that it is the default, for which nobody has to set any.
///
/// # Errors
/// What was read back makes no policy: the rules are not whole.
pub fn policy(found: &Inferred, dialect: &Dialect) -> Result<CapturePolicy, ConfigErrors> {
    let mut flags: BTreeMap<&'static str, String> = found.settings.clone();
    flags.insert("ipv6", if found.ipv6 { "on" } else { "off" }.to_owned());
    if !found.dns_servers.is_empty() {
        let servers: Vec<String> = found.dns_servers.iter().map(ToString::to_string).collect();
        flags.insert("dns-servers", servers.join(","));
    }
    // Own settings are of a proxy that is somebody; others leave that open.
    let is_set = |flag| flags.get(flag).is_some_and(|ids: &String| !ids.is_empty());
    let is_nobody = !is_set("proxy-uid") && !is_set("proxy-gid");
    if is_nobody && found.mesh.is_some_and(|mesh| mesh.nobody) {
        flags.insert("proxy-uid", "0".to_owned());
    }
    let values = flags.clone();
    let set: Vec<(String, String)> =
        flags.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect();
    let raw = native::Raw::new(BTreeMap::new(), set).read_back();
    let mut policy = native::resolve(&raw, &HostFacts::default(), false)?;
    if let Some(matching) = found.matching {
        policy.proxy.matching = matching;
    }
    if let Some(dns) = &found.dns_translated {
        policy.dns = Some(dns.clone());
    }
    let led = |address| Sourced::new(address, Source::Rules);
    policy.outbound.localhost_to = found.localhost_to.map(led);
    let probed = |probe: &Probe| Sourced::new(*probe, Source::Rules);
    policy.inbound.probes = found.probes.iter().map(probed).collect();
    if let Some(mesh) = found.mesh {
        policy.proxy.marks = mesh.marks;
        if is_nobody {
            policy.proxy.uids.clear();
        }
        policy.conventions = mesh.conventions;
        if let Some(zones) = found.zones.filter(|_| policy.dns.is_some()) {
            policy.conventions.dns = mesh.conventions.dns.with_zones(zones);
        }
        if !mesh.tunnels {
            policy.inbound.tunnel_port = None;
        }
    }
    let flow = |flow: &Flow| {
        Sourced::new(flow.clone(), Source::Flag("--exclude-outbound-flows".to_owned()))
    };
    policy.outbound.except_flows = found.flows.iter().map(flow).collect();
    policy.each_source(&mut |source| {
        let (Source::Flag(name) | Source::Default(name)) = &source else { return };
        let flag = name.trim_start_matches("--");
        let value = match (values.get(flag), &source) {
            (Some(value), _) => value,
            (None, Source::Flag(_)) => ELSEWHERE,
            (None, _) => native::default_of(flag),
        };
        *source = match flag {
            // What the pod had, as likely as a flag.
            "ipv6" => Source::Rules,
            _ => (dialect.source_of)(flag, value),
        };
    });
    Ok(policy)
}
