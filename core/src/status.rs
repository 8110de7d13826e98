//! Whether a namespace is captured: its rules held against what is wanted, or against the
//! settings that can be read back from the rules themselves.

mod beside;
mod guard;
mod left_out;
mod older;

pub use beside::{Beside, judge_beside};
pub use guard::unguarded;
pub use older::whole_in_older_form;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::capture::to_iptables;
use crate::dialect::{self, DIALECTS, Dialect, FOOTPRINTS};
use crate::infer::{self, NotRead, read_native};
use crate::neighbours;
use crate::nft::tables::Native;
use crate::nft::{self, NftRuleset};
use crate::observed::{Holding, IpRule, Observed, Variant};
use crate::ownership;
use crate::plan::{self, Change, Clash, Context, DesiredState, Effect, FamilyState, TakenTable};
use crate::policy::CapturePolicy;
use crate::ruleset::{Rule, Ruleset, TableChain};
use crate::value::{Family, Groups};
use left_out::left_out;

/// Whether a pod's traffic is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The rules are whole, and those that are wanted.
    Captured,
    /// None of ours are there, in the backend that is looked at.
    NotCaptured,
    /// There are some, but not whole, or not those that are wanted.
    Drifted,
}

/// How the rules of a namespace compare with those desired, or with settings read back from them.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Captured, drifted or not captured, in the backend that is looked at.
    pub state: State,
    /// Whether the rules are native nftables.
    pub native: bool,
    /// Which iptables holds the rules.
    pub variant: Option<Variant>,
    /// The name of the dialect that the rules are of; none where no dialect's are found.
    pub dialect: Option<&'static str>,
    /// The families that are captured.
    pub families: Vec<Family>,
    /// What would have to be done to make the rules whole.
    pub differences: Vec<Effect>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// What may be in the way of captured connections, as far as looking at single rules tells; what
    /// rules do together is for the simulator to say.
    #[serde(skip)]
    pub neighbours: Vec<String>,
}

/// A ruleset that was read back, and where from.
#[derive(Clone, Debug)]
pub struct ReadBack {
    /// Whose chains these are, and in whose settings they were read back.
    pub dialect: &'static Dialect,
    /// Whether iptables-nft or iptables-legacy holds the rules.
    pub variant: Variant,
    /// The settings that were read back; none when they make no policy.
    pub policy: Option<CapturePolicy>,
    /// The rules that these give.
    pub ruleset: Option<Ruleset>,
}

impl ReadBack {
    /// Whether the rules that are there are some of those that the settings give, in their order: so
    /// these can be the settings that they were made with.
    pub fn accounts_for(&self, observed: &Observed, groups: &Groups) -> bool {
        self.ruleset.as_ref().is_some_and(|ruleset| {
            Family::ALL.into_iter().all(|family| {
                observed.holding(self.variant, family).is_none_or(|dump| {
                    let found = FamilyState::observed(dump, FOOTPRINTS, groups);
                    found.is_within(&FamilyState::desired(ruleset, family, groups))
                })
            })
        })
    }

    /// Each chain of others that rules of ours are in.
    fn shared(&self, observed: &Observed, groups: &Groups) -> Vec<String> {
        let of = |family: Family| {
            let dump = observed.holding(self.variant, family);
            let found = dump.map(|dump| FamilyState::observed(dump, FOOTPRINTS, groups));
            let found = found.unwrap_or_default();
            let named = |(table, chain)| {
                let variant = self.variant;
                format!(
                    "chain {chain} of {family} {table} ({variant}) is somebody else's, with rules of ours in it"
                )
            };
            found.shared().map(named).collect::<Vec<_>>()
        };
        Family::ALL.into_iter().flat_map(of).collect()
    }
}

/// What to say where rules can't be told from what they should be.
const NO_SETTINGS: &str = "no settings give just these rules: some are missing, or were added or changed; \
    with the configuration it can be told which";

