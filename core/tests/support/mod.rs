//! What the tests of the core share: a stand-in for the kernel's tables that understands the
//! input of `iptables-restore --noflush`, and random configurations.
#![allow(dead_code, clippy::allow_attributes, reason = "not every test uses all of it")]
#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]

pub(crate) mod argv;
pub(crate) mod connections;
pub(crate) mod lines;
pub(crate) mod policies;
pub(crate) mod predicted;
pub(crate) mod programs;
pub(crate) mod state;
pub(crate) mod verdicts;

use std::collections::BTreeMap;
use std::net::IpAddr;

use millrace_core::capture::to_iptables;
use millrace_core::dialect::istio::{self, Raw};
use millrace_core::facts::HostFacts;
use millrace_core::iptables::{ChainDump, Dump, DumpRule, TableDump};
use millrace_core::nft::xtables::{decode, encode};
use millrace_core::observed::{Holding, InterfaceAddress, Observed, Route, Variant};
use millrace_core::plan::{Change, DesiredState, Effect};
use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::{Rule, Ruleset};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;

/// What is wanted of iptables-nft.
pub(crate) fn want(ruleset: Option<&Ruleset>) -> DesiredState<'_> {
    ruleset.map_or(DesiredState::Nothing, |ruleset| DesiredState::Iptables(ruleset, Variant::Nft))
}

/// The rules that are not the same when they have been through the kernel's `nf_tables`.
pub(crate) fn changed_by_nf_tables(ruleset: &Ruleset, groups: &Groups) -> Vec<Rule> {
    let mut changed = Vec::new();
    for family in ruleset.families() {
        for emission in ruleset.family(family) {
            let written = encode(&emission.rule, family, groups).unwrap().exprs;
            let written: Vec<_> = written.into_iter().map(Ok).collect();
            let read = decode(&written, family).rule.map(|rule| rule.canonical(groups));
            if read != Ok(emission.rule.canonical(groups)) {
                changed.push(emission.rule.clone());
            }
        }
    }
    changed
}

/// Carry out an effect on what was observed, as the kernel would.
pub(crate) fn apply_effect(observed: &mut Observed, effect: &Effect) {
    match effect {
        Effect::Marker { change } => observed.interrupted = *change == Change::Add,
        Effect::Address { change, address } => {
            observed.addresses.retain(|a| a.address != *address);
            if *change == Change::Add {
                observed.addresses.push(InterfaceAddress {
                    loopback: true,
                    address: *address,
                    prefix: 128,
                });
            }
        }
        Effect::Passthrough { change } => {
            observed.passthrough_link = (*change == Change::Add).then_some(true);
        }
        Effect::Localhost { change, way } => {
            observed.localhost_ways.retain(|w| w != way);
            if *change == Change::Add {
                observed.localhost_ways.push(way.clone());
            }
        }
        Effect::Route { change, family, table } => {
            let route = Route::local_default(*family, *table);
            observed.routes.retain(|r| *r != route);
            if *change == Change::Add {
                observed.routes.push(route);
            }
        }
        Effect::IpRule { change, rule } => {
            observed.ip_rules.retain(|r| r != rule);
            if *change == Change::Add {
                observed.ip_rules.push(rule.clone());
            }
        }
        Effect::Loopback { change } => observed.lo_down = *change == Change::Remove,
        Effect::Dormant { change, table } => {
            observed.dormant.retain(|known| known != table);
            if *change == Change::Add {
                observed.dormant.push(table.clone());
            }
        }
        Effect::Logger { logger } => observed.loggers.retain(|known| known != logger),
        Effect::Native { names, tables, edits, .. } => {
            if !names.is_empty() || !tables.is_empty() {
                observed.native.clone_from(tables);
            }
            for edit in edits {
                restore_of(observed, Variant::Nft, edit.family, &edit.text(false));
            }
        }
        Effect::Restore { variant, family, input, .. } => {
            restore_of(observed, *variant, *family, input);
        }
    }
}

