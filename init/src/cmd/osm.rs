//! `millrace osm`: what the init container of Open Service Mesh does.

use std::ffi::OsString;

use anyhow::Result;
use millrace_core::capture::to_iptables;
use millrace_core::desired::Desired;
use millrace_core::dialect::osm::{self, LAYOUT, NFT_LAYOUT, Raw, Resolved};
use millrace_core::nft::render_transaction;

use super::config::{self, Loaded, rules_of};
use super::enact::{Enacted, command, enact};
use super::output::print;
use crate::cli::osm::read;
use crate::exit::Exit;
use crate::log::Log;

/// The whole command, from the words behind its name.
pub(crate) fn osm(words: Vec<OsString>) -> Exit {
    command(words, read, run)
}

fn run(flags: Vec<(String, String)>, log: &mut Log) -> Result<Exit> {
    let Resolved { policy, options } = resolve(flags)?;
    let native = options.native.then(|| rules_of(&policy, &NFT_LAYOUT));
    if options.dry_run {
        print(&native.as_ref().map_or_else(|| osm::script(&policy), render_transaction))?;
        return Ok(Exit::Ok);
    }
    let iptables = to_iptables(&policy, &LAYOUT);
    let (netns, wait) = (options.netns.as_ref(), options.wait);
    enact(&Enacted { desired: Desired { policy, iptables, native }, netns, wait }, log)
}

/// A command line, for looking only.
pub(super) fn load(words: Vec<OsString>) -> Result<Loaded> {
    let Resolved { policy, options } = resolve(config::flags(read(words))?)?;
    let nft = options.native.then(|| rules_of(&policy, &NFT_LAYOUT));
    let asks = config::besides([
        ("the namespace", options.netns.is_some()),
        ("a dry run", options.dry_run),
        ("native nftables", options.native),
    ]);
    Ok(Loaded { policy, layout: &LAYOUT, nft, asks, warnings: Vec::new() })
}

fn resolve(flags: Vec<(String, String)>) -> Result<Resolved> {
    Ok(osm::resolve(&Raw::new(flags, config::environment()?))?)
}
