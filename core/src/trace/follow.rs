//! From what the kernel tells, piece by piece and of many packets at once, to one packet's way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::filter::{AWAY, HERE, IN, OUT};
use super::{Head, Heard, Said, TABLE_PREFIX, Tables, TraceVerdict};
use crate::ruleset::Hook;
use crate::sim::{Direction, Protocol};

/// How long a packet may go without a word before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many packets are followed at once; the oldest is given up for another one.
const MOST: usize = 4096;

/// How long nothing may be seen of a connection without a handshake until its next packet counts as
/// the first of another one (`nf_conntrack_udp_timeout`).
const FORGET: Duration = Duration::from_secs(30);

/// A thing told of a packet, and the packet as it was then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// A rule that matched, the end of a chain, or a policy.
    pub heard: Heard,
    /// The packet's addresses, ports, mark and interfaces at that moment.
    pub head: Head,
}

/// How a packet's way ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All rules let it go to a socket of the namespace.
    Here(Head),
    /// It left by an interface.
    Away(Head),
    /// It was discarded, where the last step says.
    Dropped,
    /// Neither an end nor a drop was told; the last step may say more.
    Silence,
}

/// The way of one packet, from where it began to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journey {
    /// Whether it was made here or came from outside.
    pub direction: Direction,
    /// The packet as it began.
    pub first: Head,
    /// What was told of it, in the order in which it was told.
    pub steps: Vec<Step>,
    /// Where it arrived or was discarded, or that nothing more was told.
    pub end: End,
}

#[derive(Clone, Debug)]
struct Open {
    journey: Journey,
    /// The kernel's number of it now.
    id: Option<u32>,
    /// The packet as it is now.
    head: Head,
    /// When anything was told of it last.
    last: Duration,
    ended: bool,
}

/// Follows the packets that a table of its own makes the kernel tell of, and no others.
#[derive(Clone, Debug)]
pub struct Follower {
    table: String,
    /// Whether every packet is told of, or only the first of each connection.
    every: bool,
    open: Vec<Open>,
    /// What was logged of packets that are not known yet: another source tells of their beginning.
    early: Vec<(Heard, Duration)>,
    /// Connections of other protocols than TCP, each way, and when they were last seen.
    known: BTreeMap<(Protocol, SocketAddr, SocketAddr), Duration>,
    /// When those were last looked through for old ones.
    swept: Duration,
}

impl Follower {
    /// For the table of this name; `every` packet is told of, or only the first of each connection.
    pub const fn new(table: String, every: bool) -> Self {
        Self {
            table,
            every,
            open: Vec::new(),
            early: Vec::new(),
            known: BTreeMap::new(),
            swept: Duration::ZERO,
        }
    }

    /// Take what was told: what `nf_tables` tells first, then what is logged. `now` is the time since
    /// any moment that stays the same.
    pub fn hear(&mut self, heard: impl IntoIterator<Item = Heard>, now: Duration) {
        let mut logged = std::mem::take(&mut self.early);
        for heard in heard {
            if matches!(heard.tables, Tables::Legacy(_)) {
                logged.push((heard, now));
            } else if heard.tables == Tables::Inet && heard.table == self.table {
                self.marker(heard, now);
            } else if !heard.table.starts_with(TABLE_PREFIX) {
                self.rule(heard, now);
            }
        }
        for (heard, since) in logged {
            if let Some(heard) = self.logged(heard, now)
                && now.saturating_sub(since) < PATIENCE
                && self.early.len() < MOST
            {
                self.early.push((heard, since));
            }
        }
    }

    /// A packet met a rule of `nf_tables`, or the end of a chain.
    fn rule(&mut self, heard: Heard, now: Duration) {
        let Some(open) = self.find(&heard) else { return };
        open.last = now;
        open.take(&heard);
        if matches!(
            heard.said,
            Said::Rule(_, TraceVerdict::Drop) | Said::Policy(TraceVerdict::Drop)
        ) {
            open.ended = true;
            open.journey.end = End::Dropped;
        }
        let head = open.head.clone();
        open.journey.steps.push(Step { heard, head });
    }

