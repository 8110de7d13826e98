//! The command line of `kumactl`, of which two commands are there, made from their tables of flags.

use std::ffi::OsString;

use clap::Command;
use clap::error::ErrorKind;
use millrace_core::dialect::flags::Words;
use millrace_core::dialect::kuma::{Kuma, Uninstall};

use super::istio::NotTyped;
use super::pflag::{typed, with_flags};

/// A command with its flags, by their long names and in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Install(Vec<(String, String)>),
    Uninstall(Vec<(String, String)>),
}

const COMMANDS: &str = "install transparent-proxy and uninstall transparent-proxy";

/// Read the words behind the program's name.
pub(crate) fn read(mut words: Vec<OsString>) -> Result<Asked, NotTyped> {
    let rest = words.split_off(words.len().min(2));
    let words: Vec<String> = words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["install", "transparent-proxy"] => flags::<Kuma>(install(), rest).map(Asked::Install),
        ["uninstall", "transparent-proxy"] => {
            flags::<Uninstall>(uninstall(), rest).map(Asked::Uninstall)
        }
        ["install", "-h" | "--help"] => Err(NotTyped::Help(help(install()))),
        ["uninstall", "-h" | "--help"] => Err(NotTyped::Help(help(uninstall()))),
        [] | ["-h" | "--help" | "help", ..] | [_, "-h" | "--help"] => {
            let (install, uninstall) = (help(install()), help(uninstall()));
            Err(NotTyped::Help(format!(
                "kumactl's commands here are {COMMANDS}.\n\n{install}\n{uninstall}"
            )))
        }
        other => Err(NotTyped::Bad(format!(
            "kumactl {}: of kumactl's commands Millrace has {COMMANDS}",
            other.join(" ")
        ))),
    }
}

fn help(mut command: Command) -> String {
    command.render_long_help().to_string()
}

fn flags<W: Words>(
    command: Command,
    words: Vec<OsString>,
) -> Result<Vec<(String, String)>, NotTyped> {
    match command.try_get_matches_from(words) {
        Ok(matches) => Ok(typed::<W>(&matches)),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            Err(NotTyped::Help(error.to_string()))
        }
        Err(error) => Err(NotTyped::Bad(error.to_string().trim_end().to_owned())),
    }
}

const EXIT_CODES: &str = "Exit codes: 0 done or nothing to do; 1 the command line can't be read, a \
                          bad configuration, or something failed and what was there before is there \
                          again; 4 a lock was held for longer than --wait.";

fn install() -> Command {
    let command = Command::new("install")
        .about("Set up the rules that divert traffic into Kuma's proxy, as kumactl does")
        .override_usage("kumactl install transparent-proxy [FLAGS]")
        .after_help(format!(
            "Example:\n  millrace kuma install transparent-proxy --kuma-dp-user kuma-dp \
             --redirect-dns\n\n{EXIT_CODES}"
        ));
    with_flags::<Kuma>(command, "Flags of kumactl")
}

fn uninstall() -> Command {
    let command = Command::new("uninstall")
        .about("Remove what kumactl install transparent-proxy set up, whoever ran it")
        .override_usage("kumactl uninstall transparent-proxy [FLAGS]")
        .after_help(format!(
            "Example:\n  millrace kuma uninstall transparent-proxy --dry-run\n\n{EXIT_CODES}"
        ));
    with_flags::<Uninstall>(command, "Flags of kumactl")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Asked, NotTyped> {
        read(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn the_commands_are_sound() {
        install().debug_assert();
        uninstall().debug_assert();
    }

    #[test]
    fn two_commands_are_there_and_others_are_named() {
        let flag = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let line = "install transparent-proxy --kuma-dp-user=kuma-dp";
        assert_eq!(asked(line).unwrap(), Asked::Install(flag("kuma-dp-user", "kuma-dp")));
        let line = "uninstall transparent-proxy --dry-run";
        assert_eq!(asked(line).unwrap(), Asked::Uninstall(flag("dry-run", "true")));
        for line in ["install control-plane", "get meshes", "install", "uninstall ebpf -x"] {
            let Err(NotTyped::Bad(text)) = asked(line) else { panic!("{line}") };
            assert!(text.contains("install transparent-proxy and uninstall"), "{text}");
        }
        for (line, has, lacks) in [
            ("--help", &["--redirect-inbound-port", "--wait", "Remove what"][..], "\0"),
            ("install --help", &["--redirect-inbound-port"], "Remove what"),
            ("uninstall -h", &["Remove what", "--dry-run"], "--redirect-inbound-port"),
        ] {
            let Err(NotTyped::Help(text)) = asked(line) else { panic!("{line}") };
            assert!(has.iter().all(|part| text.contains(part)) && !text.contains(lacks), "{text}");
        }
        assert!(matches!(asked("install transparent-proxy --help"), Err(NotTyped::Help(_))));
        assert!(matches!(asked("install transparent-proxy --no"), Err(NotTyped::Bad(_))));
    }

    #[test]
    fn flags_that_may_be_repeated_keep_their_order() {
        let line = "install transparent-proxy --exclude-inbound-ips 10.0.0.1 --config a \
                    --exclude-inbound-ips 10.0.0.2,fd00::1 --config -";
        let Ok(Asked::Install(flags)) = asked(line) else { panic!() };
        let values: Vec<&str> = flags.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["a", "-", "10.0.0.1", "10.0.0.2,fd00::1"]);
    }
}
