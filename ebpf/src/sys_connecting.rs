//! The one function that finds places in CONNECTING for all hooks.

use crate::sys_maps;

/// The place that a socket has, by its cookie; with a time, in `jiffies64`, one that it may take. 0
/// is none, and 1 the first. The name is the same wherever this is built.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mr_place(socket: u64, now: u64) -> u32 {
    for place in sys_maps::places(socket) {
        let Some(there) = sys_maps::connecting(place) else { return 0 };
        // SAFETY: a value of the map, which others may be writing: that is seen by its seal.
        let there = unsafe { &*there };
        if there.socket == socket || (now != 0 && there.is_free(now)) {
            return place + 1;
        }
    }
    0
}
