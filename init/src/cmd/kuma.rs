//! `kumactl install transparent-proxy` and `kumactl uninstall transparent-proxy`: what these do, with their
//! output and exit codes.

mod resolver;

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, Result};
use millrace_core::desired::Desired;
use millrace_core::dialect::kuma::{self, DIALECT, NFT_LAYOUT, Options, Programs, Resolved};
use millrace_core::dialect::{ConfigErrors, Raw, ValueReader};
use millrace_core::nft::render_transaction;
use millrace_core::observed::{Observed, Variant};
use millrace_core::ownership::Owned;
use millrace_core::plan::{Effect, Preference, has_passthrough};
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight::Backend;
use millrace_core::value::Groups;
use millrace_host::capture::CaptureError;
use millrace_host::engine::{Drift, Outcome, Request, Session};
use millrace_host::observe::Depth;
use millrace_host::{exec, facts};

use super::enact::by_rules;
use super::output::{log_outcome, print, print_for_programs};
use super::{config, exit_of, reported, termination};
use crate::cli::istio::NotTyped;
use crate::cli::kuma::{Asked, read};
use crate::cli::own::NetnsTarget;
use crate::exit::Exit;
use crate::log::Log;

/// The whole command, from the words behind its name.
pub(crate) fn kuma(words: Vec<OsString>) -> Exit {
    let failed = |text: &str| {
        crate::complain(text);
        termination::tell(&text.lines().map(str::to_owned).collect::<Vec<_>>());
        Exit::Failed
    };
    let done = match read(words) {
        Ok(Asked::Install(flags)) => install(flags),
        Ok(Asked::Uninstall(flags)) => uninstall(flags),
        Err(NotTyped::Help(text)) => print(&text),
        Err(NotTyped::Bad(text)) => return failed(text.strip_prefix("error: ").unwrap_or(&text)),
    };
    let Err(error) = done else { return Exit::Ok };
    failed(&match error.downcast_ref::<ConfigErrors>() {
        Some(errors) => refused(errors),
        None => reported(&error),
    });
    exit_of(&error)
}

/// What kumactl says first, and then everything that is wrong.
fn refused(errors: &ConfigErrors) -> String {
    kuma::said(errors).map_or_else(|| errors.to_string(), |said| format!("{said}\n{errors}"))
}

fn install(flags: Vec<(String, String)>) -> Result<()> {
    let mut log = Log::kuma();
    let mut session = Session::open()?;
    let (raw, facts) = config::kuma_settings(flags, facts::gather(session.net())?)?;
    let Resolved { policy, options, warnings } = kuma::resolve(&raw, &facts)?;
    for warning in &warnings {
        log.warn(warning);
    }
    if options.dry_run {
        return print_for_programs(&text(&policy, &options));
    }
    let outcome = apply(&mut session, &policy, &options)?;
    for warning in &outcome.warnings {
        log.warn(warning);
    }
    log_outcome(&outcome, &mut log);
    Ok(())
}

/// What a dry run prints: what iptables-restore takes, or the one transaction of native nftables.
fn text(policy: &CapturePolicy, options: &Options) -> String {
    if options.native {
        render_transaction(&config::rules_of(policy, &NFT_LAYOUT))
    } else {
        kuma::dry_run(&kuma::rules(policy, options), options.verbose)
    }
}

fn apply(
    session: &mut Session,
    policy: &CapturePolicy,
    options: &Options,
) -> Result<Outcome, CaptureError> {
    let native = options.native.then(|| config::rules_of(policy, &NFT_LAYOUT));
    let iptables = kuma::rules(policy, options);
    let desired = Desired { policy: policy.clone(), iptables, native };
    let preference = match options.programs {
        _ if options.native => Preference::Backend(Backend::Nftables),
        Programs::Any => Preference::Iptables,
        Programs::Nft => Preference::Backend(Backend::IptablesNft),
        Programs::Legacy => Preference::Binaries(Variant::Legacy),
    };
    by_rules(session, &NetnsTarget::Here, &desired, (preference, None), options.wait)
}

fn uninstall(flags: Vec<(String, String)>) -> Result<()> {
    let raw: Raw<kuma::Uninstall> = Raw::new(flags, config::environment()?);
    let mut reader = ValueReader::default();
    let dry_run = raw.switch(&mut reader, "dry-run").value;
    raw.switch(&mut reader, "verbose");
    let seconds = raw.text("wait");
    let wait = seconds.value.parse::<u32>();
    if wait.is_err() {
        reader.unusable(&seconds.source, &seconds.value, "it is a whole number of seconds");
    }
    let wait = Duration::from_secs(reader.finish(wait.ok())?.into());
    let mut log = Log::kuma();
    let mut session = Session::open()?;
    session.only(&DIALECT);
    let exec = exec::Options::default();
    if !is_here(&session.observe(&exec, Depth::Fast)?) {
        log.info("nothing to do: no rules of Kuma are here");
        return Ok(());
    }
    let kept = resolver::kept().context("nothing was changed")?;
    // First, so that what fails or is killed can be done again: the rules tell that it is not done.
    if let (Some(kept), false) = (&kept, dry_run) {
        kept.put_back()
            .context("the rules of Kuma stand, `millrace cleanup` removes them alone")?;
    }
    let outcome = session.run(&Request {
        rules: None,
        preference: Preference::Auto,
        drift: Drift::Replace,
        everything: false,
        dry_run,
        wait,
        groups: &Groups::new(),
        marks: Vec::new(),
        exec,
    });
    let outcome = if kept.is_some() && !dry_run {
        outcome.with_context(|| format!("{} was put back already", resolver::PATH))?
    } else {
        outcome?
    };
    for warning in &outcome.warnings {
        log.warn(warning);
    }
    let is_note = |effect: &&Effect| matches!(effect, Effect::Marker { .. });
    let only_notes = outcome.effects.iter().all(|effect| is_note(&effect));
    for effect in outcome.effects.iter().filter(|e| only_notes || !is_note(e)) {
        log.info(&format!("{}: {effect}", if dry_run { "would do" } else { "done" }));
    }
    kept.map_or(Ok(()), |kept| print(kept.text()))
}

/// Whether anything of Kuma's is there, or what a run that did not end left. What others have was not seen.
fn is_here(observed: &Observed) -> bool {
    let rules = |holding: &millrace_core::observed::Holding| {
        !Owned::find(&holding.dump, std::slice::from_ref(&DIALECT.footprint)).is_empty()
    };
    let rest = observed.interrupted || has_passthrough(observed);
    rest || !observed.native.is_empty() || observed.holdings.iter().any(rules)
}
