//! What `iptables-save` prints, as data. Rules of others are kept as text; rules that Millrace
//! could have written are understood.

mod saved;

use std::collections::HashMap;
use std::iter;

use self::saved::Saved;
use super::parse::{UnknownRule, parse_rule};
use crate::ruleset::Rule;
use crate::value::Family;

/// Packets and bytes that a rule has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Packets that matched the rule.
    pub packets: u64,
    /// Their bytes, headers of IP included.
    pub bytes: u64,
}

/// A rule of `nf_tables`, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRule {
    /// Its number in its table.
    pub handle: u64,
    /// What it is made of (`NFTA_RULE_EXPRESSIONS`, `NFTA_RULE_COMPAT`, `NFTA_RULE_USERDATA`), byte for
    /// byte, so that it can be written again whether it is understood or not.
    pub attributes: Vec<u8>,
    /// Whether ports or marks are in expressions, which programs up to iptables 1.8.7 read past.
    pub newer: bool,
}

/// A rule of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpRule {
    /// The rule as printed, without `-A CHAIN`.
    pub text: String,
    /// Its counters, if the dump has them.
    pub counters: Option<Counters>,
    /// The rule, or what in it is not known.
    pub rule: Result<Rule, UnknownRule>,
    /// What the kernel has, when it was asked by netlink.
    pub kernel: Option<KernelRule>,
}

impl DumpRule {
    /// A rule that was read from text.
    pub fn from_text(text: &str, counters: Option<Counters>) -> Self {
        Self { text: text.to_owned(), counters, rule: parse_rule(text), kernel: None }
    }
}

/// A chain of a dump with its rules in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainDump {
    /// Unique in its table; built-in ones in capitals.
    pub name: String,
    /// The policy of a builtin chain (`ACCEPT`, `DROP`); none for others.
    pub policy: Option<String>,
    /// In the order of the dump, which is the kernel's.
    pub rules: Vec<DumpRule>,
    /// The kernel's number of it, when it was asked by netlink: what was made later has a higher one.
    pub handle: Option<u64>,
}

/// A table of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDump {
    /// The table's name, as printed: there are tables that Millrace never touches.
    pub name: String,
    /// The chains, in the order of the dump.
    pub chains: Vec<ChainDump>,
}

impl TableDump {
    /// The chain with just this name; none where the table has no such chain.
    pub fn chain(&self, name: &str) -> Option<&ChainDump> {
        self.chains.iter().find(|c| c.name == name)
    }
}

/// A whole dump of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// The tables, in the order of the dump.
    pub tables: Vec<TableDump>,
}

/// The family that a head names, and the lines behind it with their places.
type Lines<'t> = (Option<Family>, Vec<(usize, &'t str)>);

/// A dump that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the rules is not what iptables-save prints: {text:?}{}", hint(text, why.as_deref()))]
pub struct DumpError {
    /// The line, counted from 1.
    pub line: usize,
    /// The line as it was read, for the message.
    pub text: String,
    /// What is wrong with it, where it could be a line of a dump by its form.
    pub why: Option<String>,
}

/// What is wrong with a line, where it is known.
fn hint(text: &str, why: Option<&str>) -> String {
    if let Some(why) = why {
        return format!("; {why}");
    }
    if odd_space(text) == Some(char::REPLACEMENT_CHARACTER) {
        return "; it holds bytes that are not UTF-8, which may be in quotes alone".to_owned();
    }
    if let Some(odd) = odd_space(text) {
        return format!(
            "; it holds U+{:04X}, which looks like a space and is none for iptables: write a plain one",
            u32::from(odd)
        );
    }
    listing(text).map(|what| format!("; {what}")).unwrap_or_default()
}

/// What other commands print, and what prints what is needed.
fn listing(line: &str) -> Option<&'static str> {
    let begins = |list: &[&str]| list.iter().any(|start| line.starts_with(start));
    if begins(&["-P ", "-N ", "-A "]) {
        return Some(
            "this is what `iptables -S` prints, of one table and without its name: save all with \
             `iptables-save` (IPv6: `ip6tables-save`)",
        );
    }
    if begins(&["Chain "]) {
        return Some(
            "this is what `iptables -L` prints, which leaves out half of each rule: save all with \
             `iptables-save` (IPv6: `ip6tables-save`)",
        );
    }
    (begins(&["table "]) && line.contains('{')).then_some(
        "this is what `nft list ruleset` prints for people: save it as JSON with `nft -j list ruleset`",
    )
}