fn restore_of(observed: &mut Observed, variant: Variant, family: Family, input: &str) {
    if observed.holding(variant, family).is_none() {
        observed.holdings.push(Holding { variant, family, dump: Dump::default() });
    }
    let mut holdings = observed.holdings.iter_mut();
    let holding = holdings.find(|h| h.variant == variant && h.family == family).unwrap();
    restore(&mut holding.dump, input);
}

/// `iptables-restore --noflush`
pub(crate) fn restore(dump: &mut Dump, input: &str) {
    let mut table = String::new();
    for line in input.lines() {
        let line = line
            .split_once("] ")
            .map_or(line, |(head, rest)| if head.starts_with('[') { rest } else { line });
        if let Some(name) = line.strip_prefix('*') {
            name.trim().clone_into(&mut table);
            if dump.table(&table).is_none() {
                dump.tables.push(builtin(&table));
            }
            continue;
        }
        let table = dump.tables.iter_mut().find(|t| t.name == table).unwrap();
        command(table, line);
    }
}

fn builtin(name: &str) -> TableDump {
    let hooks: &[&str] = match name {
        "raw" => &["PREROUTING", "OUTPUT"],
        "nat" => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        "filter" => &["INPUT", "FORWARD", "OUTPUT"],
        _ => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    };
    let chain = |name: &&str| ChainDump {
        name: (*name).to_owned(),
        policy: Some("ACCEPT".to_owned()),
        rules: Vec::new(),
        handle: None,
    };
    TableDump { name: name.to_owned(), chains: hooks.iter().map(chain).collect() }
}

fn rules<'t>(table: &'t mut TableDump, chain: &str) -> &'t mut Vec<DumpRule> {
    let found = table.chains.iter_mut().find(|c| c.name == chain);
    &mut found.unwrap_or_else(|| panic!("there is no chain {chain}")).rules
}

fn command(table: &mut TableDump, line: &str) {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (chain, body) = rest.split_once(' ').unwrap_or((rest, ""));
    let rule = |text: &str| DumpRule::from_text(text, None);
    match verb {
        "COMMIT" => {
            for chain in &table.chains {
                for r in chain.rules.iter().filter_map(|r| r.rule.as_ref().ok()) {
                    if let millrace_core::ruleset::Target::Jump(name) = &r.target {
                        let known = table.chain(name.as_str()).is_some()
                            || name.as_str().starts_with("FOREIGN");
                        assert!(known, "{} jumps to {name}, which is not there", chain.name);
                    }
                }
            }
        }
        "-A" => rules(table, chain).push(rule(body)),
        "-I" => {
            let (position, body) = body.split_once(' ').unwrap();
            let position: usize = position.parse().unwrap();
            rules(table, chain).insert(position - 1, rule(body));
        }
        "-D" => {
            let list = rules(table, chain);
            let index = list.iter().position(|r| r.text == body).expect("the rule is there");
            list.remove(index);
        }
        "-N" | "-X" => {
            let there = table.chains.iter().position(|c| c.name == chain);
            match (verb, there) {
                ("-N", None) => table.chains.push(ChainDump {
                    name: chain.to_owned(),
                    policy: None,
                    rules: Vec::new(),
                    handle: None,
                }),
                ("-X", Some(index)) => {
                    assert!(table.chains[index].rules.is_empty(), "{chain} is not empty");
                    table.chains.remove(index);
                }
                _ => panic!("{line}: chain is or is not there"),
            }
        }
        _ => {
            let name = verb.strip_prefix(':').unwrap();
            match table.chains.iter_mut().find(|c| c.name == name) {
                Some(chain) => chain.rules.clear(),
                None => table.chains.push(ChainDump {
                    name: name.to_owned(),
                    policy: None,
                    rules: Vec::new(),
                    handle: None,
                }),
            }
        }
    }
}

