//! Every flag of `millrace ambient rules`: what Istio's agent takes from its settings and from annotations of
//! pods, under the names of the annotations and of the variables, and what Millrace adds.

use crate::dialect::flags::{FlagDef, Words, flags};

/// What can be said to `millrace ambient rules`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ambient;

impl Words for Ambient {
    const FLAGS: &'static [FlagDef] = FLAGS;
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)] = &[];
}

/// The settings of a pod, then Millrace's own.
const FLAGS: &[FlagDef] = flags! {
    "as": Text = "istio",
        "Whose rules: istio or cilium";
    "dns-capture": Text = "",
        "Whether DNS queries go to the proxy; true when it is not said, and false with --as cilium, whose proxy answers none";
    "bypass-inbound-capture": Bool = "false",
        "Leave connections to the pod alone, as for an ingress gateway";
    "reroute-virtual-interfaces": List = "",
        "Interfaces with virtual machines behind them: what arrives by them counts as sent by the pod, comma-separated";
    "host-probe-snat-ip" ["HOST_PROBE_SNAT_IP"]: Text = "",
        "The address to which the node translates its own when it probes a pod by IPv4, or none; 169.254.7.127 \
         when it is not said, and none with --node-ips or --as cilium";
    "host-probe-snat-ipv6" ["HOST_PROBE_SNAT_IPV6"]: Text = "",
        "The same for IPv6; fd16:9254:7127:1337:ffff:ffff:ffff:ffff when it is not said";
    own "ipv6": Text = "auto",
        "Capture IPv6: on, off, or auto for wherever the pod has any";
    own "node-ips": List = "",
        "The node's addresses, from which its probes are let through without any rule on the node, comma-separated";
    own "exclude-inbound-ports": List = "",
        "Inbound ports to leave alone: ports and first:last ranges, comma-separated";
    own "exclude-inbound-cidrs": List = "",
        "Networks, connections from which are left alone, comma-separated";
    own "exclude-outbound-ports": List = "",
        "Outbound ports to leave alone, of TCP and UDP: ports and first:last ranges, comma-separated";
    own "exclude-outbound-cidrs": List = "",
        "Networks, connections to which are left alone, comma-separated";
    own "exclude-interfaces": List = "",
        "Interfaces whose connections are left alone, comma-separated";
    own "backend": Text = "auto",
        "Backend that writes the rules: auto, nftables, iptables-nft, iptables-legacy, or iptables for either of these";
    own "check": Bool = "false",
        "Change nothing; say whether the pod's rules are these";
    own "remove": Bool = "false",
        "Remove the rules of ambient mode, whatever their settings were, with their policy routing";
    own "dry-run": Bool = "false",
        "Change nothing; print the rules as the agent would write them";
    own "netns": Text = "",
        "Network namespace to work in: a path, a process id, or a name of `ip netns`";
    own "pid": Text = "",
        "Work in the network namespace of this process";
    own "pod": Text = "",
        "Work in the network namespace of this pod of the node, [NAMESPACE/]NAME or its id";
    own "runtime-endpoint": Text = "",
        "Where the container runtime listens (CRI), for --pod; containerd's socket when it is not said";
    own "wait" ["MILLRACE_WAIT"]: Duration = "30s",
        "How long to wait for another run, and in whole seconds for the xtables lock";
};
