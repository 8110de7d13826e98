//! Just enough of Rust's lexical structure to tell code from comments and strings.

use std::ops::Range;

/// A piece of source text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Piece {
    Code,
    Comment,
    Literal,
}

/// The source with comments blanked out; lines keep their numbers.
pub(super) fn without_comments(source: &str) -> String {
    blank(source, |piece| piece == Piece::Comment)
}

/// The source with comments, strings and characters blanked out; lines keep their numbers.
pub(super) fn code_only(source: &str) -> String {
    blank(source, |piece| piece != Piece::Code)
}

/// The source without comments and without items under `#[cfg(test)]`.
pub(super) fn without_tests(source: &str) -> String {
    let code = code_only(source);
    let mut text = without_comments(source);
    for range in test_items(&code) {
        let blanks = blanked(&text[range.clone()]);
        text.replace_range(range, &blanks);
    }
    text
}

/// Does `code` hold `word` as a whole identifier?
pub(super) fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !is_word(c)).any(|found| found == word)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn blank(source: &str, unwanted: impl Fn(Piece) -> bool) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while !rest.is_empty() {
        let (piece, length) = next(rest);
        let (head, tail) = rest.split_at(length);
        if unwanted(piece) {
            text.push_str(&blanked(head));
        } else {
            text.push_str(head);
        }
        rest = tail;
    }
    text
}

/// As many bytes, all spaces but for the line ends.
fn blanked(text: &str) -> String {
    text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect()
}

/// Kind and length in bytes of the piece that `rest`, which is not empty, starts with.
fn next(rest: &str) -> (Piece, usize) {
    if rest.starts_with("//") {
        return (Piece::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Piece::Comment, block_comment(rest));
    }
    if let Some(length) = string(rest).or_else(|| character(rest)) {
        return (Piece::Literal, length);
    }
    let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
    let first = rest.chars().next().map_or(1, char::len_utf8);
    (Piece::Code, word.max(first))
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            (at, depth) = (at + 2, depth + 1);
        } else if here.starts_with(b"*/") {
            (at, depth) = (at + 2, depth - 1);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// The length of a string literal of any kind: plain, byte or C, raw or not.
fn string(rest: &str) -> Option<usize> {
    let after_kind = rest.strip_prefix(['b', 'c']).unwrap_or(rest);
    let kind = rest.len() - after_kind.len();
    if after_kind.starts_with('"') {
        return Some(kind + quoted(after_kind, '"'));
    }
    let hashes_on = after_kind.strip_prefix('r')?;
    let body = hashes_on.trim_start_matches('#');
    let hashes = hashes_on.len() - body.len();
    let inside = body.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(rest.len() - inside.len() + length)
}

/// The length of a character or byte literal; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let after_kind = rest.strip_prefix('b').unwrap_or(rest);
    let kind = rest.len() - after_kind.len();
    let mut chars = after_kind.strip_prefix('\'')?.chars();
    let first = chars.next()?;
    (first == '\\' || chars.next() == Some('\'')).then(|| kind + quoted(after_kind, '\''))
}

/// The length of a literal between two `quote`s with backslash escapes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// Where the items under `#[cfg(test)]` are, attribute included.
fn test_items(code: &str) -> Vec<Range<usize>> {
    const MARK: &str = "#[cfg(test)]";
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find(MARK).map(|at| from + at) {
        let end = item_end(code, at + MARK.len());
        found.push(at..end);
        from = end;
    }
    found
}

/// Where the item that starts at `from` ends: at its `;` or at the brace that closes its body.
fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code[from..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return from + at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return from + at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_told_from_code() {
        let cases = [
            ("a // unsafe\nb", "a \nb"),
            ("a /* x /* y */ unsafe */ b", "a  b"),
            (r#"a("unsafe \" unsafe") b"#, "a() b"),
            ("a(r#\"un\"safe\"#, br\"x\", c\"y\", b\"z\") b", "a(, , , ) b"),
            ("a('\"') b('\\'') c(b'\"') d::<'x>(1)", "a() b() c() d::<'x>(1)"),
            ("for\"x\"", "for"),
            ("über(\"ß\") // ß", "über() "),
            ("open \"never closed", "open "),
            ("r#type = 1", "r#type = 1"),
        ];
        for (source, code) in cases {
            let squeezed = code_only(source);
            assert_eq!(squeezed.len(), source.len(), "{source}");
            let words = |text: &str| text.replace(' ', "");
            assert_eq!(words(&squeezed), words(code), "{source}");
        }
    }

    #[test]
    fn strings_stay_when_only_comments_go() {
        assert_eq!(without_comments("a(\"// x\") // y"), "a(\"// x\")     ");
    }

    #[test]
    fn items_under_cfg_test_are_left_out() {
        let source = "fn a() { x(\"1\") }\n#[cfg(test)]\nmod tests { fn b() { c(\"}\") } }\nfn d() {}\n\
                      #[cfg(test)]\nmod far;\nfn e() {}\n";
        let left: Vec<_> =
            without_tests(source).lines().map(str::trim).map(str::to_owned).collect();
        assert_eq!(left, ["fn a() { x(\"1\") }", "", "", "fn d() {}", "", "", "fn e() {}"]);
    }

    #[test]
    fn a_word_is_whole() {
        assert!(has_word("pub unsafe fn", "unsafe"));
        assert!(!has_word("forbid(unsafe_code) not_unsafe", "unsafe"));
    }
}
