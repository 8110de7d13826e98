//! One run: look once, decide, carry out, and take everything back if anything fails.

mod error;

pub use error::EngineError;

use std::thread;
use std::time::{Duration, Instant};

use millrace_core::dialect::alone::alone;
use millrace_core::dialect::others::captures;
use millrace_core::dialect::{Dialect, FOOTPRINTS};
use millrace_core::nft::UNGUARDED;
use millrace_core::nft::tables::Native;
use millrace_core::observed::{Observed, Variant};
use millrace_core::ownership::Footprint;
use millrace_core::plan::{self, Choice, Context, DesiredState, Effect, Method, Plan, Preference};
use millrace_core::preflight::Backend;
use millrace_core::ruleset::Ruleset;
use millrace_core::value::Groups;

use crate::effect;
use crate::exec;
use crate::link::Net;
use crate::lock::RunLock;
use crate::nft;
use crate::observe::{Depth, observe};
use crate::tools::Tools;

/// How long to wait before another look when somebody else was faster: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What a run is to do about rules of ours that differ from what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// Write the desired rules in their place, as `--reconcile` asks for.
    Replace,
    /// Refuse, unless they are what an interrupted run left.
    Refuse,
}

/// Rules that are to be there: the same capture, for each backend that may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// For iptables-nft and iptables-legacy, which are both written from it.
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
    pub preference: Preference,
    /// What to do about differing rules.
    pub drift: Drift,
    /// Write everything, even what is there already.
    pub everything: bool,
    /// Plan only: no lock is taken, and what can't be seen is a warning.
    pub dry_run: bool,
    /// How long to wait for locks.
    pub wait: Duration,
    /// Group names and their numbers.
    pub groups: &'a Groups,
    /// Marks with their routing tables that belong to us.
    pub marks: Vec<(u32, u32)>,
    /// Sandbox, variables and limits of iptables' binaries, where they are run.
    pub exec: exec::Options,
}

