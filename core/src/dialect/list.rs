//! Reading typed values out of texts, keeping every error.

use std::str::FromStr;

use super::error::{ConfigError, ConfigErrors};
use crate::source::{Source, Sourced};
use crate::value::ValueError;

/// Reads values and collects what is wrong with them.
#[derive(Debug, Default)]
pub struct Reader {
    errors: ConfigErrors,
}

impl Reader {
    /// Note that a value is wrong.
    pub fn wrong(&mut self, source: &Source, value: &str, expected: impl Into<String>) {
        self.note(source, value, expected.into(), false);
    }

    /// Note that the command line can't be read.
    pub fn unusable(&mut self, source: &Source, value: &str, expected: impl Into<String>) {
        self.note(source, value, expected.into(), true);
    }

    /// A setting that is read more than once is wrong once.
    fn note(&mut self, source: &Source, value: &str, expected: String, usage: bool) {
        let (source_name, value) = (source.clone(), value.to_owned());
        let error = ConfigError { source_name, value, expected, usage };
        if !self.errors.0.contains(&error) {
            self.errors.0.push(error);
        }
    }

    /// One value; `None`, and an error noted, when it is wrong.
    pub fn one<T>(&mut self, text: &Sourced<String>) -> Option<Sourced<T>>
    where
        T: FromStr<Err = ValueError>,
    {
        match text.value.parse() {
            Ok(value) => Some(text.with(value)),
            Err(error) => {
                self.wrong(&text.source, &text.value, error.to_string());
                None
            }
        }
    }

    /// The items of a comma list. Empty items are dropped, others are taken as they are: a blank
    /// is part of the item, and an error where it makes no sense.
    pub fn list<T>(&mut self, text: &Sourced<String>) -> Vec<Sourced<T>>
    where
        T: FromStr<Err = ValueError>,
    {
        let mut values = Vec::new();
        for item in items(&text.value) {
            match item.parse::<T>() {
                Ok(value) => values.push(text.with(value)),
                Err(error) => self.wrong(&text.source, item, error.to_string()),
            }
        }
        values
    }

    /// `value` if nothing was wrong.
    ///
    /// # Errors
    /// Everything that was wrong.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        match value {
            Some(value) => self.errors.into_result(value),
            None => Err(self.errors),
        }
    }

    /// Whether anything was wrong so far.
    pub const fn failed(&self) -> bool {
        !self.errors.0.is_empty()
    }
}

/// The items of a comma list that are not empty.
pub(crate) fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|item| !item.is_empty())
}
