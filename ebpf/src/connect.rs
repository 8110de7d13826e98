//! `connect()` and `getpeername()`.

use millrace_ebpf_common::{Address, Class, Connection, Direction, Flow, FlowKey, Pod, Protocol};

use crate::judge::{self, Judgement};
use crate::sys_addr::{Call, Family};
use crate::sys_maps;

/// The call goes on.
pub(crate) const ALLOW: i32 = 1;
/// The call fails with EPERM.
pub(crate) const REFUSE: i32 = 0;

/// What becomes of what the call sends; none when the pod is not enrolled, or it is neither TCP nor
/// UDP.
#[inline(always)]
pub(crate) fn judge<F: Family>(
    call: &Call<'_, F>,
    protocol: Option<Protocol>,
    source: Address,
) -> Option<(&'static Pod, Judgement)> {
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
    let judgement = judge::outbound(pod, &connection);
    judge::note(netns, &connection, judgement, call.process(), 0);
    Some((pod, judgement))
}

/// A TCP connection, or a UDP socket that gets a peer.
#[inline(always)]
pub(crate) fn connect<F: Family>(call: &Call<'_, F>) -> i32 {
    let protocol = call.protocol();
    let Some((pod, judgement)) = judge(call, protocol, call.bound()) else { return ALLOW };
    let tcp = matches!(protocol, Some(Protocol::Tcp));
    if !judgement.is_captured() {
        // An earlier attempt of the same socket may have left something.
        if tcp {
            let _forgotten = sys_maps::connected(call.socket_cookie());
        } else if call.client().is_some() {
            call.forget();
        }
        return ALLOW;
    }
    if call.is_on_a_device() && !call.leave_device() {
        sys_maps::count(call.netns(), Class::Device as u8);
        return REFUSE;
    }
    let original = call.original(judgement.port());
    if tcp {
        if !sys_maps::connects(call.socket_cookie(), original) {
            sys_maps::count(call.netns(), Class::NoMemory as u8);
            return REFUSE;
        }
    } else {
        let Some(client) = call.client_or_new() else {
            sys_maps::count(call.netns(), Class::NoMemory as u8);
            return REFUSE;
        };
        client.peer = original;
        client.asked.via = 0;
    }
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
    if tcp && !sys_maps::is_noted(call.socket_cookie()) {
        sys_maps::count(call.netns(), Class::NoMemory as u8);
        return REFUSE;
    }
    call.rewrite(&meant.localhost(), judgement.port());
    ALLOW
}

/// The application sees the peer that it asked for.
#[inline(always)]
pub(crate) fn peer_name<F: Family>(call: &Call<'_, F>) -> i32 {
    let proxy = call.address();
    if !proxy.is_loopback() {
        return ALLOW;
    }
    let multipath = call.is_multipath();
    if multipath || matches!(call.protocol(), Some(Protocol::Tcp)) {
        let client = (call.bound(), call.bound_port() as u16);
        let key = FlowKey::new(call.netns(), client, (proxy, call.port()));
        let socket = call.socket_cookie();
        // The application's socket of multipath TCP is not the one that it has connect, but has its
        // addresses.
        let own = |flow: &&mut Flow| multipath || flow.client == socket;
        if let Some(flow) = sys_maps::flow(&key).filter(own) {
            call.rewrite(&flow.original.address, flow.original.port);
        }
    } else if let Some(client) = call.client() {
        if client.peer.via != 0 {
            call.rewrite(&client.peer.address, client.peer.port);
        }
    }
    ALLOW
}
