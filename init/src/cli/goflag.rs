//! Command lines as Go's own package `flag` reads them, by the table of flags of a mesh's tool: one dash
//! or two, no letters, no words beside flags.

use std::ffi::OsString;

use millrace_core::dialect::flags::{FlagDef, Kind, Words};

use super::istio::NotTyped;

/// Read the words of a command line: flags by their names, in their order.
pub(super) fn read<W: Words>(words: Vec<OsString>) -> Result<Vec<(String, String)>, NotTyped> {
    let mut flags = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let word = text(word)?;
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            // Go would not read the flags behind it.
            return Err(NotTyped::Bad(format!("{word:?} is no flag: there are only flags here")));
        };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        if ["h", "help"].contains(&name) {
            return Err(NotTyped::Help(String::new()));
        }
        let Some(flag) = W::find(name) else {
            return Err(NotTyped::Bad(format!("flag provided but not defined: -{name}")));
        };
        let value = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".to_owned(),
            (None, _) => match words.next() {
                Some(word) => text(word)?,
                None => {
                    return Err(NotTyped::Bad(format!("flag needs an argument: -{name}")));
                }
            },
        };
        flags.push((name.to_owned(), value));
    }
    Ok(flags)
}

fn text(word: OsString) -> Result<String, NotTyped> {
    word.into_string().map_err(|word| NotTyped::Bad(format!("{} is not UTF-8", word.display())))
}

/// What there is, a flag a paragraph.
pub(super) fn help<W: Words>(tool: &str) -> String {
    let mut help = String::new();
    for (own, heading) in [(false, tool), (true, "Flags of Millrace")] {
        help.push_str(&format!("\n{heading}:\n"));
        for flag in W::FLAGS.iter().filter(|flag| flag.own == own) {
            help.push_str(&described(flag));
        }
    }
    help
}

fn described(flag: &FlagDef) -> String {
    let value = match flag.kind {
        Kind::Bool => "",
        Kind::Text | Kind::List | Kind::Texts => " TEXT",
        Kind::Number => " NUMBER",
        Kind::Duration => " DURATION",
    };
    let mut text = format!("  -{}{value}\n        {}", flag.long, flag.help);
    if !flag.default.is_empty() && (flag.kind != Kind::Bool || flag.default == "true") {
        text.push_str(&format!(" [default: {}]", flag.default));
    }
    if !flag.env.is_empty() {
        text.push_str(&format!(" [env: {}]", flag.env.join(", ")));
    }
    text.push('\n');
    text
}
