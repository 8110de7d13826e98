//! Rules as the walk knows them, in the kernel's terms again: so settings can be read back from a
//! list of nft as from the kernel.

use std::net::IpAddr;

use crate::dialect::NFT_TABLES;
use crate::nft::expr::{
    Comparison, CtField, Expr, Header, MetaField, NftVerdict, interface_name, nfproto, only_syn,
};
use crate::nft::set::{Set, SetKind};
use crate::nft::tables::{Base, NativeChain, NativeTables};
use crate::ruleset::Masked;
use crate::sim::{
    Action, Field, Kind, MarkChange, Policy, Ranges, SourceChain, SourceRule, SourceTable, States,
    Step, Test, Translation, Way,
};
use crate::value::Family;

/// Tables of every dialect among these. A rule that Millrace does not write is in words.
pub fn of_saved(tables: &[SourceTable]) -> NativeTables {
    let ours = |table: &&SourceTable| {
        table.families == Family::ALL && NFT_TABLES.contains(&table.name.as_str())
    };
    let chain = |chain: &SourceChain| {
        let rule = |rule: &SourceRule| {
            let exprs: Option<Vec<Vec<Expr>>> = rule.steps.iter().map(exprs).collect();
            exprs.map(|exprs| exprs.concat()).ok_or_else(|| rule.text.clone())
        };
        let base = chain.base.as_ref().map(|base| {
            let kind = match base.kind {
                Kind::Filter => "filter",
                Kind::Route => "route",
                Kind::Nat => "nat",
                Kind::Socket => "socket",
            };
            Base { kind: kind.to_owned(), hook: base.hook.number(), priority: base.priority }
        });
        let drops = chain.base.as_ref().is_some_and(|base| base.policy == Policy::Drop);
        let rules = chain.rules.iter().map(rule).collect();
        (chain.name.clone(), NativeChain { base, drops, rules })
    };
    let table =
        |table: &SourceTable| (table.name.clone(), table.chains.iter().map(chain).collect());
    tables.iter().filter(ours).map(table).collect()
}

fn exprs(step: &Step) -> Option<Vec<Expr>> {
    match step {
        Step::Test(test) => condition(test),
        Step::Do(action) => self::action(action),
    }
}

fn condition(test: &Test) -> Option<Vec<Expr>> {
    let compare = |negated| if negated { Comparison::Ne } else { Comparison::Eq };
    Some(match test {
        Test::Family(family) => vec![
            Expr::LoadMeta(MetaField::Family),
            Expr::Compare(Comparison::Eq, vec![nfproto(*family)]),
        ],
        Test::Is { field: Field::Protocol, negated: false, set, .. } => vec![
            Expr::LoadMeta(MetaField::Protocol),
            Expr::Compare(Comparison::Eq, vec![u8::try_from(set.single()?).ok()?]),
        ],
        Test::Is { field, negated, set, family, .. } => {
            let (load, kind) = load(*field, *family)?;
            vec![load, Expr::Lookup { negated: *negated, set: values(kind, set) }]
        }
        Test::Interface { way: Way::Out, negated: true, names } if names.len() == 1 => vec![
            Expr::LoadMeta(MetaField::OutInterface),
            Expr::Compare(Comparison::Ne, names.iter().flat_map(interface_name).collect()),
        ],
        Test::Interface { way, negated: false, names } => {
            let field = match way {
                Way::In => MetaField::InInterface,
                Way::Out => MetaField::OutInterface,
            };
            let condition = match &names[..] {
                [name] => Expr::Compare(Comparison::Eq, interface_name(name)),
                names => {
                    let ranges = names.iter().map(|name| {
                        let bytes = interface_name(name);
                        (bytes.clone(), bytes)
                    });
                    let set = Set::new(SetKind::Interfaces, ranges.collect());
                    Expr::Lookup { negated: false, set }
                }
            };
            vec![Expr::LoadMeta(field), condition]
        }
        Test::Mark { connection, negated, mark } => {
            let load = if *connection {
                Expr::LoadCt(CtField::Mark)
            } else {
                Expr::LoadMeta(MetaField::Mark)
            };
            let mask = (mark.mask != u32::MAX).then(|| mark.mask.to_ne_bytes().to_vec());
            let compared = Expr::Compare(compare(*negated), mark.value.to_ne_bytes().to_vec());
            [load].into_iter().chain(mask.map(Expr::Mask)).chain([compared]).collect()
        }
        Test::Syn { negated } => only_syn(*negated).to_vec(),
        Test::State { negated: false, states } => {
            // `NF_CT_STATE_INVALID_BIT`, `NF_CT_STATE_BIT()`
            let known = [
                (States::INVALID, 1),
                (States::ESTABLISHED, 2),
                (States::RELATED, 4),
                (States::NEW, 8),
            ];
            let bits = known.iter().filter(|(state, _)| states.meets(*state));
            let mask = bits.fold(0_u32, |all, (_, bit)| all | bit);
            vec![
                Expr::LoadCt(CtField::State),
                Expr::Mask(mask.to_ne_bytes().to_vec()),
                Expr::Compare(Comparison::Ne, vec![0; 4]),
            ]
        }
        _ => return None,
    })
}

