//! DEL: take back what ADD did, as far as it is there. It never fails: whatever stands in its
//! way is logged, since a pod that can't be deleted helps nobody.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use millrace_host::capture::Left;
use millrace_host::ebpf::{EbpfError, Node};
use millrace_host::netns::Netns;
use serde_json::{Map, json};

use super::add::addresses;
use super::{MOMENT, context, enter, failed, lenient, named};
use crate::capture::Pod;
use crate::config::Places;
use crate::level::Level;
use crate::log::Log;
use crate::mesh::Mesh;
use crate::note::{Claim, Notes};
use crate::outcome::Outcome;
use crate::protocol::{CniError, Code, Request};
use crate::target;

pub(super) fn del(request: &Request, stdin: &str, began: Instant) -> Outcome {
    let object = lenient(stdin);
    let Places { network, state_dir, bpffs, log } = Places::read(&object);
    let pod = named(request);
    let mut log = Log::new(&log, context(request, &pod), began);
    let notes = Notes::new(&state_dir);
    let network = notes.network(network, &request.attachment);
    let until = Instant::now() + MOMENT;
    let (mut removed, mut left) = (false, false);
    let path = request.netns.as_deref().filter(|path| path.exists());
    match path.map(|path| (path, target::open(Some(path)))) {
        // The runtime took the namespace away, and everything in it but what maps say of it.
        None => forget(&bpffs, until, &mut log),
        Some((_, Err(error))) => log.warn(&error.msg),
        Some((path, Ok(netns))) => {
            let noted = notes.read(&network, &request.attachment).ok().flatten();
            let noted = noted.map(|note| note.mesh);
            let claim = notes.claim(&network, &request.attachment, &netns.id().to_string());
            let given = object.get("prevResult").map(|result| addresses(result.get()));
            let proof = || Proof {
                ifname: &request.attachment.ifname,
                addresses: given.unwrap_or_default(),
            };
            let proof = match claim {
                Claim::Own => Ok(None),
                Claim::Unknown => Ok(Some(proof())),
                Claim::Shared => Err("the pod is on another network still".to_owned()),
                Claim::Foreign(why) => {
                    forget(&bpffs, until, &mut log);
                    Err(why)
                }
            };
            match proof.map(|proof| release(&netns, path, &bpffs, proof, noted, until)) {
                Err(why) => log.debug(&format!("nothing is taken from the namespace: {why}")),
                Ok(Ok(done)) => removed = done,
                Ok(Err(CniError { msg, details, .. })) => {
                    log.warn(&format!("rules are left behind: {msg} {details}"));
                    left = true;
                }
            }
        }
    }
    // GC knows by the note what is to be taken away.
    if left {
        log.done(Level::Warn, "not deleted", Map::new());
        return Outcome::LeftBehind;
    }
    if let Err(error) = notes.remove(&network, &request.attachment) {
        log.warn(&format!("the note on the pod is left behind: {error}"));
    }
    let removed = Map::from_iter([("removed".to_owned(), json!(removed))]);
    log.done(Level::Info, "deleted", removed);
    Outcome::Deleted
}

/// Forget pods that are gone, where eBPF captures.
fn forget(bpffs: &Path, until: Instant, log: &mut Log) {
    if let Err(error) = collect(bpffs, until) {
        log.warn(&format!("entries of pods that are gone are left behind: {error}"));
    }
}

/// The same, where that is an error.
pub(crate) fn collect(bpffs: &Path, until: Instant) -> Result<(), EbpfError> {
    match Node::open_if_loaded(bpffs)? {
        None => Ok(()),
        Some(node) => node.until(until).collect().map(drop),
    }
}

/// By what a namespace that nobody has noted is known to be the pod's, and no later one's that the path
/// leads to by now.
struct Proof<'r> {
    /// Its only interface.
    ifname: &'r str,
    /// Of which that one has one at least.
    addresses: Vec<IpAddr>,
}

impl Proof<'_> {
    /// Why the namespace that the calling thread is in may be another pod's, or be needed still.
    fn lacks(&self) -> Option<String> {
        let Self { ifname, addresses } = self;
        if let Some(other) = Pod::another_interface(ifname) {
            return Some(format!("it may be on another network: {other}"));
        }
        if !Pod::has_one_of(ifname, addresses) {
            return Some(format!(
                "it may be another pod's namespace by now: its {ifname} has no address of prevResult"
            ));
        }
        None
    }
}

/// Take the rules out of a namespace, and its entry, if it is known to be the pod's, where that has to be
/// proven. The calling thread stays in the namespace.
fn release(
    netns: &Netns,
    path: &Path,
    bpffs: &Path,
    proof: Option<Proof<'_>>,
    noted: Option<Mesh>,
    until: Instant,
) -> Result<bool, CniError> {
    let mut pod = enter(netns, path)?;
    let lacks = proof.and_then(|proof| proof.lacks());
    let found = remove_capture(&mut pod, bpffs, noted, until, lacks.is_some())?;
    match lacks {
        Some(why) if found => {
            let msg = format!("there is no note on the pod, and {why}");
            Err(CniError::new(Code::TryAgain, msg))
        }
        Some(_) => Ok(false),
        None => Ok(found),
    }
}

/// Take the rules out of the calling thread's namespace, and its entry. Gives whether there are any; a dry
/// run does no more.
pub(super) fn remove_capture(
    pod: &mut Pod,
    bpffs: &Path,
    noted: Option<Mesh>,
    until: Instant,
    dry_run: bool,
) -> Result<bool, CniError> {
    let Left { enrolled, outcome, .. } =
        pod.leave(noted, bpffs, until, dry_run).map_err(|error| failed(&error))?;
    let entry = enrolled.map_err(|error| CniError::new(Code::NotCaptured, error.to_string()))?;
    Ok(entry || outcome.is_some_and(|outcome| !outcome.effects.is_empty()))
}
