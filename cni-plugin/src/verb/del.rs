//! DEL: take back what ADD did, as far as it is there. It never fails: whatever stands in its
//! way is logged, since a pod that can't be deleted helps nobody.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_host::ebpf::{EbpfError, Node};
use millrace_host::netns::Netns;
use serde_json::{Map, json};

use super::{PATIENCE, context, enter, failed, lenient, named};
use crate::config::Places;
use crate::ebpf;
use crate::log::{Level, Log};
use crate::note::Notes;
use crate::protocol::{CniError, Code, Request};
use crate::target;

pub(super) fn del(request: &Request, stdin: &str, began: Instant) {
    let Places { network, state_dir, bpffs, log } = Places::read(&lenient(stdin));
    let pod = named(request);
    let mut log = Log::new(&log, context(request, &pod), began);
    let notes = Notes::new(&state_dir);
    let mut removed = false;
    let path = request.netns.as_deref().filter(|path| path.exists());
    match path.map(|path| (path, target::open(Some(path)))) {
        // The runtime took the namespace away, and everything in it but what maps say of it.
        None => {
            if let Err(error) = collect(&bpffs) {
                log.warn(&format!("entries of pods that are gone are left behind: {error}"));
            }
        }
        Some((_, Err(error))) => log.warn(&error.msg),
        Some((path, Ok(netns))) => {
            if others(&notes, &network, request) {
                log.debug("the pod is on another network still, so it stays captured");
            } else {
                match take_back(&netns, path, &bpffs) {
                    Ok(done) => removed = done,
                    Err(CniError { msg, details, .. }) => {
                        log.warn(&format!("rules are left behind: {msg} {details}"));
                    }
                }
            }
        }
    }
    if let Err(error) = notes.remove(&network, &request.attachment) {
        log.warn(&format!("the note on the pod is left behind: {error}"));
    }
    let removed = Map::from_iter([("removed".to_owned(), json!(removed))]);
    log.done(Level::Info, "deleted", removed);
}

/// How long DEL waits for another run that changes eBPF programs or pods: GC takes away what it leaves.
const MOMENT: Duration = Duration::from_secs(2);

/// Whether the same container is attached otherwise: its rules serve all its interfaces.
fn others(notes: &Notes, network: &str, request: &Request) -> bool {
    let own = &request.attachment;
    notes.list().unwrap_or_default().iter().any(|(other, attachment)| {
        attachment.container_id == own.container_id && (other != network || attachment != own)
    })
}

/// Forget pods that are gone, where eBPF captures.
pub(super) fn collect(bpffs: &Path) -> Result<(), EbpfError> {
    match Node::open_if_loaded(bpffs)? {
        None => Ok(()),
        Some(node) => node.until(Instant::now() + MOMENT).collect().map(drop),
    }
}

/// Take the rules away, and the pod's entry. The calling thread stays in the namespace.
pub(super) fn take_back(netns: &Netns, path: &Path, bpffs: &Path) -> Result<bool, CniError> {
    // The maps are the host's: they are opened from there. One way to capture that can't be looked
    // at must not keep the other from being taken back.
    let node = Node::open_if_loaded(bpffs);
    let mut pod = enter(netns, path)?;
    let node = node.map(|node| node.map(|node| node.until(Instant::now() + MOMENT)));
    let left = node.and_then(|node| node.as_ref().map_or(Ok(false), ebpf::leave));
    let entry = *left.as_ref().unwrap_or(&false);
    let removed = pod.remove(entry, PATIENCE).map_err(|error| failed(&error))?;
    left.map_err(|error| CniError::new(Code::NotCaptured, error.to_string()))?;
    Ok(entry || removed)
}
