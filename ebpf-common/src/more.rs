//! What only some policies say: a second value of such a pod, so that the first one stays as it is.

use crate::address::Address;
use crate::maps::{PORTS_IN_CHUNK, PortKey};

/// Of how many ranges of users a pod can leave alone what they send to some ports.
pub const MAX_FLOWS: usize = 8;

/// Switches of a [`More`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoreFlags;

impl MoreFlags {
    /// DNS queries to addresses of IPv4 are asked for ahead of all else.
    pub const DNS_V4: u32 = 1;
    /// Those to addresses of IPv6 are.
    pub const DNS_V6: u32 = 1 << 1;
    /// Those by TCP of others than the proxy are left alone; else they are captured as those by UDP.
    pub const DNS_TCP_ALONE: u32 = 1 << 2;
    /// The proxy's own by UDP are left alone.
    pub const DNS_SPARES_PROXY: u32 = 1 << 3;
    /// With rules they would be asked for in front of rules of others; no program asks.
    pub const DNS_IN_FRONT: u32 = 1 << 4;
    /// With rules they would have no zones of connection tracking; no program asks.
    pub const NO_ZONES: u32 = 1 << 5;
    /// With rules excluded interfaces would be asked for late; no program asks.
    pub const INTERFACES_LAST: u32 = 1 << 6;
}

/// More of a pod's policy, found by its id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct More {
    /// Switches of [`MoreFlags`], one bit each.
    pub flags: u32,
    /// How many of `flows` count.
    pub flow_count: u32,
    /// Which of them are about every port: of TCP a bit by their places, of UDP one 16 bits above.
    pub every_port: u32,
    /// The port at `dns4` that DNS queries go to; 0 for none, and for the proxy's.
    pub dns4_port: u16,
    /// The port at `dns6`, likewise.
    pub dns6_port: u16,
    /// Users, from the first to the last, in the initial user namespace: what they send to the ports that
    /// PORTS has of them ([`flow_key`]) is left alone.
    pub flows: [[u32; 2]; MAX_FLOWS],
    /// Where DNS queries to addresses of IPv4 go instead of to the proxy.
    pub dns4: Address,
    /// Where those to addresses of IPv6 go.
    pub dns6: Address,
    /// The pod's address that the proxy's connections to localhost of IPv4 go to.
    pub own: Address,
}

impl More {
    /// Whether a flag is set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Where DNS queries to addresses of a family go.
    #[inline(always)]
    #[must_use]
    pub const fn dns(&self, v4: bool) -> (&Address, u16) {
        if v4 { (&self.dns4, self.dns4_port) } else { (&self.dns6, self.dns6_port) }
    }

    /// Whether a flow is about every port.
    #[inline(always)]
    #[must_use]
    pub const fn is_of_every_port(&self, flow: u32, tcp: bool) -> bool {
        let at = if tcp { flow } else { flow + 16 };
        (self.every_port >> at) & 1 != 0
    }
}

/// Of [`crate::PortChunk::flags`], of a flow: ports of TCP.
pub const FLOW_TCP: u32 = 1;
/// Of [`crate::PortChunk::flags`], of a flow: ports of UDP.
pub const FLOW_UDP: u32 = 1 << 1;

/// Where PORTS has the ports of a flow, behind those of the pod.
#[inline(always)]
#[must_use]
pub const fn flow_key(pod: u32, flow: u32, port: u16) -> PortKey {
    PortKey { pod, chunk: (flow + 1) << 8 | (port / PORTS_IN_CHUNK) as u32 }
}
