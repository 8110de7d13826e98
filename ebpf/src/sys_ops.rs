//! `sock_ops`: the life of TCP connections and listeners.

use core::ffi::c_void;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::SockOpsContext;
use millrace_ebpf_common::{
    Address, Class, Flow, FlowKey, LISTENER_PLACES, ListenerKey, Original, PodFlags,
};

use crate::sys_maps::{self, ENDS, LISTENERS};

const AF_INET: u32 = 2;
const DONE: u32 = 1;

macro_rules! read {
    ($place:expr) => {
        // SAFETY: a field of the context, which is there while the program runs.
        unsafe { read_volatile(addr_of!($place)) }
    };
}

pub(crate) fn run(ctx: &SockOpsContext) -> u32 {
    let op = ctx.op();
    let matters = match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => true,
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => sys_maps::accelerates(),
        // The old state and the new one (`enum` of BPF_TCP_ states).
        BPF_SOCK_OPS_STATE_CB => ctx.arg(1) == BPF_TCP_CLOSE,
        BPF_SOCK_OPS_TCP_LISTEN_CB => {
            listens(ctx);
            false
        }
        _ => false,
    };
    // In one place: inlined for each of them it would be three times as long.
    if matters {
        connection(ctx, op);
    }
    DONE
}

/// A connection begins, is there, or ends, at one of its ends. Of those that are captured, the
/// proxy's end is on localhost.
#[inline(always)]
fn connection(ctx: &SockOpsContext, op: u32) {
    let (local, remote) = ends(ctx);
    let accepted = op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB;
    let ended = op == BPF_SOCK_OPS_STATE_CB;
    let netns = netns(ctx);
    let own = cookie(ctx);
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        if remote.0.is_loopback() {
            begun(ctx, &FlowKey::new(netns, local, remote), own);
        } else {
            departs(ctx, netns, (local, remote), own);
        }
        return;
    }
    if !accepted && remote.0.is_loopback() {
        let key = FlowKey::new(netns, local, remote);
        if ended {
            sys_maps::refused(&key);
        }
        if let Some(flow) = sys_maps::flow(&key).filter(|flow| flow.client == own) {
            if ended {
                flow.client = 0;
                sys_maps::leave_flow(&key, flow);
            } else {
                join(ctx, &key);
            }
            return;
        }
    }
    if (accepted || ended) && local.0.is_loopback() {
        let key = FlowKey::new(netns, remote, local);
        let flow = sys_maps::flow(&key);
        if accepted {
            let Some(flow) = flow else { return };
            watch(ctx);
            // It is called twice while it is attached at two places.
            if flow.accepted != own {
                sys_maps::join_flow(flow, own);
            }
            if sys_maps::accelerates() {
                join(ctx, &mirrored(&key));
            }
        } else if let Some(flow) = flow.filter(|flow| flow.accepted == own) {
            closed(ctx, flow);
            sys_maps::leave_flow(&key, flow);
            return;
        }
    }
    if ended && !remote.0.is_loopback() {
        let key = FlowKey::in_pod(netns, local, remote);
        if sys_maps::flow(&key).is_some_and(|flow| flow.client == own) {
            sys_maps::end_flow(&key);
        }
    }
}

