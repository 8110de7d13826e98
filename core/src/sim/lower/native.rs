//! Native nftables as the kernel has them: expressions that load, compare and set.

use super::super::program::{Base, Policy, SourceChain, SourceRule, SourceTable};
use super::super::ranges::Ranges;
use super::super::rule::{Action, Field, MarkChange, States, Step, Test, Way};
use super::words::words;
use super::{ports, protocol};
use crate::nft::expr::{Comparison, CtField, Expr, Header, MetaField, Verdict, nfproto};
use crate::nft::tables::NativeTables;
use crate::ruleset::{Hook, Masked, Side};
use crate::sim::question::Protocol;
use crate::value::{Family, InterfacePattern};

/// Tables that were read from the kernel. What is not understood of a rule is unknown to the walk.
pub fn of_native(tables: &NativeTables) -> Vec<SourceTable> {
    let hook = |number: u32| Hook::ALL.into_iter().find(|hook| hook.number() == number);
    let one = |(name, chains): &(String, crate::nft::tables::NativeTable)| SourceTable {
        holder: super::nft::HOLDER.to_owned(),
        name: name.clone(),
        families: Family::ALL.to_vec(),
        chains: chains
            .iter()
            .map(|(name, chain)| SourceChain {
                name: name.clone(),
                base: chain.base.as_ref().and_then(|base| {
                    Some(Base {
                        hook: hook(base.hook)?,
                        kind: super::nft::kind(&base.kind),
                        priority: base.priority,
                        policy: Policy::Accept,
                    })
                }),
                rules: chain.rules.iter().map(rule).collect(),
            })
            .collect(),
    };
    tables.iter().map(one).collect()
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
    Payload { header: Header, offset: u32, length: u32 },
    Constant(Vec<u8>),
    Other,
}

struct Reader {
    steps: Vec<Step>,
    loaded: Loaded,
    mask: Option<Vec<u8>>,
    family: Option<Family>,
    /// The lower end of a range that two comparisons make.
    least: Option<u128>,
}

fn steps(exprs: &[Expr]) -> Vec<Step> {
    let mut reader = Reader {
        steps: Vec::new(),
        loaded: Loaded::Nothing,
        mask: None,
        family: None,
        least: None,
    };
    for expr in exprs {
        if reader.read(expr).is_none() {
            let what = format!("{expr:?}");
            let step = match expr {
                Expr::Verdict(_)
                | Expr::StoreMeta(_)
                | Expr::StoreCt(_)
                | Expr::Redirect
                | Expr::Tproxy(_)
                | Expr::Target(_) => Action::Unknown(what).into(),
                _ => Test::Unknown(what).into(),
            };
            reader.steps.push(step);
        }
    }
    reader.steps
}

impl Reader {
    fn load(&mut self, loaded: Loaded) {
        self.loaded = loaded;
        self.mask = None;
        self.least = None;
    }

    fn read(&mut self, expr: &Expr) -> Option<()> {
        match expr {
            Expr::LoadMeta(field) => self.load(Loaded::Meta(*field)),
            Expr::LoadCt(field) => self.load(Loaded::Ct(*field)),
            Expr::LoadPayload { header, offset, length } => {
                self.load(Loaded::Payload { header: *header, offset: *offset, length: *length });
            }
            Expr::Load(bytes) => self.load(Loaded::Constant(bytes.clone())),
            Expr::LoadTransparent => self.load(Loaded::Other),
            Expr::Mask(mask) => self.mask = Some(mask.clone()),
            Expr::Counter => self.steps.push(Action::Note.into()),
            Expr::Compare(how, bytes) => return self.compare(*how, bytes),
            Expr::Range { negated, first, last } => {
                let set = Ranges::range(big(first)?, big(last)?);
                return self.is(*negated, set);
            }
            Expr::Lookup { negated, set } => {
                if let Loaded::Meta(MetaField::InInterface | MetaField::OutInterface) = self.loaded
                {
                    let names = set.ranges.iter().map(|(name, _)| interface(name));
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
                let tproxy = Action::Tproxy { port, address: None, family: Some(*family) };
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
            Comparison::Ge => {
                self.least = Some(big(bytes)?);
                return Some(());
            }
            Comparison::Le => {
                let set = Ranges::range(self.least?, big(bytes)?);
                return self.is(false, set);
            }
        };
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
            Loaded::Payload { header: Header::Network, length, .. } => {
                let set = self.network(bytes, length)?;
                self.is(negated, set)
            }
            Loaded::Payload { .. } => self.is(negated, Ranges::one(big(bytes)?)),
            _ => None,
        }
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
