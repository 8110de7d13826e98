//! All that a namespace holds of rules, routing and addresses, to compare before and after.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::capture::Variant;
use crate::netns::Namespace;

/// The `-save` programs, with what they are called here.
const SAVES: [(&str, &str); 4] = [
    ("IPv4 nft", "iptables-nft-save"),
    ("IPv6 nft", "ip6tables-nft-save"),
    ("IPv4 legacy", "iptables-legacy-save"),
    ("IPv6 legacy", "ip6tables-legacy-save"),
];

/// What a namespace holds. Two of them are equal when every chain has the same rules in the same
/// order with the same counters, and routing and addresses are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Rules by chain: `IPv4 nft nat OUTPUT`. A built-in chain is there if it has rules, or a
    /// policy other than ACCEPT.
    pub chains: BTreeMap<String, Vec<String>>,
    /// `ip rule`, in both families.
    pub rules: Vec<String>,
    /// Every routing table, in both families.
    pub routes: Vec<String>,
    /// The addresses of all interfaces, and other names that `lo` has: Millrace notes a change in
    /// progress there.
    pub addresses: Vec<String>,
}

/// The addresses that `ip -6 -oneline addr` lists.
fn own(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().filter_map(|line| line.split_once("inet6 ")?.1.split(['/', ' ']).next())
}

impl Snapshot {
    /// Look at a namespace. Nothing is changed by it: the `-save` programs make no tables.
    pub fn take(namespace: &Namespace) -> Result<Self> {
        // The kernel checks a new address and makes its route a moment after it was added, also
        // that of `lo`, where there is nothing to check.
        let addresses = || namespace.run("ip", &["-6", "-oneline", "addr", "show", "up"]);
        let routes = || namespace.run("ip", &["-4", "route"]);
        let local = || namespace.run("ip", &["-6", "route", "show", "table", "local"]);
        for attempt in 0..2_000 {
            // A link that has just got its other end has a carrier, and then an address, a little later;
            // one whose other end is down has none.
            let down = attempt < 100 && routes()?.contains("linkdown");
            let addresses = addresses()?;
            if !down && !addresses.contains("tentative") {
                let local = local()?;
                let is_routed = |address: &str| local.contains(&format!("local {address} dev "));
                if attempt >= 60 || own(&addresses).all(is_routed) {
                    break;
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mut snapshot = Self::default();
        for (what, program) in SAVES {
            let text = namespace.run(program, &["-c"])?;
            snapshot.read(what, &text).with_context(|| format!("{program} said\n{text}"))?;
        }
        snapshot.read_native(&namespace.run("nft", &["--stateless", "list", "ruleset", "inet"])?);
        for family in ["-4", "-6"] {
            let lines = |args: &[&str]| -> Result<Vec<String>> {
                let text = namespace.run("ip", &[&[family][..], args].concat())?;
                // A link that has just got its other end may have no carrier yet.
                let told = |line: &str| line.trim().replace(" linkdown", "");
                Ok(text.lines().map(|line| format!("{family} {}", told(line))).collect())
            };
            snapshot.rules.extend(lines(&["rule"])?);
            snapshot.routes.extend(lines(&["route", "show", "table", "all"])?);
            // An interface that was made again has another index.
            let nameless = |line: String| {
                let name = line.split_once(": ").map(|(_index, rest)| format!("{family} {rest}"));
                name.unwrap_or(line)
            };
            let addresses = lines(&["-oneline", "addr"])?;
            snapshot.addresses.extend(addresses.into_iter().map(nameless));
        }
        let lo = namespace.run("ip", &["-details", "link", "show", "lo"])?;
        let names = lo.lines().map(str::trim).filter(|line| line.starts_with("altname "));
        snapshot.addresses.extend(names.map(|name| format!("lo {name}")));
        Ok(snapshot)
    }

    fn read(&mut self, what: &str, text: &str) -> Result<()> {
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let name = words.next().context("a chain without a name")?;
                let policy = words.next().context("a chain without a policy")?;
                if policy != "ACCEPT" {
                    let rules = vec![format!("policy {policy}")];
                    self.chains.insert(format!("{what} {table} {name}"), rules);
                }
            } else if let Some((_, rule)) = line.split_once(" -A ") {
                let chain = rule.split(' ').next().context("a rule without a chain")?;
                let rules = self.chains.entry(format!("{what} {table} {chain}")).or_default();
                rules.push(line.to_owned());
            }
        }
        Ok(())
    }

    /// Native nftables, without counters: `inet native TABLE CHAIN`.
    fn read_native(&mut self, text: &str) {
        let mut table = "";
        let mut chain = None;
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words.as_slice() {
                ["table", "inet", name, "{"] => table = name,
                ["chain", name, "{"] => {
                    chain =
                        Some(self.chains.entry(format!("inet native {table} {name}")).or_default());
                }
                ["}"] => chain = None,
                _ => {
                    if let Some(chain) = &mut chain {
                        chain.push(line.trim().to_owned());
                    }
                }
            }
        }
    }

    /// The same without counters.
    #[must_use]
    pub fn without_counters(mut self) -> Self {
        for rule in self.chains.values_mut().flatten() {
            if let Some((_, bare)) = rule.split_once("] ") {
                *rule = bare.to_owned();
            }
        }
        self
    }

    /// Only what one of the iptables holds, beside routing and addresses.
    #[must_use]
    pub fn of(mut self, variant: Variant) -> Self {
        let wanted = format!(" {} ", variant.as_str());
        self.chains.retain(|name, _| name.contains(&wanted));
        self
    }

    /// The rules by table: `IPv4 nft nat`, and in it by chain.
    pub fn tables(&self) -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
        let mut tables: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
        for (name, rules) in &self.chains {
            // A chain's own name has no blank in it.
            let (table, chain) = name.rsplit_once(' ').unwrap_or((name, ""));
            tables.entry(table.to_owned()).or_default().insert(chain.to_owned(), rules.clone());
        }
        tables
    }

    /// How this differs from another; empty if it does not.
    pub fn differences(&self, other: &Self) -> String {
        let mut text = String::new();
        let none = Vec::new();
        let names: std::collections::BTreeSet<_> =
            self.chains.keys().chain(other.chains.keys()).collect();
        for name in names {
            let ours = self.chains.get(name).unwrap_or(&none);
            differences(name, ours, other.chains.get(name).unwrap_or(&none), &mut text);
        }
        differences("ip rule", &self.rules, &other.rules, &mut text);
        differences("ip route", &self.routes, &other.routes, &mut text);
        differences("ip addr", &self.addresses, &other.addresses, &mut text);
        text
    }
}

fn differences(what: &str, before: &[String], after: &[String], text: &mut String) {
    if before != after {
        // Writing to a string can't fail.
        let _written = write!(
            text,
            "{what}\n  before:\n    {}\n  after:\n    {}\n",
            before.join("\n    "),
            after.join("\n    ")
        );
    }
}

/// Every rule with its counters, for a message.
pub fn rules_text(namespace: &Namespace) -> Result<String> {
    let mut text = String::new();
    for (what, program) in SAVES {
        let saved = namespace.run(program, &["-c"])?;
        let rules: Vec<&str> =
            saved.lines().filter(|l| l.starts_with(['*', '[']) || l.contains(" -A ")).collect();
        if !rules.is_empty() {
            text.push_str(&format!("{what}\n{}\n", rules.join("\n")));
        }
    }
    text.push_str(&namespace.run("ip", &["rule"])?);
    Ok(text)
}
