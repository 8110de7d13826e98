//! The command line of istio-iptables, made from its table of flags.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};
use millrace_core::dialect::istio::flags::{Istio, LOG_FLAGS, VARIABLES};

use super::pflag::{as_switch, as_text, typed, values, with_flags};
use crate::log::Log;

/// The command line of istio-iptables, with its log's flags already applied.
#[derive(Debug)]
pub(crate) struct Typed {
    /// Flags that are settings, by their long names, in their order.
    pub(crate) flags: Vec<(String, String)>,
    /// As its flags set it up; without any, it goes to standard output.
    pub(crate) log: Log,
}

/// Why the command line gives no settings.
#[derive(Debug)]
pub(crate) enum NotTyped {
    /// Help was asked for; this is it.
    Help(String),
    /// It can't be read, and why: what is printed before the exit.
    Bad(String),
}

/// Read the words behind the program's name.
pub(crate) fn read(words: Vec<OsString>) -> Result<Typed, NotTyped> {
    let matches = command().try_get_matches_from(words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp => NotTyped::Help(error.to_string()),
        _ => NotTyped::Bad(error.to_string().trim_end().to_owned()),
    })?;
    let mut log = Log::istio();
    for (name, ..) in LOG_FLAGS {
        let values = values(&matches, name);
        if !values.is_empty() {
            log.set(name, &values).map_err(NotTyped::Bad)?;
        }
    }
    Ok(Typed { flags: typed::<Istio>(&matches), log })
}

/// The command, for its help as well.
pub(crate) fn command() -> Command {
    let mut command = Command::new("istio-iptables")
        .about(
            "Set up the rules that divert a pod's traffic into its proxy, as istio-iptables does",
        )
        .after_help(after_help())
        .override_usage("istio-iptables [FLAGS]");
    command = with_flags::<Istio>(command, "Flags of istio-iptables");
    for (name, switch, help) in LOG_FLAGS {
        let arg =
            Arg::new(*name).long(*name).help(*help).help_heading("Log").action(ArgAction::Append);
        command = command.arg(if *switch { as_switch(arg) } else { as_text(arg) });
    }
    command
}

fn after_help() -> String {
    let mut text = "Example:\n  millrace istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -b '*' -d \
                    15090,15021,15020\n\nEnvironment without a flag:\n"
        .to_owned();
    for (name, default, help) in VARIABLES {
        text.push_str(&format!("  {name} [default: {default:?}]: {help}\n"));
    }
    text.push_str(
        "\nExit codes: 0 done or nothing to do; 1 a bad configuration, or something failed and the previous rules were restored; 4 a lock was held for longer than --wait; 126 \
         --run-validation found that connections are not captured; 255 the command line can't be \
         read.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &[&str]) -> Vec<(String, String)> {
        read(words.iter().map(OsString::from).collect()).unwrap().flags
    }

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_spelling_of_pflag_is_taken() {
        for words in
            [&["-p", "1"][..], &["-p1"], &["-p=1"], &["--envoy-port", "1"], &["--envoy-port=1"]]
        {
            assert_eq!(flags(words), [("envoy-port".to_owned(), "1".to_owned())], "{words:?}");
        }
        assert_eq!(flags(&["-x", ""]), [("istio-service-exclude-cidr".to_owned(), String::new())]);
        assert_eq!(flags(&["-o", "-1"])[0].1, "-1");
    }

    #[test]
    fn a_switch_needs_the_equals_sign_and_other_words_are_ignored() {
        let dry = |value: &str| ("dry-run".to_owned(), value.to_owned());
        assert_eq!(flags(&["--dry-run", "false"]), [dry("true")]);
        assert_eq!(flags(&["--dry-run=false", "word", "-n"]), [dry("false"), dry("true")]);
    }

    #[test]
    fn what_the_injector_passes_is_taken() {
        let words = [
            "-p",
            "15001",
            "-z",
            "15006",
            "-u",
            "1337",
            "-m",
            "REDIRECT",
            "-i",
            "*",
            "-x",
            "",
            "-b",
            "*",
            "-d",
            "15090,15021,15020",
            "--log_output_level=default:info",
            "--log_as_json",
            "--run-validation",
            "--skip-rule-apply",
        ];
        assert_eq!(flags(&words).len(), 10);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for words in [&["--no-such-flag"][..], &["-p"], &["--log_output_level=default:loud"]] {
            let words = words.iter().map(OsString::from).collect();
            assert!(matches!(read(words), Err(NotTyped::Bad(_))));
        }
    }
}
