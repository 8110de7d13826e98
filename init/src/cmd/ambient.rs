//! `millrace ambient rules`: the rules in a pod that a proxy of its node serves.

use std::ffi::OsString;

use anyhow::{Context as _, Result, anyhow, bail};
use millrace_core::desired::Desired;
use millrace_core::dialect::ambient::{
    self, Action, CILIUM_DIALECT, DIALECT, Flavour, Options, Raw, Resolved,
};
use millrace_core::dialect::{DIALECTS, Dialect, MARKS};
use millrace_core::ebpf::compile;
use millrace_core::facts::HostFacts;
use millrace_core::nft::render_transaction;
use millrace_core::observed::Observed;
use millrace_core::ownership::has_chains;
use millrace_core::plan::Preference;
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight::Backend;
use millrace_core::source::Sourced;
use millrace_core::status::{State, judge, judge_native};
use millrace_core::value::Groups;
use millrace_host::capture::{Farewell, leave};
use millrace_host::cri::CONTAINERD;
use millrace_host::engine::{Outcome, Session};
use millrace_host::exec;
use millrace_host::observe::Depth;

use super::config::{self, Loaded};
use super::enact::{by_rules, command};
use super::output::{log_outcome, print, print_for_programs};
use super::{namespace, status};
use crate::cli::ambient::read;
use crate::cli::own::NetnsTarget;
use crate::exit::Exit;
use crate::log::Log;

/// The whole command, from the words behind its name.
pub(crate) fn ambient(words: Vec<OsString>) -> Exit {
    command(words, read, run)
}

fn run(flags: Vec<(String, String)>, log: &mut Log) -> Result<Exit> {
    let raw = Raw::new(flags, config::environment()?);
    let place = netns_target(&raw)?;
    let (mut session, facts) = namespace::open(&place)?;
    let Resolved { policy, options } = ambient::resolve(&raw, &facts)?;
    let preference = preference(&options.backend, &policy)?;
    let desired = desired(policy, options.flavour, preference);
    match options.action {
        Action::Print => {
            print_for_programs(&text(&desired, preference))?;
            Ok(Exit::Ok)
        }
        Action::Check => check(session, &desired, preference),
        Action::Apply => {
            let outcome =
                by_rules(&mut session, &place, &desired, (preference, None), options.wait)?;
            Ok(reported(&outcome, log))
        }
        Action::Remove => remove(session, &place, &options, log),
    }
}

fn reported(outcome: &Outcome, log: &mut Log) -> Exit {
    for warning in &outcome.warnings {
        log.warn(warning);
    }
    log_outcome(outcome, log);
    Exit::Ok
}

/// A command line, for looking only.
pub(super) fn load(words: Vec<OsString>, facts: &HostFacts) -> Result<Loaded> {
    let raw = Raw::new(config::flags(read(words))?, config::environment()?);
    let Resolved { policy, options } = ambient::resolve(&raw, facts)?;
    let preference = preference(&options.backend, &policy)?;
    let Desired { policy, native, .. } = desired(policy, options.flavour, preference);
    let layout = dialect(options.flavour).footprint.layout;
    Ok(Loaded { policy, layout, nft: native, warnings: Vec::new(), asks: Vec::new() })
}

/// What a pod is to have, with native nftables where these may carry it out.
fn desired(policy: CapturePolicy, flavour: Flavour, preference: Preference) -> Desired {
    let mut desired = Desired::new(policy, dialect(flavour));
    if !matches!(preference, Preference::Auto | Preference::Backend(Backend::Nftables)) {
        desired.native = None;
    }
    desired
}

/// The rules as an agent would write them.
fn text(desired: &Desired, preference: Preference) -> String {
    match &desired.native {
        // Where an agent has none, it is Millrace's own form.
        Some(native) if preference != Preference::Auto && native.layout.one_table => {
            render_transaction(native)
        }
        Some(native) if preference != Preference::Auto => ambient::transaction(native),
        _ => ambient::dry_run(&desired.iptables),
    }
}

const fn dialect(flavour: Flavour) -> &'static Dialect {
    match flavour {
        Flavour::Istio => &DIALECT,
        Flavour::Cilium => &CILIUM_DIALECT,
    }
}

