//! Native nftables as rules of iptables, so that their settings can be read back in one way. What
//! has no such form is left out: the comparison with what the settings give finds it.

mod order;
mod values;

use std::collections::BTreeMap;

use order::{localhost_first, tunnel_first};
use values::{
    address, bits, interface, listening, networks, owners, ports, protocol, states, values, whole,
};

use crate::dialect::Mesh;
use crate::iptables::{ChainDump, Dump, DumpRule, TableDump};
use crate::nft::NftLayout;
use crate::nft::expr::{
    Comparison, CtField, Expr, FLAGS, Header, LOCAL, MetaField, NftVerdict, SYN, is_flags, nfproto,
};
use crate::nft::tables::{Base, NativeChain, NativeTables, exempts_v6, families, named};
use crate::ruleset::Layout;
use crate::ruleset::{
    Chain, ChainName, Hook, Masked, Match, Owner, Protocol, RedirectSpelling, Role, Rule, Side,
    Table, Target,
};
use crate::value::{Cidr, Family, Groups, Uid, UidRange, Zone};

const DNS: u16 = 53;
/// How many users or groups a range may stand for.
const MOST_IDS: u32 = 1000;

/// The tables of each family, with iptables' names for chains; IPv6 only where it is captured.
pub(crate) fn dumps(
    native: &NativeTables,
    layout: &NftLayout,
    names: &Layout,
    mesh: &Mesh,
) -> [Option<Dump>; 2] {
    let captured = families(native);
    Family::ALL.map(|family| {
        let tables: Vec<TableDump> = [Table::Nat, Table::Mangle, Table::Raw]
            .into_iter()
            .filter_map(|table| table_of(native, layout, names, table, family))
            .collect();
        let mut dump = Dump { tables };
        if mesh.marks.is_some() {
            // By it alone they are known, and without a rule it is not made.
            dump.tables.iter_mut().for_each(|table| make(table, names.inbound.as_str()));
        }
        if mesh.tunnels && mesh.marks.is_none() {
            tunnel_first(&mut dump, names);
        }
        let in_front = names.style.at_head.contains(&Role::ExcludedNetwork);
        if mesh.conventions.local.asks_localhost() && !in_front && mesh.marks.is_none() {
            localhost_first(&mut dump, names, family);
        }
        (captured.contains(&family) && !dump.tables.is_empty()).then_some(dump)
    })
}

/// Make a chain that is not there.
fn make(table: &mut TableDump, name: &str) {
    if table.chain(name).is_none() {
        let (name, rules) = (name.to_owned(), Vec::new());
        table.chains.push(ChainDump { name, policy: None, rules, handle: None });
    }
}

/// Whether two rulesets treat every packet alike, rule by rule: the same expressions, or rules of
/// iptables that are the same in canonical form, with nothing in either that has no such form.
pub(crate) fn same(
    a: &NativeTables,
    b: &NativeTables,
    (layout, names): (&NftLayout, &Layout),
    mesh: &Mesh,
) -> bool {
    if a == b {
        return true;
    }
    let clear = |tables: &NativeTables| {
        let chains = tables.iter().flat_map(|(_, chains)| chains);
        chains.flat_map(|(_, chain)| &chain.rules).all(|rule| {
            rule.as_ref().is_ok_and(|exprs| {
                Family::ALL.iter().any(|family| is_clear(exprs, *family)) || exempts_v6(exprs)
            })
        })
    };
    // In which order chains were made means nothing, and neither does one of the layout that is empty.
    let own: Vec<&str> = layout.chains.chains().iter().map(|name| name.as_str()).collect();
    let skeleton = |tables: &NativeTables| -> BTreeMap<(String, String), (Option<Base>, bool)> {
        let chains = tables.iter().flat_map(|(table, chains)| {
            let is_met = |name: &str, chain: &NativeChain| {
                chain.base.is_some() || !chain.rules.is_empty() || !own.contains(&name)
            };
            let met = chains.iter().filter(move |(name, chain)| is_met(name, chain));
            met.map(move |(name, chain)| {
                ((table.clone(), name.clone()), (chain.base.clone(), chain.drops))
            })
        });
        chains.collect()
    };
    let groups = Groups::new();
    let rules = |tables: &NativeTables| {
        dumps(tables, layout, names, mesh).map(|dump| {
            let chains = dump.into_iter().flat_map(|d| d.tables).flat_map(|table| {
                table.chains.into_iter().map(move |chain| (table.name.clone(), chain))
            });
            let mut chains: Vec<_> = chains.collect();
            chains.sort_by_key(|(table, chain)| (table.clone(), chain.name.clone()));
            let rules = chains.into_iter().flat_map(|(table, chain)| {
                let at = (table, chain.name);
                chain.rules.into_iter().map(move |rule| (at.clone(), rule.rule))
            });
            rules.map(|(at, rule)| (at, rule.map(|r| r.canonical(&groups)))).collect::<Vec<_>>()
        })
    };
    let guard = |tables: &NativeTables| -> Vec<[Vec<Rule>; 2]> {
        let chains = layout.guard.and_then(|name| named(tables, name)).into_iter().flatten();
        let in_family = |chain: &NativeChain, family| -> Vec<Rule> {
            let rules = rules_of(chain, &RuleReader { family, names: &[] });
            rules.iter().map(|rule| rule.canonical(&groups)).collect()
        };
        chains.map(|(_, chain)| Family::ALL.map(|family| in_family(chain, family))).collect()
    };
    let guards = guard(a) == guard(b);
    guards && clear(a) && clear(b) && skeleton(a) == skeleton(b) && rules(a) == rules(b)
}

