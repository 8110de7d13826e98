//! Whether all that decides is there: the pins of maps and links, and what is attached. A pin that
//! somebody removed leaves programs at work on a map that nobody can open any more; a new map in its
//! place would be another one, with nothing in it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, loaded_programs};
use millrace_core::ebpf::Entry;
use millrace_ebpf_common::{Plain as _, PodFlags};

use super::error::EbpfError;
use super::maps::NAMES;
use super::node::{Node, PROGRAMS, pinned, show};
use super::program::sources;
use super::sys_bpf;

/// The kernel keeps so much of a name (`BPF_OBJ_NAME_LEN`, without the zero at its end).
const KEPT: usize = 15;

/// Maps that earlier versions have not, and in whose place loading may put new ones: it sets some,
/// and the programs fill the others.
const RENEWED: [&str; 3] = ["LIMITS", "ROOM", "LATELY"];

/// The map that earlier versions have not either, and in whose place no new one may come once a pod has
/// something in it.
const MORE: &str = "MORE";

/// What is wrong with the node's programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Programs that should be attached and are not.
    pub missing: Vec<String>,
    /// Maps whose pins are gone, or that have lost what programs go on with.
    pub lost: Vec<String>,
}

impl Faults {
    /// In words; none where everything is there.
    pub fn reported(&self) -> Option<String> {
        let part = |what: &str, names: &[String]| {
            (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
        };
        let parts = [
            part("programs that are not attached", &self.missing),
            part("maps that are lost", &self.lost),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// The maps whose pins are gone; none where nothing is loaded.
pub(super) fn lost(folder: &Path) -> Vec<&'static str> {
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    let gone = |name: &&str| !is_there(&folder.join("maps").join(name));
    let wanted = || NAMES.into_iter().filter(|name| !RENEWED.contains(name) && *name != MORE);
    let lost: Vec<&str> = wanted().filter(gone).collect();
    let attached = || PROGRAMS.iter().any(|(name, ..)| is_there(&folder.join("links").join(name)));
    if lost.len() == wanted().count() && !attached() { Vec::new() } else { lost }
}

/// Pin what is lost again, as far as attached programs still have it. The names of those maps.
pub(super) fn put_back(folder: &Path) -> Result<Vec<String>, EbpfError> {
    let mut lost = lost(folder);
    let maps = folder.join("maps");
    if fs::symlink_metadata(maps.join(MORE)).is_err() && fs::symlink_metadata(maps).is_ok() {
        lost.push(MORE);
    }
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let mut back = Vec::new();
    let ours = programs(folder)?;
    let failed = |error: &dyn std::fmt::Display| EbpfError::Io {
        what: format!("maps whose pins in {} are gone", folder.display()),
        source: std::io::Error::other(error.to_string()),
    };
    for program in loaded_programs().filter(|_| !ours.is_empty()) {
        let program = program.map_err(|e| failed(&e))?;
        if !ours.contains(&program.id()) {
            continue;
        }
        for id in program.map_ids().map_err(|e| failed(&e))?.unwrap_or_default() {
            let map = MapInfo::from_id(id).map_err(|e| failed(&e))?;
            let is = |name: &&str| name.bytes().take(KEPT).eq(map.name().iter().copied());
            let Some(at) = lost.iter().position(is) else { continue };
            let name = lost.swap_remove(at);
            let pin = folder.join("maps").join(name);
            let fd = map.fd().map_err(|e| failed(&e))?;
            sys_bpf::pin(fd.as_fd(), &pin).map_err(|e| EbpfError::io(show(&pin), e))?;
            back.push(name.to_owned());
        }
        if lost.is_empty() {
            break;
        }
    }
    Ok(back)
}

/// The ids of the programs that are attached, or are for pods to come.
fn programs(folder: &Path) -> Result<BTreeSet<u32>, EbpfError> {
    let mut ids = BTreeSet::new();
    for part in ["links", "pods", "spares"] {
        // It may not have been made yet.
        let Ok(entries) = fs::read_dir(folder.join(part)) else { continue };
        for pin in entries.flatten().map(|entry| entry.path()) {
            if part == "spares" {
                ids.extend(ProgramInfo::from_pin(&pin).map(|program| program.id()));
            } else if let Some(link) =
                sys_bpf::pinned(&pin).map_err(|e| EbpfError::io(show(&pin), e))?
            {
                ids.extend(sys_bpf::link_info(link.as_fd()).map(|info| info.program));
            }
        }
    }
    Ok(ids)
}

/// Where a link's program is attached: at the cgroup with this number, or the namespace with this
/// inode. None where there is no link, or where it is attached no more.
pub(super) fn attached_at(pin: &Path) -> Result<Option<u64>, EbpfError> {
    let failed = |e| EbpfError::io(show(pin), e);
    let Some(link) = sys_bpf::pinned(pin).map_err(failed)? else { return Ok(None) };
    Ok(sys_bpf::link_info(link.as_fd()).map_err(failed)?.attached_to())
}

impl Node {
    /// What is wrong with all that every pod depends on.
    ///
    /// # Errors
    /// When a pin can't be opened.
    pub fn faults(&self) -> Result<Faults, EbpfError> {
        let mut faults = Faults::default();
        for (name, ..) in PROGRAMS {
            if attached_at(&self.folder.join("links").join(name))?.is_none() {
                faults.missing.push(name.to_owned());
            }
        }
        faults.lost = lost(&self.folder).into_iter().map(str::to_owned).collect();
        if self.maps.has_lost_more()? {
            faults.lost.push(MORE.to_owned());
        }
        if faults.lost.is_empty() {
            // The kernel empties it when the last pin of it goes.
            let map = pinned(&self.folder.join("maps").join("INBOUND"))?;
            let mut program = [0; 4];
            let found = sys_bpf::lookup(map.as_fd(), 0_u32.bytes(), &mut program);
            if !found.map_err(|e| EbpfError::io("map INBOUND", e))? {
                faults.lost.push("INBOUND".to_owned());
            }
        }
        Ok(faults)
    }

    /// Whether the programs know what an entry asks for: those of this version do, and those of another one
    /// only what every version knows.
    ///
    /// # Errors
    /// When they may not, or the settings can't be read.
    pub fn knows(&self, entry: &Entry) -> Result<(), EbpfError> {
        let settings = self.maps.settings.get(&0)?.unwrap_or_default();
        if entry.pod.has(PodFlags::LATER) && settings.sources != sources() {
            return Err(EbpfError::OtherPrograms(self.folder.clone()));
        }
        Ok(())
    }

    /// Refuse to go on with programs that are not whole.
    pub(super) fn is_whole(&self) -> Result<(), EbpfError> {
        let folder = || self.folder.clone();
        self.faults()?
            .reported()
            .map_or(Ok(()), |what| Err(EbpfError::NotWhole { folder: folder(), what }))
    }
}
