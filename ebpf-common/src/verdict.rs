//! What becomes of a connection, and why.

/// Why a connection is captured or let past. Each has a counter for each pod.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// IPv6 is not captured.
    Ipv6Off = 0,
    /// The outbound port is excluded.
    ExcludedPort = 1,
    /// What the proxy passes on to the application.
    Passthrough = 2,
    /// The proxy calls its own pod: to the inbound port.
    SelfCall = 3,
    /// The proxy's own connection.
    Proxy = 4,
    /// What stays in the pod.
    InPod = 5,
    /// The process's group is not captured.
    Group = 6,
    /// A DNS query: to the DNS port, or to the server that is named.
    Dns = 7,
    /// Outbound to localhost, which is not captured.
    Localhost = 8,
    /// The network is excluded.
    ExcludedNetwork = 9,
    /// The outbound port is captured wherever it goes.
    IncludedPort = 10,
    /// The network is captured.
    Network = 11,
    /// The network is not among those that are captured.
    OtherNetwork = 12,
    /// Neither TCP nor a DNS query.
    NotTcp = 13,
    /// Inbound to the tunnel port, which is never captured.
    Tunnel = 14,
    /// Inbound: the port is not captured.
    OtherInboundPort = 15,
    /// Inbound, and handed to the proxy's inbound port.
    Inbound = 16,
    /// Inbound: captured, but the proxy does not listen, so it was refused.
    Refused = 17,
    /// To be captured, but there was no room for its original destination, so it was refused.
    NoMemory = 18,
    /// To be captured, but its socket is bound to a device, so it was refused.
    Device = 19,
    /// The user's connections are not captured.
    ExcludedUser = 20,
    /// What the user sends to this port is not captured.
    ExcludedFlow = 21,
    /// A DNS query that is left alone.
    OtherDns = 22,
    /// The proxy's connection to localhost: to an address of the pod.
    OwnLocalhost = 23,
    /// Inbound: what comes from this network is not captured.
    ExcludedSource = 24,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 25] = [
        Self::Ipv6Off,
        Self::ExcludedPort,
        Self::Passthrough,
        Self::SelfCall,
        Self::Proxy,
        Self::InPod,
        Self::Group,
        Self::Dns,
        Self::Localhost,
        Self::ExcludedNetwork,
        Self::IncludedPort,
        Self::Network,
        Self::OtherNetwork,
        Self::NotTcp,
        Self::Tunnel,
        Self::OtherInboundPort,
        Self::Inbound,
        Self::Refused,
        Self::NoMemory,
        Self::Device,
        Self::ExcludedUser,
        Self::ExcludedFlow,
        Self::OtherDns,
        Self::OwnLocalhost,
        Self::ExcludedSource,
    ];

    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv6Off => "ipv6-off",
            Self::ExcludedPort => "excluded-port",
            Self::Passthrough => "passthrough",
            Self::SelfCall => "self-call",
            Self::Proxy => "proxy",
            Self::InPod => "in-pod",
            Self::Group => "group",
            Self::Dns => "dns",
            Self::Localhost => "localhost",
            Self::ExcludedNetwork => "excluded-network",
            Self::IncludedPort => "included-port",
            Self::Network => "network",
            Self::OtherNetwork => "other-network",
            Self::NotTcp => "not-tcp",
            Self::Tunnel => "tunnel",
            Self::OtherInboundPort => "other-inbound-port",
            Self::Inbound => "inbound",
            Self::Refused => "refused",
            Self::NoMemory => "no-memory",
            Self::Device => "device",
            Self::ExcludedUser => "excluded-user",
            Self::ExcludedFlow => "excluded-flow",
            Self::OtherDns => "other-dns",
            Self::OwnLocalhost => "own-localhost",
            Self::ExcludedSource => "excluded-source",
        }
    }
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The port that it goes to, of the proxy but for DNS and localhost that are led elsewhere; 0 when it
    /// is let past.
    pub port: u16,
    /// Which decision gave it, for counters and reports.
    pub class: Class,
}

impl Verdict {
    /// Let the connection past, for this reason.
    #[inline(always)]
    #[must_use]
    pub const fn pass(class: Class) -> Self {
        Self { port: 0, class }
    }

    /// To a port of the proxy.
    #[inline(always)]
    #[must_use]
    pub const fn to(port: u16, class: Class) -> Self {
        Self { port, class }
    }

    /// Whether the proxy gets it.
    #[inline(always)]
    #[must_use]
    pub const fn is_captured(&self) -> bool {
        self.port != 0
    }
}
