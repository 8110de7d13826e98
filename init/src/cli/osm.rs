//! The command line of `millrace osm`, made from its table of flags.

use std::ffi::OsString;

use clap::Command;
use millrace_core::dialect::osm::Osm;

use super::istio::NotTyped;
use super::pflag::{own, with_flags};

/// Read the words behind `osm`: flags by their long names, in their order.
pub(crate) fn read(words: Vec<OsString>) -> Result<Vec<(String, String)>, NotTyped> {
    own::<Osm>(command(), words)
}

fn command() -> Command {
    let command = Command::new("osm")
        .about("Set up the rules that divert a pod's traffic into its proxy, as the init container of Open Service Mesh does")
        .override_usage("millrace osm [FLAGS]")
        .after_help(
            "Example:\n  millrace osm --inbound-port-exclusion-list 15090\n\nEnvironment without a flag:\n  POD_IP: the pod's IPv4 address, for --local-proxy-mode \
             PodIP\n\nExit codes: 0 done or nothing to do; 1 the command line can't be read, a bad \
             configuration, or something failed and the previous rules were restored; 4 a lock \
             was held for longer than --wait.",
        );
    with_flags::<Osm>(command, "Settings of Open Service Mesh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
        let words = ["--inbound-port-exclusion-list", "1", "--inbound-port-exclusion-list=2,3"];
        assert_eq!(read(words.map(OsString::from).into()).unwrap().len(), 2);
        assert!(matches!(read(vec!["--no".into()]), Err(NotTyped::Bad(_))));
        assert!(matches!(read(vec!["81".into()]), Err(NotTyped::Bad(why)) if why.contains("81")));
    }
}
