//! From the text of a rule to the rule. Takes what Millrace writes, what `iptables-save` of both
//! variants makes of it, and nothing else: what is not known is named, never guessed.

use std::net::{IpAddr, SocketAddr};

use super::render::port_unreachable;
use crate::ruleset::{
    ChainName, ConnState, Masked, Match, Owner, Protocol, RedirectSpelling, Rule, Side, Target,
};
use crate::value::{Cidr, Family, ListenPort, PortRange, UidRange, Zone};

/// The part of a rule that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a match or target that Millrace writes")]
pub struct UnknownRule(pub String);

/// The comment that marks Millrace's own rules in builtin chains.
pub(crate) const COMMENT: &str = "millrace";

/// Read the text of a rule, without `-A CHAIN`.
///
/// # Errors
/// The first part that is not known.
pub fn parse_rule(text: &str) -> Result<Rule, UnknownRule> {
    let mut words = Words { rest: text };
    let mut matches = Vec::new();
    let mut target = None;
    let mut negated = false;
    let mut module = "";
    while let Some(word) = words.next() {
        match word {
            "!" => {
                negated = true;
                continue;
            }
            "-j" => {
                let name = words.value(word)?;
                target = Some(read_target(name, &mut words)?);
                if words.next().is_some() {
                    return Err(UnknownRule(text.to_owned()));
                }
                break;
            }
            "-m" => {
                module = words.value(word)?;
                if !MODULES.contains(&module) {
                    return Err(UnknownRule(format!("-m {module}")));
                }
            }
            // The mark and connmark modules both call their option so.
            "--mark" if module == "mark" => {
                matches.push(Match::Mark { negated, mark: words.masked(word)? });
            }
            "--mark" if module == "connmark" => {
                matches.push(Match::Connmark { negated, mark: words.masked(word)? });
            }
            _ => matches.push(read_match(word, negated, &mut words)?),
        }
        negated = false;
    }
    let target = target.ok_or_else(|| UnknownRule(text.to_owned()))?;
    Ok(Rule { matches, target })
}

/// Modules whose options are known. That one is loaded says nothing by itself.
const MODULES: [&str; 10] = [
    "tcp",
    "udp",
    "multiport",
    "owner",
    "addrtype",
    "conntrack",
    "state",
    "mark",
    "connmark",
    "comment",
];

struct Words<'t> {
    rest: &'t str,
}

impl<'t> Words<'t> {
    fn next(&mut self) -> Option<&'t str> {
        let text = self.rest.trim_ascii_start();
        let end = text.find(|c: char| c.is_ascii_whitespace()).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn value(&mut self, option: &str) -> Result<&'t str, UnknownRule> {
        self.next().ok_or_else(|| UnknownRule(option.to_owned()))
    }

    /// A value that is quoted if it is more than a word.
    fn quoted(&mut self, option: &str) -> Result<String, UnknownRule> {
        let Some(text) = self.rest.trim_ascii_start().strip_prefix('"') else {
            return self.value(option).map(str::to_owned);
        };
        let mut value = String::new();
        let mut letters = text.char_indices();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '"' => {
                    self.rest = text.get(at + 1..).unwrap_or_default();
                    return Ok(value);
                }
                '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
                other => value.push(other),
            }
        }
        Err(UnknownRule(format!("{option} {text}")))
    }

    fn parsed<T: std::str::FromStr>(&mut self, option: &str) -> Result<T, UnknownRule> {
        let value = self.value(option)?;
        value.parse().map_err(|_e| UnknownRule(format!("{option} {value}")))
    }

    /// A number with an optional mask, either in decimal or in hexadecimal.
    fn masked(&mut self, option: &str) -> Result<Masked, UnknownRule> {
        let value = self.value(option)?;
        parse_masked(value).ok_or_else(|| UnknownRule(format!("{option} {value}")))
    }
}

fn parse_masked(text: &str) -> Option<Masked> {
    match text.split_once('/') {
        Some((value, mask)) => {
            Some(Masked { value: parse_number(value)?, mask: parse_number(mask)? })
        }
        None => parse_number(text).map(Masked::exact),
    }
}

