//! GC: forget what belongs to no pod any more.

use std::collections::BTreeSet;

use serde_json::{Map, json};

use super::Job;
use super::del::take_back;
use crate::log::Level;
use crate::note::{Note, Notes};
use crate::protocol::{Attachment, CniError, Code};
use crate::target;

pub(super) fn gc(job: &mut Job<'_>) -> Result<String, CniError> {
    let Some(valid) = &job.config.valid_attachments else {
        // Without the list nobody can tell what may go.
        let msg = "cni.dev/valid-attachments is missing, which GC goes by";
        return Err(CniError::new(Code::BadConfig, msg));
    };
    let notes = Notes::new(&job.config.state_dir);
    let folder = job.config.state_dir.display();
    let list = notes.list().map_err(|error| {
        CniError::new(Code::Io, format!("state_dir {folder} can't be read: {error}"))
    })?;
    let mut failures = Vec::new();
    if let Err(error) = notes.sweep() {
        failures.push(format!("state_dir {folder}: {error}"));
    }
    let network = &job.config.network;
    let (stale, alive): (Vec<_>, Vec<_>) =
        list.into_iter().partition(|(of, a)| of == network && !valid.contains(a));
    // Namespaces of pods that are still there, whatever became of an earlier attachment.
    let kept: BTreeSet<String> =
        alive.iter().filter_map(|(of, a)| Some(notes.read(of, a)?.netns_id)).collect();
    for (_, attachment) in &stale {
        let note = notes.read(network, attachment).filter(|note| !kept.contains(&note.netns_id));
        let forgotten = note
            .map_or(Ok(()), |note| release(&note))
            .and_then(|()| notes.remove(network, attachment).map_err(|e| e.to_string()));
        if let Err(error) = forgotten {
            let Attachment { container_id, ifname } = attachment;
            failures.push(format!("{container_id} {ifname}: {error}"));
        }
    }
    if !failures.is_empty() {
        let msg = "what belongs to no pod any more could not be taken away";
        return Err(CniError::new(Code::Io, msg).with_details(failures.join("; ")));
    }
    let members = Map::from_iter([("forgotten".to_owned(), json!(stale.len()))]);
    job.log.done(Level::Info, "collected", members);
    Ok(String::new())
}

/// Take the rules out of a namespace that has outlived its pod. A path that leads to another
/// namespace by now is another pod's.
fn release(note: &Note) -> Result<(), String> {
    if !note.netns.exists() {
        return Ok(());
    }
    let netns = target::open(Some(&note.netns)).map_err(|error| error.msg)?;
    if netns.id().to_string() != note.netns_id {
        return Ok(());
    }
    take_back(&netns, &note.netns).map(drop).map_err(|error| error.msg)
}
