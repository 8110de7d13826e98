//! Reading typed values out of texts, keeping every error.

use std::collections::HashSet;
use std::str::FromStr;

use super::error::{ConfigError, ConfigErrors};
use crate::source::{Source, Sourced};
use crate::value::ValueError;

/// How many items a list can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Most {
    /// Ports and networks: as many as there are ports.
    Targets,
    /// Identities, interfaces and name servers: of these a pod has few.
    Names,
}

impl Most {
    const fn items(self) -> usize {
        match self {
            Self::Targets => 65_536,
            Self::Names => 1024,
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::Targets => "put ports into ranges, and networks into larger ones",
            Self::Names => "leave out what is not needed",
        }
    }
}

/// Of one list so many items are told to be wrong.
const MOST_WRONG: usize = 100;

/// Reads values and collects what is wrong with them.
#[derive(Debug, Default)]
pub struct ValueReader {
    errors: ConfigErrors,
    noted: HashSet<ConfigError>,
}

impl ValueReader {
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
        if self.noted.insert(error.clone()) {
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

    /// The ports or networks of a comma list. Empty items are dropped, others are taken as they
    /// are: a blank is part of the item, and an error where it makes no sense.
    pub fn list<T>(&mut self, text: &Sourced<String>) -> Vec<Sourced<T>>
    where
        T: FromStr<Err = ValueError>,
    {
        self.each(text, Most::Targets, &items(&text.value), |item| {
            item.parse().map_err(|error: ValueError| error.to_string())
        })
    }

    /// The same for what a pod has few of: identities and interfaces.
    pub fn names<T>(&mut self, text: &Sourced<String>) -> Vec<Sourced<T>>
    where
        T: FromStr<Err = ValueError>,
    {
        self.each(text, Most::Names, &items(&text.value), |item| {
            item.parse().map_err(|error: ValueError| error.to_string())
        })
    }

    /// Every item of a list of `text`, each read by `parse`; none when there are too many.
    pub(crate) fn each<T>(
        &mut self,
        text: &Sourced<String>,
        most: Most,
        list: &[&str],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Sourced<T>> {
        let count = list.len();
        if count > most.items() {
            let expected = format!(
                "the list has {count} items, and can have {}: {}",
                most.items(),
                most.remedy()
            );
            self.wrong(&text.source, &format!("{},...", list[..3].join(",")), expected);
            return Vec::new();
        }
        let mut values = Vec::with_capacity(count);
        let mut wrong = 0_usize;
        for item in list {
            match parse(item) {
                Ok(value) => values.push(text.with(value)),
                Err(expected) => {
                    wrong += 1;
                    if wrong <= MOST_WRONG {
                        self.wrong(&text.source, item, expected);
                    }
                }
            }
        }
        if let Some(more @ 1..) = wrong.checked_sub(MOST_WRONG) {
            self.wrong(&text.source, "...", format!("{more} more items are wrong"));
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
pub(crate) fn items(text: &str) -> Vec<&str> {
    text.split(',').filter(|item| !item.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{PortRange, Uid};

    fn text(items: usize, item: &str) -> Sourced<String> {
        Sourced::new(vec![item; items].join(","), Source::Flag("--ports".to_owned()))
    }

    /// Verify that a list is read up to its bound, and that the error names the bound.
    #[test]
    fn a_list_has_a_bound_that_is_named() {
        let mut reader = ValueReader::default();
        assert_eq!(reader.list::<PortRange>(&text(65_536, "80")).len(), 65_536);
        assert_eq!(reader.names::<Uid>(&text(1024, "1")).len(), 1024);
        assert!(!reader.failed());
        assert!(reader.list::<PortRange>(&text(65_537, "80")).is_empty());
        assert!(reader.names::<Uid>(&text(1025, "1")).is_empty());
        let errors = reader.finish::<()>(None).unwrap_err().to_string();
        let ports = "flag --ports: \"80,80,80,...\": the list has 65537 items, and can have 65536: \
                     put ports into ranges";
        assert!(errors.contains(ports) && errors.contains("can have 1024"), "{errors}");
    }

    /// Verify that of very many wrong items the first are told, and how many there are.
    #[test]
    fn very_many_wrong_items_are_counted() {
        let mut reader = ValueReader::default();
        let wrong: Vec<String> = (70_000..70_300).map(|port| port.to_string()).collect();
        let list = Sourced::new(wrong.join(","), Source::Flag("--ports".to_owned()));
        assert!(reader.list::<PortRange>(&list).is_empty());
        let errors = reader.finish::<()>(None).unwrap_err();
        assert_eq!(errors.0.len(), MOST_WRONG + 1);
        assert!(errors.to_string().ends_with("\"...\": 200 more items are wrong"), "{errors}");
    }
}
