//! What a rule is there for.

/// What a decision is there for, in words that hold for every mesh and backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Leads to the decisions of another path.
    Enter,
    /// An interface that is not captured.
    ExcludedInterface,
    /// An interface with virtual machines behind it.
    Rerouted,
    /// A packet that belongs to no connection.
    Invalid,
    /// The port of tunnels to the proxy.
    Tunnel,
    /// Hands what is captured to the proxy.
    Deliver,
    /// An inbound port that is not captured.
    ExcludedInboundPort,
    /// A network from which nothing is captured.
    ExcludedSource,
    /// Where the node probes the pod from.
    Probe,
    /// An inbound port that is captured, or every one.
    Inbound,
    /// An outbound port that is not captured.
    ExcludedPort,
    /// What the proxy passes on to the application.
    Passthrough,
    /// The proxy calls its own pod.
    SelfCall,
    /// The proxy's connections to localhost, which are led to another address of the pod.
    OwnLocalhost,
    /// What the application sends to its own pod.
    StaysInPod,
    /// What the proxy sends, which is not captured.
    Proxy,
    /// A group whose processes are or are not captured.
    Group,
    /// A DNS query, captured or not.
    Dns,
    /// The connection tracking zone of a DNS packet.
    Zone,
    /// A connection to localhost, which is not captured.
    Localhost,
    /// A network that is not captured.
    ExcludedNetwork,
    /// A user whose connections are not captured.
    ExcludedUser,
    /// What users send to some ports that is not captured.
    ExcludedFlow,
    /// An outbound port that is captured wherever it goes.
    IncludedPort,
    /// A network that is captured, or every one.
    Network,
    /// The mark of a connection that a transparent proxy has.
    Mark,
}
