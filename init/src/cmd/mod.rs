//! What each command does.

mod apply;
mod cleanup;
mod config;
mod dump;
mod istio;
mod namespace;
mod output;
mod status;

pub(crate) use apply::apply;
pub(crate) use cleanup::cleanup;
pub(crate) use dump::dump;
pub(crate) use istio::istio;
pub(crate) use status::status;

use crate::exit::Exit;
use millrace_host::engine::EngineError;

/// How the program ends when a command failed.
pub(crate) fn exit_of(error: &anyhow::Error) -> Exit {
    match error.downcast_ref::<EngineError>() {
        Some(error) if error.is_busy() => Exit::Busy,
        _ => Exit::Failed,
    }
}
