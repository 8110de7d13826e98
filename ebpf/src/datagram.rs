//! Datagrams of sockets that are not connected: DNS queries and their answers.

use millrace_ebpf_common::{Address, Class};

use crate::connect::{ALLOW, REFUSE, is_decided, is_led_to, judge};
use crate::sys_addr::{Call, Family};
use crate::sys_maps;

/// A query on its way. It comes from localhost unless its socket is bound to an address: an address
/// of the pod may be gone, and which device the message or the socket names (`IP_PKTINFO`,
/// `IP_UNICAST_IF`) is not told here.
#[inline(always)]
pub(crate) fn send<F: Family>(call: &Call<'_, F>) -> i32 {
    let Some(protocol) = call.protocol() else { return ALLOW };
    let Some(pod) = sys_maps::pod(call.netns()) else { return ALLOW };
    let meant = call.address().destination();
    if is_decided(call, pod, &meant, |client| client.asked) {
        return ALLOW;
    }
    let judgement = judge(call, pod, protocol, call.message_source(), pod.owns(&meant));
    if !judgement.is_captured() {
        // What comes back from there is then from there.
        if meant.is_loopback() || is_led_to(pod, &meant) {
            if let Some(client) = call.client() {
                client.asked.via = 0;
            }
        }
        return ALLOW;
    }
    let to = judgement.to(pod, &meant);
    // Other datagrams of the socket may have to leave by the device.
    if to.is_loopback() && call.is_on_a_device() {
        sys_maps::count(call.netns(), Class::Device as u8);
        return REFUSE;
    }
    let Some(client) = call.client_or_new() else {
        sys_maps::count(call.netns(), Class::NoMemory as u8);
        return REFUSE;
    };
    client.asked = call.original(judgement.port(), 0);
    if !to.is_loopback() {
        // Where it comes from is the kernel's choice, by where it goes now.
        call.rewrite(&to, judgement.port());
        return ALLOW;
    }
    let localhost = meant.localhost();
    let to = if call.bound().is_unspecified() {
        call.set_message_source(&localhost);
        // The kernel then goes to where it comes from, by `lo`, whatever device is named
        // (`ip_route_output_key_hash_rcu()`). With IPv6 there is no such way: the pod has a route to
        // localhost by each device.
        if meant.is_v4() { Address::v4(0) } else { localhost }
    } else {
        // A message that names a device and no source has none yet (`udp_sendmsg()`).
        if call.message_source().is_unspecified() {
            call.set_message_source(&call.bound());
        }
        localhost
    };
    call.rewrite(&to, judgement.port());
    ALLOW
}

/// An answer, which comes from whom the query was meant for.
#[inline(always)]
pub(crate) fn receive<F: Family>(call: &Call<'_, F>) -> i32 {
    let Some(client) = call.client() else { return ALLOW };
    let (from, port) = (call.address(), call.port());
    let original = if client.asked.via != 0 { client.asked } else { client.peer };
    if original.via != port {
        return ALLOW;
    }
    let of_proxy = from.equals(&original.address.localhost());
    if of_proxy || sys_maps::pod(call.netns()).is_some_and(|pod| is_led_to(pod, &from)) {
        call.rewrite(&original.address, original.port);
    }
    ALLOW
}
