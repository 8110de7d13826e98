//! Text that others have written, as comments of rules and names of chains and interfaces are: shown to
//! a person, it must do nothing to the terminal and look like nothing else.

use std::borrow::Cow;

/// Whether a character does something and shows nothing: control characters, and those that change the
/// direction of what is behind them (Unicode Standard Annex 9).
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(
    text: &str,
    acts: impl Fn(char) -> bool,
    escape: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if !text.contains(&acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if acts(c) {
            escape(&mut shown, c);
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

fn as_in_rust(shown: &mut String, c: char) {
    shown.extend(c.escape_default());
}

/// RFC 8259, section 7.
fn as_in_json(shown: &mut String, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        shown.push_str(&format!("\\u{unit:04x}"));
    }
}

/// Text of several lines, in which nothing but its lines and tabs does anything.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |c| acts(c) && !matches!(c, '\n' | '\t'), as_in_rust)
}

/// A JSON text that says the same, in which nothing but its lines and tabs does anything: a serializer
/// escapes no more than it has to.
pub fn visible_json(text: &str) -> Cow<'_, str> {
    escaped(text, |c| acts(c) && !matches!(c, '\n' | '\t'), as_in_json)
}

/// Text of others that is to be part of one line.
pub fn in_a_line(text: &str) -> Cow<'_, str> {
    escaped(text, acts, as_in_rust)
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
        let value = serde_json::json!({ "a": "\u{1b}\u{9b}\u{7f}\u{202e}\u{e9}\n" });
        let text = format!("{value:#}\n");
        let shown = visible_json(&text);
        assert_eq!(shown, "{\n  \"a\": \"\\u001b\\u009b\\u007f\\u202e\u{e9}\\n\"\n}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
