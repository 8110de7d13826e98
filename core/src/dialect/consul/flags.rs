//! Every flag of `consul connect redirect-traffic`, and the keys of the same settings in JSON.

use crate::dialect::flags::{FlagDef, Words, flags};

/// What can be said to `consul connect redirect-traffic`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consul;

impl Words for Consul {
    const FLAGS: &'static [FlagDef] = FLAGS;
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)] = &[];
}

/// The flag that holds settings as JSON, under the name that Consul on Kubernetes has for it.
pub(super) const CONFIG: &str = "redirect-traffic-config";

/// A key of that JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The key as Consul writes it; its case does not matter when it is read.
    pub(super) name: &'static str,
    /// The flag that sets the same.
    pub(super) flag: &'static str,
    /// The JSON type that its value must have; another one is an error.
    pub(super) shape: Shape,
}

/// What a value of JSON is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A JSON string, also where it is an id or an address.
    Text,
    /// A JSON number without fraction: a port.
    Number,
    /// A JSON array of strings, which make a comma-separated list as the flag's value.
    Texts,
}

const fn key(name: &'static str, flag: &'static str, shape: Shape) -> Key {
    Key { name, flag, shape }
}

/// Every key of that JSON; any other one is an error.
pub(super) const KEYS: [Key; 10] = [
    key("ConsulDNSIP", "consul-dns-ip", Shape::Text),
    key("ConsulDNSPort", "consul-dns-port", Shape::Number),
    key("ProxyUserID", "proxy-uid", Shape::Text),
    key("ProxyInboundPort", "proxy-inbound-port", Shape::Number),
    key("ProxyOutboundPort", "proxy-outbound-port", Shape::Number),
    key("ExcludeInboundPorts", "exclude-inbound-port", Shape::Texts),
    key("ExcludeOutboundPorts", "exclude-outbound-port", Shape::Texts),
    key("ExcludeOutboundCIDRs", "exclude-outbound-cidr", Shape::Texts),
    key("ExcludeUIDs", "exclude-uid", Shape::Texts),
    key("NetNS", "netns", Shape::Text),
];

/// The flags of Consul, then Millrace's own. Those that say how an agent is reached have no effect: none is
/// asked.
const FLAGS: &[FlagDef] = flags! {
    "proxy-uid": Text = "",
        "User id of the proxy, whose connections are left alone; has to be given";
    "proxy-id": Text = "",
        "Refused: an agent would have to be asked for the proxy service; give the ports instead";
    "proxy-inbound-port": Number = "",
        "Port of the proxy that captured inbound connections go to; has to be given";
    "proxy-outbound-port": Number = "15001",
        "Port of the proxy that captured outbound connections go to";
    "consul-dns-ip": Text = "",
        "Address that every DNS query is led to; with -consul-dns-port, those to it alone";
    "consul-dns-port": Number = "",
        "Port that DNS queries to -consul-dns-ip are led to, or to localhost without one";
    "exclude-inbound-port": List = "",
        "Inbound port or range (8080, 8000:8099, 8000-8099) to leave alone; may be repeated";
    "exclude-outbound-port": List = "",
        "Outbound port or range to leave alone; may be repeated";
    "exclude-outbound-cidr": List = "",
        "Address or network, connections to which are left alone; may be repeated";
    "exclude-uid": List = "",
        "User id whose connections are left alone; may be repeated";
    "netns": Text = "",
        "Network namespace to work in: a path, a process id, or a name of `ip netns`";
    "node-name": Text = "", "Without effect";
    "http-addr": Text = "", "Without effect";
    "token": Text = "", "Without effect";
    "token-file": Text = "", "Without effect";
    "ca-file": Text = "", "Without effect";
    "ca-path": Text = "", "Without effect";
    "client-cert": Text = "", "Without effect";
    "client-key": Text = "", "Without effect";
    "tls-server-name": Text = "", "Without effect";
    "datacenter": Text = "", "Without effect";
    "namespace": Text = "", "Without effect";
    "partition": Text = "", "Without effect";
    "stale": Bool = "false", "Without effect";
    own "redirect-traffic-config" ["CONSUL_REDIRECT_TRAFFIC_CONFIG"]: Text = "",
        "Settings as JSON, as Consul on Kubernetes gives them to a pod; flags beat them; - reads them from standard input";
    own "dual-stack" ["CONSUL_DUAL_STACK"]: Bool = "false",
        "Capture IPv6 as well, which Consul asks its agent";
    own "dry-run": Bool = "false",
        "Change nothing; print the commands of iptables, or the batch of nft, that Consul would run";
    own "native-nftables": Bool = "false",
        "Native nftables rules instead of iptables, by netlink: no program is run";
    own "wait" ["MILLRACE_WAIT"]: Duration = "30s",
        "How long to wait for another run, and in whole seconds for the xtables lock";
};
