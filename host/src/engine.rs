//! One run: look once, decide, carry out, and take everything back if anything fails.

use std::thread;
use std::time::{Duration, Instant};

use millrace_core::dialect::FOOTPRINTS;
use millrace_core::dialect::others::captures;
use millrace_core::nft::expr::NoGroup;
use millrace_core::nft::tables::Native;
use millrace_core::observed::{Observed, Variant};
use millrace_core::plan::{self, Choice, Context, Effect, Means, NoBackend, Plan, Wanted, Wish};
use millrace_core::preflight::Backend;
use millrace_core::ruleset::Ruleset;
use millrace_core::value::Groups;

use crate::effect::{self, carry_out};
use crate::exec;
use crate::link::{self, Net};
use crate::lock::{self, RunLock};
use crate::nft;
use crate::observe::{self, Look, observe};
use crate::tools::Tools;

/// How long to wait before another look when somebody else was faster: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What a run is to do about rules of ours that differ from what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// Replace them.
    Replace,
    /// Refuse, unless they are what an interrupted run left.
    Refuse,
}

/// Rules that are to be there: the same capture, for each backend that may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// For either iptables.
    pub iptables: &'a Ruleset,
    /// For native nftables; none where iptables is asked for.
    pub native: Option<&'a Native>,
}

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The rules that are to be there; none for a cleanup.
    pub rules: Option<Rules<'a>>,
    /// Which backend is asked for.
    pub wish: Wish,
    /// What to do about differing rules.
    pub drift: Drift,
    /// Write everything, even what is there already.
    pub everything: bool,
    /// Decide only.
    pub dry_run: bool,
    /// How long to wait for locks.
    pub wait: Duration,
    /// Group names and their numbers.
    pub groups: &'a Groups,
    /// Marks with their routing tables that belong to us.
    pub marks: Vec<(u32, u32)>,
    /// How programs are run.
    pub exec: exec::Options,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which backend was used, and why; none when no rules were wanted.
    pub choice: Option<Choice>,
    /// What was done, or would have been in a dry run.
    pub effects: Vec<Effect>,
    /// Whether an earlier run had been interrupted here.
    pub interrupted: bool,
    /// Whether a dry run could not see what is there, and took it for nothing.
    pub unseen: bool,
    /// How many programs were run.
    pub processes: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why a run did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The namespace's links could not be opened.
    #[error(transparent)]
    Link(#[from] link::LinkError),
    /// Another run was in the way.
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    /// The namespace could not be looked at.
    #[error("what is there can't be seen: {0}")]
    Observe(#[from] observe::ObserveError),
    /// A group has no number.
    #[error(transparent)]
    NoGroup(#[from] NoGroup),
    /// No backend can be used.
    #[error(transparent)]
    NoBackend(#[from] NoBackend),
    /// TPROXY would capture nothing of what comes over a bridge.
    #[error(
        "{interface} is a bridge that gives packets to rules before they come to the pod: TPROXY hands \
         none of them to the proxy, and connections reach the application; set \
         net.bridge.{setting} (and nf_call of the bridge) to 0, or capture by REDIRECT"
    )]
    Bridge {
        /// The bridge.
        interface: String,
        /// The setting of all bridges.
        setting: &'static str,
    },
    /// The routing table that is needed is used by somebody else.
    #[error(transparent)]
    TakenTable(#[from] plan::TakenTable),
    /// Differing rules are there, and were not to be replaced.
    #[error(
        "rules of an earlier run are there and differ from what is wanted ({}); nothing was \
         changed: pass --reconcile to replace them, or remove them first",
        list(.effects)
    )]
    Drifted {
        /// What would have been done.
        effects: Vec<Effect>,
    },
    /// An effect failed, and what was there before is there again.
    #[error("{}; what was there before is there again", story(.failed, .why))]
    TakenBack {
        /// What failed.
        failed: Box<Effect>,
        /// Why.
        why: Box<effect::EffectError>,
    },
    /// An effect failed, and so did putting back what was there before.
    #[error(
        "{}; putting back what was there before failed too: {second}. The next run finds out what \
         is left and goes on from there",
        story(.failed, .why)
    )]
    Stuck {
        /// What failed.
        failed: Box<Effect>,
        /// Why.
        why: Box<effect::EffectError>,
        /// What failed then, and why.
        second: String,
    },
}

impl EngineError {
    /// Whether a lock was in the way until the time was up.
    pub const fn is_busy(&self) -> bool {
        match self {
            Self::Lock(error) => error.is_busy(),
            Self::TakenBack { why, .. } | Self::Stuck { why, .. } => why.is_busy(),
            _ => false,
        }
    }
}

/// What failed, and why. The kernel's refusals name what they are about themselves.
fn story(failed: &Effect, why: &effect::EffectError) -> String {
    match failed {
        Effect::Restore { .. } => format!("{failed}: {why}"),
        _ => why.to_string(),
    }
}

fn list(effects: &[Effect]) -> String {
    let texts: Vec<String> = effects
        .iter()
        .filter(|e| !matches!(e, Effect::Marker { .. }))
        .map(ToString::to_string)
        .collect();
    texts.join("; ")
}

