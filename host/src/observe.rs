//! Looking at a namespace once: everything that has to do with capture, without leaving a trace.

use std::fs;
use std::time::{Duration, Instant};

use millrace_core::iptables::{Dump, DumpError};
use millrace_core::observed::{Holding, Observed, Variant};
use millrace_core::ruleset::Table;
use millrace_core::value::Family;

use crate::exec::{self, ExecError, Options};
use crate::link::{LinkError, Net};
use crate::nf_tables::{self, NfTablesError};
use crate::tools::{Missing, Role, Tools};

/// How long a save may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Something could not be seen.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// Links.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The tables of `nf_tables`.
    #[error(transparent)]
    NfTables(#[from] NfTablesError),
    /// Rules are there, but not the program that prints them.
    #[error("{variant} holds {family} rules, and what prints them is missing: {missing}")]
    Blind {
        /// The variant.
        variant: Variant,
        /// The family.
        family: Family,
        /// The program.
        missing: Missing,
    },
    /// A program failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// What a program printed makes no sense.
    #[error("what {variant} prints of {family}: {source}")]
    Dump {
        /// The variant.
        variant: Variant,
        /// The family.
        family: Family,
        /// The line.
        source: DumpError,
    },
    /// A file of the kernel can't be read.
    #[error("{path} can't be read: {source}")]
    File {
        /// The file.
        path: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Look. Programs are run only for tables that are there: none for an empty namespace.
///
/// # Errors
/// When something can't be seen.
pub fn observe(
    tools: &mut Tools,
    net: &mut Net,
    options: &Options,
) -> Result<Observed, ObserveError> {
    let deadline = Instant::now() + PATIENCE;
    let mut running = Vec::new();
    for (variant, family) in held()? {
        let program = tools
            .path(variant, family, Role::Save)
            .map_err(|missing| ObserveError::Blind { variant, family, missing })?;
        // All of them are started before the first is waited for.
        running.push((variant, family, exec::start(&program, &["-c"], None, options)?));
    }
    let links = net.observe()?;
    let mut holdings = Vec::new();
    for (variant, family, save) in running {
        let text = save.finish(deadline)?;
        let dump =
            Dump::parse(&text).map_err(|source| ObserveError::Dump { variant, family, source })?;
        holdings.push(Holding { variant, family, dump });
    }
    Ok(Observed {
        holdings,
        ip_rules: links.ip_rules,
        routes: links.routes,
        addresses: links.addresses,
        interrupted: links.marked,
    })
}

/// Which variants hold tables of which families.
fn held() -> Result<Vec<(Variant, Family)>, ObserveError> {
    let mut held = Vec::new();
    let tables = nf_tables::tables()?.unwrap_or_default();
    for family in Family::ALL {
        if tables.iter().any(|(f, name)| *f == family && Table::from_name(name).is_some()) {
            held.push((Variant::Nft, family));
        }
        if legacy_tables(family)? {
            held.push((Variant::Legacy, family));
        }
    }
    Ok(held)
}

/// Whether iptables-legacy has made any table. The files are missing where the kernel has no such
/// thing, and may not be read by who may not change rules either.
fn legacy_tables(family: Family) -> Result<bool, ObserveError> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().any(|name| Table::from_name(name).is_some())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ObserveError::File { path, source }),
    }
}
