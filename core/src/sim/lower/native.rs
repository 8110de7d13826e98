//! Native nftables as the kernel has them: expressions that load, compare and set.

use super::super::program::{Base, Policy, SourceChain, SourceRule, SourceTable};
use super::super::ranges::Ranges;
use super::super::rule::{Action, Field, MarkChange, States, Step, Test, Way};
use super::words::words;
use super::{is, ports, protocol};
use crate::nft::expr::{Comparison, CtField, Expr, Header, MetaField, Verdict, nfproto};
use crate::nft::listed::{ListedChain, ListedRule, ListedTable};
use crate::nft::tables::NativeTables;
use crate::ruleset::{Hook, Masked, Side};
use crate::sim::question::Protocol;
use crate::value::{Family, InterfacePattern};

/// Tables that were read from the kernel. What is not understood of a rule is unknown to the walk.
pub fn of_native(tables: &NativeTables) -> Vec<SourceTable> {
    let one = |(name, chains): &(String, crate::nft::tables::NativeTable)| SourceTable {
        holder: super::nft::HOLDER.to_owned(),
        name: name.clone(),
        families: Family::ALL.to_vec(),
        chains: chains
            .iter()
            .map(|(name, chain)| SourceChain {
                name: name.clone(),
                base: chain.base.as_ref().and_then(base),
                rules: chain.rules.iter().map(rule).collect(),
            })
            .collect(),
    };
    tables.iter().map(one).collect()
}

/// Tables of whoever. A part of a rule that is not understood is unknown to the walk.
pub fn of_listed(tables: &[ListedTable]) -> Vec<SourceTable> {
    let chain = |chain: &ListedChain, family| SourceChain {
        name: chain.name.clone(),
        base: chain.base.as_ref().and_then(base).map(|base| Base {
            policy: if chain.drops { Policy::Drop } else { Policy::Accept },
            ..base
        }),
        rules: chain.rules.iter().map(|rule| listed(rule, family)).collect(),
    };
    let table = |table: &ListedTable| SourceTable {
        holder: super::nft::HOLDER.to_owned(),
        name: table.name.clone(),
        families: table.family.map_or_else(|| Family::ALL.to_vec(), |family| vec![family]),
        chains: table.chains.iter().map(|c| chain(c, table.family)).collect(),
    };
    tables.iter().map(table).collect()
}

/// Parts that only ask, or that only load what another one asks about.
const ASKING: [&str; 13] = [
    "byteorder",
    "connlimit",
    "exthdr",
    "fib",
    "hash",
    "limit",
    "lookup",
    "match",
    "numgen",
    "osf",
    "quota",
    "range",
    "rt",
];

fn listed(rule: &ListedRule, family: Option<Family>) -> SourceRule {
    let mut reader = Reader::new(family);
    for part in &rule.parts {
        match part {
            Ok(expr) => reader.take(expr),
            Err(what) => {
                let name = what.rsplit(' ').next().unwrap_or_default();
                reader.open_range();
                reader.load(Loaded::Other);
                reader.steps.push(match name {
                    "log" => Action::Note.into(),
                    "notrack" => Action::Notrack.into(),
                    name if ASKING.contains(&name) => Test::Unknown(what.clone()).into(),
                    _ => Action::Unknown(what.clone()).into(),
                });
            }
        }
    }
    let steps = reader.finish();
    SourceRule { text: words(&steps), reason: None, counters: rule.counters, steps }
}

/// Where a chain is called from; none for layers that are not walked.
fn base(base: &crate::nft::tables::Base) -> Option<Base> {
    Some(Base {
        hook: Hook::ALL.into_iter().find(|hook| hook.number() == base.hook)?,
        kind: super::nft::kind(&base.kind),
        priority: base.priority,
        policy: Policy::Accept,
    })
}

fn rule(rule: &Result<Vec<Expr>, String>) -> SourceRule {
    let steps = match rule {
        Ok(exprs) => steps(exprs),
        Err(what) => vec![Test::Unknown(what.clone()).into(), Action::Unknown(what.clone()).into()],
    };
    SourceRule { text: words(&steps), reason: None, counters: None, steps }
}

/// What the register holds.
#[derive(Clone, Debug)]
enum Loaded {
    Nothing,
    Meta(MetaField),
    Ct(CtField),
    Payload {
        header: Header,
        offset: u32,
        length: u32,
    },
    Constant(Vec<u8>),
    /// Something that is not known, and has been named.
    Other,
}

struct Reader {
    steps: Vec<Step>,
    loaded: Loaded,
    mask: Option<Vec<u8>>,
    family: Option<Family>,
    /// The lower end of a range that two comparisons make, and its length in bytes.
    least: Option<(u128, usize)>,
}