fn parse_number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn read_match(option: &str, negated: bool, words: &mut Words<'_>) -> Result<Match, UnknownRule> {
    let only_plain = |m: Match| {
        if negated { Err(UnknownRule(format!("! {option}"))) } else { Ok(m) }
    };
    Ok(match option {
        "-s" | "-d" => {
            let side = if option == "-s" { Side::Source } else { Side::Destination };
            let value = words.value(option)?;
            let cidr =
                parse_network(value).ok_or_else(|| UnknownRule(format!("{option} {value}")))?;
            Match::Address { side, negated, cidr }
        }
        "-i" => Match::InInterface { negated, name: words.parsed(option)? },
        "-o" => Match::OutInterface { negated, name: words.parsed(option)? },
        "-p" => match words.value(option)? {
            "tcp" => only_plain(Match::Protocol(Protocol::Tcp))?,
            "udp" => only_plain(Match::Protocol(Protocol::Udp))?,
            other => return Err(UnknownRule(format!("-p {other}"))),
        },
        "--sport" => Match::Port { side: Side::Source, negated, ports: words.parsed(option)? },
        "--dport" => Match::Port { side: Side::Destination, negated, ports: words.parsed(option)? },
        "--dports" => {
            let value = words.value(option)?;
            let ports: Result<Vec<PortRange>, _> = value.split(',').map(str::parse).collect();
            let ports = ports.map_err(|_e| UnknownRule(format!("{option} {value}")))?;
            Match::DestinationPorts { negated, ports }
        }
        "--syn" => Match::Syn { negated },
        "--tcp-flags" => match (words.value(option)?, words.value(option)?) {
            // As `iptables-save` writes it.
            ("FIN,SYN,RST,ACK", "SYN") => Match::Syn { negated },
            (asked, set) => return Err(UnknownRule(format!("{option} {asked} {set}"))),
        },
        "--uid-owner" => {
            let range: UidRange = words.parsed(option)?;
            let owner = if range.first() == range.last() {
                Owner::Uid(range.first())
            } else {
                Owner::Uids(range)
            };
            Match::Owner { negated, owner }
        }
        "--gid-owner" => {
            let value = words.value(option)?;
            let owner = value
                .parse()
                .map(Owner::Gid)
                .or_else(|_e| value.parse().map(Owner::Group))
                .map_err(|_e| UnknownRule(format!("{option} {value}")))?;
            Match::Owner { negated, owner }
        }
        "--src-type" | "--dst-type" => match words.value(option)? {
            "LOCAL" => {
                let source = option == "--src-type";
                Match::LocalAddress {
                    side: if source { Side::Source } else { Side::Destination },
                    negated,
                }
            }
            other => return Err(UnknownRule(format!("{option} {other}"))),
        },
        "--ctstate" | "--state" => {
            let value = words.value(option)?;
            let states: Option<Vec<ConnState>> =
                value.split(',').map(ConnState::from_name).collect();
            let states = states.ok_or_else(|| UnknownRule(format!("{option} {value}")))?;
            only_plain(match option {
                "--state" => Match::OldState(states),
                _ => Match::ConnState(states),
            })?
        }
        "--comment" => match words.quoted(option)?.as_str() {
            COMMENT => only_plain(Match::Ours)?,
            other => {
                let unknown = |_e| UnknownRule(format!("{option} {other}"));
                only_plain(Match::Comment(other.parse().map_err(unknown)?))?
            }
        },
        other => return Err(UnknownRule(other.to_owned())),
    })
}

/// `address/length`, `address/mask` or a bare address.
fn parse_network(text: &str) -> Option<Cidr> {
    if let Ok(cidr) = Cidr::in_rule(text) {
        return Some(cidr);
    }
    text.parse::<IpAddr>().ok().map(Cidr::host)
}

