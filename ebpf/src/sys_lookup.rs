//! `sk_lookup`: connections from outside, before the kernel looks for a listener. The kernel does not
//! tell which network namespace they are in. So each pod has a copy of a very short program, with a
//! number of its own in its code by which LOOKUPS knows the pod, that goes on with the one program
//! for all pods. Copies are loaded before there is a pod for them, and never used for a second one.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use millrace_ebpf_common::{
    Address, Class, Connection, Direction, FlowKey, LISTENER_PLACES, ListenerKey, NUMBER_MARK,
    Protocol, TELLS_INTERFACE,
};

use crate::judge;
use crate::sys_maps::{self, LISTENERS};

const AF_INET: u32 = 2;
const TCP: u32 = 6;
/// The number of `lo` in every namespace (`LOOPBACK_IFINDEX` in the kernel's `net/flow.h`).
const LO: u32 = 1;
const PASS: u32 = 1;
const DROP: u32 = 0;
/// The kernel does not tell where a packet arrived.
const UNTOLD: u64 = 0;
/// A packet arrived at `lo`.
const AT_LO: u64 = 1;
/// It arrived elsewhere, or at `lo` for an address of another interface: for that the kernel tells the
/// other one (`ip_route_output_key_hash_rcu()`, `ip6_rcv_core()`).
const ELSEWHERE: u64 = 2;

macro_rules! read {
    ($place:expr) => {
        // SAFETY: a field of the context, which is there while the program runs.
        unsafe { read_volatile(addr_of!($place)) }
    };
}

/// The number of this copy, and whether TELLS_INTERFACE.
#[inline(always)]
fn number() -> u64 {
    let number: u64;
    // SAFETY: loads a number into a register. The loader finds it by the mark and replaces it.
    unsafe {
        core::arch::asm!("{0} = {1} ll", out(reg) number, const NUMBER_MARK, options(pure, nomem));
    }
    number
}

/// The pod's own program.
pub(crate) fn enter(ctx: &SkLookupContext) -> u32 {
    let (lookup, number) = (ctx.lookup, number());
    let mut arrived = UNTOLD;
    if number & TELLS_INTERFACE != 0 {
        let at_lo = read!((*lookup).ingress_ifindex) == LO;
        // What arrives at `lo` has been decided on its way out, and only what was refused then
        // matters.
        if at_lo && !sys_maps::refuses_any() {
            return PASS;
        }
        arrived = if at_lo { AT_LO } else { ELSEWHERE };
    }
    let Some(netns) = sys_maps::pod_of_lookup(number as u32) else { return PASS };
    sys_maps::set_current(netns, arrived);
    sys_maps::go_on(ctx);
    // There is nothing to go on with. What is captured must not get past the proxy.
    if sys_maps::pod(netns).is_some() { DROP } else { PASS }
}

/// The program for all pods.
pub(crate) fn run(ctx: &SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    if read!((*lookup).protocol) != TCP {
        return PASS;
    }
    let (netns, arrived) = sys_maps::current();
    let Some(pod) = sys_maps::pod(netns) else { return PASS };
    let v4 = read!((*lookup).family) == AF_INET;
    let (source, destination) = ends(lookup, v4);
    let port = read!((*lookup).local_port) as u16;
    // In network order in the lower half.
    let from = u16::from_be(read!((*lookup).remote_port) as u16);
    // Any source can be forged. By `lo` nothing comes from outside, and the kernel lets nothing in for
    // a loopback address; what goes to another address of the pod was noted on its way out.
    let at_lo = arrived == AT_LO || (arrived == UNTOLD && destination.is_loopback());
    let client = (source, from);
    if at_lo && sys_maps::is_refused(&FlowKey::new(netns, client, (destination, port))) {
        return DROP;
    }
    let in_pod = at_lo || sys_maps::is_in_pod(&FlowKey::in_pod(netns, client, (destination, port)));
    let connection = Connection {
        direction: Direction::Inbound,
        protocol: Protocol::Tcp,
        uid: 0,
        gid: 0,
        source,
        destination,
        port,
        in_pod: in_pod.into(),
    };
    let judgement = judge::judge(pod, &connection);
    if judgement.is_of(Class::InPod) {
        return PASS;
    }
    if !at_lo {
        sys_maps::note_reached(netns, pod, &destination);
    }
    if !judgement.is_captured() {
        judge::note(netns, &connection, judgement, 0, from);
        return PASS;
    }
    let found = to_listener(ctx, netns, judgement.port(), v4);
    let judgement = if found { judgement } else { judgement.as_class(Class::Refused) };
    judge::note(netns, &connection, judgement, 0, from);
    if found { PASS } else { DROP }
}

/// Give the connection to one of the proxy's listeners; false if there is none. Of several sockets
/// on a port the kernel chooses as it does by itself.
#[inline(always)]
fn to_listener(ctx: &SkLookupContext, netns: u64, port: u16, v4: bool) -> bool {
    let port = port.into();
    for place in 0..LISTENER_PLACES {
        let key = |family| ListenerKey { netns, family, place, port };
        // A listener of IPv6 takes IPv4 as well, unless it is told not to; the kernel knows.
        if v4 && LISTENERS.redirect_sk_lookup(ctx, key(4), 0).is_ok() {
            return true;
        }
        if LISTENERS.redirect_sk_lookup(ctx, key(6), 0).is_ok() {
            return true;
        }
    }
    false
}

/// Where it comes from, and where it goes.
#[inline(always)]
fn ends(lookup: *mut bpf_sk_lookup, v4: bool) -> (Address, Address) {
    // All of them, as in `sys_ops`.
    let (remote4, local4) = (read!((*lookup).remote_ip4), read!((*lookup).local_ip4));
    let remote6 = Address([
        read!((*lookup).remote_ip6[0]),
        read!((*lookup).remote_ip6[1]),
        read!((*lookup).remote_ip6[2]),
        read!((*lookup).remote_ip6[3]),
    ]);
    let local6 = Address([
        read!((*lookup).local_ip6[0]),
        read!((*lookup).local_ip6[1]),
        read!((*lookup).local_ip6[2]),
        read!((*lookup).local_ip6[3]),
    ]);
    if v4 { (Address::v4(remote4), Address::v4(local4)) } else { (remote6, local6) }
}
