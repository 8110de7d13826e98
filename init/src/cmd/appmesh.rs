//! `millrace appmesh`: what the init container of AWS App Mesh does.

use std::ffi::OsString;

use anyhow::Result;
use millrace_core::capture::to_iptables;
use millrace_core::desired::Desired;
use millrace_core::dialect::appmesh::{self, DIALECT, LAYOUT, NFT_LAYOUT, Options, Raw};
use millrace_core::nft::render_transaction;
use millrace_core::plan::Preference;
use millrace_core::value::Groups;
use millrace_host::engine::{Drift, Request, Session};
use millrace_host::exec;

use super::config::{self, Loaded, rules_of};
use super::enact::{Enacted, command, enact};
use super::namespace;
use super::output::{log_outcome, print};
use crate::cli::appmesh::read;
use crate::exit::Exit;
use crate::log::Log;

/// The whole command, from the words behind its name.
pub(crate) fn appmesh(words: Vec<OsString>) -> Exit {
    command(words, read, run)
}

fn run(flags: Vec<(String, String)>, log: &mut Log) -> Result<Exit> {
    let raw = Raw::new(flags, config::environment()?);
    let options = appmesh::options(&raw)?;
    if !options.enabled.value {
        return remove(&options, log);
    }
    let policy = appmesh::policy(&raw)?;
    let native = options.native.then(|| rules_of(&policy, &NFT_LAYOUT));
    if options.dry_run {
        print(&native.as_ref().map_or_else(|| appmesh::commands(&policy), render_transaction))?;
        return Ok(Exit::Ok);
    }
    let iptables = to_iptables(&policy, &LAYOUT);
    let (netns, wait) = (options.netns.as_ref(), options.wait);
    enact(&Enacted { desired: Desired { policy, iptables, native }, netns, wait }, log)
}

/// Remove what App Mesh left, and nothing else.
fn remove(options: &Options, log: &mut Log) -> Result<Exit> {
    if let Some(netns) = &options.netns {
        namespace::enter_as(&format!("{}: {:?}", netns.source, netns.value), &netns.value)?;
    }
    log.info(&format!(
        "{} is not 1: rules of App Mesh, if there are any, will be removed",
        options.enabled.source
    ));
    let mut session = Session::open()?;
    session.only(&DIALECT);
    let outcome = session.run(&Request {
        rules: None,
        preference: Preference::Auto,
        drift: Drift::Replace,
        everything: false,
        dry_run: options.dry_run,
        wait: options.wait,
        groups: &Groups::new(),
        marks: Vec::new(),
        exec: exec::Options::default(),
    })?;
    for warning in &outcome.warnings {
        log.warn(warning);
    }
    if options.dry_run {
        outcome.effects.iter().for_each(|effect| log.info(&format!("would do: {effect}")));
    } else {
        log_outcome(&outcome, log);
    }
    Ok(Exit::Ok)
}

/// A command line, for looking only.
pub(super) fn load(words: Vec<OsString>) -> Result<Loaded> {
    let raw = Raw::new(config::flags(read(words))?, config::environment()?);
    let options = appmesh::options(&raw)?;
    let mut loaded = loaded(&raw, options.native)?;
    loaded.asks = config::besides([
        ("the namespace", options.netns.is_some()),
        ("a dry run", options.dry_run),
        ("native nftables", options.native),
    ]);
    if !options.enabled.value {
        loaded.warnings.push(format!(
            "{} is not 1: the command itself would remove its rules; this is what it writes with 1",
            options.enabled.source
        ));
    }
    Ok(loaded)
}

/// What these settings capture.
pub(super) fn loaded(raw: &Raw, native: bool) -> Result<Loaded> {
    let policy = appmesh::policy(raw)?;
    let nft = native.then(|| rules_of(&policy, &NFT_LAYOUT));
    Ok(Loaded { policy, layout: &LAYOUT, nft, asks: Vec::new(), warnings: Vec::new() })
}
