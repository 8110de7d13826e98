//! `millrace status`

use anyhow::{Result, bail};
use millrace_core::nft::NftRuleset;
use millrace_core::observed::Observed;
use millrace_core::plan::Effect;
use millrace_core::status::{State, has_neighbours, judge, judge_native, read_back};
use millrace_host::exec;
use millrace_host::observe::Depth;

use super::config::Loaded;
use super::expected::ExpectedCapture;
use super::output::{print_json, print_painted, warn};
use super::rules::Rules;
use super::{config, namespace, rules};
use crate::cli::node::Meant;
use crate::cli::own::{Config, Status};
use crate::cli::tool::Tool;
use crate::exit::Exit;
use crate::paint;

pub(crate) fn status(status: &Status) -> Result<Exit> {
    let common = &status.common;
    let (mut session, facts) = namespace::open(&common.place)?;
    if let Some(ebpf) = &status.config.ebpf
        && super::ebpf::is_asked_about(ebpf)?
    {
        return super::ebpf::status(&ebpf.folder, common, &status.config, &mut session, &facts);
    }
    let loaded = if status.config.is_given() {
        let loaded = config::load(&status.config, &facts, false)?;
        loaded.warnings.iter().for_each(|w| warn(w));
        Some(loaded)
    } else {
        None
    };
    let observed = session.observe(&exec::Options::default(), Depth::Fast)?;
    session.take_warnings().iter().for_each(|w| warn(w));
    let groups = &facts.groups;
    let nft = loaded.as_ref().and_then(|loaded| natively(loaded, &status.config, &observed));
    let mut found = if let Some(nft) = &nft {
        judge_native(&observed, Some(&nft.ready_with_text(groups)?), groups)
    } else {
        judge(&observed, loaded.as_ref().map(Loaded::ruleset).as_ref(), groups)
    };
    if found.state == State::NotCaptured
        && let Some(ebpf) = &status.config.ebpf
        && let Some(why) = super::ebpf::elsewhere(&ebpf.folder)
    {
        // Where rules were asked about, these are not there.
        if ebpf.meant != Meant::No {
            bail!("{why}");
        }
        found.notes.push(why);
    }
    let whole = found.state == State::Captured;
    let real = || rules::of_here(None);
    let wanted = || match &loaded {
        Some(loaded) => {
            let wanted =
                ExpectedCapture::of_rules(loaded.policy.clone(), &loaded.ruleset(), groups);
            Some(wanted.or_older(&observed, groups))
        }
        None => ExpectedCapture::read_off(&observed, groups),
    };
    let reported = treated(&observed, whole, wanted, real);
    // What rules do together counts, where it can be told, and not what one of them may do.
    let suspected = std::mem::take(&mut found.neighbours);
    if !reported.as_ref().is_some_and(Vec::is_empty) {
        found.notes.extend(suspected);
    }
    found.notes.extend(reported.unwrap_or_default());
    if common.json {
        print_json(&serde_json::to_value(&found)?)?;
    } else {
        print_painted(&text(&found), common.color, paint::status)?;
    }
    Ok(match found.state {
        State::Captured => Exit::Ok,
        State::NotCaptured => Exit::NotCaptured,
        State::Drifted => Exit::Drifted,
    })
}

/// The native nftables that a configuration is compared as; none where it is iptables.
fn natively(loaded: &Loaded, config: &Config, observed: &Observed) -> Option<NftRuleset> {
    let there = observed.captures_natively();
    // Where either is meant, it is the one that is there.
    if let Some(nft) = loaded.nft.clone().filter(|_| !config.is_open() || there) {
        return Some(nft);
    }
    // The others have no flag for how: what they say is what is captured, and rules of a backend that was
    // chosen for them hold it as well.
    let says_how = matches!(&config.tool, None | Some(Tool::Ambient(_)));
    if says_how || !there || !read_back(observed).is_empty() {
        return None;
    }
    loaded.in_nftables()
}

/// What becomes of connections that is not as desired, a sentence each, where rules of others are beside
/// those of a `whole` capture; none where that is not asked, as no rule of others is there, or nothing
/// says what is wanted.
pub(super) fn treated(
    observed: &Observed,
    whole: bool,
    wanted: impl FnOnce() -> Option<ExpectedCapture>,
    real: impl FnOnce() -> Result<Rules>,
) -> Option<Vec<String>> {
    if !whole || !has_neighbours(observed) {
        return None;
    }
    let wanted = wanted()?;
    let real = match real() {
        Ok(real) => Rules { namespace: real.namespace.with_ways_out(), ..real },
        Err(error) => {
            return Some(vec![format!(
                "whether rules of others undo any of it is not known: {}",
                super::reported(&error)
            )]);
        }
    };
    let found = wanted.compared(&real);
    let one = |one| format!("rules of others treat connections differently than desired: {one}");
    let mut reported: Vec<String> = found.wrong.iter().map(one).collect();
    let more = found.untold();
    if more > 0 {
        reported.push(format!("and so with {more} more kinds of connections, which verify counts"));
    }
    reported.extend(found.unclear);
    reported
        .extend(wanted.unanswered(&real).into_iter().map(|one| format!("rules of others: {one}")));
    Some(reported)
}

pub(super) fn text(found: &millrace_core::status::Status) -> String {
    let mut text = match found.state {
        State::Captured => "captured".to_owned(),
        State::NotCaptured => "not captured".to_owned(),
        State::Drifted => "drifted".to_owned(),
    };
    let by = found.variant.map(|variant| variant.to_string());
    let by = by.or_else(|| found.native.then(|| "nftables".to_owned()));
    if let Some((by, dialect)) = by.zip(found.dialect) {
        let families: Vec<String> = found.families.iter().map(ToString::to_string).collect();
        text.push_str(&format!(": {} by {by}, rules of {dialect}", families.join(" and ")));
    }
    text.push('\n');
    for note in &found.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text.push_str(&reported(&found.differences));
    text
}

/// What would have to be done, with the rules that it would write.
pub(super) fn reported(differences: &[Effect]) -> String {
    let mut text = String::new();
    for effect in differences {
        text.push_str(&format!("to repair: {effect}\n"));
        if let Effect::Restore { input: lines, .. } | Effect::Native { text: lines, .. } = effect {
            for line in lines.lines() {
                text.push_str(&format!("    {line}\n"));
            }
        }
    }
    text
}
