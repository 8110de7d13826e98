//! The command line of `millrace ambient rules`, made from its table of flags.

use std::ffi::OsString;

use clap::Command;
use clap::error::ErrorKind;
use millrace_core::dialect::ambient::Ambient;

use super::istio::NotTyped;
use super::pflag::{refuse_words, typed, with_flags};

/// Read the words behind `ambient`: flags by their long names, in their order.
pub(crate) fn read(words: Vec<OsString>) -> Result<Vec<(String, String)>, NotTyped> {
    match command().try_get_matches_from(words) {
        Ok(matches) => {
            let Some((_, rules)) = matches.subcommand() else { return Ok(Vec::new()) };
            refuse_words(rules)?;
            Ok(typed::<Ambient>(rules))
        }
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            ) =>
        {
            Err(NotTyped::Help(error.to_string()))
        }
        Err(error) => Err(NotTyped::Bad(error.to_string().trim_end().to_owned())),
    }
}

fn command() -> Command {
    Command::new("ambient")
        .about("The capture of pods that a proxy of their node serves, as Istio's ambient mode and Cilium's ztunnel have it")
        .no_binary_name(true)
        .override_usage("millrace ambient rules [FLAGS]")
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(rules())
}

fn rules() -> Command {
    let command = Command::new("rules")
        .about("Write, check or remove the rules of ambient mode in a pod")
        .override_usage("millrace ambient rules [FLAGS]")
        .after_help(
            "Examples:\n  millrace ambient rules --pod shop/web-0 --dry-run\n  millrace ambient rules --pod \
             shop/web-0 --check\n\nWhat is there of an earlier run, of an agent or of a sidecar is replaced as a whole. The \
             proxy itself is not told of the pod: that is an agent's work.\n\nExit codes: 0 done, \
             nothing to do, or with --check captured; 1 the command line can't be read, a bad \
             configuration, or something failed and the previous rules were restored; 3 with \
             --check, not captured; 4 a lock was held for longer than --wait; 5 with --check, rules \
             are there and are not these.",
        );
    with_flags::<Ambient>(command, "Settings of the pod")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
        let read = |words: &[&str]| read(words.iter().map(OsString::from).collect());
        let flags =
            read(&["rules", "--as", "cilium", "--node-ips", "10.0.0.1", "--check"]).unwrap();
        assert_eq!(flags.len(), 3);
        assert!(matches!(read(&["rules", "--no"]), Err(NotTyped::Bad(_))));
        assert!(matches!(read(&["enrol"]), Err(NotTyped::Bad(_))));
        assert!(matches!(read(&[]), Err(NotTyped::Help(_))));
        assert!(matches!(read(&["rules", "--help"]), Err(NotTyped::Help(_))));
    }
}
