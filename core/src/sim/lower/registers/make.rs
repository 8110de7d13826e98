//! What a rule of `nf_tables` does with registers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::super::rule::{Action, MarkChange, Notice, Step, Translation};
use super::super::beside;
use super::{CT_MARK, CT_ZONE, Held, MARK, Path, host, slot};
use crate::nft::listed::{Ends, Source};
use crate::ruleset::Masked;
use crate::value::Family;

/// `NFPROTO_INET` (`linux/netfilter.h`): IPv4 and IPv6.
const INET: u32 = 1;

impl Path {
    /// What a register's value does where it is stored.
    pub(super) fn stored(&self, connection: bool, key: u32, from: u32) -> Option<Vec<Action>> {
        // Tracing.
        if !connection && key == 14 {
            return Some(vec![Action::Note]);
        }
        let held = self.held.get(&slot(from))?;
        // Priority; labels and events of a connection.
        let effect = match (connection, key) {
            (false, 2) => Some("meta priority"),
            (true, 18) => Some("ct label"),
            (true, 19) => Some("ct event"),
            _ => None,
        };
        if let Some(what) = effect {
            let (Source::Constant(value), None) = (&held.what, &held.bits) else { return None };
            let value = host(value).map_or_else(|| format!("{value:?}"), |n| format!("{n:#x}"));
            return Some(vec![Action::Effect(format!("{what} {value}"))]);
        }
        let Held { what, bits, swapped: false } = held else { return None };
        if connection && key == CT_ZONE {
            let Source::Constant(bytes) = what else { return None };
            return Some(vec![Action::Zone(u16::from_ne_bytes(bytes.as_slice().try_into().ok()?))]);
        }
        if key != MARK {
            return None;
        }
        let set = |change| if connection { Action::Connmark(change) } else { Action::Mark(change) };
        let (keep, flip) = match bits {
            None => (u32::MAX, 0),
            Some((mask, flip)) => (host(mask)?, host(flip)?),
        };
        let actions = match what {
            Source::Constant(bytes) => {
                let mark = host(bytes)? & keep ^ flip;
                vec![set(MarkChange::set(Masked::exact(mark)))]
            }
            Source::Meta(MARK) if !connection => vec![set(MarkChange { keep, flip })],
            Source::Ct(CT_MARK) if connection => vec![set(MarkChange { keep, flip })],
            Source::Meta(MARK) | Source::Ct(CT_MARK) => {
                let copy = if connection {
                    Action::Save { packet: keep, connection: u32::MAX }
                } else {
                    Action::Restore { packet: u32::MAX, connection: keep }
                };
                let rest = set(MarkChange { keep: u32::MAX, flip });
                if flip == 0 { vec![copy] } else { vec![copy, rest] }
            }
            _ => return None,
        };
        Some(actions)
    }

    /// It is discarded, and the sender is told (`enum nft_reject_types`).
    pub(super) fn refuse(&mut self, kind: u32, code: u8) {
        let kind = match kind {
            1 => return self.push(Action::Reject(Notice::Reset)),
            2 => "icmpx",
            _ if self.family == Some(Family::V6) => "icmpv6",
            _ => "icmp",
        };
        self.steps.extend(beside::refused(kind, code).map(Step::Do));
        self.push(Action::Reject(Notice::Icmp));
    }

    /// An option of TCP is set.
    pub(super) fn option_set(&self, option: u32, offset: u32, from: u32) -> Action {
        let value = match self.held.get(&slot(from)) {
            Some(Held { what: Source::Constant(bytes), bits: None, .. }) => {
                let number = <[u8; 2]>::try_from(bytes.as_slice()).map(u16::from_be_bytes);
                number.map_or_else(|_| format!("{bytes:?}"), |number| number.to_string())
            }
            Some(Held { what: Source::Other(name), .. }) => {
                name.trim_start_matches("expression ").to_owned()
            }
            _ => "what follows".to_owned(),
        };
        Action::Effect(super::super::option_words(option, offset, &value))
    }

    fn constant(&self, register: u32) -> Option<&[u8]> {
        match self.held.get(&slot(register))? {
            Held { what: Source::Constant(bytes), bits: None, .. } => Some(bytes),
            _ => None,
        }
    }

    /// The ports in registers, if there are any.
    pub(super) fn ports(&self, (first, last): Ends) -> Option<Translation> {
        let port = |register| {
            let bytes = self.constant(register)?.get(..2)?;
            Some(u16::from_be_bytes(bytes.try_into().ok()?))
        };
        let Some(first) = first else { return Some(Translation::default()) };
        let ports = (port(first)?, port(last.unwrap_or(first))?);
        Some(Translation { address: None, ports: Some(ports) })
    }

    fn ip(&self, register: u32, family: Option<Family>) -> Option<IpAddr> {
        let bytes = self.constant(register)?;
        match family? {
            Family::V4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?).into()),
            Family::V6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(..16)?).ok()?).into()),
        }
    }

    pub(super) fn nat(
        &self,
        source: bool,
        family: u32,
        address: Ends,
        ports: Ends,
    ) -> Option<Action> {
        let only = of_number(family);
        let ports = self.ports(ports)?.ports;
        let address = match address {
            (None, _) if only.is_some() && self.family != only => return None,
            (None, _) => None,
            (Some(first), last) => {
                let one = self.ip(first, only)?;
                (self.ip(last.unwrap_or(first), only)? == one).then_some(Some(one))?
            }
        };
        let to = Translation { address, ports };
        Some(if source { Action::Snat(to) } else { Action::Dnat(to) })
    }

    pub(super) fn tproxy(
        &self,
        family: u32,
        address: Option<u32>,
        port: Option<u32>,
    ) -> Option<Action> {
        let only = of_number(family);
        if only.is_none() && family != INET && family != 0 {
            return None;
        }
        let address = match address {
            None => None,
            Some(register) => Some(self.ip(register, only.or(self.family))?),
        };
        let port = self.ports((port, None))?.ports.map(|(port, _)| port);
        Some(Action::Tproxy { port, address, family: only, drops: false })
    }
}

/// The family of `NFPROTO_IPV4` or `NFPROTO_IPV6`; none of any other number.
fn of_number(family: u32) -> Option<Family> {
    Family::ALL.into_iter().find(|f| u32::from(crate::nft::expr::nfproto(*f)) == family)
}
