//! Public names are those of the glossary: no word that was given up for one of its terms, and no term for
//! something else.

use super::{SourceFile, Violation, text};

/// Words that no name has any more, each as the words of a name in their order, with what is said instead.
const GIVEN_UP: [(&[&str], &str); 17] = [
    (&["wanted"], "desired, or expected"),
    (&["found"], "observed"),
    (&["take", "back"], "roll back"),
    (&["takes", "back"], "roll back"),
    (&["carry", "out"], "apply"),
    (&["let", "past"], "bypass"),
    (&["left", "alone"], "bypass"),
    (&["told"], "reported"),
    (&["wish"], "preference, or request"),
    (&["means"], "method"),
    (&["refusal"], "unsupported, or rejection"),
    (&["refusals"], "unsupported, or rejection"),
    (&["guest"], "hooked rule"),
    (&["guests"], "hooked rules"),
    (&["spare"], "preloaded, or exempt"),
    (&["spares"], "preloaded, or exempt"),
    (&["place"], "which: a position, a namespace, a hook"),
];

/// Words that say too little alone: a name has another one beside them.
const NEVER_ALONE: [&str; 2] = ["Reader", "Look"];

/// Terms that are the name of one thing, and where that is.
const ONE_THING: [(&str, &[&str]); 2] = [
    ("Listener", &["core/src/capture/program.rs"]),
    // For the kernel and for everybody else.
    ("Verdict", &["core/src/capture/program.rs", "ebpf-common/src/verdict.rs"]),
];

/// Where a word means what it means everywhere: a guest is a virtual machine, and `is_found` what somebody
/// looks for.
const OF_ITS_OWN: [(&str, &str); 2] = [("xtask/src/vm/", "guest"), ("core/src/sim/", "found")];

/// A public type, function or module of the product has no word that the glossary gave up, and none of its
/// terms for another thing.
pub fn public_names(file: &SourceFile) -> Option<Violation> {
    if !file.is_rust() || !file.path.contains("/src/") || file.path.starts_with("tests/") {
        return None;
    }
    let code = text::code_only(&text::without_tests(&file.text));
    for (number, line) in (1..).zip(code.lines()) {
        let Some(name) = public(line) else { continue };
        let words = words(name);
        let exempt = |word: &str| {
            OF_ITS_OWN.iter().any(|(path, own)| file.path.starts_with(path) && *own == word)
        };
        let given_up = GIVEN_UP.iter().find(|(given_up, _)| {
            words.windows(given_up.len()).any(|part| part == *given_up) && !exempt(given_up[0])
        });
        if let Some((_, instead)) = given_up {
            return Some(
                file.violation(number, format!("{name}: say {instead} (docs/glossary.md)")),
            );
        }
        if NEVER_ALONE.contains(&name) {
            let what = format!("{name}: say of what (docs/glossary.md)");
            return Some(file.violation(number, what));
        }
        let one = ONE_THING.iter().find(|(term, _)| *term == name);
        if let Some((term, places)) = one.filter(|(_, places)| !places.contains(&&*file.path)) {
            let what = format!("{term} is that of {}; name this one otherwise", places.join(", "));
            return Some(file.violation(number, what));
        }
    }
    None
}

/// The name of a type, function or module that a line declares for more than its own module.
fn public(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let rest = line.strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(inside) => inside.split_once(')')?.1,
        None => rest,
    };
    let mut words = rest.split_ascii_whitespace();
    let kind = words.find(|word| !["const", "async", "unsafe", "extern"].contains(word))?;
    if !["struct", "enum", "union", "trait", "type", "fn", "mod"].contains(&kind) {
        return None;
    }
    let name = words.next()?;
    name.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())
}

/// The words of a name, in lower case: `take_back` and `TakeBack` have two.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for part in name.split('_') {
        for (at, c) in part.chars().enumerate() {
            if at == 0 || c.is_uppercase() {
                words.push(String::new());
            }
            if let Some(word) = words.last_mut() {
                word.extend(c.to_lowercase());
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, line: &str) -> bool {
        let text = format!("//! Head.\n{line}\n");
        let file = SourceFile { path: path.to_owned(), text };
        public_names(&file).is_some_and(|violation| violation.line == 2)
    }

    #[test]
    fn a_word_that_was_given_up_is_found() {
        for line in [
            "pub struct Wanted<'a> {",
            "pub(crate) enum Wish {",
            "pub(super) const fn take_back(",
            "pub mod refusal;",
            "    pub fn told(&self) -> String {",
            "pub struct Refusals(pub Vec<u8>);",
            "pub(super) fn count_spares() {",
            "pub fn place() {}",
            "pub struct Reader;",
            "pub type Verdict = u8;",
            "pub(crate) struct Listener {",
        ] {
            assert!(broken("host/src/x.rs", line), "{line}");
        }
    }

    #[test]
    fn other_names_are_kept() {
        for line in [
            "pub struct DesiredState<'a> {",
            "pub fn replace() {}",
            "pub struct ValueReader;",
            "pub enum NftVerdict {",
            "fn told() {}",
            "pub use super::Wanted;",
            "    pub wanted: bool,",
            "// pub fn told() {}",
        ] {
            assert!(!broken("host/src/x.rs", line), "{line}");
        }
        assert!(!broken("core/src/capture/program.rs", "pub enum Verdict {"));
        assert!(!broken("xtask/src/vm/guest.rs", "pub struct Guest;"));
        assert!(!broken("tests/src/x.rs", "pub struct Wanted;"));
    }
}
