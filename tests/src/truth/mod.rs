//! What `explain --live` says, held against what the kernel does: random rules of anybody beside
//! Millrace's own, with random routes, rules of policy routing and settings, and connections of every
//! kind, really made.
//!
//! A round is a pod of its own and follows from its seed alone, so that it can be looked at again by
//! itself.

mod around;
mod foreign;
mod place;
mod rule;
mod step;
mod values;
mod words;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use millrace_core::sim::{
    Direction, EPHEMERAL, Fate, How, Namespace as Surroundings, Outcome as Told, Program, Protocol,
    Question, Reply, of_dump, of_listed,
};
use millrace_core::value::Groups;
use millrace_host::engine::Session;
use millrace_host::observe::Depth;
use millrace_host::{exec, surroundings};
use serde_json::Value;

use self::step::Step;
use crate::capture::{millrace, ran};
use crate::ebpf::{self, Cgroup, FOLDER};
use crate::fates::{Dice, Ground, SERVICES, Try, differs, listeners, policy};
use crate::topology::{Family, Spot};
use crate::wire::Outcome;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What everything follows from: the first round has this seed, the next one more.
    pub seed: u64,
    /// How many pods.
    pub rounds: u64,
    /// Connections in each.
    pub connections: usize,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Answers that were held against the kernel.
    pub answers: usize,
    /// Of these, how many about pods that eBPF captures.
    pub by_ebpf: usize,
    /// How many can't be told, by the reason.
    pub untold: BTreeMap<String, usize>,
    /// False answers, each with all that leads to it.
    pub wrong: Vec<String>,
    /// What really became of connections.
    pub kinds: BTreeMap<String, usize>,
    /// Steps that were made, and those that the kernel or its programs refused.
    pub steps: usize,
    /// Of these the refused ones, by what was said.
    pub refused: BTreeMap<String, usize>,
}

impl Found {
    /// How many can't be told.
    pub fn untold(&self) -> usize {
        self.untold.values().sum()
    }

    /// The same of a hundred.
    pub fn share(&self) -> f64 {
        let of = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        100.0 * of(self.untold()) / of(self.answers).max(1.0)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} answers, {} where eBPF captures: {} false, {} can't be told ({:.1} %)",
            self.answers,
            self.by_ebpf,
            self.wrong.len(),
            self.untold(),
            self.share()
        )?;
        let mut reasons: Vec<_> = self.untold.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (reason, count) in reasons {
            writeln!(f, "{count:6}  {reason}")?;
        }
        writeln!(f, "really:")?;
        for (kind, count) in &self.kinds {
            writeln!(f, "{count:6}  {kind}")?;
        }
        let refused: usize = self.refused.values().sum();
        writeln!(f, "{} steps, {refused} of them refused:", self.steps)?;
        self.refused.iter().try_for_each(|(what, count)| writeln!(f, "{count:6}  {what}"))
    }
}

/// Make all rounds. `after` sees what was found so far behind each.
///
/// # Errors
/// When a pod or its connections can't be made, or what it holds can't be read.
pub fn rounds(plan: Plan, after: &mut dyn FnMut(u64, &Found)) -> Result<Found> {
    let mut found = Found::default();
    // What programs of eBPF see is what this process and its children do.
    let _cgroup = Cgroup::enter()?;
    for number in 0..plan.rounds {
        let seed = plan.seed.wrapping_add(number);
        round(seed, plan.connections, &mut found).with_context(|| format!("seed {seed}"))?;
        after(number + 1, &found);
    }
    Ok(found)
}

/// How often what is in doubt is made again.
const AGAIN: usize = 3;

