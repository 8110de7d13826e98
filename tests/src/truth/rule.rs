//! Random rules of somebody: what they ask and do, and how iptables and nft write that.

use std::fmt::Write as _;

use millrace_core::ruleset::Hook;

use super::place::{Kind, called_at};
use super::values::{networks, sources, targets};
use super::words::{InIptables, in_nft};
use crate::fates::Dice;
use crate::topology::Family;

/// A condition.
#[derive(Clone, Debug)]
pub(super) enum Cond {
    Port { not: bool, source: bool, first: u16, last: u16 },
    Ports { not: bool, list: Vec<u16> },
    Address { not: bool, source: bool, network: String },
    Interface { not: bool, out: bool, name: &'static str },
    Owner { not: bool, group: bool, first: u32, last: u32 },
    State { not: bool, states: &'static str },
    Mark { not: bool, connection: bool, value: u32, mask: u32 },
    Local { not: bool, source: bool },
    Reply { not: bool },
    Syn { not: bool },
    Flags { not: bool, mask: &'static str, set: &'static str },
    Range { not: bool, first: &'static str, last: &'static str },
    AddressType { not: bool, source: bool, types: &'static str },
    ForThisHost { not: bool },
    ReturnRoute { not: bool, loose: bool, mark: bool },
    Original { not: bool, source: bool, network: &'static str },
    OriginalPort { not: bool, first: u16, last: u16 },
}

/// What a rule does.
#[derive(Clone, Copy, Debug)]
enum Act {
    Accept,
    Drop,
    Reject(&'static str),
    Return,
    Note(&'static str, &'static str),
    Mark {
        connection: bool,
        value: u32,
        mask: u32,
    },
    Or {
        value: u32,
    },
    Save,
    Restore,
    Redirect(u16),
    Dnat {
        address: &'static str,
        port: Option<u16>,
    },
    Snat(&'static str),
    Masquerade,
    Notrack,
    Zone(u16),
    Tproxy {
        port: u16,
        mark: u32,
    },
    /// On in the chain that belongs to the hook.
    Chain {
        goto: bool,
    },
}

/// A rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// What stands it where.
    pub(super) kind: Kind,
    /// Where.
    pub(super) hook: Hook,
    family: Family,
    proto: Option<&'static str>,
    conds: Vec<Cond>,
    act: Act,
}

/// The mark that foreign rules hand packets to a transparent socket with.
pub(super) const TPROXY_MARK: u32 = 0x100;

const PORTS: [u16; 8] = [53, 80, 443, 8000, 8005, 8080, 9090, 15021];

impl Rule {
    /// A random rule; in a chain that others jump to it does not jump itself.
    pub(super) fn random(
        dice: &mut Dice,
        family: Family,
        (kind, hook): (Kind, Hook),
        called: bool,
    ) -> Self {
        let tproxy = kind == Kind::Mangle && hook == Hook::Prerouting && dice.one_in(3) && !called;
        let proto = match dice.pick(&[0, 1, 1, 2]) {
            _ if tproxy => Some(dice.pick(&["tcp", "tcp", "udp"])),
            1 => Some("tcp"),
            2 => Some("udp"),
            _ => None,
        };
        let mut conds = Vec::new();
        if proto.is_some() && (tproxy || !dice.one_in(4)) {
            conds.push(ports(dice));
        }
        for _ in 0..dice.pick(&[0, 0, 1, 1, 2]) {
            conds.push(Self::condition(dice, family, (kind, hook), proto));
        }
        let act = if tproxy {
            Act::Tproxy { port: 15006, mark: TPROXY_MARK }
        } else {
            Self::action(dice, family, (kind, hook), proto, called)
        };
        Self { kind, hook, family, proto, conds, act }
    }

    fn condition(
        dice: &mut Dice,
        family: Family,
        (kind, hook): (Kind, Hook),
        proto: Option<&str>,
    ) -> Cond {
        let not = dice.one_in(4);
        loop {
            let mark = dice.pick(&[(0, 1), (1, 1), (2, 0xff), (0x10, 0xf0), (1337, u32::MAX)]);
            let cond = match dice.pick(&[0, 1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12, 13])
            {
                0 | 1 => Cond::Address {
                    not,
                    source: dice.one_in(3),
                    network: dice.pick(networks(family)).to_owned(),
                },
                2 => Cond::Interface {
                    not,
                    out: if hook == Hook::Forward {
                        dice.one_in(2)
                    } else {
                        hook == Hook::Output || hook == Hook::Postrouting
                    },
                    name: dice.pick(&["eth0", "eth1", "lo", "eth+"]),
                },
                3 if matches!(hook, Hook::Output | Hook::Postrouting) => {
                    let (first, last) =
                        dice.pick(&[(1000, 1000), (1337, 1337), (0, 0), (5, 9), (0, 999)]);
                    Cond::Owner { not, group: dice.one_in(3), first, last }
                }
                4 | 5 if kind != Kind::Raw => Cond::State {
                    not,
                    states: dice.pick(&[
                        "new",
                        "established,related",
                        "established",
                        "invalid",
                        "dnat",
                        "snat",
                        "untracked",
                        "related",
                    ]),
                },
                6 => Cond::Mark { not, connection: false, value: mark.0, mask: mark.1 },
                7 if kind != Kind::Raw => {
                    Cond::Mark { not, connection: true, value: mark.0, mask: mark.1 }
                }
                8 => Cond::Local { not, source: dice.one_in(3) },
                9 if kind != Kind::Raw => Cond::Reply { not },
                10 if proto == Some("tcp") && dice.one_in(2) => Cond::Syn { not },
                10 if proto == Some("tcp") => {
                    let (mask, set) = dice.pick(&[
                        ("syn,ack", "syn,ack"),
                        ("syn,rst", "syn"),
                        ("fin,syn", "fin,syn"),
                        ("rst", "rst"),
                        ("syn,rst,ack", "ack"),
                        ("psh", "psh"),
                    ]);
                    Cond::Flags { not, mask, set }
                }
                11 if matches!(kind, Kind::Raw | Kind::Mangle) && hook == Hook::Prerouting => {
                    Cond::ReturnRoute { not, loose: dice.one_in(3), mark: dice.one_in(3) }
                }
                11 if dice.one_in(3) => Cond::ForThisHost { not },
                12 => {
                    let all = &["unicast", "broadcast,multicast", "local,unicast", "multicast"];
                    // Of IPv6 iptables knows of no broadcast.
                    let types = if family == Family::V4 { dice.pick(all) } else { "multicast" };
                    Cond::AddressType { not, source: dice.one_in(3), types }
                }
                13 if kind != Kind::Raw && proto.is_some() && dice.one_in(2) => {
                    let (first, last) = dice.pick(&[(80, 80), (8000, 8010), (53, 8080)]);
                    Cond::OriginalPort { not, first, last }
                }
                13 if kind != Kind::Raw => Cond::Original {
                    not,
                    source: dice.one_in(3),
                    network: dice.pick(networks(family)),
                },
                10 if family == Family::V4 => {
                    Cond::Range { not, first: "10.70.0.1", last: "10.71.0.200" }
                }
                _ => continue,
            };
            return cond;
        }
    }

    fn action(
        dice: &mut Dice,
        family: Family,
        (kind, hook): (Kind, Hook),
        proto: Option<&str>,
        called: bool,
    ) -> Act {
        let ports: &[u16] = match proto {
            Some("tcp") => &[80, 8080, 8005, 9090, 15001, 15006, 53],
            // What is led to any port is heard by both.
            _ => &[53, 80, 9090],
        };
        if !called && dice.one_in(8) {
            return Act::Chain { goto: dice.one_in(3) };
        }
        if dice.one_in(10) {
            return dice.pick(&[
                Act::Return,
                Act::Accept,
                Act::Note("LOG --log-prefix \"x y\"", "log prefix \"x y\""),
                Act::Note("NFLOG --nflog-group 7", "log group 7"),
                Act::Note("LOG", "counter"),
            ]);
        }
        let bits = dice.pick(&[(1, 1), (2, 0xff), (0x10, 0xf0), (0, 1), (5, u32::MAX)]);
        let mark = |connection| Act::Mark { connection, value: bits.0, mask: bits.1 };
        match kind {
            Kind::Raw => match dice.pick(&[0, 0, 1, 2, 3]) {
                0 => Act::Notrack,
                1 => Act::Drop,
                2 => Act::Zone(dice.pick(&[1, 7])),
                _ => mark(false),
            },
            Kind::Mangle => match dice.pick(&[0, 0, 1, 2, 3, 4, 5]) {
                0 => mark(false),
                1 => mark(true),
                2 => Act::Save,
                3 => Act::Restore,
                4 => Act::Or { value: dice.pick(&[1, 0x20, 0x4000]) },
                _ => Act::Drop,
            },
            Kind::Nat => match hook {
                Hook::Prerouting | Hook::Output => match dice.pick(&[0, 0, 1, 1, 2, 3]) {
                    0 if proto.is_some() => Act::Redirect(dice.pick(ports)),
                    1 => Act::Dnat { address: dice.pick(targets(family)), port: None },
                    2 if proto.is_some() => Act::Dnat {
                        address: dice.pick(targets(family)),
                        port: Some(dice.pick(ports)),
                    },
                    _ => Act::Accept,
                },
                Hook::Postrouting if dice.one_in(2) => Act::Masquerade,
                _ => Act::Snat(dice.pick(sources(family))),
            },
            Kind::Filter => match dice.pick(&[0, 0, 1, 1, 2, 3]) {
                0 | 3 => Act::Drop,
                1 if proto == Some("tcp") && dice.one_in(2) => Act::Reject("tcp-reset"),
                1 => Act::Reject(dice.pick(&["", "port", "admin"])),
                _ => Act::Accept,
            },
        }
    }

    /// Whether it goes on in the chain of its hook.
    pub(super) const fn jumps(&self) -> bool {
        matches!(self.act, Act::Chain { .. })
    }

    /// The words for `iptables` or `ip6tables`, in a chain of its own if `called`.
    pub(super) fn iptables(&self, called: Option<&str>) -> String {
        let chain = called.unwrap_or(self.hook.as_str());
        let mut text = format!("-t {} -A {chain}", self.kind.table());
        if let Some(proto) = self.proto {
            let _infallible = write!(text, " -p {proto}");
        }
        for cond in &self.conds {
            let _infallible = write!(text, " {}", InIptables(cond));
        }
        let reject = |with: &str| match (with, self.family) {
            ("", _) => "REJECT".to_owned(),
            ("tcp-reset", _) => "REJECT --reject-with tcp-reset".to_owned(),
            ("port", Family::V4) => "REJECT --reject-with icmp-port-unreachable".to_owned(),
            ("port", Family::V6) => "REJECT --reject-with icmp6-port-unreachable".to_owned(),
            (_, Family::V4) => "REJECT --reject-with icmp-admin-prohibited".to_owned(),
            (_, Family::V6) => "REJECT --reject-with icmp6-adm-prohibited".to_owned(),
        };
        let act = match &self.act {
            Act::Accept => "ACCEPT".to_owned(),
            Act::Drop => "DROP".to_owned(),
            Act::Reject(with) => reject(with),
            Act::Return => "RETURN".to_owned(),
            Act::Note(iptables, _) => (*iptables).to_owned(),
            Act::Mark { connection, value, mask } => {
                let target = if *connection { "CONNMARK" } else { "MARK" };
                format!("{target} --set-xmark {value:#x}/{mask:#x}")
            }
            Act::Or { value } => format!("MARK --or-mark {value:#x}"),
            Act::Save => "CONNMARK --save-mark".to_owned(),
            Act::Restore => "CONNMARK --restore-mark".to_owned(),
            Act::Redirect(port) => format!("REDIRECT --to-ports {port}"),
            Act::Dnat { .. } => format!("DNAT --to-destination {}", self.to()),
            Act::Snat(to) => format!("SNAT --to-source {to}"),
            Act::Masquerade => "MASQUERADE".to_owned(),
            Act::Notrack => "CT --notrack".to_owned(),
            Act::Zone(zone) => format!("CT --zone {zone}"),
            Act::Tproxy { port, mark } => {
                format!("TPROXY --on-port {port} --tproxy-mark {mark:#x}/{mark:#x}")
            }
            Act::Chain { goto: true } => return format!("{text} -g {}", called_at(self.hook)),
            Act::Chain { goto: false } => called_at(self.hook),
        };
        format!("{text} -j {act}")
    }

    /// The same as nft writes it, in a table of family `inet`, or of the rule's own.
    pub(super) fn nft(&self, table: &str) -> String {
        let mut parts: Vec<String> = Vec::new();
        let of_both = matches!(
            self.act,
            Act::Dnat { .. }
                | Act::Snat(_)
                | Act::Tproxy { .. }
                | Act::Redirect(_)
                | Act::Masquerade
        );
        let inet = table == "inet";
        if of_both && inet {
            let family = if self.family == Family::V4 { "ipv4" } else { "ipv6" };
            parts.push(format!("meta nfproto {family}"));
        }
        if let Some(proto) = self.proto {
            parts.push(format!("meta l4proto {proto}"));
        }
        let v6 = if self.family == Family::V6 { "ip6" } else { "ip" };
        parts.extend(self.conds.iter().map(|cond| in_nft(cond, v6)));
        let act = match &self.act {
            Act::Accept => "accept".to_owned(),
            Act::Drop => "drop".to_owned(),
            Act::Reject("") => "reject".to_owned(),
            Act::Reject("tcp-reset") => "reject with tcp reset".to_owned(),
            Act::Reject(with) => {
                let icmp = match (inet, self.family) {
                    (true, _) => "icmpx",
                    (false, Family::V4) => "icmp",
                    (false, Family::V6) => "icmpv6",
                };
                let with = if *with == "port" { "port-unreachable" } else { "admin-prohibited" };
                format!("reject with {icmp} {with}")
            }
            Act::Return => "return".to_owned(),
            Act::Note(_, nft) => (*nft).to_owned(),
            Act::Mark { connection, value, mask } => {
                let of = if *connection { "ct mark" } else { "meta mark" };
                match *mask {
                    u32::MAX => format!("{of} set {value:#x}"),
                    mask => format!("{of} set {of} and {:#x} or {value:#x}", !mask),
                }
            }
            Act::Or { value } => format!("meta mark set meta mark or {value:#x}"),
            Act::Save => "ct mark set meta mark".to_owned(),
            Act::Restore => "meta mark set ct mark".to_owned(),
            Act::Redirect(port) => format!("redirect to :{port}"),
            Act::Dnat { .. } => format!("dnat {v6} to {}", self.to()),
            Act::Snat(to) => format!("snat {v6} to {to}"),
            Act::Masquerade => "masquerade".to_owned(),
            Act::Notrack => "notrack".to_owned(),
            Act::Zone(zone) => format!("ct zone set {zone}"),
            Act::Tproxy { port, mark } => {
                format!("tproxy {v6} to :{port} meta mark set meta mark or {mark:#x} accept")
            }
            Act::Chain { goto: true } => format!("goto {}", called_at(self.hook)),
            Act::Chain { goto: false } => format!("jump {}", called_at(self.hook)),
        };
        parts.push(act);
        parts.join(" ")
    }

    fn to(&self) -> String {
        let Act::Dnat { address, port } = &self.act else { return String::new() };
        match (port, self.family) {
            (None, _) => (*address).to_owned(),
            (Some(port), Family::V4) => format!("{address}:{port}"),
            (Some(port), Family::V6) => format!("[{address}]:{port}"),
        }
    }
}

fn ports(dice: &mut Dice) -> Cond {
    let not = dice.one_in(6);
    match dice.pick(&[0, 0, 0, 1, 2]) {
        0 => {
            let port = dice.pick(&PORTS);
            Cond::Port { not, source: false, first: port, last: port }
        }
        1 => {
            let (first, last) = dice.pick(&[(1, 1023), (8000, 8010), (0, 65535), (80, 8080)]);
            Cond::Port { not, source: dice.one_in(6), first, last }
        }
        _ => {
            let mut list: Vec<u16> = (0..3).map(|_| dice.pick(&PORTS)).collect();
            list.sort_unstable();
            list.dedup();
            Cond::Ports { not, list }
        }
    }
}
