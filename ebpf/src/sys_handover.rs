//! While the loader moves the programs before those of others, each is attached at two places for a
//! moment, and both are called.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;

/// Whether programs may be attached at two places.
#[map]
static HANDOVER: Array<u32> = Array::with_max_entries(1, 0);

/// Whether the same call may come here twice.
#[inline(always)]
pub(crate) fn is_going_on() -> bool {
    HANDOVER.get(0).is_some_and(|going_on| *going_on != 0)
}