/// A namespace that is being worked on: the calling thread's.
#[derive(Debug)]
pub struct Session {
    net: Net,
    tools: Tools,
    /// Whether the kernel has them, once that is known.
    nf_tables: Option<bool>,
    /// Whether rules of iptables-legacy can't be seen.
    unseen: bool,
    /// How the last attempt was to write rules.
    means: Option<Means>,
    /// The number of the last change of `nf_tables` before the last look.
    generation: Option<u32>,
    warnings: Vec<String>,
}

impl Session {
    /// Open the calling thread's network namespace.
    ///
    /// # Errors
    /// When its links can't be asked.
    pub fn open() -> Result<Self, EngineError> {
        let net = Net::open()?;
        let tools = Tools::default();
        Ok(Self {
            net,
            tools,
            nf_tables: None,
            unseen: false,
            means: None,
            generation: None,
            warnings: Vec::new(),
        })
    }

    /// The namespace's links.
    pub const fn net(&mut self) -> &mut Net {
        &mut self.net
    }

    /// Look at the namespace.
    ///
    /// # Errors
    /// When something can't be seen.
    pub fn observe(&mut self, exec: &exec::Options, look: Look) -> Result<Observed, EngineError> {
        let seen = observe(&mut self.tools, &mut self.net, exec, look)?;
        self.nf_tables = Some(seen.nf_tables);
        self.generation = seen.generation;
        if let Some(why) = seen.unseen {
            self.unseen = true;
            let warning =
                format!("rules of iptables-legacy, if there are any, can't be seen: {why}");
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        Ok(seen.observed)
    }

    /// What the user should know, once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Whether the kernel has `nf_tables`.
    pub fn has_nf_tables(&mut self) -> bool {
        *self.nf_tables.get_or_insert_with(nft::is_supported)
    }

    /// Whether the host can work with some means.
    fn has(&mut self, means: Means) -> bool {
        match means {
            Means::NFTABLES | Means::IPTABLES_NFT => self.has_nf_tables(),
            Means::NFT_PROGRAMS => self.has_nf_tables() && self.tools.has(Variant::Nft),
            // Where they can't be seen they can't be written either.
            Means::LEGACY_PROGRAMS => !self.unseen && self.tools.has(Variant::Legacy),
            Means { .. } => false,
        }
    }

    /// Do what is asked.
    ///
    /// # Errors
    /// See [`EngineError`]; except for [`EngineError::Stuck`], the namespace is as it was before.
    pub fn run(&mut self, request: &Request<'_>) -> Result<Outcome, EngineError> {
        let processes = exec::processes();
        let deadline = Instant::now() + request.wait;
        let _lock = if request.dry_run { None } else { Some(RunLock::take(deadline)?) };
        let mut pause = FIRST_PAUSE;
        let mut avoid = Vec::new();
        let mut refused = None;
        loop {
            match self.attempt(request, &avoid, deadline) {
                // Somebody else changed nf_tables between the look and the transaction.
                Err(EngineError::TakenBack { why, .. })
                    if why.is_stale() && Instant::now() + pause < deadline =>
                {
                    thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                // The kernel has nf_tables, but not all that these rules need: another way may do.
                Err(EngineError::TakenBack { failed, why })
                    if why.is_unsupported() || is_last_resort(self.means, request.wish, &why) =>
                {
                    let error = EngineError::TakenBack { failed, why };
                    match self.means {
                        Some(means) if !avoid.contains(&means) => avoid.push(means),
                        _ => return Err(error),
                    }
                    // What the kernel says is nearer to the cause than what a program says.
                    refused.get_or_insert(error);
                }
                Err(error @ EngineError::NoBackend(_)) => return Err(refused.unwrap_or(error)),
                Ok(outcome) => {
                    let processes = exec::processes() - processes;
                    return Ok(Outcome { processes, ..outcome });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Refuse TPROXY where packets come over a bridge that gives them to rules, those of IPv6 as well
    /// if that is captured.
    ///
    /// # Errors
    /// [`EngineError::Bridge`] for the first such bridge, or that the interfaces can't be listed.
    pub fn refuse_bridges(&self, v6: bool) -> Result<(), EngineError> {
        for (interface, [calls_v4, calls_v6]) in self.net.bridges()? {
            let setting = match (calls_v4, calls_v6 && v6) {
                (true, _) => "bridge-nf-call-iptables",
                (false, true) => "bridge-nf-call-ip6tables",
                (false, false) => continue,
            };
            return Err(EngineError::Bridge { interface, setting });
        }
        Ok(())
    }

    /// Look, decide and carry out, once.
    fn attempt(
        &mut self,
        request: &Request<'_>,
        avoid: &[Means],
        deadline: Instant,
    ) -> Result<Outcome, EngineError> {
        let programs =
            request.wish == Wish::Programs(Variant::Nft) || avoid.contains(&Means::IPTABLES_NFT);
        let (before, unseen) = match self.observe(&request.exec, Look::Fast) {
            Ok(before) => (before, false),
            // A dry run needs no privilege: it says what it can.
            Err(error) if request.dry_run => {
                self.warnings.push(error.to_string());
                (Observed::default(), true)
            }
            Err(error) => return Err(error),
        };
        let choice = self.choose(&before, request, avoid)?;
        self.means = choice.map(|choice| choice.means);
        let context = Context {
            footprints: FOOTPRINTS,
            groups: request.groups,
            marks: request.marks.clone(),
            netlink: !programs,
        };
        let wanted = match (request.rules, choice.map(|choice| choice.means.backend)) {
            // What eBPF captures needs no rules.
            (None, _) | (_, None | Some(Backend::Ebpf)) => Wanted::Nothing,
            (Some(rules), Some(Backend::IptablesNft)) => {
                Wanted::Iptables(rules.iptables, Variant::Nft)
            }
            (Some(rules), Some(Backend::IptablesLegacy)) => {
                Wanted::Iptables(rules.iptables, Variant::Legacy)
            }
            (Some(rules), Some(Backend::Nftables)) => {
                rules.native.map_or(Wanted::Nothing, Wanted::Native)
            }
        };
        if let (Some(rules), false) = (request.rules, unseen || matches!(wanted, Wanted::Nothing))
            && rules.iptables.routing.tproxy.is_some()
        {
            self.refuse_bridges(rules.iptables.v6.is_some())?;
        }
        let plan = plan::plan(&before, wanted, request.everything, &context);
        if let Some(taken) = plan.taken {
            return Err(taken.into());
        }
        let refused =
            request.drift == Drift::Refuse && plan.residue && !plan.unfinished && !plan.interrupted;
        if refused && !plan.is_empty() {
            return Err(EngineError::Drifted { effects: plan.effects });
        }
        let others = if request.rules.is_some() { captures(&before) } else { Vec::new() };
        for warning in plan.obstacles.iter().cloned().chain(others) {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        if !request.dry_run {
            self.carry_out(&plan, &before, deadline, request, &context)?;
        }
        Ok(Outcome {
            choice,
            effects: plan.effects,
            interrupted: plan.interrupted,
            unseen,
            processes: 0,
            warnings: self.take_warnings(),
        })
    }

    /// How rules are written; none when none are.
    fn choose(
        &mut self,
        before: &Observed,
        request: &Request<'_>,
        avoid: &[Means],
    ) -> Result<Option<Choice>, EngineError> {
        let Some(rules) = request.rules else { return Ok(None) };
        let mut avoid = avoid.to_vec();
        if rules.native.is_none() {
            avoid.push(Means::NFTABLES);
        }
        Ok(Some(plan::choose(
            before,
            request.wish,
            &mut |means| self.has(means),
            FOOTPRINTS,
            &avoid,
        )?))
    }

    fn carry_out(
        &mut self,
        plan: &Plan,
        before: &Observed,
        deadline: Instant,
        request: &Request<'_>,
        context: &Context<'_>,
    ) -> Result<(), EngineError> {
        let mut generation = self.generation;
        for done in &plan.effects {
            let result = self.effect(done, deadline, request, generation);
            match result {
                Ok(warnings) => {
                    self.warnings.extend(warnings);
                    // From here on the last change may be our own.
                    if matches!(done, Effect::Native { .. } | Effect::Restore { .. }) {
                        generation = None;
                    }
                }
                Err(why) => {
                    let why = Box::new(why);
                    let failed = Box::new(done.clone());
                    return Err(match self.take_back(before, request, context) {
                        Ok(()) => EngineError::TakenBack { failed, why },
                        Err(second) => EngineError::Stuck { failed, why, second },
                    });
                }
            }
        }
        Ok(())
    }

    fn effect(
        &mut self,
        effect: &Effect,
        deadline: Instant,
        request: &Request<'_>,
        generation: Option<u32>,
    ) -> Result<Vec<String>, effect::EffectError> {
        let (net, tools) = (&mut self.net, &mut self.tools);
        let (options, groups) = (&request.exec, request.groups);
        carry_out(effect, net, tools, deadline, options, groups, generation)
    }

    /// Put back what was there before. Every part is tried, whatever fails.
    fn take_back(
        &mut self,
        before: &Observed,
        request: &Request<'_>,
        context: &Context<'_>,
    ) -> Result<(), String> {
        let now = self.observe(&request.exec, Look::Fast).map_err(|e| e.to_string())?;
        let deadline = Instant::now() + request.wait;
        let mut failures = Vec::new();
        for effect in plan::rollback(before, &now, context) {
            let result = self.effect(&effect, deadline, request, None);
            if let Err(error) = result {
                failures.push(format!("{effect}: {error}"));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }
}

/// Whether programs of iptables-nft failed that nobody asked for: netlink had been refused, for reasons
/// that may be theirs as well, and iptables-legacy is left.
fn is_last_resort(means: Option<Means>, wish: Wish, why: &effect::EffectError) -> bool {
    means == Some(Means::NFT_PROGRAMS)
        && wish != Wish::Programs(Variant::Nft)
        && why.is_of_program()
}

#[cfg(test)]
mod tests;