fn read_target(name: &str, words: &mut Words<'_>) -> Result<Target, UnknownRule> {
    Ok(match name {
        "RETURN" => Target::Return,
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "REDIRECT" => {
            let option = words.value(name)?;
            let spelling = match option {
                "--to-ports" => RedirectSpelling::ToPorts,
                "--to-port" => RedirectSpelling::ToPort,
                other => return Err(UnknownRule(format!("REDIRECT {other}"))),
            };
            Target::Redirect { port: words.parsed(option)?, spelling }
        }
        "DNAT" => match words.value(name)? {
            "--to-destination" => {
                let to = words.value("--to-destination")?;
                read_dnat(to).ok_or_else(|| UnknownRule(format!("--to-destination {to}")))?
            }
            other => return Err(UnknownRule(format!("DNAT {other}"))),
        },
        "SNAT" => match words.value(name)? {
            "--to-source" => {
                let address = words.parsed("--to-source")?;
                Target::Snat { address }
            }
            other => return Err(UnknownRule(format!("SNAT {other}"))),
        },
        "TPROXY" => read_tproxy(words)?,
        "REJECT" => {
            let value = match words.value(name)? {
                "--reject-with" => words.value("--reject-with")?,
                other => return Err(UnknownRule(format!("REJECT {other}"))),
            };
            let reported = |family: &Family| port_unreachable(*family) == value;
            let family = Family::ALL.into_iter().find(reported);
            Target::Reject(family.ok_or_else(|| UnknownRule(format!("--reject-with {value}")))?)
        }
        "MARK" => match words.value(name)? {
            "--set-mark" => Target::SetMark(words.masked("--set-mark")?),
            "--set-xmark" => {
                let mark = words.masked("--set-xmark")?;
                // Bits of the value outside the mask are flipped, and not set.
                if mark.value & !mark.mask != 0 {
                    return Err(UnknownRule(format!("--set-xmark {mark:?}")));
                }
                Target::SetMark(mark)
            }
            other => return Err(UnknownRule(format!("MARK {other}"))),
        },
        "CONNMARK" => {
            let option = words.value(name)?;
            if option == "--set-xmark" {
                let mark = words.masked(option)?;
                if mark.value & !mark.mask != 0 {
                    return Err(UnknownRule(format!("{option} {mark:?}")));
                }
                return Ok(Target::SetConnmark(mark));
            }
            full_masks(words)?;
            match option {
                "--save-mark" => Target::SaveMark,
                "--restore-mark" => Target::RestoreMark,
                other => return Err(UnknownRule(format!("CONNMARK {other}"))),
            }
        }
        "CT" => match words.value(name)? {
            "--zone" => {
                let value = words.value("--zone")?;
                let zone = parse_number(value).and_then(|z| u16::try_from(z).ok());
                Target::Zone(Zone(zone.ok_or_else(|| UnknownRule(format!("--zone {value}")))?))
            }
            other => return Err(UnknownRule(format!("CT {other}"))),
        },
        // A chain can't be called as a target is.
        known if TARGETS.contains(&known) => return Err(UnknownRule(format!("-j {known}"))),
        chain => Target::Jump(
            chain.parse::<ChainName>().map_err(|_e| UnknownRule(format!("-j {chain}")))?,
        ),
    })
}

/// Targets of iptables' extensions that Millrace does not write, and those that say something without
/// any option (`iptables-extensions(8)`).
const TARGETS: [&str; 39] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CLUSTERIP",
    "CONNSECMARK",
    "DNPT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MASQUERADE",
    "MIRROR",
    "NETMAP",
    "NFLOG",
    "NFQUEUE",
    "NOTRACK",
    "QUEUE",
    "RATEEST",
    "REJECT",
    "SAME",
    "SECMARK",
    "SET",
    "SNPT",
    "SYNPROXY",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
    "IPMARK",
    "DELUDE",
    "CHAOS",
    "TARPIT",
    "ACCOUNT",
];

/// `address`, `address:port` or `[address]:port`; ranges are nothing that Millrace writes.
fn read_dnat(to: &str) -> Option<Target> {
    if let Ok(to) = to.parse::<SocketAddr>() {
        return Some(Target::Dnat { address: to.ip(), port: Some(ListenPort::new(to.port())?) });
    }
    let bare = to.strip_prefix('[').and_then(|to| to.strip_suffix(']')).unwrap_or(to);
    bare.parse().ok().map(|address| Target::Dnat { address, port: None })
}

fn read_tproxy(words: &mut Words<'_>) -> Result<Target, UnknownRule> {
    let mut mark = None;
    let mut port: Option<ListenPort> = None;
    while let Some(option) = words.next() {
        match option {
            "--tproxy-mark" => mark = Some(words.masked(option)?),
            "--on-port" => port = Some(words.parsed(option)?),
            "--on-ip" => match words.value(option)? {
                "0.0.0.0" | "::" => {}
                other => return Err(UnknownRule(format!("--on-ip {other}"))),
            },
            other => return Err(UnknownRule(format!("TPROXY {other}"))),
        }
    }
    match (mark, port) {
        (Some(mark), Some(port)) => Ok(Target::Tproxy { mark, port }),
        _ => Err(UnknownRule("TPROXY without mark or port".to_owned())),
    }
}

/// `--nfmask` and `--ctmask` of all ones, which is what is meant when they are left out.
fn full_masks(words: &mut Words<'_>) -> Result<(), UnknownRule> {
    while let Some(option) = words.next() {
        match option {
            "--nfmask" | "--ctmask" if words.masked(option)? == Masked::exact(u32::MAX) => {}
            other => return Err(UnknownRule(format!("CONNMARK {other}"))),
        }
    }
    Ok(())
}
