//! Looking at a namespace once: everything that has to do with capture, without leaving a trace.

use std::fs;
use std::time::{Duration, Instant};

use millrace_core::dialect::{NFT_TABLES, ambient};
use millrace_core::iptables::{Dump, DumpError};
use millrace_core::observed::{Holding, Observed, Variant};
use millrace_core::ruleset::Table;
use millrace_core::value::Family;

use crate::exec::{self, ExecError, Options};
use crate::link::{LinkError, Net};
use crate::nflog;
use crate::nft::{self, NftError};
use crate::tools::{Missing, Role, Tools};
use crate::xtables;

/// How long a save may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Something could not be seen.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// rtnetlink does not list links, addresses, routes or rules.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// `nf_tables` can't be listed, or others change it faster than it is listed.
    #[error(transparent)]
    NfTables(#[from] NftError),
    /// Rules are there, but not the program that prints them.
    #[error("{variant} holds {family} rules, and what prints them is missing: {missing}")]
    Blind {
        /// Whether they are rules of iptables-nft or of iptables-legacy.
        variant: Variant,
        /// Whether `iptables-save` or `ip6tables-save` is missing.
        family: Family,
        /// Which binary was looked for, and which package has it.
        missing: Missing,
    },
    /// A save binary could not be started, failed, or took longer than a minute.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// What a program printed makes no sense.
    #[error("what {variant} prints of {family}: {source}")]
    Dump {
        /// Which iptables the save binary belongs to.
        variant: Variant,
        /// Whether it was `iptables-save` or `ip6tables-save`.
        family: Family,
        /// The first line that is none of a dump, and its number.
        source: DumpError,
    },
    /// A file of the kernel can't be read.
    #[error("{path} can't be read: {source}")]
    File {
        /// The file below `/proc/thread-self/net` that names the tables.
        path: &'static str,
        /// What `read(2)` says; a file that is not there is no error.
        source: std::io::Error,
    },
}

/// How rules are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// As fast as it goes: the kernel is asked, and a program only where that is not enough.
    Fast,
    /// As that, and the interfaces by each of which localhost has to be reached ([`Observed::ways`]).
    Ways,
    /// As [`Depth::Fast`], but of `nf_tables` the tables and chains alone, without rules and sets.
    Chains,
    /// As [`Depth::Fast`], and what is not understood by the programs as well, so that every rule has the
    /// text that people know.
    Verbatim,
}

/// What one look observed of a namespace, and what it could not.
#[derive(Debug)]
pub struct Seen {
    /// Everything in it that has to do with capture.
    pub observed: Observed,
    /// Why it can't be seen whether iptables-legacy holds anything; it is taken for empty then.
    pub unseen: Option<ObserveError>,
    /// The number of the last change of `nf_tables` before this look, where there is one.
    pub generation: Option<u32>,
}

