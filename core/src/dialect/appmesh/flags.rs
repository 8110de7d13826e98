//! Every setting of `millrace appmesh`: the variables of App Mesh's init container, each with a flag of its own.

use crate::dialect::flags::{FlagDef, Words, flags};

/// What can be said to `millrace appmesh`.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppMesh;

impl Words for AppMesh {
    const FLAGS: &'static [FlagDef] = FLAGS;
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)] = &[];
}

/// The variables of the init container, then Millrace's own settings.
const FLAGS: &[FlagDef] = flags! {
    "start-enabled" ["APPMESH_START_ENABLED"]: Text = "0",
        "1 writes the rules, 0 removes them";
    "ignore-uid" ["APPMESH_IGNORE_UID"]: Text = "1337",
        "User that the proxy runs as; empty where its group alone tells it";
    "ignore-gid" ["APPMESH_IGNORE_GID"]: Text = "",
        "Group that the proxy runs as";
    "envoy-ingress-port" ["APPMESH_ENVOY_INGRESS_PORT"]: Text = "15000",
        "Port of the proxy that captured inbound connections go to";
    "envoy-egress-port" ["APPMESH_ENVOY_EGRESS_PORT"]: Text = "15001",
        "Port of the proxy that captured outbound connections go to";
    "app-ports" ["APPMESH_APP_PORTS"]: List = "",
        "Inbound ports that are captured, comma-separated; 0 where the application has none";
    "egress-ignored-ip" ["APPMESH_EGRESS_IGNORED_IP"]: List = "169.254.169.254,169.254.170.2",
        "Addresses and networks, connections to which are left alone, comma-separated";
    "egress-ignored-ports" ["APPMESH_EGRESS_IGNORED_PORTS"]: List = "",
        "Outbound ports to leave alone, comma-separated; 22 is always among them";
    "enable-ipv6" ["APPMESH_ENABLE_IPV6"]: Text = "0",
        "1 captures IPv6 as well, 0 leaves it alone";
    own "netns": Text = "",
        "Network namespace to work in: a path, a process id, or a name of `ip netns`";
    own "dry-run": Bool = "false",
        "Change nothing; print the commands of iptables that write the rules";
    own "native-nftables": Bool = "false",
        "Native nftables rules instead of iptables, by netlink: no program is run";
    own "wait" ["MILLRACE_WAIT"]: Duration = "30s",
        "How long to wait for another run, and in whole seconds for the xtables lock";
};
