//! The binary `millrace`.

use std::process::ExitCode;

/// musl's own allocator asks the kernel for most blocks, and gives them back at once.
#[cfg(target_env = "musl")]
#[global_allocator]
static HEAP: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    millrace::main()
}
