//! The binary `millrace-node`.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace_node::main()
}
