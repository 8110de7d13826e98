//! The program that the harness runs inside namespaces: listeners, and clients that dial them.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace_tests::probe::main()
}
