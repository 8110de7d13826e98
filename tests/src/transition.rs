//! From one configuration to another, with Millrace killed on the way.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::capture::{Variant, millrace, millrace_in_pod, wrapped};
use crate::cases::{Attempt, app, outside};
use crate::scenario::captured;
use crate::snapshot::Snapshot;
use crate::stage::Stage;
use crate::topology::Spot::{Dns, Pod, Service};
use crate::topology::{Layout, Stack, Topology};

/// How iptables' rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the programs of this iptables.
    Programs(Variant),
    /// Those of iptables-nft by netlink.
    Netlink,
}

/// Something that Millrace is to bring about: a command line of it, but for the way in which
/// iptables' rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal(pub &'static [&'static str]);

/// Nothing of Millrace in the pod.
pub const NOTHING: Goal = Goal(&["cleanup"]);

impl Goal {
    /// The words to type. Where something else may be there istio-iptables has to be told that it
    /// may replace it; where only a killed run for the same goal was before, it must not need that.
    fn args(self, way: Way, replace: bool) -> Vec<&'static str> {
        let mut args = self.0.to_vec();
        let istio = args.first() == Some(&"istio-iptables");
        let own = args.first() == Some(&"apply") && !args.contains(&"--backend");
        match way {
            Way::Programs(variant) if istio => {
                args.extend(["--force-iptables-binary", variant.as_str()]);
            }
            Way::Programs(variant) if own => args.extend(["--iptables", variant.as_str()]),
            Way::Netlink if own => args.extend(["--backend", "iptables-nft"]),
            Way::Netlink if args.first() == Some(&"linkerd") => {
                args.extend(["--iptables-mode", "nft"]);
            }
            _ => {}
        }
        args.extend((istio && replace).then_some("--reconcile"));
        args
    }
}

/// What a goal looks like in a pod where nothing else ever was.
struct Reached {
    state: Snapshot,
    captured: BTreeSet<String>,
}

/// Where Millrace is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// After this many moments of the programs that write rules (see [`Stage::killing_after`]).
    Table(usize),
    /// In front of its nth call of this kind.
    Call(&'static str, usize),
}

/// A step from what is there to something else.
#[derive(Clone, Copy, Debug)]
pub struct Transition {
    /// What is there.
    pub old: Goal,
    /// What Millrace is about to make of it.
    pub new: Goal,
    /// Something else yet that may be wanted once it was killed.
    pub third: Goal,
    /// How what is there was written.
    pub from: Way,
    /// How the rest is.
    pub way: Way,
}

/// Connections that show whether the pod is captured: out, in, DNS.
const ATTEMPTS: [Attempt; 3] =
    [app().tcp(Service, 80), outside().tcp(Pod, 8080), app().udp(Dns, 53)];

fn pod() -> Result<Topology> {
    Topology::new(Stack::Dual, Layout { transparent: true, ..Layout::default() })
}

/// What is wanted of the run behind one that was killed.
#[derive(Clone, Copy, Debug)]
enum Behind {
    /// Each of three goals.
    All,
    /// One of them, another one at each place.
    InTurn,
}

impl Transition {
    /// Kill Millrace in front of, between and behind the tables that it writes, wherever there is
    /// such a place, and see that the pod is never worse off.
    pub fn killed_between_tables(&self) -> Result<()> {
        let count = self.killed_at_every(Kill::Table, 0, Behind::All)?;
        ensure!(count >= 4, "only {count} places to die at: that is not every table");
        Ok(())
    }

    /// Kill Millrace in front of its first message that could change anything, and of all messages
    /// and all answers behind that. What is wanted behind that are three goals in turn, or all three at each
    /// place if `MILLRACE_KILLS` is `all`, which takes three times as long.
    pub fn killed_between_messages(&self) -> Result<()> {
        let (messages, answers) = self.before_the_first_change()?;
        let behind = match std::env::var("MILLRACE_KILLS").as_deref() {
            Ok("all") => Behind::All,
            _ => Behind::InTurn,
        };
        let message = |place| Kill::Call("sendto", place);
        let count = self.killed_at_every(message, messages + 1, behind)?;
        ensure!(count >= 1, "no messages to die at");
        let answer = |place| Kill::Call("recvfrom", place);
        let count = self.killed_at_every(answer, answers + 1, behind)?;
        ensure!(count >= 1, "no answers to die at");
        Ok(())
    }

    /// Gives how many places there were.
    fn killed_at_every(
        &self,
        kill: impl Fn(usize) -> Kill,
        first: usize,
        behind: Behind,
    ) -> Result<usize> {
        let old = self.reached(self.old, self.from)?;
        let [new, third, nothing] =
            [self.new, self.third, NOTHING].map(|goal| self.reached(goal, self.way));
        let (new, third, nothing) = (new?, third?, nothing?);
        let kept: BTreeSet<&String> = old.captured.intersection(&new.captured).collect();
        let any = self.old != NOTHING && self.new != NOTHING;
        ensure!(!any || kept.len() >= 4, "too few connections to watch: {kept:?}");
        let topology = pod()?;
        for place in first.. {
            let then = [(self.new, &new), (self.third, &third), (NOTHING, &nothing)];
            let (skipped, count) = match behind {
                Behind::All => (0, then.len()),
                Behind::InTurn => (place % then.len(), 1),
            };
            for (next, wanted) in then.into_iter().skip(skipped).take(count) {
                self.run(&topology, self.old, self.from)?;
                let at = kill(place);
                let what = || format!("{self:?}, killed at {at:?}, then {next:?}");
                if !self.run_killed(&topology, at).with_context(what)? {
                    differs(&new.state, &Snapshot::take(&topology.pod)?).with_context(what)?;
                    return Ok(place - first);
                }
                between(&old.state, &new.state, &topology).with_context(what)?;
                let now = captured(&topology, &ATTEMPTS)?;
                let lost: Vec<_> = kept.iter().filter(|line| !now.contains(**line)).collect();
                ensure!(lost.is_empty(), "{}: not captured any more: {lost:?}", what());
                self.run(&topology, next, self.way).with_context(what)?;
                differs(&wanted.state, &Snapshot::take(&topology.pod)?).with_context(what)?;
            }
        }
        bail!("there is no end of places")
    }

