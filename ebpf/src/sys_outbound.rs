//! The one function that judges outbound connections for all hooks.

use millrace_ebpf_common::{Connection, Direction, Pod};

use crate::judge::judge;

/// A function of its own for the verifier as well, which walks through it once and not again for
/// each state that a hook can be in: so it has to be visible, and take what it may get.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mr_outbound(pod: *const Pod, connection: *const Connection) -> u32 {
    // SAFETY: the kernel passes on null or what it knows to be as large as these types.
    let Some((pod, connection)) = (unsafe { pod.as_ref().zip(connection.as_ref()) }) else {
        return 0;
    };
    // Said once more, so that nothing of the other direction is in here.
    judge(pod, &Connection { direction: Direction::Outbound, ..*connection }).0
}