fn steps(exprs: &[Expr]) -> Vec<Step> {
    let mut reader = Reader::new(None);
    for expr in exprs {
        reader.take(expr);
    }
    reader.finish()
}

impl Reader {
    /// For rules of a table of one family, or of both.
    const fn new(family: Option<Family>) -> Self {
        Self { steps: Vec::new(), loaded: Loaded::Nothing, mask: None, family, least: None }
    }

    /// Read an expression; what is not known of it is unknown to the walk.
    fn take(&mut self, expr: &Expr) {
        if !matches!(expr, Expr::Compare(Comparison::Le, _)) {
            self.open_range();
        }
        let asks = matches!(
            expr,
            Expr::Mask(_) | Expr::Compare(..) | Expr::Range { .. } | Expr::Lookup { .. }
        );
        if asks && matches!(self.loaded, Loaded::Other) || self.read(expr).is_some() {
            return;
        }
        self.steps.push(match expr {
            Expr::StoreMeta(_) | Expr::StoreCt(_) => {
                Action::Unknown(format!("{expr:?} to what is not known here")).into()
            }
            Expr::Verdict(_) | Expr::Redirect | Expr::Tproxy(_) | Expr::Target(_) => {
                Action::Unknown(format!("{expr:?}")).into()
            }
            Expr::LoadTransparent => Test::Unknown("socket transparent".to_owned()).into(),
            Expr::Match(extension) => Test::Unknown(format!("-m {}", extension.name)).into(),
            _ => Test::Unknown(format!("{:?} {expr:?}", self.loaded)).into(),
        });
    }

    /// The steps, once everything has been read.
    fn finish(mut self) -> Vec<Step> {
        self.open_range();
        self.steps
    }

    /// A lower end without an upper one is a range too.
    fn open_range(&mut self) {
        let Some((least, length)) = self.least.take() else { return };
        let most = 1_u128.checked_shl(u32::try_from(length * 8).unwrap_or(u32::MAX));
        let set = Ranges::range(least, most.map_or(u128::MAX, |above| above - 1));
        if self.is(false, set).is_none() {
            self.steps.push(Test::Unknown(format!("{:?} at least {least}", self.loaded)).into());
        }
    }

    fn load(&mut self, loaded: Loaded) {
        self.loaded = loaded;
        self.mask = None;
    }

    fn read(&mut self, expr: &Expr) -> Option<()> {
        match expr {
            Expr::LoadMeta(field) => self.load(Loaded::Meta(*field)),
            Expr::LoadCt(field) => self.load(Loaded::Ct(*field)),
            Expr::LoadPayload { header, offset, length } => {
                self.load(Loaded::Payload { header: *header, offset: *offset, length: *length });
            }
            Expr::Load(bytes) => self.load(Loaded::Constant(bytes.clone())),
            Expr::LoadTransparent => {
                self.load(Loaded::Other);
                return None;
            }
            Expr::Mask(mask) => self.mask = Some(mask.clone()),
            // What is traced is talked about, and nothing else.
            Expr::Counter | Expr::StoreMeta(MetaField::Traced) => {
                self.steps.push(Action::Note.into());
            }
            Expr::Compare(how, bytes) => return self.compare(*how, bytes),
            Expr::Range { negated, first, last } => {
                let set = Ranges::range(big(first)?, big(last)?);
                return if self.is_whole_and_ordered() { self.is(*negated, set) } else { None };
            }
            Expr::Lookup { .. } if !self.is_whole() => return None,
            Expr::Lookup { negated, set } => {
                if let Loaded::Meta(MetaField::InInterface | MetaField::OutInterface) = self.loaded
                {
                    let one = |(first, last): &(Vec<u8>, Vec<u8>)| {
                        // Else it is the beginning of names.
                        (first == last).then(|| interface(first))?
                    };
                    let names = set.ranges.iter().map(one);
                    return self.interfaces(*negated, names.collect::<Option<_>>()?);
                }
                let native = matches!(self.loaded, Loaded::Meta(_) | Loaded::Ct(_));
                let number = |bytes: &[u8]| if native { host(bytes) } else { big(bytes) };
                let ends = set.ranges.iter().map(|(a, b)| Some((number(a)?, number(b)?)));
                let set: Option<Ranges> = ends.collect();
                return self.is(*negated, set?);
            }
            Expr::StoreMeta(MetaField::Mark) => {
                let action = match &self.loaded {
                    Loaded::Constant(bytes) => {
                        let mark = u32::try_from(host(bytes)?).ok()?;
                        Action::Mark(MarkChange::set(Masked::exact(mark)))
                    }
                    Loaded::Ct(CtField::Mark) if self.mask.is_none() => {
                        Action::Restore { packet: u32::MAX, connection: u32::MAX }
                    }
                    _ => return None,
                };
                self.steps.push(action.into());
            }
            Expr::StoreCt(CtField::Mark) => match self.loaded {
                Loaded::Meta(MetaField::Mark) if self.mask.is_none() => {
                    let save = Action::Save { packet: u32::MAX, connection: u32::MAX };
                    self.steps.push(save.into());
                }
                _ => return None,
            },
            Expr::StoreCt(CtField::Zone) => {
                let Loaded::Constant(bytes) = &self.loaded else { return None };
                let zone = u16::from_ne_bytes(bytes.as_slice().try_into().ok()?);
                self.steps.push(Action::Zone(zone).into());
            }
            Expr::Redirect => {
                let port = self.port()?;
                self.steps.push(Action::Redirect(Some((port, port))).into());
            }
            Expr::Tproxy(family) => {
                let port = Some(self.port()?);
                let family = Some(*family);
                let tproxy = Action::Tproxy { port, address: None, family, drops: false };
                self.steps.push(tproxy.into());
            }
            Expr::Verdict(verdict) => self.steps.push(
                match verdict {
                    Verdict::Accept => Action::Accept,
                    Verdict::Drop => Action::Drop,
                    Verdict::Return => Action::Return,
                    Verdict::Jump(chain) => Action::Jump(chain.clone()),
                }
                .into(),
            ),
            _ => return None,
        }
        Some(())
    }