#[inline(always)]
fn netns(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the hook's own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The hook's socket, if it is a full one.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut c_void {
    // SAFETY: a field of the context.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk.cast() }
}

/// Both ends: address and port of this one and of the other.
#[inline(always)]
fn ends(ctx: &SockOpsContext) -> ((Address, u16), (Address, u16)) {
    let ops = ctx.ops;
    // All fields are read before one is chosen: of loads in two branches the compiler would make
    // one load from a place that varies, which the verifier refuses.
    let (local4, remote4) = (read!((*ops).local_ip4), read!((*ops).remote_ip4));
    let local6 = Address([
        read!((*ops).local_ip6[0]),
        read!((*ops).local_ip6[1]),
        read!((*ops).local_ip6[2]),
        read!((*ops).local_ip6[3]),
    ]);
    let remote6 = Address([
        read!((*ops).remote_ip6[0]),
        read!((*ops).remote_ip6[1]),
        read!((*ops).remote_ip6[2]),
        read!((*ops).remote_ip6[3]),
    ]);
    let v4 = read!((*ops).family) == AF_INET;
    // The local port is in host order; the other one in network order in the upper half.
    let local_port = read!((*ops).local_port) as u16;
    let remote_port = u32::from_be(read!((*ops).remote_port)) as u16;
    let local = if v4 { Address::v4(local4) } else { local6 };
    let remote = if v4 { Address::v4(remote4) } else { remote6 };
    ((local, local_port), (remote, remote_port))
}

/// A connection begins: its port is chosen, its SYN not yet sent.
#[inline(always)]
fn begun(ctx: &SockOpsContext, key: &FlowKey, own: u64) {
    sys_maps::refused(key);
    match meant(ctx).or_else(|| sys_maps::connected(own)) {
        Some(original) if original.via == key.proxy_port => {
            watch(ctx);
            if !sys_maps::begin_flow(key, own, original) {
                // Here it can't be stopped; where its SYN arrives, it can.
                sys_maps::refuse(key);
                sys_maps::count(key.netns, Class::NoMemory as u8);
            }
        }
        // Not captured: what an earlier socket left must not answer for this one.
        _ => sys_maps::end_flow(key),
    }
}

/// Where the socket that begins a connection is meant to go; none if it was not noted.
#[inline(always)]
fn meant(ctx: &SockOpsContext) -> Option<Original> {
    let socket = socket(ctx);
    if socket.is_null() {
        return None;
    }
    // SAFETY: the hook's own socket.
    let client = unsafe { sys_maps::client(socket) }?;
    if client.peer.holder == 0 { None } else { Some(client.peer) }
}

/// A connection begins that is not captured, and not to localhost. If it goes to an address of the
/// pod's own it is noted, so that where it arrives it is known; else the kernel has shown which
/// address it chooses.
#[inline(always)]
fn departs(
    ctx: &SockOpsContext,
    netns: u64,
    (local, remote): ((Address, u16), (Address, u16)),
    own: u64,
) {
    let Some(pod) = sys_maps::pod(netns) else { return };
    let stays = local.0.equals(&remote.0)
        || local.0.is_loopback()
        || local.0.is_passthrough()
        || meant(ctx).is_some_and(|noted| noted.via == 0);
    if !stays {
        return sys_maps::note_chosen(netns, pod, &local.0);
    }
    if pod.has(PodFlags::INBOUND) {
        watch(ctx);
        let (address, port) = remote;
        let noted = Original { address, port, via: 0, holder: pod.lookup };
        if !sys_maps::begin_flow(&FlowKey::in_pod(netns, local, remote), own, noted) {
            // Where it arrives it is taken for one from elsewhere.
            sys_maps::count(netns, Class::NoMemory as u8);
        }
    }
}

/// The proxy's end is closed.
#[inline(always)]
fn closed(ctx: &SockOpsContext, flow: &mut Flow) {
    flow.accepted = 0;
    let socket = socket(ctx);
    if flow.asked == 0 && !socket.is_null() {
        // It may be accepted, and its proxy ask, only now.
        let original = flow.original;
        // SAFETY: the hook's own socket. Without memory the proxy is not told; nothing comes from
        // such a connection.
        let _noted = unsafe { sys_maps::set_accepted(socket, &original) };
    }
}

/// The socket, by its cookie.
#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the hook's own context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Be told when the socket is closed.
#[inline(always)]
fn watch(ctx: &SockOpsContext) {
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    // A full socket, which this is, takes them.
    let _set = ctx.set_cb_flags(flags.cast_signed());
}

/// The key in ENDS of the end that accepted: that of the other end with the ports in the other
/// order, which is no client's key, since the family is marked.
#[inline(always)]
pub(crate) fn mirrored(key: &FlowKey) -> FlowKey {
    FlowKey { family: key.family | 0x100, ..*key }
}

#[inline(always)]
fn join(ctx: &SockOpsContext, key: &FlowKey) {
    let mut key = *key;
    // SAFETY: the hook's own context.
    let ops = unsafe { &mut *ctx.ops };
    // A full map leaves the connection as it is.
    let _full = ENDS.update(&mut key, ops, BPF_ANY.into());
}

/// A socket starts to listen: if it is the proxy's for inbound connections, it gets them.
#[inline(always)]
fn listens(ctx: &SockOpsContext) {
    let netns = netns(ctx);
    let Some(pod) = sys_maps::pod(netns) else { return };
    let port = read!((*ctx.ops).local_port);
    if port != u32::from(pod.inbound_port) {
        return;
    }
    let family = if read!((*ctx.ops).family) == AF_INET { 4 } else { 6 };
    // SAFETY: the hook's own context.
    let ops = unsafe { &mut *ctx.ops };
    // A place is free again when its socket has ended. In the last one the latest counts: a proxy
    // that replaces itself listens before it ends.
    for place in 0..LISTENER_PLACES {
        let last = place + 1 == LISTENER_PLACES;
        let flags = if last { BPF_ANY } else { BPF_NOEXIST };
        let mut key = ListenerKey { netns, family, place, port };
        if LISTENERS.update(&mut key, &mut *ops, flags.into()).is_ok() {
            return;
        }
    }
}
