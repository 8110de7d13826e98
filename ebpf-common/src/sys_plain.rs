//! Values as bytes, which is how maps take and give them.

use core::mem::size_of;

use crate::COUNTERS;
use crate::address::Address;
use crate::maps::{
    Client, Connecting, Event, Flow, FlowKey, GroupKey, Lately, ListenerKey, NetworkKey, Original,
    Pod, PortChunk, PortKey, Settings,
};
use crate::more::More;

/// Values that are their bytes.
///
/// # Safety
/// The type has no padding, and any bytes are a value of it.
pub unsafe trait Plain: Copy + 'static {
    /// The memory of the value: numbers are in the machine's byte order.
    fn bytes(&self) -> &[u8] {
        // SAFETY: the value lives as long as the borrow, and every byte of it is initialised,
        // since there is no padding.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The value with these bytes; none if they are too few or too many.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // SAFETY: the length is right, any bytes are a value, and an unaligned read is asked for.
        (bytes.len() == size_of::<Self>())
            .then(|| unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

macro_rules! plain {
    ($($type:ty = $size:literal),* $(,)?) => {
        $(
            // The fields' sizes make up the whole, so there is no padding.
            const _: () = assert!(size_of::<$type>() == $size);
            // SAFETY: made of integers only, without padding as the assertion shows.
            unsafe impl Plain for $type {}
        )*
    };
}

plain! {
    u32 = 4,
    u64 = 8,
    [u64; COUNTERS] = 256,
    Address = 16,
    Pod = 400,
    More = 128,
    NetworkKey = 24,
    PortKey = 8,
    PortChunk = 192,
    GroupKey = 8,
    ListenerKey = 16,
    Original = 24,
    FlowKey = 32,
    Flow = 56,
    Connecting = 48,
    Client = 48,
    Lately = 64,
    Settings = 28,
    Event = 64,
}