/// Flags, environment and addresses of a random configuration of istio-iptables.
#[derive(Clone, Debug)]
pub(crate) struct RandomConfig {
    pub(crate) flags: Vec<(String, String)>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) resolv_conf: String,
}

impl RandomConfig {
    /// The ruleset it gives.
    pub(crate) fn ruleset(&self) -> Ruleset {
        to_iptables(&self.policy(), &istio::LAYOUT)
    }

    /// The policy it gives.
    pub(crate) fn policy(&self) -> CapturePolicy {
        let facts = HostFacts {
            addresses: self.addresses.clone(),
            resolv_conf: Some(Ok(self.resolv_conf.clone())),
            groups: millrace_core::facts::groups("java:x:202:\n"),
            ..HostFacts::default()
        };
        let raw = Raw::new(self.flags.clone(), self.env.clone());
        istio::resolve(&raw, &facts).unwrap().policy
    }
}

fn choice(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(values).prop_map(str::to_owned)
}

/// Any configuration of istio-iptables that is valid.
pub(crate) fn configs() -> impl Strategy<Value = RandomConfig> {
    let ports = || choice(&["", "80", "80,443", "15020,15021,15090", "22,8000:8010", "1,2,3,"]);
    let first = (
        choice(&["1337", "1337,0", "5", "3,4"]),
        choice(&["", "1337", "1,2"]),
        choice(&["", "REDIRECT", "TPROXY", "TPROXY"]),
        prop_oneof![choice(&["*", ""]), ports()],
        ports(),
        choice(&["", "eth9", "eth8,eth9", "cali+"]),
        choice(&["*", "", "10.0.0.0/8,2001:db8::/32", "10.1.2.3/8", "127.0.0.0/8", "fd00::/8"]),
        choice(&["", "10.96.0.1/32", "1.1.0.0/16,2001:db8:1::/48", "0.0.0.0/0"]),
        choice(&["", "32000,31000"]),
        ports(),
    );
    let second = (
        choice(&["", "eth1", "eth1,eth2"]),
        choice(&["1337", "42", "7"]),
        choice(&["133", "77"]),
        any::<[bool; 4]>(),
        choice(&["127.0.0.1/32", "127.0.0.0/8", "127.9.9.9/32"]),
        choice(&["*", "", "java,202", "888"]),
        choice(&["", "888,999"]),
        choice(&["", "nameserver 10.96.0.10\n", "nameserver 10.96.0.10\nnameserver fd00::a\n"]),
        choice(&["10.0.0.5", "fd00::5", "10.0.0.5 fd00::5"]),
    );
    (first, second).prop_map(|(a, b)| {
        let flag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut flags = vec![
            flag("proxy-uid", &a.0),
            flag("proxy-gid", &a.1),
            flag("istio-inbound-interception-mode", &a.2),
            flag("istio-inbound-ports", &a.3),
            flag("istio-local-exclude-ports", &a.4),
            flag("istio-exclude-interfaces", &a.5),
            flag("istio-service-cidr", &a.6),
            flag("istio-service-exclude-cidr", &a.7),
            flag("istio-outbound-ports", &a.8),
            flag("istio-local-outbound-ports-exclude", &a.9),
            flag("kube-virt-interfaces", &b.0),
            flag("istio-inbound-tproxy-mark", &b.1),
            flag("istio-inbound-tproxy-route-table", &b.2),
        ];
        let switches = ["redirect-dns", "capture-all-dns", "drop-invalid", "match-any-proxy-id"];
        for (name, on) in switches.iter().zip(b.3) {
            flags.push(flag(name, &on.to_string()));
        }
        let env = [
            ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", &b.4),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", &b.5),
            ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", &b.6),
        ];
        RandomConfig {
            flags,
            env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).clone())).collect(),
            addresses: b.8.split(' ').map(|a| a.parse().unwrap()).collect(),
            resolv_conf: b.7,
        }
    })
}