/// Read back what is there, in each variant and each dialect.
pub fn read_back(observed: &Observed) -> Vec<ReadBack> {
    let mut found = Vec::new();
    for variant in Variant::ALL {
        for dialect in DIALECTS {
            // Settings are read in the newest form.
            let modern = Family::ALL.map(|family| {
                let dump = observed.holding(variant, family);
                dump.and_then(dialect.modernize).map(|modern| modern.dump)
            });
            let dump = |index: usize| {
                modern[index].as_ref().or_else(|| observed.holding(variant, Family::ALL[index]))
            };
            let (v4, v6) = (dump(0), dump(1));
            let policy = match infer::read(v4, v6, &observed.ip_rules, dialect) {
                Ok(policy) => Some(policy),
                Err(NotRead::NotWhole) => None,
                Err(NotRead::Absent) => continue,
            };
            let ruleset =
                policy.as_ref().map(|policy| to_iptables(policy, dialect.footprint.layout));
            found.push(ReadBack { dialect, variant, policy, ruleset });
        }
    }
    found
}

/// Native nftables that were read back.
#[derive(Clone, Debug)]
pub struct NativeReadBack {
    /// Whose tables these are, and in whose settings they were read back.
    pub dialect: &'static Dialect,
    /// The policy that was read back.
    pub policy: CapturePolicy,
    /// The rules that it gives: those that are there, with reasons.
    pub ruleset: NftRuleset,
}

/// Read back native nftables; none where no settings give just the rules that are there.
pub fn read_native_back(observed: &Observed) -> Option<NativeReadBack> {
    DIALECTS.iter().find_map(|dialect| {
        let (policy, ruleset) = read_native(&observed.native, &observed.ip_rules, dialect)?;
        Some(NativeReadBack { dialect, policy, ruleset })
    })
}

/// Judge a namespace; by `wanted` when it is given. Rules in the form of an older release are compared
/// in that form: they are whole where nothing of it is missing.
pub fn judge(observed: &Observed, wanted: Option<&Ruleset>, groups: &Groups) -> Status {
    let mut found = judge_newest(observed, wanted, groups);
    if found.state != State::Drifted || found.native {
        return found;
    }
    let Some((modern, older, meaning)) = modernized(observed) else { return found };
    let mut again = judge_newest(&modern, wanted, groups);
    if again.state == State::Captured {
        again.notes.insert(0, format!("{older}; {meaning}"));
        return again;
    }
    found.notes.insert(0, format!("{older}, and not whole in that form either"));
    found
}

/// What was seen, with its rules in the newest form; whose form they had, and what that means.
fn modernized(observed: &Observed) -> Option<(Observed, String, String)> {
    let mut modern = observed.clone();
    let mut forms = BTreeSet::new();
    let mut who = None;
    for holding in &mut modern.holdings {
        for dialect in DIALECTS {
            if let Some(found) = (dialect.modernize)(&holding.dump) {
                holding.dump = found.dump;
                forms.extend(found.forms);
                who = Some(dialect.name);
            }
        }
    }
    let who = who?;
    let written = match forms.iter().map(|form| form.last).min() {
        Some((major, minor)) => format!("rules as {who} up to {major}.{minor} wrote them"),
        None => format!("rules as an older release of {who} wrote them"),
    };
    let lacks: Vec<&str> = forms.iter().filter_map(|form| form.lacks).collect();
    let meaning = if lacks.is_empty() {
        "it means the same as today's".to_owned()
    } else {
        format!("it differs from today's in that {}", lacks.join("; "))
    };
    Some((modern, written, meaning))
}