    fn port(&self) -> Option<u16> {
        let Loaded::Constant(bytes) = &self.loaded else { return None };
        Some(u16::from_be_bytes(bytes.as_slice().try_into().ok()?))
    }

    fn interfaces(&mut self, negated: bool, names: Vec<InterfacePattern>) -> Option<()> {
        let way = match self.loaded {
            Loaded::Meta(MetaField::InInterface) => Way::In,
            Loaded::Meta(MetaField::OutInterface) => Way::Out,
            _ => return None,
        };
        self.steps.push(Test::Interface { way, negated, names }.into());
        Some(())
    }

    fn compare(&mut self, how: Comparison, bytes: &[u8]) -> Option<()> {
        let negated = match how {
            Comparison::Eq => false,
            Comparison::Ne => true,
            // What is in the machine's byte order has no order here.
            Comparison::Ge | Comparison::Le if !self.is_whole_and_ordered() => return None,
            Comparison::Ge => {
                self.least = Some((big(bytes)?, bytes.len()));
                return Some(());
            }
            Comparison::Le => {
                let set = Ranges::range(self.least.take()?.0, big(bytes)?);
                return self.is(false, set);
            }
        };
        let has_bits = matches!(
            self.loaded,
            Loaded::Meta(MetaField::Mark)
                | Loaded::Ct(CtField::Mark | CtField::State)
                | Loaded::Payload { header: Header::Network, offset: 8.., .. }
        );
        if self.mask.is_some() && !has_bits {
            return None;
        }
        match self.loaded {
            Loaded::Meta(MetaField::InInterface | MetaField::OutInterface) => {
                self.interfaces(negated, vec![interface(bytes)?])
            }
            Loaded::Meta(MetaField::Mark) => self.mark(false, negated, bytes),
            Loaded::Ct(CtField::Mark) => self.mark(true, negated, bytes),
            Loaded::Ct(CtField::State) => {
                let mask = host(self.mask.as_ref()?)?;
                if host(bytes)? != 0 {
                    return None;
                }
                // «Not none of them» is one of them.
                self.steps.push(Test::State { negated: !negated, states: states(mask)? }.into());
                Some(())
            }
            Loaded::Meta(MetaField::Family) => {
                let family = Family::ALL.into_iter().find(|f| [nfproto(*f)] == *bytes)?;
                if negated {
                    return None;
                }
                self.family = Some(family);
                self.steps.push(Test::Family(family).into());
                Some(())
            }
            Loaded::Meta(MetaField::Protocol) => {
                let [number] = *bytes else { return None };
                self.steps.push(protocol(Protocol(number), negated).into());
                Some(())
            }
            Loaded::Meta(MetaField::Uid | MetaField::Gid) => {
                self.is(negated, Ranges::one(host(bytes)?))
            }
            Loaded::Payload { header: Header::Network, offset: 6 | 9, length: 1 } => {
                self.is(negated, Ranges::one(big(bytes)?))
            }
            Loaded::Payload { header: Header::Network, length, .. } => {
                let set = self.network(bytes, length)?;
                self.is(negated, set)
            }
            Loaded::Payload { .. } => self.is(negated, Ranges::one(big(bytes)?)),
            _ => None,
        }
    }

