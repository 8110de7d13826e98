//! Live proof that connections are captured: real ones are made, from inside the pod, and where
//! they end up is asked. Both directions, both families, as whatever user there is.

mod dial;
mod listen;
mod path;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::Layout;
use millrace_core::ruleset::{Rule, Ruleset, TableChain};
use millrace_core::value::{Family, Port};
use nix::unistd::{getegid, geteuid};

pub use dial::dial_main;
use dial::{As, dial};
use listen::ProbeSocket;
pub(crate) use listen::original;

/// What is to be proved.
#[derive(Clone, Copy, Debug)]
pub struct ProbeConfig<'a> {
    /// What is to be captured.
    pub policy: &'a CapturePolicy,
    /// The rules that do it.
    pub ruleset: &'a Ruleset,
    /// What their chains are called.
    pub layout: &'a Layout,
    /// The port that connections go to; nothing may listen on it.
    pub probe_port: Port,
    /// How long it may take until connections are captured.
    pub timeout: Duration,
}

/// A way that connections take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the application to the outside, by the proxy's outbound port.
    Outbound,
    /// To the pod, by the proxy's inbound port. Made by the proxy's user over loopback, since
    /// nobody is outside.
    Inbound,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        })
    }
}

/// Whether a connection was captured, was not, or could not be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The connection came where it should, and its original destination is known there.
    Captured,
    /// It came out elsewhere, with another destination, or not at all.
    Failed {
        /// In words, to follow "should come out at port N, but".
        instead: String,
        /// The rules that it meets on its way, with their chains.
        needed: Vec<(TableChain, Rule)>,
    },
    /// It could not be tried, and why.
    NotPossible(String),
    /// It is one of another user, whose processes this one may not start.
    NotAllowed(String),
}

/// One connection and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Whether it was made over IPv4 or IPv6.
    pub family: Family,
    /// Whether it had to come to the proxy's outbound or inbound port.
    pub direction: Direction,
    /// The user who made it.
    pub user: String,
    /// Where it was made to.
    pub to: SocketAddr,
    /// The port of the proxy where it should come out.
    pub port: Port,
    /// Of the last try: it is repeated until captured or the time is up.
    pub ending: Ending,
}

impl Check {
    /// Whether it passed, if it could be tried.
    pub const fn passed(&self) -> Option<bool> {
        match self.ending {
            Ending::Captured => Some(true),
            Ending::Failed { .. } => Some(false),
            Ending::NotPossible(_) | Ending::NotAllowed(_) => None,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, direction, user, to, port, ending } = self;
        write!(f, "{family} {direction} connection of {user} to {to}: ")?;
        match ending {
            Ending::Captured => write!(f, "came out at port {port} with its original destination"),
            Ending::Failed { instead, .. } => {
                write!(f, "should come out at port {port}, but {instead}")
            }
            Ending::NotPossible(why) | Ending::NotAllowed(why) => write!(f, "not tried: {why}"),
        }
    }
}

/// The rules that connections from outside meet, with their chains. Nobody inside can make such a
/// connection, so these can only be looked for.
pub fn arrival(config: &ProbeConfig<'_>, family: Family) -> Vec<(TableChain, Rule)> {
    path::arrival(config.ruleset, config.layout, family)
}

/// What the connections of one [`run`] have shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// At most one for each family and direction; none where nothing is captured.
    pub checks: Vec<Check>,
}

impl ProbeReport {
    /// Whether anything was captured and nothing was not.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.passed() != Some(false))
            && self.checks.iter().any(|c| c.passed() == Some(true))
    }
}

/// Make the connections, again and again until all are captured or the time is up: the rules may
/// be written by somebody else at the same time.
pub fn run(config: &ProbeConfig<'_>) -> ProbeReport {
    let deadline = Instant::now() + config.timeout;
    let mut report = ProbeReport::default();
    for family in config.ruleset.families() {
        for direction in [Direction::Outbound, Direction::Inbound] {
            report.checks.extend(check(config, family, direction, deadline));
        }
    }
    report
}

/// Between two tries, as long as the reference waits.
const PAUSE: Duration = Duration::from_secs(1);

/// One connection, if anything is captured in this direction.
fn check(
    config: &ProbeConfig<'_>,
    family: Family,
    direction: Direction,
    deadline: Instant,
) -> Option<Check> {
    let policy = config.policy;
    let (port, to) = match direction {
        Direction::Outbound => {
            (policy.outbound.port.value, path::outside(policy, family, config.probe_port)?)
        }
        Direction::Inbound => (policy.inbound.port.value, path::inside(family, config.probe_port)),
    };
    let user = path::user(policy, direction, geteuid().as_raw(), getegid().as_raw());
    let mut check = Check {
        family,
        direction,
        user: user.to_string(),
        to,
        port: port.port(),
        ending: Ending::NotPossible(String::new()),
    };
    let listener = match ProbeSocket::open(family, port.get()) {
        Ok(listener) => listener,
        Err(error) => {
            let why = format!("the proxy's port {port} can't be listened on: {error}");
            check.ending = Ending::NotPossible(why);
            return Some(check);
        }
    };
    loop {
        check.ending = attempt(config, &listener, direction, &user, &check, deadline);
        let failed = matches!(check.ending, Ending::Failed { .. });
        let left = deadline.saturating_duration_since(Instant::now());
        if !failed || left.is_zero() {
            return Some(check);
        }
        listener.pause(PAUSE.min(left));
    }
}

fn attempt(
    config: &ProbeConfig<'_>,
    listener: &ProbeSocket,
    direction: Direction,
    user: &As,
    check: &Check,
    deadline: Instant,
) -> Ending {
    let from: Option<IpAddr> = match direction {
        Direction::Outbound => None,
        Direction::Inbound => Some(path::localhost(check.family)),
    };
    let failed = |instead: String| Ending::Failed {
        instead,
        needed: path::rules(config.ruleset, config.layout, check.family, direction, user),
    };
    let patience = deadline.saturating_duration_since(Instant::now()).min(PAUSE);
    match dial(*user, from, check.to, patience.max(Duration::from_millis(200)), listener) {
        Ok(Some(original)) if original == check.to => Ending::Captured,
        Ok(Some(original)) => failed(format!("its original destination there was {original}")),
        Ok(None) => failed("it came out at something else".to_owned()),
        Err(dial::DialError::NotPossible(why)) => Ending::NotPossible(why),
        Err(dial::DialError::NotAllowed(why)) => Ending::NotAllowed(why),
        Err(dial::DialError::Failed(why)) => failed(why),
    }
}