/// What [`Session::run`] changed, or would change in a dry run, and by which backend.
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
    method: Option<Method>,
    /// Whether the last attempt was to write a guard, and whether the kernel has refused one.
    guards: (bool, bool),
    /// The number of the last change of `nf_tables` before the last look.
    generation: Option<u32>,
    /// The one dialect whose rules are worked on; none for all.
    only: Option<&'static Dialect>,
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
            method: None,
            guards: (false, false),
            generation: None,
            only: None,
            warnings: Vec::new(),
        })
    }

    /// See and change nothing but what one dialect has here, which needs no policy routing.
    pub const fn only(&mut self, dialect: &'static Dialect) {
        self.only = Some(dialect);
    }

    /// How the rules are known that are worked on.
    fn footprints(&self) -> &'static [Footprint] {
        self.only.map_or(FOOTPRINTS, |dialect| std::slice::from_ref(&dialect.footprint))
    }

    /// The rtnetlink connection to the session's namespace.
    pub const fn net(&mut self) -> &mut Net {
        &mut self.net
    }

    /// Whether the kernel has refused a guard.
    pub const fn lacks_guard(&self) -> bool {
        self.guards.1
    }

    /// Look once at rules, policy routing and interfaces, in as much detail as `look` says.
    ///
    /// # Errors
    /// When something can't be seen.
    pub fn observe(&mut self, exec: &exec::Options, look: Depth) -> Result<Observed, EngineError> {
        let seen = observe(&mut self.tools, &mut self.net, exec, look)?;
        self.nf_tables = Some(seen.observed.nf_tables);
        self.generation = seen.generation;
        if let Some(why) = seen.unseen {
            self.unseen = true;
            let warning =
                format!("rules of iptables-legacy, if there are any, can't be seen: {why}");
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        Ok(match self.only {
            Some(dialect) => alone(seen.observed, dialect),
            None => seen.observed,
        })
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
    fn has(&mut self, method: Method) -> bool {
        match method {
            Method::NFTABLES | Method::IPTABLES_NFT => self.has_nf_tables(),
            Method::NFT_PROGRAMS => self.has_nf_tables() && self.tools.has(Variant::Nft),
            // Where they can't be seen they can't be written either.
            Method::LEGACY_PROGRAMS => !self.unseen && self.tools.has(Variant::Legacy),
            Method { .. } => false,
        }
    }

    /// Look, plan, apply or roll back; again, for up to `wait`, where others change `nf_tables`.
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
                    if why.is_unsupported()
                        || is_last_resort(self.method, request.preference, &why) =>
                {
                    let error = EngineError::TakenBack { failed, why };
                    match self.method {
                        // The guard may be what the kernel has nothing for.
                        _ if self.guards.0 => self.guards.1 = true,
                        Some(method) if !avoid.contains(&method) => avoid.push(method),
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
        avoid: &[Method],
        deadline: Instant,
    ) -> Result<Outcome, EngineError> {
        let programs = request.preference == Preference::Binaries(Variant::Nft)
            || avoid.contains(&Method::IPTABLES_NFT);
        let ways =
            request.rules.is_some_and(|r| !r.iptables.routing.localhost_everywhere.is_empty());
        let look = if ways { Depth::Ways } else { Depth::Fast };
        let (before, unseen) = match self.observe(&request.exec, look) {
            Ok(before) => (before, false),
            // A dry run needs no privilege: it says what it can.
            Err(error) if request.dry_run => {
                self.warnings.push(error.to_string());
                (Observed::default(), true)
            }
            Err(error) => return Err(error),
        };
        let choice = self.choose(&before, request, avoid)?;
        self.method = choice.map(|choice| choice.method);
        let context = Context {
            footprints: self.footprints(),
            groups: request.groups,
            marks: request.marks.clone(),
            netlink: !programs,
        };
        let bare = self.without_guard(request, choice);
        let iptables = request.rules.map(|rules| bare.as_ref().unwrap_or(rules.iptables));
        let wanted = match (request.rules, choice.map(|choice| choice.method.backend)) {
            // What eBPF captures needs no rules.
            (None, _) | (_, None | Some(Backend::Ebpf)) => DesiredState::Nothing,
            (Some(_), Some(Backend::IptablesNft)) => iptables
                .map_or(DesiredState::Nothing, |rules| DesiredState::Iptables(rules, Variant::Nft)),
            (Some(_), Some(Backend::IptablesLegacy)) => iptables
                .map_or(DesiredState::Nothing, |rules| {
                    DesiredState::Iptables(rules, Variant::Legacy)
                }),
            (Some(rules), Some(Backend::Nftables)) => {
                rules.native.map_or(DesiredState::Nothing, DesiredState::Native)
            }
        };
        if let (Some(rules), false) =
            (request.rules, unseen || matches!(wanted, DesiredState::Nothing))
            && rules.iptables.routing.marked.is_some_and(|route| route.transparent)
        {
            self.refuse_bridges(rules.iptables.v6.is_some())?;
        }
        let plan = plan::plan(&before, wanted, request.everything, &context);
        if let Some(taken) = plan.taken {
            return Err(taken.into());
        }
        if let Some(clash) = plan.clash {
            return Err(clash.into());
        }
        let refused =
            request.drift == Drift::Refuse && plan.residue && !plan.unfinished && !plan.interrupted;
        if refused && !plan.is_empty() {
            return Err(EngineError::Drifted { effects: plan.effects });
        }
        let others = if request.rules.is_some() { captures(&before) } else { Vec::new() };
        for warning in plan.obstacles.iter().chain(&plan.untold).cloned().chain(others) {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        if !request.dry_run {
            self.apply(&plan, &before, deadline, request, &context)?;
            if plan.effects.iter().any(|effect| matches!(effect, Effect::Restore { .. })) {
                self.believe(wanted, &before, look, request, &context)?;
            }
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

    /// The rules for iptables without the guard that they should have, where the kernel can't have
    /// one.
    fn without_guard(&mut self, request: &Request<'_>, choice: Option<Choice>) -> Option<Ruleset> {
        let iptables = choice.is_some_and(|choice| {
            matches!(choice.method.backend, Backend::IptablesNft | Backend::IptablesLegacy)
        });
        let rules = request.rules.filter(|_| iptables)?.iptables;
        let name = rules.guard.as_ref()?.layout.guard?;
        let possible = self.has_nf_tables() && !self.guards.1;
        self.guards.0 = possible;
        if possible {
            return None;
        }
        let lacks = if self.guards.1 { "nft_tproxy (CONFIG_NFT_TPROXY)" } else { "nf_tables" };
        let warning = format!(
            "table inet {name} can't be added, as the kernel lacks {lacks}: {UNGUARDED}; rules of \
             Millrace's own (`millrace apply`) need no such table"
        );
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
        Some(Ruleset { guard: None, ..rules.clone() })
    }

    /// How rules are written; none when none are.
    fn choose(
        &mut self,
        before: &Observed,
        request: &Request<'_>,
        avoid: &[Method],
    ) -> Result<Option<Choice>, EngineError> {
        let Some(rules) = request.rules else { return Ok(None) };
        let mut avoid = avoid.to_vec();
        if rules.native.is_none() {
            avoid.push(Method::NFTABLES);
        }
        let footprints = self.footprints();
        Ok(Some(plan::choose(
            before,
            request.preference,
            &mut |method| self.has(method),
            footprints,
            &avoid,
        )?))
    }

    fn apply(
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
                    return Err(match self.roll_back(before, request, context) {
                        Ok(()) => EngineError::TakenBack { failed, why },
                        Err(second) => EngineError::Stuck { failed, why, second },
                    });
                }
            }
        }
        Ok(())
    }

    /// Look whether what programs of iptables wrote is there: they may say so and not have done it.
    fn believe(
        &mut self,
        wanted: DesiredState<'_>,
        before: &Observed,
        look: Depth,
        request: &Request<'_>,
        context: &Context<'_>,
    ) -> Result<(), EngineError> {
        let now = self.observe(&request.exec, look)?;
        let left = plan::plan(&now, wanted, request.everything, context).effects;
        if !left.iter().any(|effect| matches!(effect, Effect::Restore { .. })) {
            return Ok(());
        }
        let back = self.roll_back(before, request, context).err();
        let back = back.map(|why| format!("restoring the previous rules failed too: {why}"));
        Err(EngineError::NotThere { effects: left, back })
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
        effect::apply(effect, net, tools, deadline, options, groups, generation)
    }

    /// Put back what was there before. Every part is tried, whatever fails.
    fn roll_back(
        &mut self,
        before: &Observed,
        request: &Request<'_>,
        context: &Context<'_>,
    ) -> Result<(), String> {
        let now = self.observe(&request.exec, Depth::Fast).map_err(|e| e.to_string())?;
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
fn is_last_resort(
    method: Option<Method>,
    preference: Preference,
    why: &effect::EffectError,
) -> bool {
    method == Some(Method::NFT_PROGRAMS)
        && preference != Preference::Binaries(Variant::Nft)
        && why.is_of_program()
}

#[cfg(test)]
mod tests;
