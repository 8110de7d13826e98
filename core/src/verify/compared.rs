//! What connections that were made can't tell, since there are more than can be made: whether rules
//! treat any connection otherwise than the configuration does.

use std::fmt;

use serde::Serialize;

use super::bypassed::Bypassed;
use crate::policy::{CapturePolicy, DnsCapture};
use crate::sim::report::{Words, class_words};
use crate::sim::{Change, Class, Namespace, Outcome, Program, Question, changes};
use crate::value::Family;

/// How many kinds of connections are told one by one.
const TOLD: usize = 8;

/// Connections that the rules which are there treat otherwise than the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Otherwise {
    /// The IP version of all of them.
    pub family: Family,
    /// In words: user, group and source, or the interface by which they arrive.
    pub who: String,
    /// In words: protocol, destination and ports.
    pub to: String,
    /// One of them, with an address and a port of its own.
    pub example: Question,
    /// What becomes of them by the configuration.
    pub expected: Outcome,
    /// What becomes of them by the rules that are there.
    pub outcome: Outcome,
    /// The rule that decides so; none where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

impl fmt::Display for Otherwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, who, to, example, expected, outcome, by } = self;
        let by = by.as_deref().unwrap_or("no rule");
        write!(f, "{family} {who}, to {to}: {outcome}, by {by}; expected: {expected}; ")?;
        write!(f, "for example {example}")
    }
}

/// How rules differ from the configuration, and what can't be told of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Connections of which the proxy gets one that it should not, or does not get one that it should;
    /// the first few.
    pub wrong: Vec<Otherwise>,
    /// How many kinds of them there are.
    pub count: usize,
    /// What does not count against the capture: what rules of others do with what it leaves alone.
    pub beside: Option<String>,
    /// In words, the first of those of which it can't be told; none without any.
    pub unclear: Option<String>,
}

impl Compared {
    /// How many kinds of connections there are beside those that are told.
    pub const fn untold(&self) -> usize {
        self.count.saturating_sub(self.wrong.len())
    }
}

/// Compare the rules that are there with those of a policy, each in its namespace.
pub fn compared(
    policy: &CapturePolicy,
    wanted: (&Program, &Namespace),
    real: (&Program, &Namespace),
) -> Compared {
    let mut found = Compared::default();
    let (mut wrong, mut others, mut unclear) = (Vec::new(), Vec::new(), Vec::new());
    let mut of_family = [0; Family::ALL.len()];
    let bypassed = Bypassed::by(policy);
    for class in changes(wanted, real) {
        let weight = weight(policy, &bypassed, &class);
        let one = otherwise(real.0, class);
        match weight {
            Weight::Capture => {
                let place = &mut of_family[usize::from(one.family == Family::V6)];
                *place += 1;
                wrong.push((*place, one));
            }
            Weight::Beside => others.push(one),
            Weight::Unclear => unclear.push(one),
        }
    }
    found.count = wrong.len();
    // Of both families, and first what somebody gets or a rule stops: for others the kernel has no use.
    let is_void = |one: &Otherwise| is_lost(&one.outcome) && one.by.is_none();
    wrong.sort_by_key(|(place, one)| (is_void(one), *place, one.family));
    found.wrong = wrong.into_iter().take(TOLD).map(|(_, one)| one).collect();
    unclear.sort_by_key(|one| !matches!(one.expected, Outcome::Captured { .. }));
    let reported = |what: &str, list: &[Otherwise]| {
        let first = list.first()?;
        let more = match list.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some(format!("{what}: {first}{more}"))
    };
    found.beside = reported("rules do more than the configuration's", &others);
    found.unclear = reported("whether rules treat these as expected can't be told", &unclear);
    found
}

enum Weight {
    /// The proxy gets what it should not, or not what it should.
    Capture,
    /// The proxy has no part in it.
    Beside,
    /// What becomes of it is unknown on one side at least.
    Unclear,
}

/// What a difference is to the capture. Rules of others that translate or drop what the
/// configuration does not speak of, as those of services and firewalls do, are no fault of it; nor
/// are those that drop what it excludes. But what it excludes gets where it was sent, or nowhere.
fn weight(policy: &CapturePolicy, bypassed: &Bypassed<'_>, class: &Class<Change>) -> Weight {
    let Change { before, after } = &class.answer;
    match (&before.outcome, &after.outcome) {
        (Outcome::Unknown { .. }, _) | (_, Outcome::Unknown { .. }) => Weight::Unclear,
        // What somebody marks to be dropped gets past nobody, as kube-proxy's.
        (Outcome::Captured { .. }, lost) if is_lost(lost) && class.example.mark != 0 => {
            Weight::Beside
        }
        (Outcome::Captured { .. }, _) => Weight::Capture,
        (_, Outcome::Captured { port, .. }) if is_of(policy, *port) => Weight::Capture,
        (_, Outcome::Captured { .. } | Outcome::Led { .. }) if bypassed.has(class) => {
            Weight::Capture
        }
        // A rule of the configuration says so.
        (wanted, _) if is_lost(wanted) && !before.decided.is_empty() => Weight::Capture,
        _ => Weight::Beside,
    }
}

const fn is_lost(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Dropped { .. } | Outcome::Refused)
}

/// Whether the proxy listens there.
fn is_of(policy: &CapturePolicy, port: Option<u16>) -> bool {
    let dns = policy.dns.as_ref().and_then(DnsCapture::listener);
    let ports = [policy.outbound.port.value, policy.inbound.port.value];
    ports.into_iter().chain(dns).any(|of| Some(of.get()) == port)
}

fn otherwise(real: &Program, class: Class<Change>) -> Otherwise {
    let Words { who, to } = class_words(&class);
    let family = class.family();
    let Change { before, after } = class.answer;
    let by = after.decided.last().map(|rule| real.line(*rule));
    let (expected, outcome) = (before.outcome, after.outcome);
    Otherwise { family, who, to, example: class.example, expected, outcome, by }
}
