//! What makes the verifier forget.

/// The same word. Of what a function gives that is visible, the verifier takes nothing to be known
/// (`check_func_call()` of the kernel's `kernel/bpf/verifier.c`, for global functions).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mr_forget(mut word: u32) -> u32 {
    // SAFETY: does nothing. The compiler can't see that, and would leave out the call.
    unsafe { core::arch::asm!("{0} &= -1", inout(reg) word, options(pure, nomem, nostack)) }
    word
}
