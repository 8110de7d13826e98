//! `connect()` and `getpeername()`.

use millrace_ebpf_common::{
    Address, Class, Client, Connection, Direction, Flow, FlowKey, Original, Pod, PodFlags, Protocol,
};

use crate::judge::{self, Judgement};
use crate::sys_addr::{Call, Family};
use crate::{sys_handover, sys_maps};

/// The call goes on.
pub(crate) const ALLOW: i32 = 1;
/// The call fails with EPERM.
pub(crate) const REFUSE: i32 = 0;

/// What becomes of what the call sends.
#[inline(always)]
pub(crate) fn judge<F: Family>(
    call: &Call<'_, F>,
    pod: &Pod,
    protocol: Protocol,
    source: Address,
    in_pod: bool,
) -> Judgement {
    let (uid, gid) = call.owner();
    let connection = Connection {
        direction: Direction::Outbound,
        protocol,
        uid,
        gid,
        source,
        destination: call.address(),
        port: call.port(),
        in_pod: in_pod.into(),
    };
    let judgement = judge::outbound(pod, &connection);
    judge::note(call.netns(), &connection, judgement, call.process(), 0);
    judgement
}

/// A TCP connection, or a UDP socket that gets a peer.
#[inline(always)]
pub(crate) fn connect<F: Family>(call: &Call<'_, F>) -> i32 {
    // Neither is TCP nor UDP.
    let Some(protocol) = call.protocol() else { return ALLOW };
    let Some(pod) = sys_maps::pod(call.netns()) else { return ALLOW };
    let tcp = matches!(protocol, Protocol::Tcp);
    let (bound, meant) = (call.bound(), call.address().destination());
    if is_decided(call, pod, &meant, |client| client.peer) {
        return ALLOW;
    }
    let own = !meant.is_loopback()
        && if tcp { call.is_own(pod, &meant, &bound) } else { pod.owns(&meant) };
    let judgement = judge(call, pod, protocol, bound, own);
    if !judgement.is_captured() {
        // An earlier attempt of the same socket may have left something.
        if let Some(client) = call.client() {
            if tcp {
                client.peer = Original::NOTHING;
            } else {
                call.forget();
            }
        }
        return if tcp && own && pod.has(PodFlags::INBOUND) {
            stay(call, pod, &bound)
        } else {
            ALLOW
        };
    }
    let to = judgement.to(pod, &meant);
    if !to.is_loopback() {
        return lead(call, pod, tcp, &bound, (&to, judgement.port()));
    }
    if call.is_on_a_device() && !call.leave_device() {
        sys_maps::count(call.netns(), Class::Device as u8);
        return REFUSE;
    }
    let room = !tcp || sys_maps::has_room(call.netns());
    let Some(client) = call.client_or_new().filter(|_| room) else {
        sys_maps::count(call.netns(), Class::NoMemory as u8);
        return REFUSE;
    };
    client.peer = call.original(judgement.port(), pod.lookup);
    client.asked.via = 0;
    if !tcp {
        // The kernel chooses where it comes from. Bound to localhost it would stay so when it connects to
        // elsewhere. Whatever device the socket names, the pod has a route to localhost by it.
        call.rewrite(&to, judgement.port());
        return ALLOW;
    }
    // What goes to localhost comes from localhost, and what goes to an address of the pod comes from
    // that address, which the socket is bound to by now.
    if !meant.is_loopback() && !own && bound.is_unspecified() && call.bound_port() == 0 {
        call.bind_for_elsewhere(pod, meant.is_v4());
    }
    call.rewrite(&to, judgement.port());
    ALLOW
}

/// Whether this program was called for the same call before, at its other place, and has put what the
/// call is about in the place of what was meant: then it is meant for what is `noted`.
#[inline(always)]
pub(crate) fn is_decided<F: Family>(
    call: &Call<'_, F>,
    pod: &Pod,
    to: &Address,
    noted: fn(&Client) -> Original,
) -> bool {
    if !sys_handover::is_going_on() {
        return false;
    }
    let Some(client) = call.client() else { return false };
    let via = noted(client).via;
    via != 0 && via == call.port() && (to.is_loopback() || is_led_to(pod, to))
}

/// Whether it is there that the pod's queries are led.
#[inline(always)]
pub(crate) fn is_led_to(pod: &Pod, server: &Address) -> bool {
    pod.has(PodFlags::DNS_LED)
        && sys_maps::more(pod.id).is_some_and(|more| more.dns(server.is_v4()).0.equals(server))
}

/// To another address than localhost: a connection of TCP is from now on as if it had been meant for there;
/// of a socket of UDP it is noted what its answers are to come from.
#[inline(always)]
fn lead<F: Family>(
    call: &Call<'_, F>,
    pod: &Pod,
    tcp: bool,
    bound: &Address,
    (to, port): (&Address, u16),
) -> i32 {
    if tcp {
        if sys_handover::is_going_on() {
            if let Some(client) = call.client_or_new() {
                client.peer = call.original(port, pod.lookup);
            }
        } else if let Some(client) = call.client() {
            // An earlier attempt of the same socket may have left something.
            client.peer = Original::NOTHING;
        }
        call.rewrite(to, port);
        // What goes to an address of the pod comes from the same one, which is seen where it arrives.
        return if pod.owns(to) && pod.has(PodFlags::INBOUND) {
            stay(call, pod, bound)
        } else {
            ALLOW
        };
    }
    let Some(client) = call.client_or_new() else {
        sys_maps::count(call.netns(), Class::NoMemory as u8);
        return REFUSE;
    };
    client.peer = call.original(port, pod.lookup);
    client.asked.via = 0;
    call.rewrite(to, port);
    ALLOW
}

/// A TCP connection that is not captured, to an address of the pod's own: where it arrives it must be
/// told from what others send from that address.
#[inline(always)]
fn stay<F: Family>(call: &Call<'_, F>, pod: &Pod, bound: &Address) -> i32 {
    if !sys_maps::has_room(call.netns()) {
        sys_maps::count(call.netns(), Class::NoMemory as u8);
        return REFUSE;
    }
    // Of any other one it is seen by its addresses.
    if !bound.is_unspecified() && !bound.is_loopback() && !bound.is_passthrough() {
        let Some(client) = call.client_or_new() else {
            sys_maps::count(call.netns(), Class::NoMemory as u8);
            return REFUSE;
        };
        client.peer = call.original(0, pod.lookup);
    }
    ALLOW
}

/// The application sees the peer that it asked for.
#[inline(always)]
pub(crate) fn peer_name<F: Family>(call: &Call<'_, F>) -> i32 {
    let proxy = call.address();
    let multipath = call.is_multipath();
    let udp = matches!(call.protocol(), Some(Protocol::Udp));
    if !proxy.is_loopback() && !udp {
        return ALLOW;
    }
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