    /// A packet met a rule of iptables-legacy, which tells of it side by side with `nf_tables`: its
    /// end may be known already. Gives back what no known packet met.
    fn logged(&mut self, heard: Heard, now: Duration) -> Option<Heard> {
        let Some(head) = heard.head.clone() else { return Some(heard) };
        let is = |open: &Open| head.is(&open.head);
        let alive = self.open.iter().rposition(|open| !open.ended && is(open));
        let at = alive.or_else(|| self.open.iter().rposition(is));
        let Some(open) = at.and_then(|at| self.open.get_mut(at)) else { return Some(heard) };
        open.last = now;
        if heard.hook == Some(Hook::Output) {
            let first = &mut open.journey.first;
            (first.uid, first.gid) = (head.uid.or(first.uid), head.gid.or(first.gid));
        }
        open.journey.steps.push(Step { heard, head });
        None
    }

    /// The own table says where packets begin and end.
    fn marker(&mut self, heard: Heard, now: Duration) {
        match (heard.chain.as_str(), heard.said) {
            (OUT | IN, Said::Rule(..)) => {
                let Some(head) = heard.head else { return };
                if !self.every && self.is_known(&head, now) {
                    return;
                }
                let direction = if heard.chain == IN { Direction::In } else { Direction::Out };
                let (first, end) = (head.clone(), End::Silence);
                let journey = Journey { direction, first, steps: Vec::new(), end };
                self.open.push(Open { journey, id: heard.id, head, last: now, ended: false });
            }
            (HERE | AWAY, said) => {
                let Some(open) = self.find(&heard) else { return };
                open.last = now;
                open.take(&heard);
                if !matches!(said, Said::Policy(_)) {
                    return;
                }
                let away = heard.chain == AWAY;
                let by_loopback = open.head.output.as_deref() == Some("lo");
                // What goes out by lo comes in by it.
                if !(away && by_loopback) {
                    let head = open.head.clone();
                    let answer = (head.protocol, head.destination, head.source);
                    open.journey.end = if away { End::Away(head) } else { End::Here(head) };
                    open.ended = true;
                    if answer.0 != Protocol::TCP {
                        self.known.insert(answer, now);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether it belongs to a connection of which a packet was seen already. The first one of TCP
    /// is known by its flags.
    fn is_known(&mut self, head: &Head, now: Duration) -> bool {
        if head.protocol == Protocol::TCP {
            return false;
        }
        if now.saturating_sub(self.swept) >= FORGET {
            self.swept = now;
            self.known.retain(|_, seen| now.saturating_sub(*seen) < FORGET);
        }
        let connection = (head.protocol, head.source, head.destination);
        let seen = self.known.insert(connection, now);
        seen.is_some_and(|seen| now.saturating_sub(seen) < FORGET)
    }

    fn find(&mut self, heard: &Heard) -> Option<&mut Open> {
        let by_id = |open: &Open| heard.id.is_some() && open.id == heard.id;
        let by_head = |open: &Open| heard.head.as_ref().is_some_and(|head| head.is(&open.head));
        let at = |is: &dyn Fn(&Open) -> bool| self.open.iter().rposition(|o| !o.ended && is(o));
        let at = at(&by_id).or_else(|| at(&by_head))?;
        self.open.get_mut(at)
    }

    /// What has ended, or of which nothing was told for long. In the order in which it began.
    pub fn ended(&mut self, now: Duration) -> Vec<Journey> {
        let surplus = self.open.len().saturating_sub(MOST);
        let mut at = 0;
        let over = |open: &mut Open| {
            at += 1;
            open.ended || at <= surplus || now.saturating_sub(open.last) >= PATIENCE
        };
        self.open.extract_if(.., over).map(|open| open.journey).collect()
    }

    /// Everything that is left: nothing more will be told.
    pub fn rest(&mut self) -> Vec<Journey> {
        self.open.drain(..).map(|open| open.journey).collect()
    }
}

impl Open {
    fn take(&mut self, heard: &Heard) {
        if let Some(head) = &heard.head {
            self.id = heard.id.or(self.id);
            self.head = head.clone();
        }
    }
}