/// Whether a text is a list of rules that another command prints than those that can be read.
pub fn is_listing(text: &str) -> bool {
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !is_comment(line));
    first.is_some_and(|line| listing(line).is_some())
}

/// What looks like a space, or like nothing, and is a letter like any other for iptables; and what
/// stands for bytes that are not UTF-8. In quotes they may stand.
fn odd_space(text: &str) -> Option<char> {
    let mut quoted = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '"' => quoted = !quoted,
            '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | char::REPLACEMENT_CHARACTER
                if !quoted =>
            {
                return Some(c);
            }
            c if c.is_whitespace() && !c.is_ascii() && !quoted => return Some(c),
            _ => {}
        }
    }
    None
}

/// One family's dump, as it stands in a text that can hold several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The family that its head names, if it has one.
    pub family: Option<Family>,
    /// The tables, chains and rules of that family.
    pub dump: Dump,
}

impl Dump {
    /// Whether there is a rule that is not understood.
    pub fn is_unclear(&self) -> bool {
        let chains = self.tables.iter().flat_map(|table| &table.chains);
        chains.flat_map(|chain| &chain.rules).any(|rule| rule.rule.is_err())
    }

    /// Read what `iptables-save` or `ip6tables-save` printed, of either variant, with or without
    /// counters; also what `iptables-restore` takes.
    ///
    /// # Errors
    /// The first line that has no place in a dump.
    pub fn parse(text: &str) -> Result<Self, DumpError> {
        Self::read(lines(text), None)
    }

    /// The same of a text that somebody saved, which may hold the dumps of both families, one behind the
    /// other: each begins with a line that names the program that made it. What no kernel takes is refused,
    /// and so is what says that there is more than was printed.
    ///
    /// # Errors
    /// The first line that has no place in a dump.
    pub fn parse_all(text: &str) -> Result<Vec<Part>, DumpError> {
        let mut parts: Vec<Lines<'_>> = Vec::new();
        for (index, line) in lines(text) {
            let head = head(line);
            let other = head.is_some() && parts.last().is_none_or(|(family, _)| *family != head);
            match parts.last_mut() {
                // What stands in front of the first head is its own.
                Some((family @ None, lines)) if lines.iter().all(|(_, l)| is_comment(l)) => {
                    *family = head;
                    lines.push((index, line));
                }
                Some((_, lines)) if !other => lines.push((index, line)),
                _ => parts.push((head, vec![(index, line)])),
            }
        }
        let read = |(family, lines): (_, Vec<_>)| {
            Ok(Part { family, dump: Self::read(lines, Some(Saved::default()))? })
        };
        parts.into_iter().map(read).collect()
    }

    /// With `saved`, what it refuses is refused.
    fn read<'t, I: IntoIterator<Item = (usize, &'t str)>>(
        lines: I,
        mut saved: Option<Saved>,
    ) -> Result<Self, DumpError> {
        let mut tables: Vec<TableDump> = Vec::new();
        let mut places = Places::new();
        let mut open = false;
        let mut last = 0;
        for (index, line) in lines {
            last = index + 1;
            let bad = || DumpError { line: index + 1, text: line.to_owned(), why: None };
            let line = line.trim_ascii();
            if let Some(why) = saved.as_mut().and_then(|saved| saved.refuses(line)) {
                return Err(DumpError { why: Some(why), ..bad() });
            }
            if is_comment(line) {
                continue;
            }
            if odd_space(line).is_some() {
                return Err(bad());
            }
            if let Some(name) = line.strip_prefix('*') {
                let name = name.trim_ascii();
                if open {
                    return Err(bad());
                }
                if tables.iter().any(|table| table.name == name) {
                    let text = format!("a second table {name}, of another family or another dump");
                    return Err(DumpError { line: index + 1, text, why: None });
                }
                open = true;
                places.clear();
                tables.push(TableDump { name: name.to_owned(), chains: Vec::new() });
                continue;
            }
            let table = if open { tables.last_mut().ok_or_else(bad)? } else { return Err(bad()) };
            if line == "COMMIT" {
                open = false;
            } else if let Some(declared) = line.strip_prefix(':') {
                let mut words = declared.split_ascii_whitespace();
                let name = words.next().ok_or_else(bad)?;
                let policy = words.next().filter(|p| *p != "-").map(str::to_owned);
                chain_of(table, name, &mut places).policy = policy;
            } else if let Some(name) = line.strip_prefix("-N ") {
                chain_of(table, name.trim(), &mut places);
            } else {
                add_rule(table, line, &mut places).ok_or_else(bad)?;
            }
        }
        if open {
            return Err(DumpError {
                line: last,
                text: "the end, where COMMIT should be".to_owned(),
                why: None,
            });
        }
        Ok(Self { tables })
    }

    /// The table with just this name; none where the dump has no such table.
    pub fn table(&self, name: &str) -> Option<&TableDump> {
        self.tables.iter().find(|t| t.name == name)
    }
}

