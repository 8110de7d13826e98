//! The CNI plugin, as the suites run it.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace_cni::main()
}
