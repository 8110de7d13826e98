//! The binary `millrace`.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace::main()
}
