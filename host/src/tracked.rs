//! Connections that exist before rules translate any. Connection tracking has not seen them begin, so it
//! would take the next packet of each, whoever sends it, for the first one of a new connection, and rules
//! would decide about that: what the proxy answers goes astray. So tracking begins first, and is told of
//! all that is there.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use millrace_core::nft::expr::{CtField, Expr};
use millrace_core::nft::tables::{Base, NativeChain};
use nix::errno::Errno;

use crate::conntrack::{Conntrack, Flow};
use crate::ebpf::connections;
use crate::nft::{NftError, OwnedTable};

/// What its tables are called, with a number of its own behind it for each.
const PREFIX: &str = "millrace-tracking-";
/// `NF_INET_LOCAL_OUT`, where `lo` begins, and `NF_INET_PRE_ROUTING`. Once a rule asks for a packet's
/// connection in a namespace, all packets there are tracked.
const HOOKS: [(&str, u32); 2] = [("prerouting", 0), ("output", 3)];
/// How long one that is silent is remembered, by the kernel's own measures
/// (`nf_conntrack_tcp_timeout_established`, `..._time_wait`).
const LASTING: Duration = Duration::from_hours(120);
const CLOSING: Duration = Duration::from_mins(2);

/// Connections can't be told to connection tracking.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The table whose rules begin tracking can't be made.
    #[error("connections that exist can't be tracked: {0}")]
    Begin(#[from] NftError),
    /// TCP sockets can't be listed by `sock_diag(7)`, or conntrack's netlink can't be opened.
    #[error("connections that exist can't be listed: {0}")]
    List(#[from] io::Error),
    /// It does not take one.
    #[error("connection tracking does not take a connection that exists: {0}")]
    Told(Errno),
}

/// While there is such a value, every connection of the namespace is tracked, with or without rules.
pub struct Tracked(OwnedTable);

impl std::fmt::Debug for Tracked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tracked").field(&self.0.name()).finish()
    }
}

impl Tracked {
    /// Begin in the calling thread's network namespace, with the TCP connections that are there: rules that
    /// come while there is this value leave them as they are.
    ///
    /// # Errors
    /// When the kernel refuses. Then some of them may not be known.
    pub fn begin() -> Result<Self, TrackError> {
        let chain = |(name, hook): (&str, u32)| {
            let base = Base { kind: "filter".to_owned(), hook, priority: 0 };
            let rules = vec![Ok(vec![Expr::LoadCt(CtField::State)])];
            (name.to_owned(), NativeChain { base: Some(base), drops: false, rules })
        };
        let table = OwnedTable::make(PREFIX, &HOOKS.map(chain).to_vec())?;
        let tracking = Conntrack::open()?;
        let mut known: BTreeSet<(SocketAddr, SocketAddr)> = BTreeSet::new();
        for (from, to, lasting) in connections()? {
            // Of one within the namespace there are two sockets.
            if known.contains(&(to, from)) || !known.insert((from, to)) {
                continue;
            }
            let silent = if lasting { LASTING } else { CLOSING };
            match tracking.suppose(&Flow { tcp: true, from, to }, silent) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(TrackError::Told(errno)),
            }
        }
        Ok(Self(table))
    }
}
