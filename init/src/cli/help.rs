//! `millrace help`: of all commands, of one, and of exit codes.

use std::ffi::OsString;

use super::commands::command;
use crate::exit::Exit;

/// What each exit code means, for which commands.
const EXIT_CODES: [(Exit, &str, &str); 16] = [
    (Exit::Ok, "all", "done, or nothing to do; status: captured; lint, diff: nothing found"),
    (
        Exit::Failed,
        "all but diff",
        "bad configuration, or it failed; what changes rules has restored the previous ones",
    ),
    (Exit::Failed, "explain, graph", "where a connection goes can't be told"),
    (Exit::Failed, "preflight", "no backend works here; with --backend, that one doesn't"),
    (Exit::Differs, "diff", "connections are treated differently, or that can't be told"),
    (Exit::Usage, "all", "the command line can't be read"),
    (Exit::Trouble, "diff", "it failed"),
    (Exit::NotCaptured, "status", "not captured"),
    (Exit::NotCaptured, "lint", "warnings"),
    (Exit::NotCaptured, "node-bpf status", "the programs are not loaded"),
    (
        Exit::Busy,
        "apply, cleanup",
        "another run, or the xtables lock, was in the way for longer than --wait",
    ),
    (Exit::Busy, "node-bpf", "another run that changes programs or pods took longer than --wait"),
    (Exit::Drifted, "status", "drifted: rules are there, but not complete, or not as configured"),
    (Exit::Drifted, "lint", "errors"),
    (Exit::Drifted, "node-bpf status", "something of the programs is missing"),
    (Exit::NotValid, "verify", "connections are not captured as configured"),
];

/// A command line without the word `help` in front: that of a command asks it for its help.
///
/// # Errors
/// The text, where nothing else was asked for.
pub(super) fn plain(mut words: Vec<OsString>) -> Result<Vec<OsString>, String> {
    if words.first().is_none_or(|word| word != "help") {
        return Ok(words);
    }
    words.remove(0);
    match words.first().and_then(|word| word.to_str()) {
        None => Err(command().render_help().to_string()),
        Some("exit-codes") if words.len() == 1 => Err(exit_codes()),
        Some(_) => {
            words.push("--help".into());
            Ok(words)
        }
    }
}

fn exit_codes() -> String {
    let width = EXIT_CODES.iter().map(|(_, commands, _)| commands.len()).max().unwrap_or_default();
    let line = |(exit, commands, meaning): &(Exit, &str, &str)| {
        format!("{:>4}  {commands:width$}  {meaning}\n", exit.code())
    };
    let head = format!("code  {:width$}  meaning\n", "command");
    head + &EXIT_CODES.iter().map(line).collect::<String>()
        + "\nCommands that stand in for a mesh's tool have the codes of that tool.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_own_commands_is_told() {
        let text = exit_codes();
        for code in [0, 1, 2, 3, 4, 5, 126] {
            assert!(
                text.lines().any(|line| line.trim_start().starts_with(&format!("{code} "))),
                "{text}"
            );
        }
    }

    #[test]
    fn help_of_a_command_is_its_own() {
        let typed = |words: &[&str]| plain(words.iter().map(Into::into).collect());
        assert_eq!(typed(&["help", "apply"]), Ok(vec!["apply".into(), "--help".into()]));
        assert_eq!(typed(&["apply"]), Ok(vec!["apply".into()]));
        assert!(typed(&["help"]).is_err_and(|text| text.contains("Commands:")));
        assert!(typed(&["help", "exit-codes"]).is_err_and(|text| text.contains("126")));
    }
}