    fn reached(&self, goal: Goal, way: Way) -> Result<Reached> {
        let topology = pod()?;
        self.run(&topology, goal, way)?;
        let state = Snapshot::take(&topology.pod)?.without_counters();
        Ok(Reached { state, captured: captured(&topology, &ATTEMPTS)? })
    }

    /// Bring about a goal.
    fn run(&self, topology: &Topology, goal: Goal, way: Way) -> Result<()> {
        let again = goal == self.new && self.old == NOTHING;
        millrace_in_pod(topology, &goal.args(way, !again), 0).map(drop)
    }

    /// Go for the new goal and be killed; false when Millrace got through unharmed.
    fn run_killed(&self, topology: &Topology, kill: Kill) -> Result<bool> {
        let args = self.new.args(self.way, self.old != NOTHING);
        let output = match kill {
            Kill::Table(moments) => {
                let stage = Stage::killing_after(moments)?;
                topology.pod.output(&mut stage.millrace(&args)?)?
            }
            Kill::Call(name, place) => {
                let inject = format!("inject={name}:signal=KILL:when={place}");
                topology.pod.output(&mut traced(&["-e", &inject], "/dev/null", &args)?)?
            }
        };
        let said = String::from_utf8_lossy(&output.stderr);
        match (output.status.code(), output.status.signal()) {
            (Some(0), _) => Ok(false),
            (_, Some(9)) => Ok(true),
            _ => bail!("neither killed nor well: {}\n{said}", output.status),
        }
    }

    /// How many messages and answers there are in front of the first message that could change
    /// something.
    fn before_the_first_change(&self) -> Result<(usize, usize)> {
        let topology = pod()?;
        self.run(&topology, self.old, self.from)?;
        let file = tempfile::NamedTempFile::new().context("a trace")?;
        let path = file.path().to_str().context("a path that is not UTF-8")?;
        let args = self.new.args(self.way, self.old != NOTHING);
        let output = topology.pod.output(&mut traced(&[], path, &args)?)?;
        ensure!(output.status.success(), "{output:?}");
        let trace = std::fs::read_to_string(path).context("a trace")?;
        let harmless = |line: &&str| {
            !["RTM_NEW", "RTM_DEL", "NFNL_MSG_BATCH_BEGIN"].iter().any(|m| line.contains(m))
                || !line.starts_with("sendto")
        };
        let before: Vec<&str> = trace.lines().take_while(harmless).collect();
        ensure!(before.len() < trace.lines().count(), "nothing changes anything in\n{trace}");
        let count = |name: &str| before.iter().filter(|line| line.starts_with(name)).count();
        Ok((count("sendto"), count("recvfrom")))
    }
}

/// Millrace under strace, which looks at its messages to the kernel only, not at those of the
/// programs that it starts.
fn traced(options: &[&str], to: &str, args: &[&str]) -> Result<Command> {
    let strace = ["strace", "-qq", "-o", to, "-e", "trace=sendto,recvfrom", "-e", "signal=none"];
    Ok(wrapped(&[&strace[..], options].concat(), &millrace(args)?))
}

fn differs(wanted: &Snapshot, is: &Snapshot) -> Result<()> {
    let text = wanted.differences(&is.clone().without_counters());
    ensure!(text.is_empty(), "not what a pod has where nothing happened before:\n{text}");
    Ok(())
}

/// Every table is the old one or the new one, and nothing is there that neither has.
fn between(old: &Snapshot, new: &Snapshot, topology: &Topology) -> Result<()> {
    let now = Snapshot::take(&topology.pod)?.without_counters();
    let [old_tables, new_tables, now_tables] = [old, new, &now].map(Snapshot::tables);
    let names: BTreeSet<&String> =
        old_tables.keys().chain(new_tables.keys()).chain(now_tables.keys()).collect();
    for name in names {
        let is = now_tables.get(name);
        ensure!(
            is == old_tables.get(name) || is == new_tables.get(name),
            "table {name} is neither the old one nor the new one: {is:#?}"
        );
    }
    // The kernel makes that one as soon as the interface is up, and it goes before the run ends.
    let of_link = |line: &&String| !line.contains(" ff00::/8 dev millrace0 ");
    for line in now.rules.iter().chain(&now.routes).filter(of_link) {
        let known = [old, new].iter().any(|s| s.rules.contains(line) || s.routes.contains(line));
        ensure!(known, "neither old nor new: {line}");
    }
    Ok(())
}
