//! Every setting of Millrace's own commands in one table: flags, configuration file, help, JSON
//! schema and documentation are made from it.

/// What a setting's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A port, 1 to 65535.
    ListenPort,
    /// Ports and ranges; `*` for all where it is allowed.
    Ports {
        /// Whether `*` is allowed.
        all: bool,
    },
    /// Networks; `*` for all where it is allowed.
    Networks {
        /// Whether `*` is allowed.
        all: bool,
    },
    /// One network, as `address/length`.
    Network,
    /// A list of user ids, each from 0 to 4294967294.
    Uids,
    /// A list of group ids, each from 0 to 4294967294.
    Gids,
    /// Groups by id or name; `*` for all where it is allowed.
    Groups {
        /// Whether `*` is allowed.
        all: bool,
    },
    /// A list of interface names, or beginnings of names with `+` behind them.
    Interfaces,
    /// A list of IPv4 and IPv6 addresses.
    Addresses,
    /// One of these words; any other is an error.
    Choice(&'static [&'static str]),
    /// A packet mark from 1 to 4294967295, in decimal.
    Mark,
    /// The number of a routing table, not one of the kernel's own.
    Table,
    /// `true` or `false`; the flag alone is true.
    Switch,
}

impl Shape {
    /// Whether several values are meant.
    pub const fn is_list(self) -> bool {
        matches!(
            self,
            Self::Ports { .. }
                | Self::Networks { .. }
                | Self::Uids
                | Self::Gids
                | Self::Groups { .. }
                | Self::Interfaces
                | Self::Addresses
        )
    }
}

/// A setting: a flag and a key of the configuration file.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The flag behind `--`.
    pub flag: &'static str,
    /// The dotted key in a configuration file.
    pub key: &'static str,
    /// Which values it takes, and how they are read.
    pub shape: Shape,
    /// The value when nobody sets it; lists are comma lists.
    pub default: &'static str,
    /// One line for `--help` and the schema, without the default.
    pub help: &'static str,
}

const fn setting(
    flag: &'static str,
    key: &'static str,
    shape: Shape,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { flag, key, shape, default, help }
}

/// All settings, in the order of the help.
pub const SETTINGS: &[Setting] = &[
    setting(
        "outbound-port",
        "outbound.port",
        Shape::ListenPort,
        "15001",
        "Port of the proxy that captured outbound connections go to",
    ),
    setting(
        "inbound-port",
        "inbound.port",
        Shape::ListenPort,
        "15006",
        "Port of the proxy that captured inbound connections go to",
    ),
    setting(
        "tunnel-port",
        "inbound.tunnelPort",
        Shape::ListenPort,
        "15008",
        "Port of the proxy for tunnels; never captured",
    ),
    setting(
        "proxy-uid",
        "proxy.uids",
        Shape::Uids,
        "1337",
        "User ids that the proxy runs as; the default holds unless --proxy-gid is given",
    ),
    setting("proxy-gid", "proxy.gids", Shape::Gids, "", "Group ids that the proxy runs as"),
    setting(
        "mode",
        "inbound.mode",
        Shape::Choice(&["redirect", "tproxy"]),
        "redirect",
        "How inbound connections reach the proxy; tproxy keeps the client's address",
    ),
    setting(
        "tproxy-mark",
        "inbound.tproxyMark",
        Shape::Mark,
        "1337",
        "Packet mark for --mode tproxy",
    ),
    setting(
        "tproxy-table",
        "inbound.tproxyTable",
        Shape::Table,
        "133",
        "Routing table for --mode tproxy",
    ),
    setting(
        "include-inbound-ports",
        "inbound.ports",
        Shape::Ports { all: true },
        "*",
        "Inbound ports to capture: *, ports and first:last ranges, or empty for none",
    ),
    setting(
        "exclude-inbound-ports",
        "inbound.excludePorts",
        Shape::Ports { all: false },
        "",
        "Inbound ports not to capture",
    ),
    setting(
        "exclude-inbound-cidrs",
        "inbound.excludeNetworks",
        Shape::Networks { all: false },
        "",
        "Source networks whose inbound connections are not captured",
    ),
    setting(
        "include-outbound-cidrs",
        "outbound.networks",
        Shape::Networks { all: true },
        "*",
        "Outbound networks to capture: *, a list, or empty for none",
    ),
    setting(
        "exclude-outbound-cidrs",
        "outbound.excludeNetworks",
        Shape::Networks { all: false },
        "",
        "Destination networks not to capture",
    ),
    setting(
        "include-outbound-ports",
        "outbound.ports",
        Shape::Ports { all: false },
        "",
        "Outbound TCP ports to capture wherever they go",
    ),
    setting(
        "exclude-outbound-ports",
        "outbound.excludePorts",
        Shape::Ports { all: false },
        "",
        "Outbound TCP and UDP ports not to capture",
    ),
    setting(
        "include-groups",
        "outbound.groups",
        Shape::Groups { all: true },
        "*",
        "Groups whose outbound connections are captured: *, ids or names, or empty for none",
    ),
    setting(
        "exclude-groups",
        "outbound.excludeGroups",
        Shape::Groups { all: false },
        "",
        "Groups whose outbound connections are not captured, where all other groups are",
    ),
    setting(
        "exclude-users",
        "outbound.excludeUsers",
        Shape::Uids,
        "",
        "User ids, other than the proxy's, whose outbound connections and DNS queries are not captured",
    ),
    setting(
        "exclude-interfaces",
        "interfaces.exclude",
        Shape::Interfaces,
        "",
        "Interfaces whose traffic is not captured in either direction",
    ),
    setting(
        "reroute-interfaces",
        "interfaces.reroute",
        Shape::Interfaces,
        "",
        "Interfaces whose incoming traffic counts as outbound (virtual machines behind the pod)",
    ),
    setting(
        "localhost-cidr",
        "localhost",
        Shape::Network,
        "127.0.0.1/32",
        "IPv4 network that counts as localhost, 127.0.0.0/8 or smaller",
    ),
    setting(
        "dns",
        "dns.capture",
        Shape::Choice(&["off", "servers", "all"]),
        "off",
        "DNS queries to capture: those to the name servers, or all",
    ),
    setting(
        "dns-port",
        "dns.port",
        Shape::ListenPort,
        "15053",
        "Port of the proxy that captured DNS queries go to",
    ),
    setting(
        "dns-servers",
        "dns.servers",
        Shape::Addresses,
        "",
        "Name servers for --dns servers [default: those of /etc/resolv.conf]",
    ),
    setting(
        "ipv6",
        "ipv6",
        Shape::Choice(&["auto", "on", "off"]),
        "auto",
        "Whether IPv6 is captured; auto: when the namespace has an IPv6 address",
    ),
    setting(
        "drop-invalid",
        "dropInvalid",
        Shape::Switch,
        "false",
        "Drop packets whose conntrack state is INVALID",
    ),
];

/// The setting with this flag.
pub fn find(flag: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.flag == flag)
}
