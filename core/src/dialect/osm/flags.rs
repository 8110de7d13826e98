//! Every flag of `millrace osm`: what Open Service Mesh takes from its configuration and from annotations of pods,
//! under the names of the annotations.

use crate::dialect::flags::{FlagDef, Words, flags};

/// What can be said to `millrace osm`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Osm;

impl Words for Osm {
    const FLAGS: &'static [FlagDef] = FLAGS;
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)] =
        &[(POD_IP, "", "the pod's IPv4 address, for --local-proxy-mode PodIP")];
}

/// The variable in which the injector gives a pod its address.
pub(super) const POD_IP: &str = "POD_IP";

/// The settings of Open Service Mesh, then Millrace's own.
const FLAGS: &[FlagDef] = flags! {
    "outbound-ip-range-exclusion-list": List = "",
        "Networks of IPv4, connections to which are left alone, comma-separated";
    "outbound-ip-range-inclusion-list": List = "",
        "Networks of IPv4, connections to which alone are captured, comma-separated; all when none is given";
    "outbound-port-exclusion-list": List = "",
        "Outbound ports to leave alone, comma-separated";
    "inbound-port-exclusion-list": List = "",
        "Inbound ports to leave alone, comma-separated";
    "network-interface-exclusion-list": List = "",
        "Interfaces whose connections are left alone, comma-separated";
    "local-proxy-mode": Text = "Localhost",
        "Where the proxy finds the application: Localhost, or PodIP for the address in POD_IP";
    own "netns": Text = "",
        "Network namespace to work in: a path, a process id, or a name of `ip netns`";
    own "dry-run": Bool = "false",
        "Change nothing; print the script that a pod's init container of Open Service Mesh would run";
    own "native-nftables": Bool = "false",
        "Native nftables rules instead of iptables, by netlink: no program is run";
    own "wait" ["MILLRACE_WAIT"]: Duration = "30s",
        "How long to wait for another run, and in whole seconds for the xtables lock";
};