/// The lines of a dump, each with the number of its first, counted from 0. What stands in quotes in a
/// rule may be of several: a line break is a letter like others in a comment of somebody's. A quote
/// within a word is one of its letters: chains of `nf_tables` may be called anything.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let (mut rest, mut number) = (text, 0);
    iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let is_rule = rest.trim_ascii_start().starts_with(['-', '[']);
        let (mut quoted, mut escaped, mut before) = (false, false, b' ');
        let end = rest.bytes().position(|byte| {
            let begins = before == b' ';
            before = byte;
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' if quoted => quoted = false,
                b'"' => quoted = is_rule && begins,
                b'\n' => return !quoted,
                _ => {}
            }
            false
        });
        let (line, behind) = match end {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, ""),
        };
        let first = number;
        number += 1 + line.bytes().filter(|byte| *byte == b'\n').count();
        rest = behind;
        Some((first, line))
    })
}

fn is_comment(line: &str) -> bool {
    line.trim_ascii().is_empty() || line.trim_ascii_start().starts_with('#')
}

/// The family of the program that a dump's first line names.
fn head(line: &str) -> Option<Family> {
    let program = line.strip_prefix("# Generated by ")?.split_ascii_whitespace().next()?;
    let known = program.ends_with("-save").then_some(program)?;
    Some(if known.starts_with("ip6tables") { Family::V6 } else { Family::V4 })
}

/// The places of a table's chains, by their names.
type Places<'l> = HashMap<&'l str, usize>;

fn chain_of<'t, 'l>(
    table: &'t mut TableDump,
    name: &'l str,
    places: &mut Places<'l>,
) -> &'t mut ChainDump {
    let index = *places.entry(name).or_insert_with(|| {
        table.chains.push(ChainDump {
            name: name.to_owned(),
            policy: None,
            rules: Vec::new(),
            handle: None,
        });
        table.chains.len() - 1
    });
    &mut table.chains[index]
}

/// `[packets:bytes] -A CHAIN rule` or `-I CHAIN position rule`.
fn add_rule<'l>(table: &mut TableDump, line: &'l str, places: &mut Places<'l>) -> Option<()> {
    let (counters, line) = match line.strip_prefix('[') {
        Some(rest) => {
            let (counters, line) = rest.split_once(']')?;
            let (packets, bytes) = counters.split_once(':')?;
            let counters = Counters { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? };
            (Some(counters), line.trim_start())
        }
        None => (None, line),
    };
    let (verb, rest) = line.split_once(' ')?;
    let (chain, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let (position, text) = match verb {
        "-A" => (None, rest),
        "-I" => match rest.split_once(' ') {
            Some((number, text)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                (Some(number.parse::<usize>().ok()?.checked_sub(1)?), text)
            }
            _ => (Some(0), rest),
        },
        _ => return None,
    };
    let rule = DumpRule::from_text(text, counters);
    let rules = &mut chain_of(table, chain, places).rules;
    let index = position.unwrap_or(rules.len());
    if index > rules.len() {
        return None;
    }
    rules.insert(index, rule);
    Some(())
}

#[cfg(test)]
mod tests;
