//! A note on each captured pod, in a folder of the host that is empty after a reboot. CHECK
//! learns from it what ADD learned; GC and DEL learn what there was. Nothing needs it: a note that
//! is lost costs a lookup.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use millrace_core::dialect::istio::annotations::PROXY_CONTAINER;
use millrace_core::pod::{Container, PodFacts};
use serde::{Deserialize, Serialize};

use crate::protocol::Attachment;

/// A captured attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Note {
    /// The pod's name.
    pub(crate) name: Option<String>,
    /// Its namespace.
    pub(crate) namespace: Option<String>,
    /// Its id.
    pub(crate) uid: Option<String>,
    /// Its annotations, where the runtime did not tell them.
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// Its labels, where somebody was asked.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// Its containers, likewise.
    pub(crate) containers: Option<Vec<Container>>,
    /// The network namespace.
    pub(crate) netns: PathBuf,
    /// Device and inode of the namespace, to know it by.
    pub(crate) netns_id: String,
}

impl Note {
    /// A note on a pod. What the runtime tells each time is left out.
    pub(crate) fn new(pod: &PodFacts, told: bool, netns: &Path, netns_id: String) -> Self {
        let pod = pod.clone();
        Self {
            name: pod.name,
            namespace: pod.namespace,
            uid: pod.uid,
            annotations: pod.annotations.filter(|_| !told),
            labels: pod.labels,
            containers: pod.containers,
            netns: netns.to_owned(),
            netns_id,
        }
    }

    /// Whether it is on this pod.
    pub(crate) fn is_about(&self, pod: &PodFacts) -> bool {
        let Self { name, namespace, uid, .. } = self;
        (name, namespace) == (&pod.name, &pod.namespace) && (pod.uid.is_none() || *uid == pod.uid)
    }

    /// Add what was learned of the pod to what the runtime tells. Every captured pod has a proxy:
    /// containers without one are none.
    pub(crate) fn complete(self, pod: PodFacts) -> PodFacts {
        let has_proxy = |list: &Vec<Container>| list.iter().any(|c| c.name == PROXY_CONTAINER);
        PodFacts {
            annotations: pod.annotations.or(self.annotations),
            labels: self.labels,
            containers: self.containers.filter(has_proxy),
            ..pod
        }
    }
}

/// The notes of a folder.
#[derive(Clone, Debug)]
pub(crate) struct Notes {
    folder: PathBuf,
}

/// What the names of drafts begin with; the id of the process that writes it follows.
const DRAFT: &str = "draft-";
/// Between the parts of a file's name; none of them can hold it.
const SEPARATOR: char = ':';

impl Notes {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn path(&self, network: &str, attachment: &Attachment) -> PathBuf {
        let Attachment { container_id, ifname } = attachment;
        self.folder.join(format!("{network}{SEPARATOR}{container_id}{SEPARATOR}{ifname}"))
    }

    /// Write a note, whole or not at all.
    pub(crate) fn write(
        &self,
        network: &str,
        attachment: &Attachment,
        note: &Note,
    ) -> io::Result<()> {
        let path = self.path(network, attachment);
        let text = serde_json::to_string(note)?;
        // A name with the process's id: the same pod may be added twice at once.
        let draft = self.folder.join(format!("{DRAFT}{}", std::process::id()));
        let written = create(&draft).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            create(&draft)
        });
        let done = written
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&draft, &path));
        if done.is_err() {
            let _gone = fs::remove_file(&draft);
        }
        done
    }

    /// The note on an attachment, if there is one that can be read.
    pub(crate) fn read(&self, network: &str, attachment: &Attachment) -> Option<Note> {
        let text = fs::read_to_string(self.path(network, attachment)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Take a note away; that there is none is well.
    pub(crate) fn remove(&self, network: &str, attachment: &Attachment) -> io::Result<()> {
        match fs::remove_file(self.path(network, attachment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Take away drafts of processes that were killed.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(DRAFT)?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The attachments that there are notes on, with their networks.
    pub(crate) fn list(&self) -> io::Result<Vec<(String, Attachment)>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let parts: Vec<&str> = name.to_str().unwrap_or_default().split(SEPARATOR).collect();
            if let [network, container_id, ifname] = parts.as_slice() {
                let attachment = Attachment {
                    container_id: (*container_id).to_owned(),
                    ifname: (*ifname).to_owned(),
                };
                found.push(((*network).to_owned(), attachment));
            }
        }
        found.sort();
        Ok(found)
    }
}

fn create(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(id: &str) -> Attachment {
        Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
    }

    #[test]
    fn notes_are_kept_listed_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::new(&folder.path().join("not/yet/there"));
        assert_eq!(notes.list().unwrap(), []);
        let pod = PodFacts {
            name: Some("a".to_owned()),
            containers: Some(vec![Container { name: "b".to_owned(), ..Container::default() }]),
            annotations: Some(BTreeMap::new()),
            ..PodFacts::default()
        };
        let note = Note::new(&pod, true, Path::new("/n"), "1:2".to_owned());
        assert_eq!(note.annotations, None);
        notes.write("net", &attachment("x"), &note).unwrap();
        notes.write("net", &attachment("x"), &note).unwrap();
        assert_eq!(notes.read("net", &attachment("x")), Some(note));
        assert_eq!(notes.read("net", &attachment("y")), None);
        assert_eq!(notes.list().unwrap(), [("net".to_owned(), attachment("x"))]);
        notes.remove("net", &attachment("x")).unwrap();
        notes.remove("net", &attachment("x")).unwrap();
        assert_eq!(notes.list().unwrap(), []);
    }

    #[test]
    fn drafts_of_the_dead_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::new(folder.path());
        // No process has such an id: PID_MAX_LIMIT is 2^22.
        let (dead, own) = (format!("{DRAFT}4194305"), format!("{DRAFT}{}", std::process::id()));
        for name in [&dead, &own] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(notes.list().unwrap(), []);
        notes.sweep().unwrap();
        assert!(!folder.path().join(dead).exists() && folder.path().join(own).exists());
        Notes::new(&folder.path().join("none")).sweep().unwrap();
    }

    #[test]
    fn a_note_is_on_one_pod() {
        let pod = |uid: Option<&str>| PodFacts {
            name: Some("a".to_owned()),
            uid: uid.map(str::to_owned),
            ..PodFacts::default()
        };
        let note = Note::new(&pod(Some("old")), true, Path::new("/n"), "1:2".to_owned());
        assert!(note.is_about(&pod(Some("old"))) && note.is_about(&pod(None)));
        assert!(!note.is_about(&pod(Some("new"))));
        assert!(!note.is_about(&PodFacts { name: Some("b".to_owned()), ..pod(Some("old")) }));
    }

    #[test]
    fn containers_without_a_proxy_are_not_those_of_a_captured_pod() {
        let noted = |names: &[&str]| {
            let named = |n: &&str| Container { name: (*n).to_owned(), ..Container::default() };
            let containers = Some(names.iter().map(named).collect());
            Note { containers, ..Note::default() }.complete(PodFacts::default()).containers
        };
        assert_eq!(noted(&["app", PROXY_CONTAINER]).map(|list| list.len()), Some(2));
        assert_eq!((noted(&[]), noted(&["app"])), (None, None));
    }
}
