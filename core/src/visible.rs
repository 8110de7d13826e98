//! Text that others have written, as comments of rules and names of chains and interfaces are: shown to
//! a person, it must do nothing to the terminal and look like nothing else.

use std::borrow::Cow;

/// Whether a character does something and shows nothing: control characters, and those that change the
/// direction of what is behind them (Unicode Standard Annex 9).
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, acts: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if acts(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Text of several lines, in which nothing but its lines and tabs does anything.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |c| acts(c) && !matches!(c, '\n' | '\t'))
}

/// Text of others that is to be part of one line.
pub fn in_a_line(text: &str) -> Cow<'_, str> {
    escaped(text, acts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_escaped_and_nothing_else_is() {
        let good = "-A X -m comment --comment \"grüße \\\\ 日本\"\n\tnext\n";
        assert!(matches!(visible(good), Cow::Borrowed(text) if text == good));
        assert_eq!(
            visible("a\u{1b}[2Jb\r\u{9b}c\u{7f}\u{202e}\n"),
            "a\\u{1b}[2Jb\\r\\u{9b}c\\u{7f}\\u{202e}\n"
        );
        assert_eq!(in_a_line("a\nb\tc"), "a\\nb\\tc");
    }
}
