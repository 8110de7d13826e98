//! What is done in a pod, so that it can be done again by hand.

use std::fmt;

use anyhow::Result;

use crate::netns::Namespace;

/// A command in the pod.
#[derive(Clone, Debug)]
pub(super) struct Step {
    program: String,
    args: Vec<String>,
    input: Option<String>,
}

impl Step {
    /// A program with words that have no blanks in them but those in double quotes.
    pub(super) fn words(program: &str, words: &str) -> Self {
        let mut args: Vec<String> = Vec::new();
        let mut quoted = false;
        let mut word = String::new();
        for c in words.chars().chain([' ']) {
            match c {
                '"' => quoted = !quoted,
                ' ' if !quoted => {
                    if !word.is_empty() {
                        args.push(std::mem::take(&mut word));
                    }
                }
                c => word.push(c),
            }
        }
        Self { program: program.to_owned(), args, input: None }
    }

    /// A program with words and its standard input.
    pub(super) fn feed(program: &str, args: &[&str], input: String) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { program: program.to_owned(), args, input: Some(input) }
    }

    /// Do it.
    pub(super) fn run(&self, namespace: &Namespace) -> Result<()> {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        namespace.feed(&self.program, &args, self.input.as_deref().unwrap_or_default()).map(drop)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.args.join(" "))?;
        self.input.as_ref().map_or(Ok(()), |input| write!(f, " <<'END'\n{input}END"))
    }
}
