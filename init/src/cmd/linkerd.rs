//! `linkerd2-proxy-init`: what Linkerd's proxy-init does, with its log and exit codes.

use std::ffi::OsString;

use anyhow::Result;
use millrace_core::capture::to_iptables;
use millrace_core::desired::Desired;
use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::linkerd::{self, LAYOUT, Mode, NFT_LAYOUT, Options, Raw, Resolved};
use millrace_core::nft::render_transaction;
use millrace_core::observed::Variant;
use millrace_core::plan::{Choice, Method, Preference};
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight::Backend;
use millrace_host::capture::CaptureError;
use millrace_host::engine::{Outcome, Session};
use millrace_host::sysctl::Setting;

use super::enact::by_rules;
use super::output::{log_outcome, print};
use super::{config, exit_of, namespace, reported, termination};
use crate::cli::istio::NotTyped;
use crate::cli::linkerd::read;
use crate::cli::own::NetnsTarget;
use crate::exit::Exit;
use crate::log::Log;

/// The whole command, from the words behind its name.
pub(crate) fn linkerd(words: Vec<OsString>) -> Exit {
    let failed = |text: &str| {
        crate::complain(text);
        termination::tell(&text.lines().map(str::to_owned).collect::<Vec<_>>());
        Exit::Failed
    };
    let flags = match read(words) {
        Ok(flags) => flags,
        Err(NotTyped::Help(text)) => {
            return if print(&text).is_ok() { Exit::Ok } else { Exit::Failed };
        }
        Err(NotTyped::Bad(text)) => return failed(text.strip_prefix("error: ").unwrap_or(&text)),
    };
    let raw = match config::environment() {
        Ok(environment) => Raw::new(flags, environment),
        Err(error) => return failed(&reported(&error)),
    };
    let mut log = match Log::linkerd(&raw.text("log-format").value, &raw.text("log-level")) {
        Ok(log) => log,
        Err(text) => return failed(&text),
    };
    match linkerd::resolve(&raw) {
        Ok(resolved) => run(&resolved, &mut log).unwrap_or_else(|error| {
            let text = reported(&error);
            log.error(&text);
            failed(&text);
            exit_of(&error)
        }),
        Err(errors) => failed(&refused(&errors)),
    }
}

/// What proxy-init says first, and then everything that is wrong.
fn refused(errors: &ConfigErrors) -> String {
    linkerd::said(errors).map_or_else(|| errors.to_string(), |said| format!("{said}\n{errors}"))
}

fn run(resolved: &Resolved, log: &mut Log) -> Result<Exit> {
    let Resolved { policy, options, warnings } = resolved;
    for warning in warnings {
        log.warn(warning);
    }
    if options.simulate {
        simulate(policy, options, log);
        return Ok(Exit::Ok);
    }
    let place = options.netns.clone().map_or(NetnsTarget::Here, NetnsTarget::Netns);
    if let Some(netns) = &options.netns {
        namespace::enter_as(&format!("flag --netns: {netns:?}"), netns)?;
    }
    let session = Session::open()?;
    let before = options.close_wait.map(|seconds| Setting::CloseWait.set(seconds)).transpose()?;
    let applied = apply(session, &place, policy, options);
    let outcome = match (applied, before.flatten()) {
        (Err(error), Some(before)) => {
            if let Err(why) = Setting::CloseWait.set(before) {
                log.warn(&format!("what was set before can't be set again: {why}"));
            }
            return Err(error.into());
        }
        (applied, _) => applied?,
    };
    for warning in &outcome.warnings {
        log.warn(warning);
    }
    log_outcome(&outcome, log);
    Ok(Exit::Ok)
}

/// The commands that proxy-init would run, or the one transaction of native nftables.
fn simulate(policy: &CapturePolicy, options: &Options, log: &mut Log) {
    if options.native {
        let text = render_transaction(&config::rules_of(policy, &NFT_LAYOUT));
        log.info(&format!("nftables rules, in one transaction:\n{}", text.trim_end()));
        return;
    }
    for command in linkerd::commands(&to_iptables(policy, &LAYOUT), options) {
        log.info(&command);
    }
}

fn apply(
    mut session: Session,
    place: &NetnsTarget,
    policy: &CapturePolicy,
    options: &Options,
) -> Result<Outcome, CaptureError> {
    let native = options.native.then(|| config::rules_of(policy, &NFT_LAYOUT));
    let iptables = to_iptables(policy, &LAYOUT);
    let desired = Desired { policy: policy.clone(), iptables, native };
    let preference = match options.mode {
        _ if options.native => Preference::Backend(Backend::Nftables),
        Mode::Legacy => Preference::Binaries(Variant::Legacy),
        Mode::Nft => Preference::Backend(Backend::IptablesNft),
        Mode::Plain => Preference::Iptables,
    };
    // proxy-init takes another iptables as well where the one that is meant is not installed.
    let preference = (preference, Some(Preference::Iptables));
    let mut outcome = by_rules(&mut session, place, &desired, preference, options.wait)?;
    let by_default = options.mode_by_default && !options.native;
    let legacy = |choice: &&mut Choice| by_default && choice.method == Method::LEGACY_PROGRAMS;
    if let Some(choice) = outcome.choice.as_mut().filter(legacy)
        && choice.why == "asked for"
    {
        choice.why = "the default of proxy-init";
    }
    Ok(outcome)
}
