//! Datagrams of sockets that are not connected: DNS queries and their answers.

use millrace_ebpf_common::Class;

use crate::connect::{ALLOW, REFUSE, judge};
use crate::sys_addr::{Call, Family};
use crate::sys_maps;

/// A query on its way.
#[inline(always)]
pub(crate) fn send<F: Family>(call: &Call<'_, F>) -> i32 {
    let source = call.message_source();
    let Some((pod, judgement)) = judge(call, call.protocol(), source) else { return ALLOW };
    let meant = call.address().destination();
    if !judgement.is_captured() {
        // What comes back from localhost is then from localhost.
        if meant.is_loopback() {
            if let Some(client) = call.client() {
                client.asked.via = 0;
            }
        }
        return ALLOW;
    }
    // Other datagrams of the socket may have to leave by the device.
    if call.is_on_a_device() {
        sys_maps::count(call.netns(), Class::Device as u8);
        return REFUSE;
    }
    let Some(client) = call.client_or_new() else {
        sys_maps::count(call.netns(), Class::NoMemory as u8);
        return REFUSE;
    };
    client.asked = call.original(judgement.port());
    if !meant.is_loopback() && source.is_unspecified() {
        let source = if pod.owns(&meant) {
            meant
        } else if meant.is_v4() {
            pod.source4
        } else {
            pod.source6
        };
        if !source.is_unspecified() {
            call.set_message_source(&source);
        }
    }
    call.rewrite(&meant.localhost(), judgement.port());
    ALLOW
}

/// An answer, which comes from whom the query was meant for.
#[inline(always)]
pub(crate) fn receive<F: Family>(call: &Call<'_, F>) -> i32 {
    let Some(client) = call.client() else { return ALLOW };
    let (from, port) = (call.address(), call.port());
    let original = if client.asked.via != 0 { client.asked } else { client.peer };
    if original.via == port && from.equals(&original.address.localhost()) {
        call.rewrite(&original.address, original.port);
    }
    ALLOW
}
