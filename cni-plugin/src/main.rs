//! The binary `millrace-cni`.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace_cni::main()
}
