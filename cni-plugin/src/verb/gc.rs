//! GC: forget what belongs to no pod any more.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::thread;
use std::time::Instant;

use millrace_host::netns::NetnsRef;
use serde_json::{Map, json};

use super::del::{collect, remove_capture};
use super::{Job, MOMENT, enter};
use crate::level::Level;
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
    if let Err(error) = collect(&job.config.bpffs, job.deadline.min(Instant::now() + MOMENT)) {
        failures.push(format!("entries of pods that are gone: {error}"));
    }
    if let Err(error) = notes.sweep() {
        failures.push(format!("state_dir {folder}: {error}"));
    }
    let network = &job.config.network;
    let (stale, alive): (Vec<_>, Vec<_>) =
        list.into_iter().partition(|(of, a)| of == network && !valid.contains(a));
    // Namespaces of pods that are still there, whatever became of an earlier attachment; none where
    // they can't be told.
    let kept: Result<BTreeSet<String>, String> = alive
        .iter()
        .filter_map(|(of, a)| match notes.read(of, a) {
            Ok(note) => Some(Ok(note?.netns_id)),
            Err(error) => {
                let Attachment { container_id, ifname } = a;
                let name = format!("{container_id} {ifname}");
                Some(Err(format!(
                    "it may be the namespace of {name}, whose note can't be read ({error}): remove \
                     the note if that pod is gone"
                )))
            }
        })
        .collect();
    for (_, attachment) in &stale {
        // What a note that can't be read was about is not known, and left as it is.
        let forgotten = match notes.read(network, attachment) {
            Ok(Some(note)) => release(&note, &kept, job),
            Ok(None) | Err(_) => Ok(()),
        };
        let forgotten =
            forgotten.and_then(|()| notes.remove(network, attachment).map_err(|e| e.to_string()));
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

/// Take the rules out of a namespace that has outlived its pod. A path that leads elsewhere by
/// now, to another pod's namespace or to the empty file that was under it, is none of it.
fn release(
    note: &Note,
    kept: &Result<BTreeSet<String>, String>,
    job: &Job<'_>,
) -> Result<(), String> {
    let opened = NetnsRef::at(note.netns.clone()).open();
    if !opened.is_ok_and(|netns| netns.id().to_string() == note.netns_id) {
        return Ok(());
    }
    if kept.as_ref().map_err(Clone::clone)?.contains(&note.netns_id) {
        return Ok(());
    }
    let reported = |CniError { msg, details, .. }| format!("{msg} {details}");
    let netns = target::open(Some(&note.netns)).map_err(reported)?;
    let until = job.deadline.min(Instant::now() + MOMENT);
    // On a thread of its own, since this one has to see the host's namespace again.
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut pod = enter(&netns, &note.netns)?;
            remove_capture(&mut pod, &job.config.bpffs, Some(note.mesh), until, false)
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic)).map(drop).map_err(reported)
    })
}
