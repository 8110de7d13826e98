//! Text that others have written, as comments of rules and names of chains and interfaces are: shown to
//! a person, it must do nothing to the terminal and look like nothing else.

use std::borrow::Cow;

/// Whether a character does something or nothing, and shows nothing: control characters, ends of lines and
/// paragraphs, and what Unicode has for formatting (the general categories Cc, Cf, Zl and Zp of version 16,
/// `DerivedGeneralCategory.txt`), such as what changes the direction of the text behind it.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0001}'
            | '\u{e0020}'..='\u{e007f}')
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
        assert_eq!(
            visible("\u{61c}\u{2028}\u{feff}\u{e0041}"),
            "\\u{61c}\\u{2028}\\u{feff}\\u{e0041}"
        );
        let value = serde_json::json!({ "a": "\u{1b}\u{9b}\u{7f}\u{202e}\u{e9}\n" });
        let text = format!("{value:#}\n");
        let shown = visible_json(&text);
        assert_eq!(shown, "{\n  \"a\": \"\\u001b\\u009b\\u007f\\u202e\u{e9}\\n\"\n}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