impl ObserveError {
    /// Whether a file may not be read.
    fn is_forbidden(&self) -> bool {
        matches!(self, Self::File { source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied)
    }
}

/// Look. Programs are run only for tables that are there: none for an empty namespace.
///
/// # Errors
/// When something can't be seen.
pub fn observe(
    tools: &mut Tools,
    net: &mut Net,
    options: &Options,
    look: Depth,
) -> Result<Seen, ObserveError> {
    let deadline = Instant::now() + PATIENCE;
    let mut running = Vec::new();
    let mut holdings = Vec::new();
    let Holds { mut held, seen, nf_tables, unseen } = holds(look != Depth::Chains)?;
    let nft::Listing {
        generation,
        tables,
        mut native,
        iptables,
        dormant,
        foreign,
        netdev,
        at_interfaces,
    } = seen;
    native.retain(|(name, table)| !ambient::is_of_node(name, table));
    let tables = tables.into_iter().map(|(family, name)| family.table(name)).collect();
    for (family, dump) in iptables {
        let variant = Variant::Nft;
        if look == Depth::Verbatim && dump.is_unclear() {
            held.push(Held { variant, family, tables: Vec::new() });
        }
        holdings.push(Holding { variant, family, dump });
    }
    let mut unread = Vec::new();
    for Held { variant, family, tables } in held {
        if variant == Variant::Legacy && look != Depth::Verbatim {
            let names = tables.iter().map(String::as_str);
            let (ours, others): (Vec<_>, Vec<_>) =
                names.partition(|name| Table::from_name(name).is_some());
            if let Some(mut dump) = xtables::read(family, &ours) {
                // No program is needed for what ours are never in.
                for name in others {
                    match xtables::read(family, &[name]) {
                        Some(other) => dump.tables.extend(other.tables),
                        None => unread.push((family, name.to_owned())),
                    }
                }
                holdings.push(Holding { variant, family, dump });
                continue;
            }
        }
        let program = tools
            .path(variant, family, Role::Save)
            .map_err(|missing| ObserveError::Blind { variant, family, missing })?;
        // All of them are started before the first is waited for.
        running.push((variant, family, exec::start(&program, &["-c"], None, options)?));
    }
    let links = net.observe(look == Depth::Ways)?;
    for (variant, family, save) in running {
        let text = save.finish(deadline)?;
        let mut dump =
            Dump::parse(&text).map_err(|source| ObserveError::Dump { variant, family, source })?;
        if variant == Variant::Legacy {
            for table in &mut dump.tables {
                let left_out = xtables::left_out(family, &table.name);
                table.put_back(&left_out);
            }
        }
        let known = holdings.iter_mut().find(|h| (h.variant, h.family) == (variant, family));
        match known {
            Some(holding) => holding.dump.put_in_words(&dump),
            None => holdings.push(Holding { variant, family, dump }),
        }
    }
    // A trace that runs has not left anything.
    let loggers =
        if links.loggers.is_empty() || nflog::is_heard() { Vec::new() } else { links.loggers };
    let observed = Observed {
        holdings,
        ip_rules: links.ip_rules,
        catch_alls: links.catch_alls,
        routes: links.routes,
        addresses: links.addresses,
        passthrough_link: links.passthrough_link,
        nf_tables,
        ways: links.ways,
        localhost_ways: links.localhost_ways,
        native,
        tables,
        dormant,
        foreign,
        netdev,
        at_interfaces,
        unread,
        lo_down: links.lo_down,
        wary: wary(),
        interrupted: links.marked,
        loggers,
    };
    Ok(Seen { observed, unseen, generation })
}

/// The tables of a variant and family.
struct Held {
    variant: Variant,
    family: Family,
    tables: Vec<String>,
}

/// What the kernel itself lists of rules, before any binary is run.
struct Holds {
    /// Tables of iptables that were not read yet.
    held: Vec<Held>,
    /// Tables, chains and rules by netlink; empty where `nf_tables` is not there.
    seen: nft::Listing,
    /// Whether the kernel has `nf_tables`.
    nf_tables: bool,
    /// Why it can't be seen whether iptables-legacy holds anything.
    unseen: Option<ObserveError>,
}

fn holds(rules: bool) -> Result<Holds, ObserveError> {
    let mut held = Vec::new();
    let seen = nft::look(nft::ReadScope { native: NFT_TABLES, iptables: true, rules })?;
    let nf_tables = seen.is_some();
    let seen = seen.unwrap_or_default();
    let mut unseen = None;
    for family in Family::ALL {
        let tables = match legacy_tables(family) {
            // The file is root's alone, while nf_tables is there for who has NET_ADMIN.
            Err(error) if nf_tables && error.is_forbidden() => {
                unseen = Some(error);
                Vec::new()
            }
            result => result?,
        };
        if !tables.is_empty() {
            held.push(Held { variant: Variant::Legacy, family, tables });
        }
    }
    Ok(Holds { held, seen, nf_tables, unseen })
}

/// The interfaces by which a packet of IPv4 has no way in if its mark leads its source here as well, as
/// TPROXY's does (`__fib_validate_source()` in `net/ipv4/fib_frontend.c`).
fn wary() -> Vec<String> {
    const SETTINGS: &str = "/proc/sys/net/ipv4/conf";
    let on = |interface: &str, setting: &str| {
        let path = format!("{SETTINGS}/{interface}/{setting}");
        fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
    };
    let all = on("all", "src_valid_mark");
    let folder = fs::read_dir(SETTINGS).into_iter().flatten().flatten();
    let names = folder.filter_map(|entry| entry.file_name().into_string().ok());
    let own = names.filter(|name| !["all", "default", "lo"].contains(&name.as_str()));
    let marked = own.filter(|name| all || on(name, "src_valid_mark"));
    let mut wary: Vec<String> =
        marked.filter(|name| !on("all", "accept_local") && !on(name, "accept_local")).collect();
    wary.sort_unstable();
    wary
}

/// The tables that iptables-legacy has made. The files are missing where the kernel has no such
/// thing, and may not be read by who may not change rules either.
fn legacy_tables(family: Family) -> Result<Vec<String>, ObserveError> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(ObserveError::File { path, source }),
    }
}
