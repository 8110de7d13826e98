//! `consul connect redirect-traffic`: what Consul does, with its exit codes.

use std::ffi::OsString;

use anyhow::{Context as _, Result, anyhow};
use millrace_core::capture::to_iptables;
use millrace_core::desired::Desired;
use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::consul::{self, LAYOUT, NFT_LAYOUT, Raw, Resolved};
use millrace_host::file;

use super::config::{self, Loaded, rules_of};
use super::enact::{Enacted, command, enact};
use super::output::print;
use crate::cli::consul::read;
use crate::exit::Exit;
use crate::log::Log;

/// The most that is read of settings as JSON, in bytes.
const MOST: usize = 4 * 1024 * 1024;

/// The whole command, from the words behind its name.
pub(crate) fn consul(words: Vec<OsString>) -> Exit {
    command(words, read, run)
}

fn run(flags: Vec<(String, String)>, log: &mut Log) -> Result<Exit> {
    let Resolved { policy, options, warnings } = resolve(flags)?;
    for warning in &warnings {
        log.warn(warning);
    }
    let iptables = to_iptables(&policy, &LAYOUT);
    let native = options.native.then(|| rules_of(&policy, &NFT_LAYOUT));
    if options.dry_run {
        print(&match &native {
            Some(native) => consul::batch(native),
            None => consul::commands(&iptables, &options).join("\n") + "\n",
        })?;
        return Ok(Exit::Ok);
    }
    let (netns, wait) = (options.netns.as_ref(), options.wait);
    enact(&Enacted { desired: Desired { policy, iptables, native }, netns, wait }, log)
}

/// A command line, for looking only.
pub(super) fn load(words: Vec<OsString>) -> Result<Loaded> {
    let Resolved { policy, options, warnings } = resolve(config::flags(read(words))?)?;
    let nft = options.native.then(|| rules_of(&policy, &NFT_LAYOUT));
    let asks = config::besides([
        ("the namespace", options.netns.is_some()),
        ("a dry run", options.dry_run),
        ("native nftables", options.native),
    ]);
    Ok(Loaded { policy, layout: &LAYOUT, nft, asks, warnings })
}

/// The settings of these flags, of the environment, and of standard input where they ask for it.
pub(super) fn resolve(flags: Vec<(String, String)>) -> Result<Resolved> {
    let raw = Raw::new(flags, config::environment()?);
    let input = consul::reads_input(&raw).then(|| file::standard_input(MOST)).transpose();
    let input = input.context("settings on standard input")?;
    consul::resolve(&raw, input.as_deref()).map_err(|errors| refused(&errors))
}

/// What Consul says first, and then everything that is wrong.
fn refused(errors: &ConfigErrors) -> anyhow::Error {
    match consul::said(errors) {
        Some(said) => anyhow!("{said}\n{errors}"),
        None => anyhow!("{errors}"),
    }
}
