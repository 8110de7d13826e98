//! The codec: what is written is read back, and no bytes at all make it panic or go on for ever.

use millrace_core::iptables::Extension;
use millrace_core::nft::expr::{Comparison, CtField, Expr, Header, MetaField, NftVerdict};
use millrace_core::nft::set::{Set, SetKind};
use millrace_core::nft::xtables;
use millrace_core::ruleset::Side;
use millrace_core::value::Family;
use netlink_packet_core::Emitable as _;
use netlink_packet_netfilter::nftables::ListAttribute;
use proptest::prelude::*;

use super::attributes::encode;
use super::batch::ANONYMOUS;
use super::decode::{counters, decode};
use super::raw::{Answer, Attributes};
use super::xtables::read_rule;
use crate::netlink::messages;

fn meta_fields() -> impl Strategy<Value = MetaField> {
    use MetaField::{Family, Gid, InInterface, Mark, OutInterface, Protocol, Uid};
    prop::sample::select(vec![Mark, InInterface, OutInterface, Uid, Gid, Family, Protocol])
}

fn ct_fields() -> impl Strategy<Value = CtField> {
    prop::sample::select(vec![CtField::State, CtField::Mark, CtField::Zone])
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..17)
}

fn exprs() -> impl Strategy<Value = Expr> {
    use Comparison::{Eq, Ge, Le, Ne};
    let header = prop::sample::select(vec![Header::Network, Header::Transport]);
    let payload = (header, 0..64_u32, 1..17_u32)
        .prop_map(|(header, offset, length)| Expr::LoadPayload { header, offset, length });
    let compare = (prop::sample::select(vec![Eq, Ne, Ge, Le]), bytes())
        .prop_map(|(how, data)| Expr::Compare(how, data));
    let ports = prop::collection::vec((any::<u16>(), any::<u16>()), 1..6);
    let lookup = (any::<bool>(), ports).prop_map(|(negated, ports)| {
        let ends =
            |(a, b): (u16, u16)| (a.min(b).to_be_bytes().to_vec(), a.max(b).to_be_bytes().to_vec());
        let set = Set::new(SetKind::Ports, ports.into_iter().map(ends).collect());
        Expr::Lookup { negated, set }
    });
    let verdict = prop_oneof![
        prop::sample::select(vec![NftVerdict::Accept, NftVerdict::Drop, NftVerdict::Return]),
        "[a-z-]{1,20}".prop_map(NftVerdict::Jump),
    ];
    let range = (any::<bool>(), bytes(), bytes()).prop_map(|(negated, first, last)| Expr::Range {
        negated,
        first,
        last,
    });
    // One that turns nothing over is a mask.
    let edit = (bytes(), bytes()).prop_filter_map("a mask", |(keep, mut flip)| {
        flip.resize(keep.len(), 1);
        flip.iter().any(|byte| *byte != 0).then_some(Expr::Edit { keep, flip })
    });
    let extension = || {
        ("[a-zA-Z]{1,20}", any::<u8>(), bytes()).prop_map(|(name, revision, data)| Extension {
            name,
            revision,
            data,
        })
    };
    prop_oneof![
        range,
        extension().prop_map(Expr::Match),
        extension().prop_map(Expr::Target),
        Just(Expr::LoadTransparent),
        prop::sample::select(vec![Side::Source, Side::Destination]).prop_map(Expr::LoadAddressType),
        meta_fields().prop_map(Expr::LoadMeta),
        meta_fields().prop_map(Expr::StoreMeta),
        ct_fields().prop_map(Expr::LoadCt),
        ct_fields().prop_map(Expr::StoreCt),
        payload,
        bytes().prop_map(Expr::Load),
        bytes().prop_map(Expr::Mask),
        edit,
        compare,
        lookup,
        Just(Expr::Counter),
        Just(Expr::Redirect),
        prop::sample::select(vec![Family::V4, Family::V6]).prop_map(Expr::Tproxy),
        verdict.prop_map(Expr::Verdict),
    ]
}

proptest! {
    /// Verify through the bytes that go to the kernel.
    #[test]
    fn an_expression_is_read_as_it_was_written(expr in exprs()) {
        let ListAttribute::Element(written) = ListAttribute::from(encode(&expr, 1)) else {
            return Err(TestCaseError::fail("not an element of a list"));
        };
        let mut bytes = vec![0; written.as_slice().buffer_len()];
        written.as_slice().emit(&mut bytes);
        let there = match &expr {
            Expr::Lookup { set, .. } => Some(set.clone()),
            _ => None,
        };
        let sets = |name: &str| there.clone().filter(|_| name == ANONYMOUS);
        prop_assert_eq!(decode(Attributes(&bytes), sets), Ok(expr));
    }

    /// Verify with bytes of every kind, and with whole messages of which some are wrong.
    #[test]
    fn no_bytes_do_harm(
        noise in prop::collection::vec(any::<u8>(), 0..400),
        kind in 0..40_u8,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let _result = messages::<Answer>(&noise);
        // A message of nf_tables with the noise as its attributes (linux/netlink.h).
        let length = u32::try_from(20 + noise.len()).unwrap_or(u32::MAX);
        let mut message = length.to_ne_bytes().to_vec();
        message.extend([kind, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        message.extend(&noise);
        message.resize(message.len().next_multiple_of(4), 0);
        let _result = messages::<Answer>(&message);
        for (index, byte) in flips {
            let at = index.index(message.len());
            message[at] = byte;
        }
        let _result = messages::<Answer>(&message);
    }

    /// Verify that attributes which make no sense are named, or taken for nothing.
    #[test]
    fn no_attributes_do_harm(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        expr in exprs(),
    ) {
        let _result = decode(Attributes(&noise), |_| None);
        let ListAttribute::Element(written) = ListAttribute::from(encode(&expr, 1)) else {
            return Err(TestCaseError::fail("not an element of a list"));
        };
        let mut bytes = vec![0; written.as_slice().buffer_len()];
        written.as_slice().emit(&mut bytes);
        for (index, byte) in flips {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let _result = decode(Attributes(&bytes), |_| None);
        let _result = counters(Attributes(&bytes));
        for family in Family::ALL {
            let _rule = read_rule(Attributes(&noise), family, true);
        }
    }

    /// Verify the same for rules of iptables, whatever their matches and targets hold.
    #[test]
    fn no_rule_of_iptables_does_harm(
        exprs in prop::collection::vec(exprs(), 0..8),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        name in "owner|multiport|conntrack|connmark|comment|REDIRECT|TPROXY|CT|MARK|CONNMARK",
        revision in 0..4_u8,
    ) {
        let extension = Extension { name, revision, data: noise };
        let mut exprs: Vec<_> = exprs.into_iter().map(Ok).collect();
        exprs.push(Ok(Expr::Match(extension.clone())));
        exprs.push(Ok(Expr::Target(extension)));
        for family in Family::ALL {
            let _read = xtables::decode(&exprs, family);
        }
    }
}