fn judge_newest(observed: &Observed, wanted: Option<&Ruleset>, groups: &Groups) -> Status {
    let found = read_back(observed);
    if wanted.is_none() && found.is_empty() && !observed.native.is_empty() {
        return judge_native(observed, None, groups);
    }
    let first = found.first();
    let context = Context { footprints: FOOTPRINTS, groups, marks: Vec::new(), netlink: true };
    let variant = first.map_or(Variant::Nft, |f| f.variant);
    let ruleset = wanted.or_else(|| first.and_then(|f| f.ruleset.as_ref()));
    // Where no guard can be, none is missing.
    let unguarded = ruleset.filter(|ruleset| ruleset.guard.is_some() && !guard::can_be(observed));
    let bare = unguarded.map(|ruleset| Ruleset { guard: None, ..ruleset.clone() });
    let ruleset = bare.as_ref().or(ruleset);
    let wanted_rules =
        ruleset.map_or(DesiredState::Nothing, |r| DesiredState::Iptables(r, variant));
    let plan = plan::plan(observed, wanted_rules, false, &context);
    let mut differences = differences(plan.effects, observed);
    let mut notes = plan.obstacles;
    let whole =
        differences.is_empty() && notes.is_empty() && plan.taken.is_none() && plan.clash.is_none();
    if let Some(found) = first.filter(|f| wanted.is_none() && !f.accounts_for(observed, groups)) {
        notes.push(NO_SETTINGS.to_owned());
        notes.extend(found.shared(observed, groups));
        // What settings that are guessed wrongly would change may be all that captures.
        differences
            .retain(|effect| matches!(effect, Effect::Loopback { .. } | Effect::Dormant { .. }));
    }
    if wanted.is_none() {
        notes.extend(first.and_then(|found| found.policy.as_ref()).into_iter().flat_map(left_out));
    }
    notes.extend(plan.clash.map(|Clash(chains)| {
        format!("{} is somebody else's, with rules of ours in it", chains.join(", "))
    }));
    notes.extend(taken(plan.taken.as_ref()));
    notes.extend(unguarded.and_then(guard::lacking));
    notes.extend(ruleset.and_then(|ruleset| guard::missing(observed, ruleset)));
    let neighbours = first.map(|_| neighbours::notes(observed, FOOTPRINTS)).unwrap_or_default();
    notes.extend(observed.asleep());
    notes.extend(dialect::others::captures(observed));
    if observed.captures_natively() {
        notes.push(match &observed.native[..] {
            [(table, _), ..] if first.is_none() => format!(
                "it is captured by native nftables instead, rules of {}",
                dialect::dialect_of_table(table)
            ),
            _ => "native nftables rules are there as well".to_owned(),
        });
    }
    notes.extend(killed_trace(observed));
    if observed.interrupted {
        notes.push("a run that changes the rules is in progress, or was interrupted".to_owned());
    } else if plan.interrupted {
        notes.push(
            "an interrupted run of another tool left its rules that drop everything".to_owned(),
        );
    }
    if found.len() > 1 {
        let list: Vec<String> =
            found.iter().map(|f| format!("{} in {}", f.dialect.name, f.variant)).collect();
        notes.push(format!("rules are there more than once: {}", list.join(", ")));
    }
    // What somebody left beside chains that are gone.
    let rest = first.is_none() && holds_rest(observed);
    if rest {
        notes.push(
            "rules of an older release are left without their chains: cleanup removes them"
                .to_owned(),
        );
    }
    let families = families(observed, variant);
    let there = observed.captures_natively();
    let natively = if there { nft::tables::families(&observed.native) } else { Vec::new() };
    notes.extend(passes_in_v6(observed, &[&families[..], &natively].concat()));
    let state = match (first, whole) {
        (None, _) if !plan.interrupted && !rest => State::NotCaptured,
        (Some(f), true) if f.ruleset.is_some() || wanted.is_some() => State::Captured,
        _ => State::Drifted,
    };
    Status {
        state,
        native: false,
        variant: first.map(|f| f.variant),
        dialect: first.map(|f| f.dialect.name),
        families,
        differences: if first.is_some() || rest { differences } else { Vec::new() },
        notes,
        neighbours,
    }
}

/// Whether a table of iptables holds rules of ours.
fn holds_rest(observed: &Observed) -> bool {
    let groups = Groups::new();
    let found = |holding: &Holding| FamilyState::observed(&holding.dump, FOOTPRINTS, &groups);
    observed.holdings.iter().any(|holding| !found(holding).is_empty())
}

