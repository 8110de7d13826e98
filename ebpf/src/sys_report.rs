//! The one function that reports judgements for all hooks.

use millrace_ebpf_common::{Connection, Direction, Event, Protocol};

use crate::judge::Judgement;
use crate::sys_maps;

/// Report a judgement, if it is one of those that are. The name is the same wherever this is built,
/// as that of a function that only this program knows would not be.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mr_report(
    netns: u64,
    connection: *const Connection,
    judgement: u32,
    more: u64,
) -> u32 {
    // SAFETY: the kernel passes on null or what it knows to be as large as this type.
    let Some(connection) = (unsafe { connection.as_ref() }) else { return 0 };
    let sample = sys_maps::settings().map_or(0, |settings| settings.sample);
    if sample == 0 || (sample > 1 && sys_maps::random() % sample != 0) {
        return 0;
    }
    let inbound = matches!(connection.direction, Direction::Inbound);
    let remote_port = (more >> 32) as u16;
    sys_maps::report(&Event {
        netns,
        remote: if inbound { connection.source } else { connection.destination },
        local: if inbound { connection.destination } else { connection.source },
        remote_port: if inbound { remote_port } else { connection.port },
        local_port: if inbound { connection.port } else { 0 },
        to: Judgement(judgement).port(),
        protocol: if matches!(connection.protocol, Protocol::Tcp) { 6 } else { 17 },
        class: Judgement(judgement).class(),
        uid: connection.uid,
        gid: connection.gid,
        pid: more as u32,
        inbound: inbound.into(),
    });
    0
}
