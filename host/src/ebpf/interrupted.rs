//! The verifier looks for a signal at each instruction, and gives up with `EAGAIN` where one is pending,
//! whatever it is (`do_check` in kernel/bpf/verifier.c, v6.12): also one that stops the process and lets
//! it go on, as a debugger and a freezer of cgroups send it. It says nothing about the program.

use std::time::{Duration, Instant};

use nix::libc::EAGAIN;

/// How long a program is tried again. The longest takes the verifier some 100 ms.
const PATIENCE: Duration = Duration::from_secs(10);

/// Make a call again for as long as signals interrupt it, but not for ever.
///
/// # Errors
///
/// The call's, `EAGAIN` if it was interrupted for 10 s.
pub(super) fn until_not_interrupted<T, E>(
    mut call: impl FnMut() -> Result<T, E>,
    errno: impl Fn(&E) -> Option<i32>,
) -> Result<T, E> {
    let until = Instant::now() + PATIENCE;
    loop {
        match call() {
            Err(error) if errno(&error) == Some(EAGAIN) && Instant::now() < until => {}
            other => return other,
        }
    }
}
