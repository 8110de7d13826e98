//! The command line of Linkerd's proxy-init, made from its table of flags.

use std::ffi::OsString;

use clap::Command;
use clap::error::ErrorKind;
use millrace_core::dialect::linkerd::Linkerd;

use super::istio::NotTyped;
use super::pflag::{typed, with_flags};

/// Read the words behind the program's name: flags by their long names, in their order.
pub(crate) fn read(words: Vec<OsString>) -> Result<Vec<(String, String)>, NotTyped> {
    match command().try_get_matches_from(words) {
        Ok(matches) => Ok(typed::<Linkerd>(&matches)),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            Err(NotTyped::Help(error.to_string()))
        }
        Err(error) => Err(NotTyped::Bad(error.to_string().trim_end().to_owned())),
    }
}

fn command() -> Command {
    let command = Command::new("linkerd2-proxy-init")
        .about("Set up the rules that divert a pod's traffic into its proxy, as Linkerd's proxy-init does")
        .override_usage("linkerd2-proxy-init [FLAGS]")
        .after_help(
            "Example:\n  millrace linkerd --incoming-proxy-port 4143 --outgoing-proxy-port 4140 \
             --proxy-uid 2102\n\nExit codes: 0 done or nothing to do; 1 the command line can't be read, a bad \
             configuration, or something failed and the previous rules were restored; 4 a lock \
             was held for longer than --wait.",
        );
    with_flags::<Linkerd>(command, "Flags of proxy-init")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &[&str]) -> Vec<(String, String)> {
        read(words.iter().map(OsString::from).collect()).unwrap()
    }

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn a_switch_that_is_on_says_so() {
        let help = command().render_help().to_string();
        let ipv6 = help.lines().skip_while(|line| !line.contains("--ipv6")).take(2);
        assert!(ipv6.collect::<String>().contains("[default: true]"), "{help}");
    }

    #[test]
    fn every_spelling_of_pflag_is_taken() {
        let port = [("incoming-proxy-port".to_owned(), "1".to_owned())];
        for words in [&["-p", "1"][..], &["-p1"], &["-p=1"], &["--incoming-proxy-port=1"]] {
            assert_eq!(flags(words), port, "{words:?}");
        }
        let both = flags(&["-wp", "1", "word", "--", "-o", "2"]);
        assert_eq!(both, [port[0].clone(), ("use-wait-flag".to_owned(), "true".to_owned())]);
        assert_eq!(flags(&["-u", "-1"])[0].1, "-1");
    }

    #[test]
    fn a_switch_needs_the_equals_sign_and_lists_add_up() {
        assert_eq!(flags(&["--ipv6", "false"])[0].1, "true");
        assert_eq!(flags(&["--ipv6=false"])[0].1, "false");
        assert_eq!(flags(&["-r", "1,2", "-r", "3"]).len(), 2);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for words in [&["--skip-subnets", "10.0.0.0/8"][..], &["-p"], &["-x"]] {
            let words = words.iter().map(OsString::from).collect();
            assert!(matches!(read(words), Err(NotTyped::Bad(_))));
        }
    }
}