    /// Whether all of a field was loaded, and not some bits of it.
    fn is_whole(&self) -> bool {
        let network = match self.loaded {
            Loaded::Payload { header: Header::Network, length, .. } => matches!(length, 4 | 16),
            _ => true,
        };
        self.mask.is_none() && network
    }

    /// The same, of a field in network byte order.
    fn is_whole_and_ordered(&self) -> bool {
        self.is_whole() && matches!(self.loaded, Loaded::Payload { .. })
    }

    /// The addresses that begin with these bytes, or with their bits of the mask.
    fn network(&self, bytes: &[u8], length: u32) -> Option<Ranges> {
        let size = match self.family? {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let first = big(bytes)?;
        if let Some(mask) = &self.mask {
            let mask = big(mask)?;
            let all = if size == 128 { u128::MAX } else { (1 << size) - 1 };
            let free = all & !mask;
            // Only masks that are a prefix are a range.
            return (free & free.wrapping_add(1) == 0).then(|| Ranges::range(first, first | free));
        }
        let free = size - length * 8;
        let first = first.checked_shl(free).unwrap_or(0);
        let rest = 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
        Some(Ranges::range(first, first | rest))
    }

    fn mark(&mut self, connection: bool, negated: bool, bytes: &[u8]) -> Option<()> {
        let value = u32::try_from(host(bytes)?).ok()?;
        let mask = match &self.mask {
            Some(mask) => u32::try_from(host(mask)?).ok()?,
            None => u32::MAX,
        };
        let mark = Masked { value, mask };
        self.steps.push(Test::Mark { connection, negated, mark }.into());
        Some(())
    }

    /// What was loaded is, or is not, one of these.
    fn is(&mut self, negated: bool, set: Ranges) -> Option<()> {
        let test = match self.loaded {
            Loaded::Meta(MetaField::Uid) => owned(Field::Uid, negated, set),
            Loaded::Meta(MetaField::Gid) => owned(Field::Gid, negated, set),
            Loaded::Payload { header: Header::Network, offset: offset @ (6 | 9), length: 1 } => {
                match (self.family?, offset) {
                    (Family::V4, 9) | (Family::V6, 6) => is(Field::Protocol, negated, set),
                    _ => return None,
                }
            }
            Loaded::Payload { header: Header::Network, offset, .. } => {
                let side = match (self.family?, offset) {
                    (Family::V4, 12) | (Family::V6, 8) => Side::Source,
                    (Family::V4, 16) | (Family::V6, 24) => Side::Destination,
                    _ => return None,
                };
                let field = Field::address(side);
                Test::Is { field, negated, set, family: self.family, socket: false }
            }
            Loaded::Payload { header: Header::Transport, offset: 0, length: 2 } => {
                ports(Side::Source, negated, set)
            }
            Loaded::Payload { header: Header::Transport, offset: 2, length: 2 } => {
                ports(Side::Destination, negated, set)
            }
            _ => return None,
        };
        self.steps.push(test.into());
        Some(())
    }
}

const fn owned(field: Field, negated: bool, set: Ranges) -> Test {
    Test::Is { field, negated, set, family: None, socket: true }
}

/// Bits of `NF_CT_STATE_*` as states.
fn states(mask: u128) -> Option<States> {
    let known = [
        (1, States::INVALID),
        (2, States::ESTABLISHED),
        (4, States::RELATED),
        (8, States::NEW),
        (64, States::UNTRACKED),
    ];
    let all = known.iter().fold(0, |all, (bit, _)| all | bit);
    let found = known.iter().filter(|(bit, _)| mask & bit != 0);
    (mask & !all == 0).then(|| found.fold(States(0), |all, (_, state)| all.or(*state)))
}

/// A number in network byte order.
fn big(bytes: &[u8]) -> Option<u128> {
    (bytes.len() <= 16).then(|| bytes.iter().fold(0, |n, byte| n << 8 | u128::from(*byte)))
}

/// A number in the machine's byte order.
fn host(bytes: &[u8]) -> Option<u128> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?).into())
}

/// A name with its zeros, or the beginning of names.
fn interface(bytes: &[u8]) -> Option<InterfacePattern> {
    const IFNAMSIZ: usize = 16;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let mut name = std::str::from_utf8(bytes.get(..end)?).ok()?.to_owned();
    if bytes.len() < IFNAMSIZ {
        name.push('+');
    }
    name.parse().ok()
}