fn load(field: Field, family: Option<Family>) -> Option<(Expr, SetKind)> {
    let address = |v4, v6| {
        let (offset, length, kind) = match family? {
            Family::V4 => (v4, 4, SetKind::Ipv4),
            Family::V6 => (v6, 16, SetKind::Ipv6),
        };
        Some((Expr::LoadPayload { header: Header::Network, offset, length }, kind))
    };
    let port = |offset| {
        let load = Expr::LoadPayload { header: Header::Transport, offset, length: 2 };
        Some((load, SetKind::Ports))
    };
    match field {
        Field::Source => address(12, 8),
        Field::Destination => address(16, 24),
        Field::SourcePort => port(0),
        Field::Port => port(2),
        Field::Uid => Some((Expr::LoadMeta(MetaField::Uid), SetKind::Uids)),
        Field::Gid => Some((Expr::LoadMeta(MetaField::Gid), SetKind::Gids)),
        Field::Protocol => None,
    }
}

fn values(kind: SetKind, set: &Ranges) -> Set {
    let bytes = |value: u128| {
        let all = value.to_be_bytes();
        let mut bytes = all[all.len() - kind.length()..].to_vec();
        // Ids are compared as the processor has them.
        if matches!(kind, SetKind::Uids | SetKind::Gids) && cfg!(target_endian = "little") {
            bytes.reverse();
        }
        bytes
    };
    Set::new(kind, set.iter().map(|(first, last)| (bytes(first), bytes(last))).collect())
}

fn action(action: &Action) -> Option<Vec<Expr>> {
    let verdict = |verdict| Some(vec![Expr::Verdict(verdict)]);
    let port = |port: u16| Expr::Load(port.to_be_bytes().to_vec());
    match action {
        Action::Accept => verdict(NftVerdict::Accept),
        Action::Drop => verdict(NftVerdict::Drop),
        Action::Return => verdict(NftVerdict::Return),
        Action::Jump(chain) => verdict(NftVerdict::Jump(chain.clone())),
        Action::Note => Some(vec![Expr::Counter]),
        Action::Redirect(Some((first, last))) if first == last => {
            Some(vec![port(*first), Expr::Redirect])
        }
        Action::Dnat(Translation { address: Some(address), ports }) => {
            let octets = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            let mut exprs = vec![Expr::Load(octets)];
            match ports {
                Some((first, last)) if first == last => {
                    exprs.push(Expr::LoadSecond(first.to_be_bytes().to_vec()));
                }
                Some(_) => return None,
                None => {}
            }
            exprs.push(Expr::Dnat { family: Family::of(*address), port: ports.is_some() });
            Some(exprs)
        }
        Action::Tproxy { port: Some(to), address: None, family: Some(family), .. } => {
            Some(vec![port(*to), Expr::Tproxy(*family)])
        }
        Action::Mark(change) if *change == MarkChange::set(Masked::exact(change.flip)) => {
            let mark = Expr::Load(change.flip.to_ne_bytes().to_vec());
            Some(vec![mark, Expr::StoreMeta(MetaField::Mark)])
        }
        Action::Connmark(MarkChange { keep, flip }) => Some(vec![
            Expr::LoadCt(CtField::Mark),
            Expr::Edit { keep: keep.to_ne_bytes().to_vec(), flip: flip.to_ne_bytes().to_vec() },
            Expr::StoreCt(CtField::Mark),
        ]),
        Action::Save { packet: u32::MAX, connection: u32::MAX } => {
            Some(vec![Expr::LoadMeta(MetaField::Mark), Expr::StoreCt(CtField::Mark)])
        }
        Action::Restore { packet: u32::MAX, connection: u32::MAX } => {
            Some(vec![Expr::LoadCt(CtField::Mark), Expr::StoreMeta(MetaField::Mark)])
        }
        Action::Zone(zone) => {
            Some(vec![Expr::Load(zone.to_ne_bytes().to_vec()), Expr::StoreCt(CtField::Zone)])
        }
        _ => None,
    }
}