fn round(seed: u64, connections: usize, found: &mut Found) -> Result<()> {
    let mut dice = Dice(seed);
    // Neighbouring seeds begin alike.
    dice.roll();
    let mut ground = Ground::new()?;
    // Everybody who is refused is told so, however many they are.
    ground.topology.pod.run("sysctl", &["-qw", "net.ipv4.icmp_ratelimit=0"])?;
    ground.topology.pod.run("sysctl", &["-qw", "net.ipv6.icmp.ratelimit=0"])?;
    let mut done = String::new();
    let mut parties: Vec<Party> = (0..dice.pick(&[1, 1, 2, 3])).map(Party::Foreign).collect();
    if !dice.one_in(3) {
        let at = dice.pick(&[0, parties.len()]);
        parties.insert(at, Party::Millrace);
    }
    let mut steps = Vec::new();
    let mut ebpf = false;
    for party in &parties {
        match party {
            Party::Foreign(number) => steps.extend(foreign::party(&mut dice, *number)),
            Party::Millrace => {
                let all = ["nftables", "iptables-nft", "iptables-legacy", "ebpf"];
                let mut backend = dice.pick(&all);
                let mut flags = policy(&mut dice);
                ebpf = backend == "ebpf" && by_ebpf(&ground, &mut dice, &mut flags)?;
                if backend == "ebpf" && !ebpf {
                    backend = "nftables";
                }
                let applied = if ebpf { Ok(()) } else { ground.apply(backend, &flags) };
                match applied {
                    Ok(()) => writeln!(done, "apply --backend {backend} {}", quoted(&flags))?,
                    Err(error) => *found.refused.entry(first_line(&error)).or_default() += 1,
                }
                found.steps += 1;
            }
        }
        steps.extend(if matches!(party, Party::Millrace) {
            Vec::new()
        } else {
            around_tproxy(&steps)
        });
        run(&ground, &mut steps, found, &mut done)?;
    }
    steps.extend(around::around(&mut dice));
    run(&ground, &mut steps, found, &mut done)?;
    let (program, around) = live(&ground, ebpf)?;
    // Programs can't give a socket an address that has a port already.
    let made = |one: Try| if ebpf { one.unbound() } else { one };
    let tries: Vec<Try> = (0..connections).map(|_| made(ground.connection(&mut dice))).collect();
    if let Some(first) = tries.first() {
        let own = Question { source_port: EPHEMERAL, ..first.question.clone() };
        found.wrong.extend(said_otherwise(&ground, ebpf, (&program, &around), &own)?);
    }
    let outcomes = ground.make(&tries)?;
    let mut doubtful = Vec::new();
    for (one, outcome) in tries.iter().zip(&outcomes) {
        let question = one.as_answered(outcome);
        let told = told(&program, &around, &question);
        let Some(told) = told else { continue };
        found.answers += 1;
        found.by_ebpf += usize::from(ebpf);
        *found.kinds.entry(kind(outcome)).or_default() += 1;
        if let Err(reason) = told {
            *found.untold.entry(reason).or_default() += 1;
            continue;
        }
        if differs(&program, &around, &question, outcome).is_some() {
            doubtful.push(one.clone());
        }
    }
    // A machine with much to do can be slow, and neighbours be forgotten that all namespaces of it
    // have in one table: what is in doubt is made again, with more time. What is false stays so.
    let mut wrong = Vec::new();
    for _ in 0..AGAIN {
        let again: Vec<Try> = doubtful.iter().map(|one| one.again(&mut ground)).collect();
        let outcomes = ground.make(&again)?;
        (wrong, doubtful) = (Vec::new(), Vec::new());
        for (one, outcome) in again.into_iter().zip(&outcomes) {
            if let Some(why) = differs(&program, &around, &one.as_answered(outcome), outcome) {
                wrong.push(format!("== seed {seed}\n{done}{why}"));
                doubtful.push(one);
            }
        }
    }
    found.wrong.extend(wrong);
    Ok(())
}

/// Capture a pod by eBPF; false where that can't be with any of some policies: then its programs are not
/// loaded. The kernel chooses ports that no rule tells from those of the questions.
fn by_ebpf(ground: &Ground, dice: &mut Dice, flags: &mut Vec<String>) -> Result<bool> {
    ground.topology.pod.run("sysctl", &["-qw", "net.ipv4.ip_local_port_range=20000 60000"])?;
    for _ in 0..20 {
        let words = ["explain", "--backend", "ebpf", "--to", "192.0.2.1:80"].map(str::to_owned);
        let words = words.into_iter().chain(flags.iter().cloned());
        let (code, _) = ran(&ground.topology.pod, &mut millrace(words)?)?;
        if code == Some(0) {
            ground.load_ebpf()?;
            let captured = ground.by_ebpf(flags)?;
            return captured.map(|_| true).context("what can be explained can be carried out");
        }
        *flags = policy(dice);
    }
    Ok(false)
}

enum Party {
    Foreign(usize),
    Millrace,
}

/// Rules that hand packets to a transparent socket come with the routes that deliver these.
fn around_tproxy(steps: &[Step]) -> Vec<Step> {
    let hands = steps.iter().any(|step| step.to_string().to_ascii_lowercase().contains("tproxy"));
    if hands { around::tproxy() } else { Vec::new() }
}

fn run(ground: &Ground, steps: &mut Vec<Step>, found: &mut Found, done: &mut String) -> Result<()> {
    for step in steps.drain(..) {
        found.steps += 1;
        match step.run(&ground.topology.pod) {
            Ok(()) => writeln!(done, "{step}")?,
            Err(error) => *found.refused.entry(first_line(&error)).or_default() += 1,
        }
    }
    Ok(())
}

fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let lines: Vec<&str> = text.lines().collect();
    lines
        .iter()
        .find(|line| line.contains("rror"))
        .or(lines.last())
        .map_or("", |l| l.trim())
        .to_owned()
}

