//! Settings as they were typed, each with its source.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use super::flags::{BETWEEN, Kind, Words};
use super::{ValueReader, go};
use crate::source::{Source, Sourced};

/// Flags and variables as they were typed for a tool.
#[derive(Clone, Debug, Default)]
pub struct Raw<W> {
    flags: BTreeMap<&'static str, String>,
    env: BTreeMap<String, String>,
    files: FileValues,
    more: BTreeMap<&'static str, Vec<Sourced<String>>>,
    of: PhantomData<W>,
}

/// What configuration files say: by the name of a flag, with the key that said it.
pub type FileValues = BTreeMap<&'static str, Sourced<String>>;

impl<W: Words> Raw<W> {
    /// Take flags, by their long names and in their order, and the environment. Flags that the
    /// table doesn't have are not settings and are left out.
    pub fn new(
        flags: impl IntoIterator<Item = (String, String)>,
        env: BTreeMap<String, String>,
    ) -> Self {
        let (none, files, more) = (BTreeMap::new(), FileValues::new(), BTreeMap::new());
        let mut raw = Self { flags: none, env, files, more, of: PhantomData };
        for (name, value) in flags {
            let Some(def) = W::find(&name) else { continue };
            match raw.flags.get_mut(def.long) {
                Some(list) if matches!(def.kind, Kind::List | Kind::Texts) => {
                    list.push(if def.kind == Kind::List { ',' } else { BETWEEN });
                    list.push_str(&value);
                }
                Some(last) => *last = value,
                None => {
                    raw.flags.insert(def.long, value);
                }
            }
        }
        raw
    }

    /// Take what one more configuration file says; it counts for more than those before it, and for less
    /// than the environment.
    #[must_use]
    pub fn with_file(mut self, values: FileValues) -> Self {
        self.files.extend(values);
        self
    }

    /// Take more items of a list, beside whatever else says some.
    #[must_use]
    pub fn with_more(mut self, long: &'static str, items: Sourced<String>) -> Self {
        self.more.entry(long).or_default().push(items);
        self
    }

    /// The texts of a list, of which several may say some.
    pub fn texts(&self, long: &'static str) -> Vec<Sourced<String>> {
        std::iter::once(self.text(long)).chain(self.more(long).cloned()).collect()
    }

    /// The texts of a list that were taken beside whatever else says some.
    pub(super) fn more(&self, long: &'static str) -> impl Iterator<Item = &Sourced<String>> {
        self.more.get(long).into_iter().flatten()
    }

    /// The value of a flag: what the command line says, else the environment, else a configuration file,
    /// else the default.
    /// An empty variable sets a text and is no value for anything else.
    pub fn text(&self, long: &'static str) -> Sourced<String> {
        let def = W::find(long).unwrap_or(&W::FLAGS[0]);
        debug_assert_eq!(def.long, long, "a name of the table");
        if let Some(value) = self.flags.get(long) {
            return Sourced::new(value.clone(), Source::Flag(def.display()));
        }
        let texts = matches!(def.kind, Kind::Text | Kind::List | Kind::Texts);
        let set = def.env.iter().rev().find_map(|name| {
            let value = self.env.get(*name)?;
            (texts || !value.is_empty()).then_some((*name, value))
        });
        match set {
            Some((name, value)) => Sourced::new(value.clone(), Source::Env(name.to_owned())),
            None => self.files.get(long).cloned().unwrap_or_else(|| {
                Sourced::new(def.default.to_owned(), Source::Default(def.display()))
            }),
        }
    }

    /// The value of a variable that has no flag.
    pub fn variable(&self, name: &'static str) -> Sourced<String> {
        if let Some(value) = self.env.get(name) {
            Sourced::new(value.clone(), Source::Env(name.to_owned()))
        } else {
            let default = W::VARIABLES.iter().find(|v| v.0 == name).map_or("", |v| v.1);
            Sourced::new(default.to_owned(), Source::Default(name.to_owned()))
        }
    }

    /// A switch. A malformed one is false here, and an error in `reader`.
    pub fn switch(&self, reader: &mut ValueReader, long: &'static str) -> Sourced<bool> {
        let text = self.text(long);
        let value = go::parse_bool(&text.value).unwrap_or_else(|error| {
            unreadable(reader, &text, error.to_string());
            false
        });
        text.with(value)
    }

    /// A duration. A malformed one is zero here, and an error in `reader`.
    pub fn duration(&self, reader: &mut ValueReader, long: &'static str) -> std::time::Duration {
        let text = self.text(long);
        go::parse_duration(&text.value).unwrap_or_else(|error| {
            unreadable(reader, &text, error.to_string());
            std::time::Duration::ZERO
        })
    }
}

/// A value that the reference's own command line parser would have refused is a usage error on
/// the command line, and an error like any other in the environment.
pub(super) fn unreadable(reader: &mut ValueReader, text: &Sourced<String>, expected: String) {
    match text.source {
        Source::Flag(_) => reader.unusable(&text.source, &text.value, expected),
        _ => reader.wrong(&text.source, &text.value, expected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::istio::flags::Istio;

    fn raw(flags: &[(&str, &str)], env: &[(&str, &str)]) -> Raw<Istio> {
        let own = |p: &(&str, &str)| (p.0.to_owned(), p.1.to_owned());
        Raw::new(flags.iter().map(own), env.iter().map(own).collect())
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_default() {
        let r = raw(&[("istio-inbound-ports", "1")], &[("ISTIO_INBOUND_PORTS", "2")]);
        assert_eq!(r.text("istio-inbound-ports").value, "1");
        let r = raw(&[], &[("ISTIO_INBOUND_PORTS", "2")]);
        assert_eq!(r.text("istio-inbound-ports").value, "2");
        assert_eq!(r.text("envoy-port").value, "15001");
    }

    #[test]
    fn the_second_variable_overrides_the_first() {
        let r = raw(&[], &[("REDIRECT_DNS", "true"), ("ISTIO_META_DNS_CAPTURE", "false")]);
        let mut reader = ValueReader::default();
        assert!(!r.switch(&mut reader, "redirect-dns").value);
        assert!(!reader.failed());
    }

    #[test]
    fn the_last_text_counts_and_lists_add_up() {
        let r = raw(
            &[("envoy-port", "1"), ("envoy-port", "2"), ("proxy-uid", "3"), ("proxy-uid", "4,5")],
            &[],
        );
        assert_eq!(r.text("envoy-port").value, "2");
        assert_eq!(r.text("proxy-uid").value, "3,4,5");
    }

    #[test]
    fn an_empty_variable_is_a_text_and_no_switch() {
        let r = raw(&[], &[("ISTIO_INBOUND_PORTS", ""), ("DRY_RUN", "")]);
        assert!(matches!(r.text("istio-inbound-ports").source, Source::Env(_)));
        let mut reader = ValueReader::default();
        assert!(!r.switch(&mut reader, "dry-run").value);
        assert!(!reader.failed());
    }

    #[test]
    fn a_malformed_switch_is_an_error_and_on_the_command_line_a_usage_error() {
        let mut reader = ValueReader::default();
        raw(&[], &[("REDIRECT_DNS", "yes")]).switch(&mut reader, "redirect-dns");
        let errors = reader.finish(Some(())).unwrap_err();
        assert!(!errors.usage());
        assert!(
            errors.to_string().starts_with("environment variable REDIRECT_DNS: \"yes\": a switch")
        );
        let mut reader = ValueReader::default();
        raw(&[("redirect-dns", "yes")], &[]).switch(&mut reader, "redirect-dns");
        assert!(reader.finish(Some(())).unwrap_err().usage());
    }
}
