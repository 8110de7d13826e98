//! `connect()` and `getpeername()`.

use millrace_ebpf_common::{Class, Connection, Direction, Pod, Protocol, Verdict, decide};

use crate::sys_addr::{Call, Family};
use crate::sys_maps::{self, Maps};

/// The call goes on.
pub(crate) const ALLOW: i32 = 1;
/// The call fails with EPERM.
pub(crate) const REFUSE: i32 = 0;

/// What becomes of what the call sends; none when the pod is not enrolled, or it is neither TCP nor
/// UDP.
#[inline(always)]
pub(crate) fn judge<'a, F: Family>(
    call: &Call<'a, F>,
    protocol: Option<Protocol>,
    source: millrace_ebpf_common::Address,
) -> Option<(&'static Pod, Verdict)> {
    let netns = call.netns();
    let pod = sys_maps::pod(netns)?;
    let (uid, gid) = call.owner();
    let connection = Connection {
        direction: Direction::Outbound,
        protocol: protocol?,
        uid,
        gid,
        source,
        destination: call.address(),
        port: call.port(),
    };
    let verdict = decide(pod, &Maps, &connection);
    sys_maps::count(netns, verdict.class);
    sys_maps::report(netns, &connection, verdict, |event| event.pid = call.process());
    Some((pod, verdict))
}

/// A TCP connection, or a UDP socket that gets a peer.
#[inline(always)]
pub(crate) fn connect<F: Family>(call: &Call<'_, F>) -> i32 {
    let Some((pod, verdict)) = judge(call, call.protocol(), call.bound()) else { return ALLOW };
    // An earlier attempt of the same socket may have left an entry that nobody took.
    if let Some(client) = call.client() {
        if client.flow.proxy_port != 0 {
            sys_maps::end_flow_of(&client.flow, call.socket_cookie());
        }
        if !verdict.is_captured() {
            call.forget();
        }
    }
    if !verdict.is_captured() {
        return ALLOW;
    }
    let Some(client) = call.client_or_new() else {
        sys_maps::count(call.netns(), Class::NoMemory);
        return REFUSE;
    };
    client.peer = call.original(verdict.port);
    client.asked.via = 0;
    client.flow.proxy_port = 0;
    let meant = call.address().destination();
    // What goes to localhost comes from localhost, and what goes to an address of the pod comes
    // from that address.
    if !meant.is_loopback() && call.bound().is_unspecified() && call.bound_port() == 0 {
        let source = if pod.owns(&meant) {
            meant
        } else if meant.is_v4() {
            pod.source4
        } else {
            pod.source6
        };
        if !source.is_unspecified() {
            call.bind(&source);
        }
    }
    call.rewrite(&meant.localhost(), verdict.port);
    ALLOW
}

/// The application sees the peer that it asked for.
#[inline(always)]
pub(crate) fn peer_name<F: Family>(call: &Call<'_, F>) -> i32 {
    if let Some(client) = call.client() {
        if client.peer.via != 0 {
            call.rewrite(&client.peer.address, client.peer.port);
        }
    }
    ALLOW
}
