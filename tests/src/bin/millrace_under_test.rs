//! The program under test, built with the suites, so that they never test an old one.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace::main()
}