/// Whether a rule has a form in iptables, whatever chain it jumps to.
fn is_clear(exprs: &[Expr], family: Family) -> bool {
    let jump = |expr: &Expr| match expr {
        Expr::Verdict(NftVerdict::Jump(_)) => Expr::Verdict(NftVerdict::Return),
        other => other.clone(),
    };
    let exprs: Vec<Expr> = exprs.iter().map(jump).collect();
    RuleReader { family, names: &[] }.rules(&exprs).is_some()
}

fn table_of(
    native: &NativeTables,
    layout: &NftLayout,
    names: &Layout,
    table: Table,
    family: Family,
) -> Option<TableDump> {
    let wanted = layout.table(table)?;
    let (_, content) = native.iter().find(|(name, _)| name == wanted)?;
    let known = known_chains(layout, names, table);
    let jumps = known_names(&known);
    let chains = content.iter().filter_map(|(name, chain)| {
        let (_, known) = known.iter().find(|(native, _)| native == name)?;
        let mut rules = rules_of(chain, &RuleReader { family, names: &jumps });
        // All that hangs in tables of ours is ours, as iptables' rules say with a comment.
        if chain.base.is_some() {
            for rule in &mut rules {
                rule.matches.push(Match::Ours);
            }
        }
        let rules = rules
            .into_iter()
            .map(|rule| DumpRule {
                text: String::new(),
                counters: None,
                rule: Ok(rule),
                kernel: None,
            })
            .collect();
        Some(ChainDump { name: known.as_str().to_owned(), policy: None, rules, handle: None })
    });
    let chains: Vec<ChainDump> = chains.collect();
    (!chains.is_empty()).then(|| TableDump { name: table.as_str().to_owned(), chains })
}

/// What each chain of a table is called in iptables.
fn known_chains(layout: &NftLayout, names: &Layout, table: Table) -> Vec<(String, Chain)> {
    let hooks = [Hook::Prerouting, Hook::Output].map(|hook| {
        let chain = Chain::Builtin(hook);
        (layout.chain(table, &chain), chain)
    });
    let own = layout.chains.chains().into_iter().zip(names.chains()).map(|(native, name)| {
        (layout.chain(table, &Chain::User(native.clone())), Chain::User(name.clone()))
    });
    hooks.into_iter().chain(own).collect()
}

fn known_names(chains: &[(String, Chain)]) -> Vec<(String, ChainName)> {
    let user = |(native, chain): &(String, Chain)| match chain {
        Chain::User(name) => Some((native.clone(), name.clone())),
        Chain::Builtin(_) => None,
    };
    chains.iter().filter_map(user).collect()
}

fn rules_of(chain: &NativeChain, reader: &RuleReader<'_>) -> Vec<Rule> {
    let mut all: Vec<Vec<Rule>> = Vec::new();
    for exprs in &chain.rules {
        let Some(rules) = exprs.as_ref().ok().and_then(|exprs| reader.rules(exprs)) else {
            continue;
        };
        // iptables' rules have TCP and UDP side by side for each port.
        if let Some(before) = all.last_mut()
            && before.len() == rules.len()
            && before.iter().zip(&rules).all(|(tcp, udp)| is_pair(tcp, udp))
        {
            *before = before.drain(..).zip(rules).flat_map(|(a, b)| [a, b]).collect();
            continue;
        }
        all.push(rules);
    }
    all.into_iter().flatten().collect()
}

/// Whether two rules differ in their protocol alone.
fn is_pair(tcp: &Rule, udp: &Rule) -> bool {
    let as_udp = tcp.matches.iter().map(|m| match m {
        Match::Protocol(Protocol::Tcp) => Match::Protocol(Protocol::Udp),
        other => other.clone(),
    });
    tcp.matches != udp.matches && as_udp.eq(udp.matches.iter().cloned()) && tcp.target == udp.target
}