fn quoted(flags: &[String]) -> String {
    let quoted = flags.iter().map(|flag| if flag.is_empty() { "''" } else { flag.as_str() });
    quoted.collect::<Vec<_>>().join(" ")
}

fn kind(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answered { answer, .. } => format!("answered by {}", answer.name),
        Outcome::Failed(failure) => format!("{failure:?}"),
    }
}

/// What `explain --live` reads of a pod.
fn live(ground: &Ground, ebpf: bool) -> Result<(Program, Surroundings)> {
    let (captured, enrolled) =
        if ebpf { ebpf::tables(&ground.topology.pod)? } else { Default::default() };
    ground.topology.pod.enter(|| {
        let mut session = Session::open()?;
        let options = exec::Options::default();
        let mut observed = session.observe(&options, Depth::Fast)?;
        if observed.holdings.iter().any(|holding| holding.dump.is_unclear()) {
            observed = session.observe(&options, Depth::Verbatim)?;
        }
        let groups = Groups::new();
        let mut tables = captured;
        for holding in &observed.holdings {
            let holder = holding.variant.to_string();
            let mut nobody = |_, _: &str, _: &_| None;
            tables.extend(of_dump(&holding.dump, holding.family, &holder, &groups, &mut nobody));
        }
        let known = |family, name: &str| {
            let nft = millrace_core::observed::Variant::Nft;
            observed.holding(nft, family).is_some_and(|dump| dump.table(name).is_some())
        };
        let native = millrace_host::nft::list(&known)?;
        tables.extend(of_listed(&native, &millrace_host::nft::interfaces()));
        let mut around = surroundings::namespace()?;
        listeners(&mut around);
        around.enrolled = enrolled;
        anyhow::Ok((Program::new(tables), around))
    })?
}

/// What the program itself says, where that is something else than what is held against the kernel.
fn said_otherwise(
    ground: &Ground,
    ebpf: bool,
    (program, around): (&Program, &Surroundings),
    question: &Question,
) -> Result<Option<String>> {
    let protocol = question.protocol;
    let mut words: Vec<String> =
        ["explain", "--live", "--output", "json"].map(str::to_owned).into();
    words.extend(["--to".to_owned(), format!("{}/{protocol}", question.to())]);
    words.extend(question.owner.map(|owner| format!("--from={owner}")));
    words.extend((question.direction == Direction::In).then(|| "--in".to_owned()));
    words.extend(question.source.map(|source| format!("--src={source}")));
    words.extend(question.interface.as_ref().map(|name| format!("--iface={name}")));
    words.push(format!("--mark={}", question.mark));
    if question.protocol.has_ports() {
        words.push(format!("--src-port={}", question.source_port));
    }
    words.extend(ebpf.then(|| format!("--bpffs={FOLDER}")));
    let output = ground.topology.pod.output(&mut millrace(&words)?)?;
    let said: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let told = serde_json::to_value(&program.answer(around, question).fate)?;
    let differs = said["fate"] != told;
    Ok(differs.then(|| format!("{words:?}: it says {}, and not {told}", said["fate"])))
}

/// Whether it can be told, or else why not; none where what is told can't be seen, since nobody listens.
fn told(
    program: &Program,
    around: &Surroundings,
    question: &Question,
) -> Option<std::result::Result<(), String>> {
    let told = program.explain(around, question);
    if let Told::Unknown { what } = &told.answer.outcome {
        return Some(Err(plain(what)));
    }
    if let Fate::Delivered { destination, how, .. } = told.answer.fate
        && question.protocol == Protocol::UDP
        && how != How::Transparent
    {
        let own = [Spot::Pod, Spot::PodSide, Spot::Localhost, Spot::Localhost2];
        let mut heard = own.iter().flat_map(|s| [s.ip(Family::V4), s.ip(Family::V6)]).flatten();
        if !heard.any(|ip| ip == destination.ip()) {
            return None;
        }
    }
    if let Fate::Passed { interface, destination, source } = &told.answer.fate {
        let neighbour = if interface == "eth1" { Spot::Side } else { Spot::Peer };
        let spots = SERVICES.into_iter().chain([neighbour]);
        let own = spots.flat_map(|s| [s.ip(Family::V4), s.ip(Family::V6)]).flatten();
        let own: Vec<IpAddr> = own.collect();
        // It hears nobody else, and nobody who has an address of its own.
        if !own.contains(&destination.ip()) || own.contains(&source.ip()) {
            return None;
        }
    }
    match &told.reply {
        Some(Reply::Unknown { what, .. }) => Some(Err(format!("the answer: {}", plain(what)))),
        _ => Some(Ok(())),
    }
}

/// A reason without what is of one pod alone.
fn plain(what: &str) -> String {
    match what.split_once("called first: ") {
        Some((_, rest)) => format!("which is called first: {rest}"),
        None => what.to_owned(),
    }
}
