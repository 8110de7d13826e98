//! The text of a rule that Millrace did not write: what of iptables' extensions says something
//! about the way of a packet is understood, and everything else is named.

use super::super::fib::{AddressTypes, ReturnRoute};
use super::super::flags::Flags;
use super::super::program::Beside;
use super::super::question::Protocol;
use super::super::ranges::Ranges;
use super::super::rule::{Action, Field, MarkChange, Notice, States, Step, Test, Translation, Way};
use super::modules::{ASKED, BARE, COMMON, EFFECTS, EXTENSIONS, NOTES, OWN};
use super::options::{
    Word, address_range, icmp_type, id_range, int, masked, network, port_list, port_range,
    to_ports, translation, words,
};
use super::{addresses, beside, is, original, ports, protocol};
use crate::ruleset::{Masked, Side};
use crate::value::{Family, GroupName, Groups};

/// The steps of a rule of a family, and what it has beside them, from its text without `-A CHAIN`.
pub(super) fn read(text: &str, family: Family, groups: &Groups) -> (Vec<Step>, Beside) {
    let words = words(text);
    let (steps, beside) = (Vec::new(), Beside::default());
    let mut reader = WordReader { words: &words, at: 0, module: "", steps, beside, family, groups };
    reader.read();
    (reader.steps, reader.beside)
}

struct WordReader<'w> {
    words: &'w [Word],
    at: usize,
    /// The module that options belong to.
    module: &'w str,
    steps: Vec<Step>,
    beside: Beside,
    family: Family,
    groups: &'w Groups,
}

/// Whether a word that is no known option may say what becomes of the packet.
fn may_be_target(word: &str) -> bool {
    !word.starts_with('-') || ["-j", "-g", "--j", "--g"].iter().any(|start| word.starts_with(start))
}

