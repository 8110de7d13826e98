//! The steps of a rule in words, for rules that were read in no language of people.

use super::super::fib::ReturnRoute;
use super::super::flags::Flags;
use super::super::rule::{Action, Step, Test, Way, numbers};
use super::super::test::masked;
use crate::ruleset::{Masked, Side};
use crate::value::{Family, InterfacePattern};

/// Conditions and actions in words, with blanks between, in their order.
pub(super) fn words(steps: &[Step]) -> String {
    let words: Vec<String> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Test(test) => Some(test_words(test)),
            Step::Do(action) => action_words(action),
        })
        .collect();
    words.join(" ")
}

const fn not(negated: bool) -> &'static str {
    if negated { "!= " } else { "" }
}

const fn side_words(side: Side) -> &'static str {
    match side {
        Side::Source => "source",
        Side::Destination => "destination",
    }
}

fn test_words(test: &Test) -> String {
    match test {
        Test::Is { field, negated, set, family, .. } => {
            let values = field.values(set, family.unwrap_or(Family::V6));
            format!("{} {}{values}", field.name(), not(*negated))
        }
        Test::EitherPort { negated, set } => {
            let values = super::Field::Port.values(set, Family::V6);
            format!("either port {}{values}", not(*negated))
        }
        Test::AtPort { side, negated, set } => {
            let at = match side {
                Side::Source => "bytes 0-1",
                Side::Destination => "bytes 2-3",
            };
            let values = super::Field::Port.values(set, Family::V6);
            format!("{at} of the transport header {}{values}", not(*negated))
        }
        Test::Family(family) => family.to_string(),
        Test::Interface { way, negated, names } => {
            let way = match way {
                Way::In => "in",
                Way::Out => "out",
            };
            let names: Vec<&str> = names.iter().map(InterfacePattern::as_str).collect();
            format!("{way} by {}{}", not(*negated), names.join(","))
        }
        Test::Mark { connection, negated, mark } => {
            let of = if *connection { "connection's mark" } else { "mark" };
            format!("{of} {}{}", not(*negated), masked(*mark))
        }
        Test::State { negated, states } => format!("state {}{states}", not(*negated)),
        Test::Local { side, negated } => {
            format!("{} {}of this host", side_words(*side), not(*negated))
        }
        Test::AddressType { side, negated, types } => {
            format!("type of {} {}{types}", side_words(*side), not(*negated))
        }
        Test::ForThisHost { negated } => format!("{}for this host alone", not(*negated)),
        Test::Extension { negated, number } => {
            format!("extension header {}{number}", not(*negated))
        }
        Test::ReturnRoute(ReturnRoute { negated, mark, loose, own }) => {
            let which = [(*mark, " with its mark"), (*own, " or from here")];
            let which = which.into_iter().filter(|(is, _)| *is).map(|(_, words)| words);
            let by = if *loose { "any interface" } else { "the same interface" };
            format!("{}a way back by {by}{}", not(*negated), which.collect::<String>())
        }
        Test::OriginalEnd { field, negated, set, family } => {
            let values = field.values(set, family.unwrap_or(Family::V6));
            format!("original {} {}{values}", field.name(), not(*negated))
        }
        Test::Original { negated: false } => "first way".to_owned(),
        Test::Original { negated: true } => "way back".to_owned(),
        Test::Syn { negated } => format!("{}first packet", not(*negated)),
        Test::TcpFlags { negated, mask, value } => {
            let (mask, value) = (Flags::names(*mask), Flags::names(*value));
            format!("TCP flags {}{value} of {mask}", not(*negated))
        }
        Test::Socket { negated } => format!("{}from a socket", not(*negated)),
        Test::Icmp { negated, types } => {
            format!("type of ICMP {}{}", not(*negated), numbers(types))
        }
        Test::Unknown(what) => what.clone(),
    }
}

fn action_words(action: &Action) -> Option<String> {
    let ports = |ports: &Option<(u16, u16)>| match ports {
        Some((first, last)) if first == last => format!(" to port {first}"),
        Some((first, last)) => format!(" to port {first}-{last}"),
        None => String::new(),
    };
    Some(match action {
        Action::Accept => "accept".to_owned(),
        Action::Drop => "drop".to_owned(),
        Action::Reject(_) => "reject".to_owned(),
        Action::Return => "return".to_owned(),
        Action::Jump(chain) => format!("jump {chain}"),
        Action::Goto(chain) => format!("goto {chain}"),
        Action::Redirect(to) => format!("redirect{}", ports(to)),
        Action::Dnat(to) | Action::Snat(to) => {
            let what = if matches!(action, Action::Dnat(_)) { "dnat" } else { "snat" };
            let address = to.address.map_or_else(String::new, |a| format!(" to {a}"));
            format!("{what}{address}{}", ports(&to.ports))
        }
        Action::Masquerade(to) => format!("masquerade{}", ports(to)),
        Action::Tproxy { port, .. } => format!("tproxy{}", ports(&port.map(|p| (p, p)))),
        Action::Connect { address: None, port } => {
            format!("connect{}", ports(&port.map(|p| (p, p))))
        }
        Action::Connect { address: Some(address), port } => {
            format!("connect to {address}{}", ports(&port.map(|p| (p, p))))
        }
        Action::Hand(port) => format!("hand to port {port}"),
        Action::Mark(change) | Action::Connmark(change) => {
            let of = if matches!(action, Action::Mark(_)) { "mark" } else { "connection's mark" };
            let mark = Masked { value: change.flip, mask: !change.keep };
            format!("set {of} {}", masked(mark))
        }
        Action::Save { .. } => "save mark".to_owned(),
        Action::Restore { .. } => "restore mark".to_owned(),
        Action::Zone(zone) => format!("zone {zone}"),
        Action::Notrack => "notrack".to_owned(),
        Action::Tos => "set type of service".to_owned(),
        Action::Note => return None,
        Action::Effect(what) | Action::Unknown(what) => what.clone(),
    })
}
