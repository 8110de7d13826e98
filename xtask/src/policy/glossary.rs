//! The glossary: one row for a term, in order, each with a place that is there.

use super::{SourceFile, Violation};

const PAGE: &str = "docs/glossary.md";

/// Check that every term of the glossary has one row, in alphabetical order, that says what it means and
/// names places of this repository.
pub fn glossary(files: &[SourceFile]) -> Vec<Violation> {
    let Some(page) = files.iter().find(|file| file.path == PAGE) else {
        let what = "there is no glossary".to_owned();
        return vec![Violation { file: PAGE.to_owned(), line: 0, what }];
    };
    let mut violations = Vec::new();
    let mut before = String::new();
    for (at, line) in page.text.lines().enumerate() {
        let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) else {
            continue;
        };
        let mut wrong = |what: String| violations.push(page.violation(at + 1, what));
        let [term, meaning, places] = row.split(" | ").collect::<Vec<_>>()[..] else {
            wrong("a row has three columns".to_owned());
            continue;
        };
        if term == "Term" {
            continue;
        }
        if meaning.is_empty() {
            wrong(format!("{term} means nothing"));
        }
        let key = term.to_lowercase();
        if key <= before {
            wrong(format!("{term} stands behind its place in the alphabet, or twice"));
        }
        before = key;
        // Every second piece is between back quotes.
        let named: Vec<&str> = places.split('`').skip(1).step_by(2).collect();
        let is_path = |name: &&&str| name.contains('/');
        if !named.iter().any(|name| is_path(&name)) {
            wrong(format!("{term} lives nowhere: name a file or a folder of this repository"));
        }
        for name in named.iter().filter(is_path) {
            let is_there = |file: &SourceFile| {
                file.path == **name || name.ends_with('/') && file.path.starts_with(*name)
            };
            if !files.iter().any(is_there) {
                wrong(format!("{term} lives in {name}, which is not there"));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(rows: &str) -> Vec<String> {
        let file = |path: &str, text: &str| SourceFile { path: path.into(), text: text.into() };
        let head = "# Glossary\n\n| Term | What it means here | Where it lives |\n|---|---|---|\n";
        let files = [file(PAGE, &format!("{head}{rows}")), file("core/src/plan/mod.rs", "")];
        glossary(&files).into_iter().map(|violation| violation.what).collect()
    }

    #[test]
    fn a_term_has_one_row_and_a_place_that_is_there() {
        let good =
            "| plan | what is to be done | `core/src/plan/`, `core/src/plan/mod.rs` (`Plan`) |\n";
        assert!(wrong(good).is_empty());
        assert_eq!(wrong(&good.repeat(2)).len(), 1);
        assert_eq!(wrong(&format!("{good}{}", good.replace("| plan", "| fact"))).len(), 1);
        let gone = good.replace("mod.rs", "gone.rs");
        assert_eq!(wrong(&gone), ["plan lives in core/src/plan/gone.rs, which is not there"]);
        assert_eq!(wrong("| plan | what is to be done | `Plan` |\n").len(), 1);
        assert_eq!(wrong("| plan | what is to be done |\n"), ["a row has three columns"]);
        assert_eq!(glossary(&[]).len(), 1);
    }
}
