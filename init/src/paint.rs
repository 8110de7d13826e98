//! Colour in text for people: which part of a line has which, and whether there is any.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::ops::Range;

use anstyle::{AnsiColor, Effects, Style};

/// When text is in colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Color {
    /// On a terminal that knows colour, unless the environment has `NO_COLOR`.
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    /// The values of `--color`, of which `auto` is the default.
    pub(crate) const NAMES: [&str; 3] = ["auto", "always", "never"];

    /// By one of [`Self::NAMES`]; any other word is `auto`.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "always" => Self::Always,
            "never" => Self::Never,
            _ => Self::Auto,
        }
    }

    /// Whether standard output is written in colour.
    pub(crate) fn is_on(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                std::io::stdout().is_terminal()
                    && !anstyle_query::no_color()
                    && anstyle_query::term_supports_color()
            }
        }
    }
}

/// The part of a line that has a style: its number from 0, and the line without its end.
pub(crate) type Painter = fn(usize, &str) -> Option<(Range<usize>, Style)>;

/// Text with escape sequences (ECMA-48, SGR) around the parts that have a style. Whatever of others is
/// in it must not act on a terminal any more (`millrace_core::visible`).
pub(crate) fn painted(text: &str, painter: Painter) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 4);
    for (at, line) in text.split_inclusive('\n').enumerate() {
        let (content, end) = line.strip_suffix('\n').map_or((line, ""), |content| (content, "\n"));
        let part = painter(at, content).and_then(|(range, style)| {
            let before = content.get(..range.start)?;
            Some((before, content.get(range.clone())?, content.get(range.end..)?, style))
        });
        match part {
            Some((before, part, after, style)) => {
                write!(out, "{before}{style}{part}{style:#}{after}{end}")
                    .expect("a String takes all");
            }
            None => out.push_str(line),
        }
    }
    out
}

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
const HEAD: Style = Style::new().effects(Effects::BOLD);
const DIM: Style = Style::new().effects(Effects::DIMMED);
const LABEL: Style = AnsiColor::Cyan.on_default();

/// Up to the end of this beginning, behind the margin of the line.
fn start(line: &str, word: &str, style: Style) -> Option<(Range<usize>, Style)> {
    let margin = line.len() - line.trim_start().len();
    line[margin..].starts_with(word).then(|| (margin..margin + word.len(), style))
}

fn whole(line: &str, style: Style) -> (Range<usize>, Style) {
    (0..line.len(), style)
}

/// The first of these beginnings that a line has.
fn first(line: &str, words: &[(&str, Style)]) -> Option<(Range<usize>, Style)> {
    words.iter().find_map(|(word, style)| start(line, word, *style))
}

/// Paints `millrace status`: the state in the first line, then notes and what to repair.
pub(crate) fn status(at: usize, line: &str) -> Option<(Range<usize>, Style)> {
    let states =
        [("captured", GOOD.bold()), ("not captured", BAD.bold()), ("drifted", DOUBTFUL.bold())];
    let rest = [("note:", DOUBTFUL), ("to repair:", LABEL)];
    if at == 0 { first(line, &states) } else { first(line, &rest) }
}

/// Paints `millrace verify`: the verdict in the first line, then how each check ended.
pub(crate) fn verify(at: usize, line: &str) -> Option<(Range<usize>, Style)> {
    let kinds = [
        ("ok ", GOOD),
        ("FAILED ", BAD.bold()),
        ("DIFFERS ", BAD.bold()),
        ("skipped ", DOUBTFUL),
        ("unclear ", DOUBTFUL),
        ("because ", DIM),
    ];
    if at == 0 {
        let style = match line {
            _ if line.starts_with("verified in part") => DOUBTFUL,
            _ if line.starts_with("verified") => GOOD,
            _ => BAD,
        };
        return Some(whole(line, style.bold()));
    }
    first(line, &kinds)
}

/// `millrace explain`, of one connection.
pub(crate) fn explain(at: usize, line: &str) -> Option<(Range<usize>, Style)> {
    if at == 0 || line.starts_with("=> ") {
        let unknown = line.contains("can't be told") || line.contains("not known");
        return Some(whole(line, if unknown { DOUBTFUL.bold() } else { HEAD }));
    }
    if let Some((hook, _)) = line.split_once(": ").filter(|_| !line.starts_with(' ')) {
        return start(line, hook, LABEL);
    }
    if let Some(found) = first(line, &[("matched", GOOD), ("not known here", DOUBTFUL)]) {
        return Some(found);
    }
    line.trim_start().starts_with("no: ").then_some(whole(line, DIM))
}

/// Paints `millrace explain --all`: heads, and what is not known.
pub(crate) fn classes(_at: usize, line: &str) -> Option<(Range<usize>, Style)> {
    if line.starts_with("# ") || line.starts_with("who ") {
        return Some(whole(line, HEAD));
    }
    let at = line.find("can't be told")?;
    Some((at..at + "can't be told".len(), DOUBTFUL))
}

/// Paints `millrace diff`: heads, and lines of one side alone.
pub(crate) fn diff(_at: usize, line: &str) -> Option<(Range<usize>, Style)> {
    if ["traffic:", "packets:", "can't be told:", "rules:"]
        .iter()
        .any(|head| line.starts_with(head))
    {
        return Some(whole(line, HEAD));
    }
    let style = match line.trim_start().get(..2)? {
        "+ " => GOOD,
        "- " => BAD,
        _ => return None,
    };
    Some(whole(line, style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_that_means_something_is_painted() {
        assert_eq!(
            painted("captured: by eBPF\nnote: a\nplain\n", status),
            "\u{1b}[1m\u{1b}[32mcaptured\u{1b}[0m: by eBPF\n\u{1b}[33mnote:\u{1b}[0m a\nplain\n"
        );
        assert_eq!(painted("    + a\n  b\n", diff), "\u{1b}[32m    + a\u{1b}[0m\n  b\n");
        let walk = "q: redirected\nOUTPUT: p\n  r\n      no: x\n=> can't be told: y\n";
        let shown = painted(walk, explain);
        assert_eq!(shown.matches("\u{1b}[0m").count(), 4, "{shown:?}");
    }

    #[test]
    fn without_escapes_the_text_is_what_it_was() {
        let text = "ok      a: b\n        because ß\n\nFAILED  x";
        for painter in [status, verify, explain, classes, diff] {
            let shown = painted(text, painter);
            let mut plain = String::new();
            for (at, part) in shown.split('\u{1b}').enumerate() {
                plain.push_str(if at == 0 { part } else { part.split_once('m').unwrap().1 });
            }
            assert_eq!(plain, text);
        }
    }
}