impl<'w> WordReader<'w> {
    fn next(&mut self) -> Option<&'w str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(&word.text)
    }

    fn peek(&self) -> Option<&'w str> {
        self.words.get(self.at).map(|word| word.text.as_str())
    }

    /// All words that are left.
    fn rest(&mut self) -> Vec<&'w str> {
        let rest = self.words.get(self.at..).unwrap_or_default();
        self.at = self.words.len();
        rest.iter().map(|word| word.text.as_str()).collect()
    }

    fn read(&mut self) {
        // What could have been a target is one that is not known.
        let mut hidden: Option<String> = None;
        while let Some(word) = self.words.get(self.at) {
            self.at += 1;
            if word.quoted {
                self.unknown(format!("\"{}\"", word.text));
                hidden.get_or_insert_with(|| word.text.clone());
                continue;
            }
            let (negated, option) = match word.text.as_str() {
                "!" => (true, self.next().unwrap_or_default()),
                option => (false, option),
            };
            match option {
                "-j" | "--jump" => return self.target(),
                "-g" | "--goto" => {
                    let chain = self.next().unwrap_or_default().to_owned();
                    self.steps.push(Action::Goto(chain).into());
                    return;
                }
                "-m" | "--match" => {
                    self.module = self.next().unwrap_or_default();
                    self.beside.elsewhere |= !OWN.contains(&self.module);
                    if let Some((_, number)) =
                        EXTENSIONS.iter().find(|(name, _)| *name == self.module)
                    {
                        self.steps.push(Test::Extension { negated: false, number: *number }.into());
                        self.skip_options();
                        continue;
                    }
                    if self.module == "rpfilter" {
                        let asked = self.return_route();
                        self.steps.push(Test::ReturnRoute(asked).into());
                        continue;
                    }
                }
                // Counters of `iptables -S -v`.
                "-c" => self.at += 2,
                option => {
                    if !self.option(option, negated) && may_be_target(option) {
                        hidden.get_or_insert_with(|| option.to_owned());
                    }
                }
            }
            if matches!(option, "-m" | "--match") && self.ends_module() {
                self.bare_module();
            }
        }
        self.steps.push(hidden.map_or(Action::Note, Action::Unknown).into());
    }

    /// Whether the module has no options of its own.
    fn ends_module(&self) -> bool {
        let mut words = self.words[self.at..].iter().map(|word| word.text.as_str());
        let next = words.find(|word| *word != "!");
        next.is_none_or(|next| {
            !next.starts_with("--") || COMMON.contains(&next) || next == "--match"
        })
    }

    /// Pass over what a module asks.
    fn skip_options(&mut self) {
        let is_own = |word: &Word| {
            !word.text.starts_with('-')
                || word.text.starts_with("--") && !COMMON.contains(&word.text.as_str())
        };
        while let Some(word) = self.words.get(self.at).filter(|word| is_own(word)) {
            let next = self.words.get(self.at + 1);
            if word.text == "!" && !next.is_some_and(is_own) {
                break;
            }
            self.at += 1;
        }
    }

    /// A module that says something without any option.
    fn bare_module(&mut self) {
        if BARE.contains(&self.module) {
            return;
        }
        self.unknown(format!("-m {}", self.module));
    }

    fn unknown(&mut self, what: String) {
        self.steps.push(Test::Unknown(what).into());
    }

    /// Read an option; whether it is known.
    fn option(&mut self, option: &'w str, negated: bool) -> bool {
        let start = self.at;
        self.beside.elsewhere |= option == "--object-pinned";
        if let Some(tests) = self.tests(option, negated) {
            self.steps.extend(tests.into_iter().map(Step::Test));
            return true;
        }
        // Everything up to the next option is this one's.
        self.at = start;
        let mut text = option.to_owned();
        if !self.module.is_empty() {
            text = format!("-m {} {text}", self.module);
        }
        while let Some(word) = self.words.get(self.at).filter(|word| !word.is_option()) {
            text = format!("{text} {}", word.text);
            self.at += 1;
        }
        let not = if negated { "! " } else { "" };
        self.unknown(format!("{not}{text}"));
        false
    }

    /// What an option asks; none if it is not known.
    fn tests(&mut self, option: &str, negated: bool) -> Option<Vec<Test>> {
        let family = self.family;
        let one = match (self.module, option) {
            (_, "-s" | "--source") => {
                addresses(Side::Source, negated, &[network(self.next()?)?], family)
            }
            (_, "-d" | "--destination") => {
                addresses(Side::Destination, negated, &[network(self.next()?)?], family)
            }
            (_, "-i" | "--in-interface") => return self.interface(Way::In, negated),
            (_, "-o" | "--out-interface") => return self.interface(Way::Out, negated),
            (_, "-p" | "--protocol") => match self.next()? {
                "all" | "0" if !negated => return Some(Vec::new()),
                name => protocol(Protocol::from_name(name)?, negated),
            },
            (_, "--sport" | "--source-port") => {
                ports(Side::Source, negated, port_range(self.next()?)?)
            }
            (_, "--dport" | "--destination-port") => {
                ports(Side::Destination, negated, port_range(self.next()?)?)
            }
            (_, "--syn") => Test::Syn { negated },
            (_, "--tcp-flags") => match (self.next()?, self.next()?) {
                ("FIN,SYN,RST,ACK" | "SYN,RST,ACK,FIN", "SYN") => Test::Syn { negated },
                (mask, value) => {
                    let (mask, value) = (Flags::listed(mask)?, Flags::listed(value)?);
                    Test::TcpFlags { negated, mask, value }
                }
            },
            ("multiport", "--sports" | "--source-ports") => {
                ports(Side::Source, negated, port_list(self.next()?)?)
            }
            ("multiport", "--dports" | "--destination-ports") => {
                ports(Side::Destination, negated, port_list(self.next()?)?)
            }
            ("multiport", "--ports") => Test::EitherPort { negated, set: port_list(self.next()?)? },
            ("owner", "--uid-owner") => is(Field::Uid, negated, id_range(self.next()?)?),
            ("owner", "--gid-owner") => is(Field::Gid, negated, self.group()?),
            ("owner", "--socket-exists") => Test::Socket { negated },
            ("conntrack", "--ctstate") | ("state", "--state") => {
                let mut names = self.next()?.split(',').map(States::from_name);
                let states = names.try_fold(States(0), |all, one| Some(all.or(one?)))?;
                Test::State { negated, states }
            }
            ("conntrack", "--ctdir") => match self.next()? {
                "ORIGINAL" => Test::Original { negated },
                "REPLY" => Test::Original { negated: !negated },
                _ => return None,
            },
            ("conntrack", "--ctorigsrc") => {
                original(addresses(Side::Source, negated, &[network(self.next()?)?], family))?
            }
            ("conntrack", "--ctorigdst") => {
                original(addresses(Side::Destination, negated, &[network(self.next()?)?], family))?
            }
            ("conntrack", "--ctorigsrcport") => {
                original(ports(Side::Source, negated, port_range(self.next()?)?))?
            }
            ("conntrack", "--ctorigdstport") => {
                original(ports(Side::Destination, negated, port_range(self.next()?)?))?
            }
            ("mark", "--mark") => {
                Test::Mark { connection: false, negated, mark: masked(self.next()?)? }
            }
            ("connmark", "--mark") => {
                Test::Mark { connection: true, negated, mark: masked(self.next()?)? }
            }
            // Local at all is less than local to one interface: only its opposite tells nothing.
            ("addrtype", _) if negated && self.is_of_one_interface() => return None,
            ("addrtype", "--src-type") => self.address_types(Side::Source, negated)?,
            ("addrtype", "--dst-type") => self.address_types(Side::Destination, negated)?,
            ("pkttype", "--pkt-type") => match self.next()? {
                "unicast" | "host" => Test::ForThisHost { negated },
                "broadcast" | "multicast" => Test::ForThisHost { negated: !negated },
                _ => return None,
            },
            (_, "--icmp-type" | "--icmpv6-type") => {
                Test::Icmp { negated, types: icmp_type(self.next()?)? }
            }
            ("iprange", "--src-range") => self.range(Side::Source, negated)?,
            ("iprange", "--dst-range") => self.range(Side::Destination, negated)?,
            ("comment", "--comment") => {
                self.next()?;
                return Some(Vec::new());
            }
            _ => return None,
        };
        Some(vec![one])
    }

    fn address_types(&mut self, side: Side, negated: bool) -> Option<Test> {
        let mut names = self.next()?.split(',').map(AddressTypes::from_name);
        let first = names.next()??;
        let types = names.try_fold(first, |all, one| Some(all.or(one?)))?;
        if (self.family, types) == (Family::V6, AddressTypes::MULTICAST) {
            // RFC 4291 section 2.7
            return Some(addresses(side, negated, &[network("ff00::/8")?], self.family));
        }
        let told = types == AddressTypes::LOCAL || !self.is_of_one_interface();
        told.then(|| Test::address_type(side, negated, types))
    }

    /// What `rpfilter` asks for.
    fn return_route(&mut self) -> ReturnRoute {
        let mut asked = ReturnRoute { negated: false, mark: false, loose: false, own: false };
        while let Some(option) = self.peek() {
            match option {
                "--invert" => asked.negated = true,
                "--validmark" => asked.mark = true,
                "--loose" => asked.loose = true,
                "--accept-local" => asked.own = true,
                _ => break,
            }
            self.at += 1;
        }
        asked
    }

    /// Whether `addrtype` asks for addresses of one interface.
    fn is_of_one_interface(&self) -> bool {
        self.words.iter().any(|word| word.text.starts_with("--limit-iface"))
    }

    fn range(&mut self, side: Side, negated: bool) -> Option<Test> {
        let set = address_range(self.next()?)?;
        let (field, family) = (Field::address(side), Some(self.family));
        Some(Test::Is { field, negated, set, family, socket: false })
    }

    fn interface(&mut self, way: Way, negated: bool) -> Option<Vec<Test>> {
        let name = self.next()?;
        // Every name starts with nothing.
        if name == "+" {
            let none = Test::Interface { way, negated: false, names: [].into() };
            return Some(if negated { vec![none] } else { Vec::new() });
        }
        Some(vec![Test::Interface { way, negated, names: [name.parse().ok()?].into() }])
    }

    /// A group by number, range or name.
    fn group(&mut self) -> Option<Ranges> {
        let text = self.next()?;
        let by_name = || {
            let name: GroupName = text.parse().ok()?;
            self.groups.get(&name).map(|gid| Ranges::one(gid.get().into()))
        };
        id_range(text).or_else(by_name)
    }

    fn target(&mut self) {
        let name = self.next().unwrap_or_default();
        self.beside.elsewhere |= ASKED.contains(&name);
        let start = self.at;
        let actions = self.actions(name).filter(|_| self.at == self.words.len());
        let actions = actions.unwrap_or_else(|| {
            self.at = start;
            vec![Action::Unknown(format!("-j {}", self.written(name)))]
        });
        self.steps.extend(actions.into_iter().map(Step::Do));
    }

    /// A target with the options that are left.
    fn written(&mut self, name: &str) -> String {
        [&[name], &self.rest()[..]].concat().join(" ")
    }

    /// What a target does; none if it, or an option of it, is not known.
    fn actions(&mut self, name: &str) -> Option<Vec<Action>> {
        let one = match name {
            "ACCEPT" => Action::Accept,
            "DROP" => Action::Drop,
            "RETURN" => Action::Return,
            "REJECT" => {
                let with = match self.rest()[..] {
                    [] => None,
                    ["--reject-with", with] => Some(with),
                    _ => return None,
                };
                if matches!(with, Some("tcp-reset" | "tcp-rst")) {
                    return Some(vec![Action::Reject(Notice::Reset)]);
                }
                let said = with.and_then(|with| beside::rejection(with, self.family));
                return Some(said.into_iter().chain([Action::Reject(Notice::Icmp)]).collect());
            }
            "NOTRACK" => Action::Notrack,
            "REDIRECT" => return self.chosen(|to| Action::Redirect(to.ports), None),
            "MASQUERADE" => return self.chosen(|to| Action::Masquerade(to.ports), None),
            "DNAT" => return self.chosen(Action::Dnat, Some("--to-destination")),
            "SNAT" => return self.chosen(Action::Snat, Some("--to-source")),
            "TPROXY" => return self.tproxy(),
            "MARK" => Action::Mark(self.mark_change()?),
            "CONNMARK" => return self.connmark().map(|action| vec![action]),
            "CT" => match self.next()? {
                "--notrack" => Action::Notrack,
                "--zone" => Action::Zone(u16::try_from(int(self.next()?)?).ok()?),
                "--helper" => Action::Effect(format!("ct helper set {}", self.next()?)),
                _ => return None,
            },
            note if NOTES.contains(&note) => {
                self.beside.noted = self.written(note);
                Action::Note
            }
            effect if EFFECTS.contains(&effect) => Action::Effect(self.written(effect)),
            "TTL" | "HL" => {
                let (option, value) = (self.next()?, self.next()?);
                let lasts = option.ends_with("-set") && int(value)? > 1 || option.ends_with("-inc");
                // What has none left is passed on no more.
                lasts.then(|| Action::Effect(format!("{name} {option} {value}")))?
            }
            "TOS" | "DSCP" => return Some(vec![Action::Tos, Action::Effect(self.written(name))]),
            "SET" => {
                // Elements of a map can carry a mark.
                let maps = self.words[self.at..].iter().any(|word| word.text == "--map-set");
                self.beside.elsewhere |= maps;
                let written = self.written(name);
                (!maps).then_some(Action::Effect(written))?
            }
            // Names of targets are upper case words of the manual; chains may be called so too.
            "QUEUE" | "NFQUEUE" | "NETMAP" | "SYNPROXY" | "CLUSTERIP" | "HMARK" | "SECMARK"
            | "CONNSECMARK" | "DNPT" | "SNPT" => return None,
            chain => Action::Jump(chain.to_owned()),
        };
        Some(vec![one])
    }

    /// A translation, behind how one of several addresses and ports is chosen. `option` is the one that
    /// says what to; where there is none, ports may be given.
    fn chosen(
        &mut self,
        action: fn(Translation) -> Action,
        option: Option<&str>,
    ) -> Option<Vec<Action>> {
        let mut to = option.is_none().then(Translation::default);
        let mut how = Vec::new();
        while let Some(word) = self.next() {
            match word {
                "--random" | "--random-fully" | "--persistent" => {
                    how.push(word.trim_start_matches("--"));
                }
                "--to-ports" | "--to-port" if option.is_none() => {
                    to = Some(Translation { address: None, ports: Some(to_ports(self.next()?)?) });
                }
                word if Some(word) == option => to = Some(translation(self.next()?)?),
                _ => return None,
            }
        }
        let how = beside::choice(&how);
        Some(how.into_iter().chain([action(to?)]).collect())
    }

    fn tproxy(&mut self) -> Option<Vec<Action>> {
        let (mut port, mut address, mut mark) = (None, None, Masked { value: 0, mask: 0 });
        while let Some(word) = self.next() {
            match word {
                "--on-port" => port = Some(self.next()?.parse().ok()?),
                "--on-ip" => address = Some(self.next()?.parse().ok()?),
                "--tproxy-mark" => mark = masked(self.next()?)?,
                _ => return None,
            }
        }
        let port = port.filter(|p| *p != 0);
        let tproxy = Action::Tproxy { port, address, family: None, drops: true };
        Some(vec![tproxy, Action::Mark(MarkChange::exchange(mark)), Action::Accept])
    }

    fn mark_change(&mut self) -> Option<MarkChange> {
        let option = self.next()?;
        let value = self.next()?;
        Some(match option {
            "--set-mark" => MarkChange::set(masked(value)?),
            "--set-xmark" => MarkChange::exchange(masked(value)?),
            "--and-mark" => MarkChange { keep: int(value)?, flip: 0 },
            "--or-mark" => {
                let bits = int(value)?;
                MarkChange { keep: !bits, flip: bits }
            }
            "--xor-mark" => MarkChange { keep: u32::MAX, flip: int(value)? },
            _ => return None,
        })
    }

    fn connmark(&mut self) -> Option<Action> {
        let option = self.peek()?;
        if !matches!(option, "--save-mark" | "--restore-mark") {
            return self.mark_change().map(Action::Connmark);
        }
        self.at += 1;
        let (mut packet, mut connection) = (u32::MAX, u32::MAX);
        while let Some(word) = self.next() {
            let mask = int(self.next()?)?;
            match word {
                "--nfmask" => packet = mask,
                "--ctmask" => connection = mask,
                "--mask" => (packet, connection) = (mask, mask),
                _ => return None,
            }
        }
        Some(if option == "--save-mark" {
            Action::Save { packet, connection }
        } else {
            Action::Restore { packet, connection }
        })
    }
}