/// Whether rules of any backend capture a namespace, or are left of some that did.
pub fn holds_rules(observed: &Observed, groups: &Groups) -> bool {
    !observed.native.is_empty() || judge(observed, None, groups).state != State::NotCaptured
}

/// Whether rules of others are here, whatever they do.
pub fn has_neighbours(observed: &Observed) -> bool {
    neighbours::are_here(observed, FOOTPRINTS)
}

/// Each chain of others at an interface that may undo what captures, whatever that is, in a sentence.
pub fn at_interfaces(observed: &Observed) -> Vec<String> {
    neighbours::at_interfaces(observed).collect()
}

/// Whose rules [`judge`] finds, without a look at the rules.
pub fn dialect(observed: &Observed) -> Option<&'static str> {
    let holds = |variant: Variant, dialect: &Dialect| {
        let dumps = Family::ALL.into_iter().filter_map(|family| observed.holding(variant, family));
        dumps.into_iter().any(|dump| ownership::has_chains(dump, &dialect.footprint))
    };
    let of_variant = |variant| DIALECTS.iter().find(|dialect| holds(variant, dialect));
    let of_iptables = Variant::ALL.into_iter().find_map(of_variant).map(|dialect| dialect.name);
    let native = || observed.native.first().map(|(name, _)| dialect::dialect_of_table(name));
    of_iptables.or_else(native)
}

/// Judge a namespace that native nftables captures, or is to capture.
pub fn judge_native(observed: &Observed, wanted: Option<&Native>, groups: &Groups) -> Status {
    let context = Context { footprints: FOOTPRINTS, groups, marks: Vec::new(), netlink: true };
    let mut notes = Vec::new();
    let there = !observed.native.is_empty();
    let found = if wanted.is_none() { read_native_back(observed) } else { None };
    let read = found.as_ref().and_then(|found| found.ruleset.ready(groups).ok());
    let (whole, differences) = if let Some(native) = wanted.or(read.as_ref()) {
        let mut native = native.clone();
        if let Some(found) = found.as_ref().filter(|_| wanted.is_none()) {
            notes.extend(left_out(&found.policy));
            // What was read back may be written in another way, but means the same.
            native.tables.clone_from(&observed.native);
            notes.extend(guard::complete(&mut native, found));
        }
        let plan = plan::plan(observed, DesiredState::Native(&native), false, &context);
        notes.extend(taken(plan.taken.as_ref()));
        let sound = plan.taken.is_none() && plan.obstacles.is_empty();
        notes.extend(plan.obstacles);
        let differences = differences(plan.effects, observed);
        (sound && differences.is_empty(), differences)
    } else {
        if there {
            notes.push(NO_SETTINGS.to_owned());
        }
        (false, Vec::new())
    };
    notes.extend(observed.asleep());
    notes.extend(dialect::others::captures(observed));
    let mut neighbours = Vec::new();
    if there {
        neighbours = neighbours::notes(observed, FOOTPRINTS);
    } else {
        notes.extend(read_back(observed).into_iter().map(|found| {
            format!(
                "it is captured by {} instead, rules of {}, which are not compared with native nftables",
                found.variant, found.dialect.name
            )
        }));
    }
    let families = nft::tables::families(&observed.native);
    notes.extend(passes_in_v6(observed, &families));
    notes.extend(killed_trace(observed));
    if observed.interrupted {
        notes.push("a run that changes the rules is in progress, or was interrupted".to_owned());
    }
    let state = match (there, whole) {
        (false, _) => State::NotCaptured,
        (true, true) => State::Captured,
        (true, false) => State::Drifted,
    };
    Status {
        state,
        native: there,
        variant: None,
        dialect: observed.native.first().map(|(name, _)| dialect::dialect_of_table(name)),
        families,
        differences: if there { differences } else { Vec::new() },
        notes,
        neighbours,
    }
}

/// Who uses the routing table that marked packets need.
fn taken(taken: Option<&TakenTable>) -> Option<String> {
    let (who, routes) = (taken?.needed_by(), taken?.routes());
    Some(format!("the routing table that {who} holds routes of somebody else as well: {routes}"))
}