/// The namespace to work in.
fn netns_target(raw: &Raw) -> Result<NetnsTarget> {
    let Some((flag, text)) = ambient::netns_target(raw)? else { return Ok(NetnsTarget::Here) };
    let name = text.value.clone();
    Ok(match flag {
        "pid" => {
            let pid = name.parse().ok().filter(|pid| *pid > 0);
            NetnsTarget::Process(
                pid.ok_or_else(|| anyhow!("{}: {name:?} is no process id", text.source))?,
            )
        }
        "pod" => {
            let endpoint = raw.text("runtime-endpoint").value;
            let endpoint = if endpoint.is_empty() { CONTAINERD.to_owned() } else { endpoint };
            NetnsTarget::Pod { name, endpoint: endpoint.into() }
        }
        _ => NetnsTarget::Netns(name),
    })
}

/// Backend that writes the rules.
fn preference(backend: &Sourced<String>, policy: &CapturePolicy) -> Result<Preference> {
    let known = Backend::OF_RULES.into_iter().find(|known| known.as_str() == backend.value);
    Ok(match backend.value.as_str() {
        "auto" => Preference::Auto,
        "iptables" => Preference::Iptables,
        "ebpf" => match compile(policy, &Groups::new()) {
            Ok(_) => bail!("{}: eBPF captures for sidecars alone", backend.source),
            Err(refusals) => {
                return Err(refusals).with_context(|| backend.source.to_string());
            }
        },
        other => match known {
            Some(backend) => Preference::Backend(backend),
            None => bail!(
                "{}: {other:?}: it is one of auto, nftables, iptables, iptables-nft, \
                 iptables-legacy",
                backend.source
            ),
        },
    })
}

fn check(mut session: Session, desired: &Desired, preference: Preference) -> Result<Exit> {
    let groups = Groups::new();
    let observed = session.observe(&exec::Options::default(), Depth::Fast)?;
    // Where either is meant, it is the one that is there.
    let either = preference == Preference::Auto && !observed.captures_natively();
    let found = match desired.native.as_ref().filter(|_| !either) {
        Some(native) => judge_native(&observed, Some(&native.ready_with_text(&groups)?), &groups),
        None => judge(&observed, Some(&desired.iptables), &groups),
    };
    print(&status::text(&found))?;
    Ok(match found.state {
        State::Captured => Exit::Ok,
        State::NotCaptured => Exit::NotCaptured,
        State::Drifted => Exit::Drifted,
    })
}

/// Remove all of it, unless rules of another mesh stand among them: then that would be half of a capture.
fn remove(
    mut session: Session,
    place: &NetnsTarget,
    options: &Options,
    log: &mut Log,
) -> Result<Exit> {
    let exec = exec::Options::default();
    let observed = session.observe(&exec, Depth::Fast)?;
    if let Some(other) = another(&observed) {
        bail!(
            "rules of {other} are here as well: `millrace cleanup` removes both; nothing was changed"
        );
    }
    let entered = namespace::entered(place)?;
    let left = leave(
        &mut session,
        &Farewell {
            folder: None,
            entered: entered.as_ref(),
            chosen: None,
            marks: MARKS.to_vec(),
            groups: &Groups::new(),
            dry_run: false,
            wait: options.wait,
            exec,
        },
    )?;
    match left.outcome {
        Some(outcome) if !outcome.effects.is_empty() => Ok(reported(&outcome, log)),
        _ => {
            log.info("nothing to do: no rules of ambient mode are here");
            Ok(Exit::Ok)
        }
    }
}

/// Another mesh than ambient ones that captures here.
fn another(observed: &Observed) -> Option<&'static str> {
    let others = || DIALECTS.iter().filter(|dialect| dialect.mesh.marks.is_none());
    let of_iptables = others().find(|dialect| {
        observed.holdings.iter().any(|holding| has_chains(&holding.dump, &dialect.footprint))
    });
    let by_name = |dialect: &&Dialect| {
        let named = |name: &str| observed.native.iter().any(|(found, _)| found == name);
        dialect.nft_layout.names().any(named)
    };
    of_iptables.or_else(|| others().find(by_name)).map(|dialect| dialect.name)
}
