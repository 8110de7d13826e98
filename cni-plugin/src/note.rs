//! A note on each captured pod, in a folder of the host that is empty after a reboot. CHECK
//! learns from it what ADD learned; GC and DEL learn what there was. Nothing needs it: a note that
//! is lost costs a lookup, and one that can't be read leaves a pod captured.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use millrace_core::from_objects;
use millrace_core::pod::{Container, PodFacts};
use serde::{Deserialize, Serialize};

use crate::mesh::Mesh;
use crate::own_file;
use crate::protocol::{Attachment, is_identifier};

/// What ADD learned of a captured attachment: the JSON of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase")]
pub(crate) struct Note {
    /// `K8S_POD_NAME` of ADD's `CNI_ARGS`.
    pub(crate) name: Option<String>,
    /// `K8S_POD_NAMESPACE` of ADD's `CNI_ARGS`.
    pub(crate) namespace: Option<String>,
    /// `K8S_POD_UID` of ADD's `CNI_ARGS`; none where the runtime gives none.
    pub(crate) uid: Option<String>,
    /// Its annotations, where the runtime did not tell them.
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// Its labels, where somebody was asked.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// Its containers, where the node agent or the API was queried.
    pub(crate) containers: Option<Vec<Container>>,
    /// Whose proxy it has; notes of before there were several are on Istio's.
    #[serde(default)]
    pub(crate) mesh: Mesh,
    /// Path of the network namespace: ADD's `CNI_NETNS`.
    pub(crate) netns: PathBuf,
    /// Device and inode of the namespace, to know it by.
    pub(crate) netns_id: String,
}

from_objects!(and written: Note);

