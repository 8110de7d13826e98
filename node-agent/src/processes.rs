//! Which processes a pod has, by what the kernel tells of each in `/proc`: the cgroup that the
//! kubelet put it into names the pod (`proc_pid_cgroup(5)`).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use millrace_host::netns::{Netns, NetnsRef};
use rustix::fs::OFlags;

/// The most that is read of a file in `/proc`.
const MOST: u64 = 64 * 1024;
/// The length of a pod's id, as the kubelet writes it: groups of 8, 4, 4, 4 and 12 hex digits.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
/// A static pod's own id is a hash without groups.
const HASH: usize = 32;

/// A process of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its folder in `/proc`.
    folder: PathBuf,
    /// When it began, in clock ticks since boot.
    began: u64,
    /// Its network namespace: device and inode.
    namespace: (u64, u64),
    /// The pod's uid, hex digits alone.
    pod: String,
}

/// The processes of pods, by the ids of these without punctuation; the oldest of each network
/// namespace, oldest first. The namespace of the first process is no pod's.
///
/// # Errors
/// When `/proc` can't be read. A process that can't be seen, or has ended, is left out.
pub fn of_pods(proc: &Path) -> io::Result<BTreeMap<String, Vec<Process>>> {
    let host: Vec<_> = ["1", "self"].iter().filter_map(|id| namespace(&proc.join(id))).collect();
    let mut pods: BTreeMap<String, Vec<Process>> = BTreeMap::new();
    for entry in fs::read_dir(proc)? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let Some(found) = process(entry.path()) else { continue };
        if !host.contains(&found.namespace) {
            pods.entry(found.pod.clone()).or_default().push(found);
        }
    }
    for processes in pods.values_mut() {
        processes.sort_unstable_by_key(|process| process.began);
        let mut seen = Vec::new();
        processes.retain(|process| {
            let is_new = !seen.contains(&process.namespace);
            seen.push(process.namespace);
            is_new
        });
    }
    Ok(pods)
}

/// A pod's id as it stands in the keys of [`of_pods`].
pub fn key(uid: &str) -> String {
    uid.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase()
}

impl Process {
    /// Open its network namespace, if it is still the same process.
    pub fn open(&self) -> Option<(Netns, PathBuf)> {
        let path = self.folder.join("ns/net");
        let netns = NetnsRef::at(path.clone()).open().ok()?;
        // The id may have gone to another process meanwhile.
        (process(self.folder.clone()).as_ref() == Some(self)).then_some((netns, path))
    }
}

fn process(folder: PathBuf) -> Option<Process> {
    let pod = pod_of(&read(&folder.join("cgroup"))?)?;
    let began = began(&read(&folder.join("stat"))?)?;
    let namespace = namespace(&folder)?;
    Some(Process { folder, began, namespace, pod })
}

fn namespace(folder: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(folder.join("ns/net")).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn read(path: &Path) -> Option<String> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).ok()?;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The 22nd field (`proc_pid_stat(5)`); the second, a name in parentheses, may have anything in it.
fn began(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The pod that the lines of a cgroup file name: each that names one has to name the same. The outermost
/// folder counts: what is below may have been made by the pod.
fn pod_of(cgroup: &str) -> Option<String> {
    let mut found: Option<String> = None;
    for line in cgroup.lines() {
        // `4:memory:/kubepods/besteffort/pod<id>/<container>`
        let Some(path) = line.splitn(3, ':').nth(2) else { continue };
        let Some(named) = path.split('/').find_map(pod_in) else { continue };
        if *found.get_or_insert_with(|| named.clone()) != named {
            return None;
        }
    }
    found
}

/// `pod<id>`, `kubepods-burstable-pod<id>.slice` with `_` for `-`.
fn pod_in(folder: &str) -> Option<String> {
    let folder = folder.strip_suffix(".slice").unwrap_or(folder);
    let id = match folder.strip_prefix("pod") {
        Some(id) => id,
        None => folder.strip_prefix("kubepods").and_then(|rest| rest.rsplit_once("-pod"))?.1,
    };
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let groups: Vec<&str> = id.split(['-', '_']).collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let good = groups.iter().all(|group| is_hex(group)) && (lengths == GROUPS || lengths == [HASH]);
    good.then(|| key(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b4c1d2e-1111-2222-3333-0123456789ab";

    #[test]
    fn a_cgroup_names_a_pod() {
        let plain = format!("0::/kubepods/besteffort/pod{UID}/0123\n");
        let under = UID.replace('-', "_");
        let systemd = format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/\
             cri-containerd-0123.scope\n"
        );
        let guaranteed = format!("0::/kubepods.slice/kubepods-pod{under}.slice/crio-0123.scope");
        let nested = format!("0::/docker/x/kubelet.slice/kubelet-kubepods.slice/pod{UID}/c");
        let inside = format!("0::/kubepods/pod{UID}/c/pod{}/x", "f".repeat(32));
        for text in [plain, systemd, guaranteed, nested, inside] {
            assert_eq!(pod_of(&text), Some(key(UID)), "{text}");
        }
        let hash = "0123456789abcdef0123456789abcdef";
        let both = format!("5:cpu:/kubepods/pod{hash}/c\n0::/\n");
        assert_eq!(pod_of(&both), Some(hash.to_owned()));
    }

    #[test]
    fn what_names_no_pod_or_several_names_none() {
        for text in [
            "",
            "0::/",
            "0::/system.slice/podman.service",
            "0::/kubepods/pod123/c",
            "0::/kubepods/podzb4c1d2e-1111-2222-3333-0123456789ab/c",
            "garbage",
        ] {
            assert_eq!(pod_of(text), None, "{text}");
        }
        let two = format!("1:cpu:/kubepods/pod{UID}/c\n2:memory:/kubepods/pod{}/c", "a".repeat(32));
        assert_eq!(pod_of(&two), None);
    }

    #[test]
    fn when_it_began_is_told_whatever_its_name_is() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b) S 1) {}", fields.join(" "));
        assert_eq!(began(&stat), Some(22));
        assert_eq!(began("7 (a"), None);
    }
}
