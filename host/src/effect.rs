//! Carrying out one effect.

use std::time::{Duration, Instant};

use millrace_core::observed::Variant;
use millrace_core::plan::{Change, Effect};
use millrace_core::value::{Family, Groups};

use crate::exec::{self, ExecError, Options};
use crate::link::{LinkError, Net};
use crate::lock::{Process, file_holder, holder, xtables_lock_file};
use crate::nflog::{self, LogError};
use crate::nft::{self, Changes, NftError};
use crate::preflight::lacking;
use crate::tools::{Missing, Role, Tools};

/// An effect did not happen.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// A request to rtnetlink failed: an address, a route, a rule, or `lo` itself.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A transaction of `nf_tables` was refused.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Who logs can't be changed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A program is not installed.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A restore binary could not be started, failed, or took too long.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A program failed where the kernel lacks something that its input asks for.
    #[error("{command} failed: {said}\nthe kernel lacks what it was asked for: {lacks}")]
    Lacking {
        /// Path and arguments of the restore binary, joined by spaces.
        command: String,
        /// What it wrote to stderr, trimmed.
        said: String,
        /// What the kernel lacks, and what to do about it.
        lacks: String,
    },
    /// Somebody else holds the lock of iptables.
    #[error(
        "the xtables lock {path} was not free within {waited:.1?}: {}; wait for it, or give --wait \
         more time",
        holder(.process.as_ref())
    )]
    XtablesLock {
        /// Path of the lock file: `$XTABLES_LOCKFILE`, else `/run/xtables.lock`.
        path: String,
        /// How long it was waited for.
        waited: Duration,
        /// Who holds it, if that can be seen.
        process: Option<Process>,
    },
}

impl EffectError {
    /// Whether somebody was in the way until the time was up.
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::XtablesLock { .. } | Self::Nft(NftError::Changed))
    }

    /// Whether the kernel does not know something that was asked of it.
    pub const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Nft(error) if error.is_unsupported())
    }

    /// Whether a program was run and failed.
    pub const fn is_of_program(&self) -> bool {
        matches!(self, Self::Exec(ExecError::Failed { .. }) | Self::Lacking { .. })
    }

    /// Whether somebody else made a change since the namespace was looked at.
    pub const fn is_stale(&self) -> bool {
        matches!(self, Self::Nft(NftError::Changed))
    }
}

/// How long a restore may take beside waiting for the lock.
const PATIENCE: Duration = Duration::from_mins(1);

/// Do it. Gives what the user should know. With the number of a generation, a transaction of
/// `nf_tables` happens only if nothing has changed since, and a program of iptables-nft is started only
/// then.
///
/// # Errors
/// When it did not happen; a restore of several tables may have committed some of them.
pub fn apply(
    effect: &Effect,
    net: &mut Net,
    tools: &mut Tools,
    deadline: Instant,
    options: &Options,
    groups: &Groups,
    generation: Option<u32>,
) -> Result<Vec<String>, EffectError> {
    match effect {
        // The note makes a run that is killed easier to take up again, and is nothing that
        // capture needs: a kernel before 5.5 has no alternative names.
        Effect::Marker { change } => match (net.mark(*change), change) {
            (Err(error), Change::Add) => {
                return Ok(vec![format!("the change can't be noted in the namespace: {error}")]);
            }
            (result, _) => result?,
        },
        Effect::Address { change, address } => net.address(*change, *address)?,
        Effect::Passthrough { change } => net.passthrough(*change)?,
        Effect::Localhost { change, way } => net.localhost(*change, way)?,
        Effect::Route { change, family, table } => net.route(*change, *family, *table)?,
        Effect::IpRule { change, rule } => net.ip_rule(*change, rule)?,
        Effect::Loopback { change } => net.loopback(*change)?,
        Effect::Dormant { change, table } => nft::set_dormant(table, *change)?,
        Effect::Logger { logger } => nflog::restore(net, logger)?,
        Effect::Native { names, tables, edits, .. } => {
            nft::change(&Changes { names, tables, edits, groups }, generation)?;
        }
        Effect::Restore { variant, family, input, counters } => {
            let program = tools.path(*variant, *family, Role::Restore)?;
            // What is to be done says how many rules are in front of others.
            if *variant == Variant::Nft && generation.is_some() {
                nft::unchanged_since(generation)?;
            }
            let began = Instant::now();
            let wait = deadline.saturating_duration_since(began);
            // Whole seconds, and not 0: that would mean for ever, as no number at all does.
            let seconds = wait.as_secs_f64().ceil().max(1.0);
            let wait_word = format!("--wait={seconds}");
            let mut args = vec!["--noflush"];
            if *counters {
                args.push("--counters");
            }
            // iptables-nft has no lock to wait for.
            if *variant == Variant::Legacy {
                args.push(&wait_word);
            }
            exec::run(&program, &args, Some(input), began + wait + PATIENCE, options)
                .map_err(|error| locked(error, began))
                .map_err(|error| explained(error, *variant, *family, input))?;
        }
    }
    Ok(Vec::new())
}

/// Ask the kernel itself what it lacks of what iptables-nft was asked for.
fn explained(error: EffectError, variant: Variant, family: Family, input: &str) -> EffectError {
    let EffectError::Exec(ExecError::Failed { command, stderr, .. }) = &error else { return error };
    let lacks = match variant {
        Variant::Nft => lacking(family, input),
        Variant::Legacy => Vec::new(),
    };
    if lacks.is_empty() {
        return error;
    }
    // What its words could mean is known now.
    let (command, said) = (command.clone(), stderr.trim().to_owned());
    EffectError::Lacking { command, said, lacks: lacks.join("; ") }
}

/// Tell a lock that is held from other failures (`iptables(8)`: exit status 4).
fn locked(error: ExecError, began: Instant) -> EffectError {
    match &error {
        ExecError::Failed { status, stderr, .. }
            if status.code() == Some(4) && stderr.contains("xtables lock") =>
        {
            let path = xtables_lock_file();
            let process = file_holder(&path);
            let path = path.display().to_string();
            EffectError::XtablesLock { path, waited: began.elapsed(), process }
        }
        _ => error.into(),
    }
}