impl Note {
    /// A note on a pod. What the runtime tells each time is left out.
    pub(crate) fn new(
        pod: &PodFacts,
        mesh: Mesh,
        reported: bool,
        netns: &Path,
        netns_id: String,
    ) -> Self {
        let pod = pod.clone();
        Self {
            name: pod.name,
            namespace: pod.namespace,
            uid: pod.uid,
            annotations: pod.annotations.filter(|_| !reported),
            labels: pod.labels,
            containers: pod.containers,
            mesh,
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
        let mesh = self.mesh;
        let has_proxy = |list: &Vec<Container>| list.iter().any(|c| mesh.is_proxy(c));
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

/// Whether notes tell that a network namespace belongs to an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The attachment's: its note names this namespace, and no other note does.
    Own,
    /// The same container is attached otherwise, too: its rules serve all its interfaces.
    Shared,
    /// There is no note that tells.
    Unknown,
    /// Not the attachment's, or it can't be told: why.
    Foreign(String),
}

/// No note is longer, in bytes: etcd takes no larger object.
const LONGEST: u64 = 4 * 1024 * 1024;
/// The file that says that eBPF has captured pods here. It is no note, whose names have [`SEPARATOR`].
const EBPF: &str = "ebpf";
/// What the names of drafts begin with; the id of the process that writes it follows.
const DRAFT: &str = "draft-";
/// Between the parts of a file's name; none of them can hold it.
const SEPARATOR: char = ':';

impl Notes {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Where the note is. Names that are none, which could lead out of the folder, have no note.
    fn path(&self, network: &str, attachment: &Attachment) -> io::Result<PathBuf> {
        let Attachment { container_id, ifname } = attachment;
        if !is_identifier(network) || attachment.check().is_err() {
            let why = format!("{network:?} with {attachment:?} names no attachment to a network");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(self.folder.join(format!("{network}{SEPARATOR}{container_id}{SEPARATOR}{ifname}")))
    }

    /// Write a note, whole or not at all.
    pub(crate) fn write(
        &self,
        network: &str,
        attachment: &Attachment,
        note: &Note,
    ) -> io::Result<()> {
        let path = self.path(network, attachment)?;
        let text = serde_json::to_string(note)?;
        own_file::make_own(&self.folder)?;
        // A name with the process's id: the same pod may be added twice at once.
        let draft = self.folder.join(format!("{DRAFT}{}", std::process::id()));
        let done = own_file::create(&draft)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&draft, &path));
        if done.is_err() {
            let _gone = fs::remove_file(&draft);
        }
        done
    }

    /// The note on an attachment, if there is one.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) fn read(&self, network: &str, attachment: &Attachment) -> io::Result<Option<Note>> {
        let text = self.path(network, attachment).and_then(|path| {
            own_file::own(&self.folder)?;
            own_file::read(&path, LONGEST)
        });
        match text {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Take a note away; that there is none is well.
    pub(crate) fn remove(&self, network: &str, attachment: &Attachment) -> io::Result<()> {
        match self.path(network, attachment).and_then(fs::remove_file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The network of an attachment: the one that was told, or where none was the only one that it is
    /// noted with.
    pub(crate) fn network(&self, told: String, own: &Attachment) -> String {
        if !told.is_empty() {
            return told;
        }
        let noted = self.list().unwrap_or_default();
        let mut networks = noted.into_iter().filter(|(_, other)| other == own).map(|(of, _)| of);
        networks.next().filter(|_| networks.next().is_none()).unwrap_or_default()
    }

    /// Whose the namespace is that the path of an attachment leads to now. What can't be told is
    /// never its own: rules that stay end with their namespace, and a pod that lives on without
    /// them is a leak.
    pub(crate) fn claim(&self, network: &str, own: &Attachment, netns_id: &str) -> Claim {
        let noted = self.read(network, own);
        if let Ok(Some(note)) = &noted
            && note.netns_id != netns_id
        {
            return Claim::Foreign("it is not the one that ADD captured".to_owned());
        }
        let Ok(list) = self.list() else { return Claim::Unknown };
        for (of, other) in list {
            if of == network && other == *own {
                continue;
            }
            if other.container_id == own.container_id {
                return Claim::Shared;
            }
            let Attachment { container_id, ifname } = &other;
            match self.read(&of, &other) {
                Ok(Some(note)) if note.netns_id == netns_id => {
                    return Claim::Foreign(format!("it is that of {container_id}, {ifname}"));
                }
                Err(error) if !matches!(noted, Ok(Some(_))) => {
                    return Claim::Foreign(format!(
                        "there is no note on it, and it may be that of {container_id}, {ifname}, \
                         whose note can't be read ({error})"
                    ));
                }
                _ => {}
            }
        }
        if matches!(noted, Ok(Some(_))) { Claim::Own } else { Claim::Unknown }
    }

    /// Note that eBPF has captured a pod of the node.
    pub(crate) fn had_ebpf(&self) -> io::Result<()> {
        own_file::make_own(&self.folder)?;
        if self.has_had_ebpf() {
            return Ok(());
        }
        own_file::create(&self.folder.join(EBPF)).map(drop)
    }

    /// Whether eBPF is known to have captured pods of the node.
    pub(crate) fn has_had_ebpf(&self) -> bool {
        own_file::own(&self.folder).is_ok() && self.folder.join(EBPF).exists()
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
                // What has no path is none of ours.
                if self.path(network, &attachment).is_err() {
                    continue;
                }
                found.push(((*network).to_owned(), attachment));
            }
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

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
        let note = Note::new(&pod, Mesh::Istio, true, Path::new("/n"), "1:2".to_owned());
        assert_eq!(note.annotations, None);
        notes.write("net", &attachment("x"), &note).unwrap();
        notes.write("net", &attachment("x"), &note).unwrap();
        assert_eq!(notes.read("net", &attachment("x")).unwrap(), Some(note));
        assert_eq!(notes.read("net", &attachment("y")).unwrap(), None);
        assert_eq!(notes.list().unwrap(), [("net".to_owned(), attachment("x"))]);
        notes.remove("net", &attachment("x")).unwrap();
        notes.remove("net", &attachment("x")).unwrap();
        assert_eq!(notes.list().unwrap(), []);
    }

    #[test]
    fn that_ebpf_captured_is_noted_and_no_note() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::new(&folder.path().join("not/yet/there"));
        assert!(!notes.has_had_ebpf());
        notes.had_ebpf().unwrap();
        notes.had_ebpf().unwrap();
        assert!(notes.has_had_ebpf());
        assert_eq!(notes.list().unwrap(), []);
        notes.sweep().unwrap();
        assert!(notes.has_had_ebpf());
        fs::set_permissions(&notes.folder, Permissions::from_mode(0o777)).unwrap();
        assert!(!notes.has_had_ebpf() && notes.had_ebpf().is_err());
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
        let note =
            Note::new(&pod(Some("old")), Mesh::Istio, true, Path::new("/n"), "1:2".to_owned());
        assert!(note.is_about(&pod(Some("old"))) && note.is_about(&pod(None)));
        assert!(!note.is_about(&pod(Some("new"))));
        assert!(!note.is_about(&PodFacts { name: Some("b".to_owned()), ..pod(Some("old")) }));
    }

    #[test]
    fn a_note_of_before_there_were_several_meshes_is_on_istios() {
        let note: Note = serde_json::from_str(r#"{"netns":"/n","netnsId":"1:2"}"#).unwrap();
        assert_eq!((note.mesh, note.netns_id.as_str()), (Mesh::Istio, "1:2"));
        let linkerd = Note { mesh: Mesh::Linkerd, ..note };
        let text = serde_json::to_string(&linkerd).unwrap();
        assert!(text.contains(r#""mesh":"linkerd""#), "{text}");
        assert_eq!(serde_json::from_str::<Note>(&text).unwrap(), linkerd);
    }

    #[test]
    fn containers_without_a_proxy_are_not_those_of_a_captured_pod() {
        let noted = |mesh: Mesh, names: &[&str]| {
            let named = |n: &&str| Container { name: (*n).to_owned(), ..Container::default() };
            let containers = Some(names.iter().map(named).collect());
            Note { containers, mesh, ..Note::default() }.complete(PodFacts::default()).containers
        };
        for mesh in [Mesh::Istio, Mesh::Linkerd, Mesh::Kuma, Mesh::Consul] {
            let whole = noted(mesh, &["app", mesh.proxy_container()]);
            assert_eq!(whole.map(|list| list.len()), Some(2));
            assert_eq!((noted(mesh, &[]), noted(mesh, &["app"])), (None, None));
        }
    }

    #[test]
    fn a_note_is_an_object() {
        let array = r#"["a","b","c",{},{},[],"istio","/run/netns/a","1:2"]"#;
        assert!(serde_json::from_str::<Note>(array).is_err());
        let container =
            r#"{"netns":"/run/netns/a","netnsId":"1:2","containers":[["istio-proxy"]]}"#;
        assert!(serde_json::from_str::<Note>(container).is_err());
        let object = container.replace(r#"["istio-proxy"]"#, r#"{"name":"istio-proxy"}"#);
        assert!(serde_json::from_str::<Note>(&object).is_ok());
    }

    /// A note on a pod whose namespace has this id.
    fn of(netns_id: &str) -> Note {
        Note { netns_id: netns_id.to_owned(), ..Note::default() }
    }

    #[test]
    fn a_network_that_is_not_told_is_the_noted_one() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::new(folder.path());
        let own = attachment("own");
        let network = |told: &str| notes.network(told.to_owned(), &own);
        assert_eq!((network(""), network("told")), (String::new(), "told".to_owned()));
        notes.write("net", &own, &of("1:2")).unwrap();
        notes.write("other", &attachment("other"), &of("1:3")).unwrap();
        assert_eq!((network(""), network("told")), ("net".to_owned(), "told".to_owned()));
        notes.write("more", &own, &of("1:2")).unwrap();
        assert_eq!(network(""), "");
    }

    #[test]
    fn a_namespace_belongs_to_who_was_noted_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::new(folder.path());
        let (own, other) = (attachment("own"), attachment("other"));
        assert_eq!(notes.claim("net", &own, "1:2"), Claim::Unknown);
        notes.write("net", &own, &of("1:2")).unwrap();
        assert_eq!(notes.claim("net", &own, "1:2"), Claim::Own);
        assert!(matches!(notes.claim("net", &own, "1:3"), Claim::Foreign(_)));
        // Its number is that of a later namespace by now.
        notes.write("other", &other, &of("1:2")).unwrap();
        assert!(matches!(notes.claim("net", &own, "1:2"), Claim::Foreign(_)));
        notes.remove("net", &own).unwrap();
        assert!(matches!(notes.claim("net", &own, "1:2"), Claim::Foreign(_)));
        assert_eq!(notes.claim("net", &own, "1:3"), Claim::Unknown);
        fs::write(notes.path("other", &other).unwrap(), "{}").unwrap();
        assert!(matches!(notes.claim("net", &own, "1:3"), Claim::Foreign(_)));
        notes.write("net", &own, &of("1:2")).unwrap();
        assert_eq!(notes.claim("net", &own, "1:2"), Claim::Own);
        notes.write("more", &own, &of("1:2")).unwrap();
        assert_eq!(notes.claim("net", &own, "1:2"), Claim::Shared);
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside:own:eth0");
        fs::write(&outside, "{}").unwrap();
        let notes = Notes::new(&folder.path().join("state"));
        let absolute = folder.path().join("outside").display().to_string();
        for name in [absolute.as_str(), "../outside", "", "."] {
            assert!(notes.remove(name, &attachment("own")).is_err(), "{name}");
            assert!(notes.read(name, &attachment("own")).is_err(), "{name}");
        }
        assert!(outside.exists());
    }

    #[test]
    fn notes_are_neither_links_nor_pipes_and_in_nobody_elses_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (notes, own) = (Notes::new(&folder.path().join("state")), attachment("own"));
        notes.write("net", &own, &of("1:2")).unwrap();
        let path = notes.path("net", &own).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(notes.read("net", &own).is_err());
        fs::remove_file(&path).unwrap();
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert!(notes.read("net", &own).is_err());
        // A draft that somebody else prepared is not written through.
        let draft = notes.folder.join(format!("{DRAFT}{}", std::process::id()));
        symlink(folder.path().join("target"), draft).unwrap();
        notes.write("net", &own, &of("1:3")).unwrap();
        assert!(!folder.path().join("target").exists());
        assert_eq!(notes.read("net", &own).unwrap(), Some(of("1:3")));
        let linked = folder.path().join("linked");
        symlink(&notes.folder, &linked).unwrap();
        assert!(Notes::new(&linked).write("net", &own, &of("1:4")).is_err());
        // One that everybody reads is closed, one that others write to is not used.
        fs::set_permissions(&notes.folder, Permissions::from_mode(0o755)).unwrap();
        notes.write("net", &own, &of("1:5")).unwrap();
        assert_eq!(fs::metadata(&notes.folder).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&notes.folder, Permissions::from_mode(0o777)).unwrap();
        assert!(notes.write("net", &own, &of("1:6")).is_err());
    }
}
