//! What `iptables-save` prints, as data. Rules of others are kept as text; rules that Millrace
//! could have written are understood.

use super::parse::{UnknownRule, parse_rule};
use crate::ruleset::Rule;

/// Packets and bytes that a rule has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes.
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
    /// The chain's name.
    pub name: String,
    /// The policy of a builtin chain (`ACCEPT`, `DROP`); none for others.
    pub policy: Option<String>,
    /// The rules.
    pub rules: Vec<DumpRule>,
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
    /// The chain called `name`.
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

/// A dump that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the rules is not what iptables-save prints: {text:?}")]
pub struct DumpError {
    /// The line, counted from 1.
    pub line: usize,
    /// Its text.
    pub text: String,
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
        let mut tables: Vec<TableDump> = Vec::new();
        let mut open = false;
        for (index, line) in text.lines().enumerate() {
            let bad = || DumpError { line: index + 1, text: line.to_owned() };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('*') {
                if open {
                    return Err(bad());
                }
                open = true;
                tables.push(TableDump { name: name.trim().to_owned(), chains: Vec::new() });
                continue;
            }
            let table = if open { tables.last_mut().ok_or_else(bad)? } else { return Err(bad()) };
            if line == "COMMIT" {
                open = false;
            } else if let Some(declared) = line.strip_prefix(':') {
                let mut words = declared.split_ascii_whitespace();
                let name = words.next().ok_or_else(bad)?;
                let policy = words.next().filter(|p| *p != "-").map(str::to_owned);
                chain_of(table, name).policy = policy;
            } else if let Some(name) = line.strip_prefix("-N ") {
                chain_of(table, name.trim());
            } else {
                add_rule(table, line).ok_or_else(bad)?;
            }
        }
        if open {
            let line = text.lines().count();
            return Err(DumpError { line, text: "the end, where COMMIT should be".to_owned() });
        }
        Ok(Self { tables })
    }

    /// The table called `name`.
    pub fn table(&self, name: &str) -> Option<&TableDump> {
        self.tables.iter().find(|t| t.name == name)
    }
}

fn chain_of<'t>(table: &'t mut TableDump, name: &str) -> &'t mut ChainDump {
    let index = table.chains.iter().position(|c| c.name == name).unwrap_or_else(|| {
        table.chains.push(ChainDump { name: name.to_owned(), policy: None, rules: Vec::new() });
        table.chains.len() - 1
    });
    &mut table.chains[index]
}

/// `[packets:bytes] -A CHAIN rule` or `-I CHAIN position rule`.
fn add_rule(table: &mut TableDump, line: &str) -> Option<()> {
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
    let rules = &mut chain_of(table, chain).rules;
    let index = position.unwrap_or(rules.len());
    if index > rules.len() {
        return None;
    }
    rules.insert(index, rule);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_chains_rules_and_counters() {
        let dump = Dump::parse(
            "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
             [3:180] -A PREROUTING -p tcp -j ISTIO_INBOUND\n-A ISTIO_OUTPUT -j KUBE-MARK-MASQ\nCOMMIT\n",
        )
        .unwrap();
        let nat = dump.table("nat").unwrap();
        assert_eq!(nat.chain("PREROUTING").unwrap().policy.as_deref(), Some("ACCEPT"));
        let rule = &nat.chain("PREROUTING").unwrap().rules[0];
        assert_eq!(rule.counters, Some(Counters { packets: 3, bytes: 180 }));
        assert!(rule.rule.is_ok());
        assert_eq!(nat.chain("ISTIO_OUTPUT").unwrap().rules[0].text, "-j KUBE-MARK-MASQ");
    }

    #[test]
    fn inserts_go_where_they_say() {
        let dump =
            Dump::parse("* nat\n-A OUTPUT -j A\n-I OUTPUT 1 -j B\n-I OUTPUT 2 -j C\nCOMMIT\n")
                .unwrap();
        let texts: Vec<_> =
            dump.tables[0].chains[0].rules.iter().map(|r| r.text.as_str()).collect();
        assert_eq!(texts, ["-j B", "-j C", "-j A"]);
    }

    #[test]
    fn names_the_line_that_is_wrong() {
        assert_eq!(Dump::parse("*nat\nhello\nCOMMIT\n").unwrap_err().line, 2);
        assert_eq!(Dump::parse("*nat\n-A OUTPUT -j A\n").unwrap_err().line, 2);
        assert!(Dump::parse("*nat\n-I OUTPUT 3 -j A\nCOMMIT\n").is_err());
        assert!(Dump::parse("-A OUTPUT -j A\n").is_err());
    }
}
