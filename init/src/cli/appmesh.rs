//! The command line of `millrace appmesh`, made from its table of flags.

use std::ffi::OsString;

use clap::Command;
use millrace_core::dialect::appmesh::AppMesh;

use super::istio::NotTyped;
use super::pflag::{own, with_flags};

/// Read the words behind `appmesh`: flags by their long names, in their order.
pub(crate) fn read(words: Vec<OsString>) -> Result<Vec<(String, String)>, NotTyped> {
    own::<AppMesh>(command(), words)
}

fn command() -> Command {
    let command = Command::new("appmesh")
        .about("Write or remove the rules that divert a pod's traffic into its proxy, as the init container of AWS App Mesh does")
        .override_usage("millrace appmesh [FLAGS]")
        .after_help(
            "Example:\n  APPMESH_START_ENABLED=1 APPMESH_APP_PORTS=8080 millrace appmesh\n\nExit codes: 0 done or \
             nothing to do; 1 the command line can't be read, a bad configuration, or something failed and the \
             previous rules were restored; 4 a lock was held for longer than --wait.",
        );
    with_flags::<AppMesh>(command, "Settings of AWS App Mesh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
        let words = ["--app-ports", "1", "--app-ports=2,3"];
        assert_eq!(read(words.map(OsString::from).into()).unwrap().len(), 2);
        assert!(matches!(read(vec!["--no".into()]), Err(NotTyped::Bad(_))));
        assert!(matches!(read(vec!["81".into()]), Err(NotTyped::Bad(why)) if why.contains("81")));
    }
}