struct RuleReader<'n> {
    family: Family,
    /// The chains that rules may jump to.
    names: &'n [(String, ChainName)],
}

impl RuleReader<'_> {
    /// The rules of one rule: one for each value of a set. None for a rule of the other family.
    fn rules(&self, exprs: &[Expr]) -> Option<Vec<Rule>> {
        let mut all: Vec<Vec<Match>> = vec![Vec::new()];
        let mut rest = exprs;
        let target = loop {
            let (taken, alternatives) = match rest {
                [Expr::Counter, ..] => (1, vec![Vec::new()]),
                _ => match self.condition(rest) {
                    Some(read) => read,
                    None => break self.target(rest)?,
                },
            };
            rest = rest.get(taken..)?;
            all = all
                .iter()
                .flat_map(|matches| {
                    alternatives.iter().map(|more| [matches.as_slice(), more].concat())
                })
                .collect();
        };
        Some(all.into_iter().map(|matches| Rule { matches, target: target.clone() }).collect())
    }

    /// The condition that these begin with: how many expressions it takes, and the matches that
    /// each of its values makes. None where they are no condition, or one that this family never
    /// meets.
    fn condition(&self, exprs: &[Expr]) -> Option<(usize, Vec<Vec<Match>>)> {
        let one = |taken, m: Match| Some((taken, vec![vec![m]]));
        match exprs {
            [Expr::LoadMeta(MetaField::Family), Expr::Compare(Comparison::Eq, data), ..] => {
                (*data == [nfproto(self.family)]).then(|| (2, vec![Vec::new()]))
            }
            [Expr::LoadMeta(MetaField::Protocol), Expr::Compare(Comparison::Eq, data), ..] => {
                one(2, Match::Protocol(protocol(data)?))
            }
            [Expr::LoadMeta(MetaField::OutInterface), Expr::Compare(Comparison::Ne, name), ..] => {
                match interface(MetaField::OutInterface, name)?.pop()? {
                    Match::OutInterface { name, .. } => {
                        one(2, Match::OutInterface { negated: true, name })
                    }
                    _ => None,
                }
            }
            [
                Expr::LoadMeta(field @ (MetaField::InInterface | MetaField::OutInterface)),
                condition,
                ..,
            ] => {
                let names = values(condition)?.into_iter().map(|(name, _)| name);
                let made = names.map(|name| interface(*field, &name));
                Some((2, made.collect::<Option<_>>()?))
            }
            [
                Expr::LoadMeta(MetaField::Uid),
                Expr::Swap,
                Expr::Range { negated, first, last },
                ..,
            ] => {
                let uid = |bytes: &[u8]| Uid::new(u32::from_be_bytes(bytes.try_into().ok()?));
                let users = UidRange::new(uid(first)?, uid(last)?)?;
                one(3, Match::Owner { negated: *negated, owner: Owner::Uids(users) })
            }
            [Expr::LoadMeta(field @ (MetaField::Uid | MetaField::Gid)), condition, ..] => {
                Some((2, owners(*field, condition)?))
            }
            [
                Expr::LoadMeta(MetaField::Mark),
                Expr::Mask(mask),
                Expr::Compare(how @ (Comparison::Eq | Comparison::Ne), data),
                ..,
            ] => {
                let negated = *how == Comparison::Ne;
                one(3, Match::Mark { negated, mark: bits(data, mask)? })
            }
            [
                Expr::LoadCt(CtField::Mark),
                Expr::Mask(mask),
                Expr::Compare(Comparison::Eq, data),
                ..,
            ] => one(3, Match::Connmark { negated: false, mark: bits(data, mask)? }),
            [
                Expr::LoadAddressType(side),
                Expr::Compare(how @ (Comparison::Eq | Comparison::Ne), data),
                ..,
            ] if *data == LOCAL.to_ne_bytes() => {
                let negated = *how == Comparison::Ne;
                one(2, Match::LocalAddress { side: *side, negated })
            }
            [Expr::LoadMeta(MetaField::Mark), Expr::Compare(how, data), ..] => {
                let negated = *how == Comparison::Ne;
                one(2, Match::Mark { negated, mark: whole(data)? })
            }
            [Expr::LoadCt(CtField::Mark), Expr::Compare(Comparison::Eq, data), ..] => {
                one(2, Match::Connmark { negated: false, mark: whole(data)? })
            }
            [
                Expr::LoadCt(CtField::State),
                Expr::Mask(mask),
                Expr::Compare(Comparison::Ne, _),
                ..,
            ] => one(3, Match::ConnState(states(mask)?)),
            [Expr::LoadPayload { header: Header::Network, offset, length }, rest @ ..] => {
                let (taken, made) = self.addresses(*offset, *length, rest)?;
                Some((taken + 1, made))
            }
            [
                Expr::LoadPayload { header, offset, length },
                Expr::Mask(mask),
                Expr::Compare(how @ (Comparison::Eq | Comparison::Ne), set),
                ..,
            ] if is_flags(*header, *offset, *length) => {
                let asked = mask[..] == FLAGS && set[..] == SYN;
                let syn = Match::Syn { negated: *how == Comparison::Ne };
                if asked { one(3, syn) } else { None }
            }
            [Expr::LoadPayload { header: Header::Transport, offset, .. }, rest @ ..] => {
                let side = if *offset == 0 { Side::Source } else { Side::Destination };
                let (taken, made) = ports(side, rest)?;
                Some((taken + 1, made))
            }
            _ => None,
        }
    }

    fn addresses(
        &self,
        offset: u32,
        length: u32,
        rest: &[Expr],
    ) -> Option<(usize, Vec<Vec<Match>>)> {
        let side = match (self.family, offset) {
            (Family::V4, 12) | (Family::V6, 8) => Side::Source,
            (Family::V4, 16) | (Family::V6, 24) => Side::Destination,
            _ => return None,
        };
        let made = |negated, cidrs: Vec<Cidr>| {
            let made = |cidr| vec![Match::Address { side, negated, cidr }];
            cidrs.into_iter().map(made).collect()
        };
        match rest {
            [Expr::Lookup { negated, set }, ..] => {
                let mut cidrs = networks(set, self.family)?;
                // The pod's own addresses stand in front of what else is left alone.
                cidrs.sort_by_key(|cidr| !cidr.address().is_loopback());
                Some((1, made(*negated, cidrs)))
            }
            [Expr::Mask(mask), Expr::Compare(how, data), ..] => {
                let length = mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
                let cidr = Cidr::new(address(data, self.family)?, u8::try_from(length).ok()?)?;
                Some((2, made(*how == Comparison::Ne, vec![cidr])))
            }
            [Expr::Compare(how, data), ..] => {
                let length = u8::try_from(length.checked_mul(8)?).ok()?;
                let cidr = Cidr::new(address(data, self.family)?, length)?;
                Some((1, made(*how == Comparison::Ne, vec![cidr])))
            }
            _ => None,
        }
    }

    fn target(&self, exprs: &[Expr]) -> Option<Target> {
        let rest: Vec<&Expr> = exprs.iter().filter(|e| **e != Expr::Counter).collect();
        Some(match rest.as_slice() {
            [Expr::Verdict(verdict)] => match verdict {
                NftVerdict::Accept => Target::Accept,
                NftVerdict::Drop => Target::Drop,
                NftVerdict::Return => Target::Return,
                NftVerdict::Jump(name) => {
                    let known = self.names.iter().find(|(native, _)| native == name);
                    Target::Jump(known?.1.clone())
                }
            },
            [Expr::Load(bytes), Expr::Redirect] => {
                Target::Redirect { port: listening(bytes)?, spelling: RedirectSpelling::ToPorts }
            }
            [Expr::Load(to), Expr::Dnat { family, port: false }] if *family == self.family => {
                Target::Dnat { address: address(to, *family)?, port: None }
            }
            [Expr::Load(to), Expr::LoadSecond(port), Expr::Dnat { family, port: true }]
                if *family == self.family =>
            {
                Target::Dnat { address: address(to, *family)?, port: Some(listening(port)?) }
            }
            [Expr::Load(bytes), Expr::StoreMeta(MetaField::Mark)] => Target::SetMark(whole(bytes)?),
            [
                Expr::Load(port),
                Expr::Tproxy(family),
                Expr::Load(mark),
                Expr::StoreMeta(MetaField::Mark),
                Expr::Verdict(NftVerdict::Accept),
            ] if *family == self.family => {
                Target::Tproxy { mark: whole(mark)?, port: listening(port)? }
            }
            [
                Expr::LoadCt(CtField::Mark),
                Expr::Edit { keep, flip },
                Expr::StoreCt(CtField::Mark),
            ] => {
                let (keep, value) = (whole(keep)?.value, whole(flip)?.value);
                // Bits that are flipped and kept would be turned over.
                let mark = Masked { value, mask: !keep };
                (keep & value == 0).then_some(Target::SetConnmark(mark))?
            }
            [Expr::LoadMeta(MetaField::Mark), Expr::StoreCt(CtField::Mark)] => Target::SaveMark,
            [Expr::LoadCt(CtField::Mark), Expr::StoreMeta(MetaField::Mark)] => Target::RestoreMark,
            [Expr::Load(bytes), Expr::StoreCt(CtField::Zone)] => {
                Target::Zone(Zone(u16::from_ne_bytes(bytes.as_slice().try_into().ok()?)))
            }
            _ => return None,
        })
    }
}