/// That connections by IPv6 pass where only IPv4 is captured.
fn passes_in_v6(observed: &Observed, families: &[Family]) -> Option<String> {
    let addresses = observed.addresses.iter().map(|a| a.address).collect();
    let facts = crate::facts::HostFacts { addresses, ..Default::default() };
    let passes = !families.is_empty() && !families.contains(&Family::V6);
    facts.uncaptured_v6().filter(|_| passes).map(str::to_owned)
}

/// What a trace left that was killed.
fn killed_trace(observed: &Observed) -> Option<String> {
    let families: Vec<String> = observed.loggers.iter().map(|l| l.family.to_string()).collect();
    (!families.is_empty()).then(|| {
        format!(
            "a trace was killed here, and packets of {} are still logged by netlink: cleanup, or \
             the next trace, puts that right",
            families.join(" and ")
        )
    })
}

/// The families in which chains of ours are there.
fn families(observed: &Observed, variant: Variant) -> Vec<Family> {
    let groups = Groups::new();
    let has = |family: &Family| {
        observed
            .holding(variant, *family)
            .is_some_and(|d| FamilyState::observed(d, FOOTPRINTS, &groups).has_chains())
    };
    Family::ALL.into_iter().filter(has).collect()
}

/// Effects that tell of a difference. That istio-iptables lets the kernel choose the priority of
/// its policy routing rule is none: then one is removed, and another of the same kind added.
fn differences(effects: Vec<Effect>, observed: &Observed) -> Vec<Effect> {
    let like =
        |a: &IpRule, b: &IpRule| a.family == b.family && a.fwmark == b.fwmark && a.table == b.table;
    let with = |wanted: Change, rule: &IpRule| -> usize {
        let is = |effect: &&Effect| matches!(effect, Effect::IpRule { change, rule: r } if *change == wanted && like(r, rule));
        effects.iter().filter(is).count()
    };
    let twins: Vec<IpRule> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::IpRule { change: Change::Add, rule }
                if with(Change::Add, rule) == 1 && with(Change::Remove, rule) == 1 =>
            {
                Some(rule.clone())
            }
            _ => None,
        })
        .collect();
    let twin = |rule: &IpRule| twins.iter().any(|r| like(r, rule));
    // An earlier version had the address on `lo`, where it serves as well once the pod runs, and meshes' own
    // tools put it there; the CNI plugin has it on an interface of its own, where it serves as well.
    let address = Effect::Address { change: Change::Add, address: plan::PASSTHROUGH_V6 };
    let on_lo = effects.contains(&Effect::Passthrough { change: Change::Add })
        && plan::has_passthrough(observed);
    let on_link = effects.contains(&address) && observed.passthrough_link == Some(true);
    let moves = on_lo || on_link;
    effects
        .into_iter()
        .filter(|effect| match effect {
            Effect::Passthrough { .. } | Effect::Address { .. } => !moves,
            Effect::Marker { change } => *change == Change::Remove && observed.interrupted,
            Effect::IpRule { rule, .. } => !twin(rule),
            // What a trace left is told in a note.
            Effect::Logger { .. } => false,
            _ => true,
        })
        .collect()
}

/// Which of the rules are in none of the variants' tables.
pub fn missing(
    observed: &Observed,
    family: Family,
    needed: &[(TableChain, Rule)],
    groups: &Groups,
) -> Vec<(TableChain, Rule)> {
    let is_there = |((table, chain), rule): &(TableChain, Rule)| {
        let wanted = rule.canonical(groups);
        Variant::ALL.iter().any(|variant| {
            observed
                .holding(*variant, family)
                .and_then(|d| d.table(table.as_str())?.chain(chain.as_str()))
                .is_some_and(|c| {
                    c.rules
                        .iter()
                        .any(|r| r.rule.as_ref().is_ok_and(|rule| rule.canonical(groups) == wanted))
                })
        })
    };
    needed.iter().filter(|n| !is_there(n)).cloned().collect()
}
