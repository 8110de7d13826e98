//! From rules in their own language to steps of a walk.

mod arp;
mod beside;
mod ebpf;
mod iptables;
mod json;
mod modules;
mod native;
mod nft;
mod options;
mod registers;
mod text;
mod words;

use std::cell::Cell;

use crate::ruleset::Side;
use crate::value::{Cidr, Family};
pub(super) use beside::CHOSEN;

use super::question::Protocol;
use super::ranges::Ranges;
use super::rule::{Field, Test};

pub use arp::hindering_arp;
pub use ebpf::{EBPF, Listening, of_ebpf};
pub(super) use iptables::is_called;
pub use iptables::{of_dump, of_ruleset};
pub use json::{Listed, NotNft, of_nft_json};
pub use native::{of_listed, of_native};

/// The `holder` of tables of native nftables.
pub(super) const NATIVE: &str = "nftables";
pub use nft::of_nft;

fn protocol(number: Protocol, negated: bool) -> Test {
    is(Field::Protocol, negated, Ranges::one(number.0.into()))
}

fn ports(side: Side, negated: bool, set: Ranges) -> Test {
    is(Field::port(side), negated, set)
}

/// An address in one of these networks, all of one family.
fn addresses(side: Side, negated: bool, cidrs: &[Cidr], family: Family) -> Test {
    let networks: Vec<Ranges> = cidrs.iter().map(|cidr| Ranges::network(*cidr)).collect();
    let set = networks.iter().flat_map(Ranges::iter).collect();
    Test::Is { field: Field::address(side), negated, set, family: Some(family), socket: false }
}

/// How many rules the elements of maps may still be: rules that ask the same map are as many as both
/// together, which nobody has to keep for somebody's namespace.
pub(super) struct Left(Cell<usize>);

impl Left {
    /// Some ten times what a proxy of a large cluster's services has.
    const FIRST: usize = 300_000;

    fn new() -> Self {
        Self(Cell::new(Self::FIRST))
    }

    const fn is_none(&self) -> bool {
        self.0.get() == 0
    }

    /// Take so many; where there are not as many, none are left.
    fn take(&self, many: usize) -> bool {
        let left = self.0.get().checked_sub(many);
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }
}

/// The same asked of the connection as it was before any translation.
fn original(test: Test) -> Option<Test> {
    match test {
        Test::Is { field, negated, set, family, .. } => {
            Some(Test::OriginalEnd { field, negated, set, family })
        }
        _ => None,
    }
}

/// An option of TCP that is set, by its number and the first of its bytes that is meant.
fn option_words(option: u32, offset: u32, value: &str) -> String {
    format!("tcp option {option} at {offset} {value}")
}

const fn is(field: Field, negated: bool, set: Ranges) -> Test {
    Test::Is { field, negated, set, family: None, socket: false }
}
