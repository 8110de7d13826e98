//! What each command does.

mod ambient;
mod apply;
mod appmesh;
mod bounds;
mod cleanup;
mod config;
mod consul;
mod deep;
mod diff;
mod dump;
mod ebpf;
mod enact;
mod expected;
mod explain;
mod graph;
mod handover;
mod held;
mod istio;
mod kuma;
mod linkerd;
mod lint;
mod namespace;
mod node_bpf;
mod osm;
mod output;
mod pods;
mod preflight;
mod rules;
mod saved;
mod status;
mod termination;
mod trace;
mod verify;

pub(crate) use ambient::ambient;
pub(crate) use apply::apply;
pub(crate) use appmesh::appmesh;
pub(crate) use cleanup::cleanup;
pub(crate) use consul::consul;
pub(crate) use diff::diff;
pub(crate) use dump::dump;
pub(crate) use explain::explain;
pub(crate) use graph::graph;
pub(crate) use istio::istio;
pub(crate) use kuma::kuma;
pub(crate) use linkerd::linkerd;
pub(crate) use lint::lint;
pub(crate) use node_bpf::node_bpf;
pub(crate) use osm::osm;
pub(crate) use output::reader_has_gone;
pub(crate) use preflight::preflight;
pub(crate) use status::status;
pub(crate) use trace::trace;
pub(crate) use verify::verify;

use crate::exit::Exit;
use millrace_host::capture::CaptureError;
use millrace_host::ebpf::EbpfError;
use millrace_host::engine::EngineError;

/// An error with its causes, each told once: a message may hold its cause's already.
pub(crate) fn reported(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// How the program ends when a command failed.
pub(crate) fn exit_of(error: &anyhow::Error) -> Exit {
    let engine = error.downcast_ref::<EngineError>().is_some_and(EngineError::is_busy);
    let ebpf = error.downcast_ref::<EbpfError>().is_some_and(EbpfError::is_busy);
    let capture = error.downcast_ref::<CaptureError>().is_some_and(CaptureError::is_busy);
    if engine || ebpf || capture { Exit::Busy } else { Exit::Failed }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::reported;

    #[test]
    fn every_cause_is_told_once() {
        let error = Err::<(), _>(anyhow!("no such file")).context("a: no such file").context("b");
        assert_eq!(reported(&error.unwrap_err()), "b: a: no such file");
    }
}
