//! The node agent, as the suites run it.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace_node::main()
}
