//! Command lines as Go's pflag reads them, made from the table of flags of a mesh's tool.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use millrace_core::dialect::flags::{FlagDef, Kind, Words};

use super::istio::NotTyped;

/// Add the flags of a tool, and Millrace's own beside them. Positional words are taken and ignored.
pub(super) fn with_flags<W: Words>(command: Command, tool: &'static str) -> Command {
    let ignored = Arg::new("ignored").num_args(0..).action(ArgAction::Append).hide(true);
    let mut command = command.no_binary_name(true).disable_version_flag(true).arg(ignored);
    for (own, heading) in [(false, tool), (true, "Flags of Millrace")] {
        for flag in W::FLAGS.iter().filter(|f| f.own == own) {
            command = command.arg(argument(flag).help_heading(heading));
        }
    }
    command
}

/// What was typed, by long names. Flags that may be repeated come in their order.
pub(super) fn typed<W: Words>(matches: &ArgMatches) -> Vec<(String, String)> {
    let of = |flag: &'static FlagDef| {
        let values = values(matches, flag.long).into_iter();
        values.map(|value| (flag.long.to_owned(), value))
    };
    W::FLAGS.iter().flat_map(of).collect()
}

/// The flags behind the name of a command that no mesh's tool has: words that are no flags are refused, where those
/// of a tool are passed over as the tool does.
///
/// # Errors
/// When help is asked for, or the words can't be read.
pub(super) fn own<W: Words>(
    command: Command,
    words: Vec<OsString>,
) -> Result<Vec<(String, String)>, NotTyped> {
    let matches = command.try_get_matches_from(words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp => NotTyped::Help(error.to_string()),
        _ => NotTyped::Bad(error.to_string().trim_end().to_owned()),
    })?;
    refuse_words(&matches)?;
    Ok(typed::<W>(&matches))
}

/// Refuse words that are no flags.
///
/// # Errors
/// When there is one.
pub(super) fn refuse_words(matches: &ArgMatches) -> Result<(), NotTyped> {
    match values(matches, "ignored").first() {
        None => Ok(()),
        Some(word) => {
            let what = "is no flag and no value of one: a list has commas, and no blanks";
            Err(NotTyped::Bad(format!("{word:?} {what}")))
        }
    }
}

/// Every value of a flag.
pub(super) fn values(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).into_iter().flatten().cloned().collect()
}

fn argument(flag: &'static FlagDef) -> Arg {
    let mut help = flag.help.to_owned();
    if !flag.default.is_empty() && (flag.kind != Kind::Bool || flag.default == "true") {
        help = format!("{help} [default: {}]", flag.default);
    }
    if !flag.env.is_empty() {
        help = format!("{help} [env: {}]", flag.env.join(", "));
    }
    let arg = Arg::new(flag.long).long(flag.long).help(help).action(ArgAction::Append);
    let arg = match flag.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match flag.kind {
        Kind::Bool => as_switch(arg),
        Kind::Text | Kind::List | Kind::Texts => as_text(arg).value_name("TEXT"),
        Kind::Number => as_text(arg).value_name("NUMBER"),
        Kind::Duration => as_text(arg).value_name("DURATION"),
    }
}

/// `--flag` or `--flag=true`; the next word is never its value.
pub(super) fn as_switch(arg: Arg) -> Arg {
    arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
}

pub(super) fn as_text(arg: Arg) -> Arg {
    arg.num_args(1).allow_hyphen_values(true)
}
