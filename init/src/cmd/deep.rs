//! A walk through rules takes as much of the stack as chains are nested, and iptables nests them without end.

use std::panic::resume_unwind;
use std::thread::{Builder, scope};

use anyhow::{Context as _, Result};

/// Room for the deepest walk there is, in any build. What of it is not used costs nothing.
const STACK: usize = 512 << 20;

/// Do something on a stack that is large enough for it.
pub(super) fn deep<T: Send>(walk: impl FnOnce() -> T + Send) -> Result<T> {
    scope(|scope| {
        let thread = Builder::new().stack_size(STACK).spawn_scoped(scope, walk);
        let done = thread.context("no thread that follows rules can be made")?.join();
        Ok(done.unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
