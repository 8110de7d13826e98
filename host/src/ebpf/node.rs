//! The node's programs: loaded once, attached at a cgroup, pinned, replaced without a gap.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aya::EbpfLoader;
use millrace_core::ebpf::Order;
use millrace_ebpf_common::{Plain as _, Settings};
use nix::fcntl::Flock;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, FsType, fstatfs};

use super::error::EbpfError;
use super::features::unable;
use super::folder::{self, lock};
use super::maps::{Maps, NAMES};
use super::order::attach;
use super::preloaded::by_number;
use super::program::{Lookup, accept, sources};
use super::sys_bpf::{self, Instruction};
use super::target::Target;
use super::whole::{Faults, attached_at, lost, put_back};
use crate::netns::known;

/// Folders below that of the pins, which each load makes where they are missing.
const PARTS: [&str; 4] = ["maps", "links", "pods", "spares"];
/// `BPF_FS_MAGIC` of linux/magic.h.
pub(super) const BPF_FS: FsType = FsType(0xcafe_4a11);

/// The programs at the cgroup, with their attach types (`enum bpf_attach_type`) and since which
/// kernel there is such a one.
pub(super) const PROGRAMS: [(&str, u32, &str); 10] = [
    ("mr_getsockopt", 21, "5.7"),
    ("mr_peername4", 29, "5.8"),
    ("mr_peername6", 30, "5.8"),
    ("mr_recvmsg4", 19, "5.7"),
    ("mr_recvmsg6", 20, "5.7"),
    ("mr_sockops", 3, "5.7"),
    ("mr_sendmsg4", 14, "5.7"),
    ("mr_sendmsg6", 15, "5.7"),
    ("mr_connect4", 10, "5.7"),
    ("mr_connect6", 11, "5.7"),
];

/// What the programs of pods go on with.
const INBOUND: &str = "mr_inbound";

/// How long another run is waited for, where nobody says it.
const WAIT: Duration = Duration::from_secs(30);

/// What keeps the hook of pods' programs in the kernel's code.
const IDLE: &str = "mr_idle";
/// `r0 = SK_PASS; exit`
const LET_PAST: [Instruction; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// What short-circuits connections, where that is asked for.
const ACCELERATOR: &str = "mr_skmsg";

/// How the programs are loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cgroup whose processes may be captured: the root, so that every pod may be.
    pub cgroup: PathBuf,
    /// Whether what application and proxy send each other goes from socket to socket.
    pub accelerate: bool,
    /// How many pods there may be. Kept from an earlier load while that is there.
    pub max_pods: u32,
    /// How many networks all pods may name together. Kept likewise.
    pub max_networks: u32,
    /// How many connections may be known: captured outbound ones of TCP, and those of pods to
    /// themselves. A pod can have a share of it. Kept likewise.
    pub max_connections: u32,
    /// For how many pods to come programs are loaded in advance.
    pub spares: u32,
    /// The object that the programs come from: [`super::OBJECT`], unless somebody makes his own.
    pub object: &'static [u8],
}

/// What [`Node::load`] changed on the node; what was as it should be is in none of these lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Names of programs that had no link at this cgroup, and have one now.
    pub attached: Vec<String>,
    /// Programs that were put in the place of earlier ones.
    pub replaced: Vec<String>,
    /// Maps whose pins were gone, and that programs still had.
    pub restored: Vec<String>,
    /// Pods whose programs were replaced.
    pub pods: usize,
    /// When they are called, among programs of others.
    pub order: Order,
}

/// Whether the node's programs are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Names of the programs whose pinned links are attached to a cgroup.
    pub attached: Vec<String>,
    /// What should be there and is not.
    pub faults: Faults,
    /// Whether they are those of this version.
    pub current: bool,
    /// Whether what application and proxy send each other goes from socket to socket.
    pub accelerated: bool,
    /// One of how many decisions is reported; 0 for none.
    pub sample: u32,
    /// How many captured outbound TCP connections the map FLOWS holds, of all pods.
    pub connections: usize,
    /// Programs that are loaded in advance, for so many pods to come.
    pub spares: usize,
}

/// The node's programs and their maps.
#[derive(Debug)]
pub struct Node {
    pub(super) folder: PathBuf,
    pub(super) maps: Maps,
    lookup: OnceLock<Lookup>,
    /// Until when another run is waited for.
    deadline: Option<Instant>,
}

/// The first cgroup v2 that is mounted.
pub fn default_cgroup() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let path = mount.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then(|| PathBuf::from(path))
    })
}

impl Node {
    /// Load the programs and attach them, or put them in the place of those that are there. What
    /// the maps hold stays, so pods stay captured and connections go on.
    ///
    /// # Errors
    /// When the kernel does not accept them, or a privilege is missing. A later run then does the
    /// rest.
    pub fn load(
        folder: &Path,
        options: &Options,
        wait: Duration,
    ) -> Result<(Self, Loaded), EbpfError> {
        let deadline = Instant::now() + wait;
        // Before anything is made: a verifier's log does not say what a kernel lacks.
        if let Some(what) = unable() {
            return Err(EbpfError::Unable(what));
        }
        let cgroup = File::open(&options.cgroup).ok();
        let is_cgroup =
            |file: &File| fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let cgroup = cgroup.filter(is_cgroup);
        let cgroup = cgroup.ok_or_else(|| EbpfError::NoCgroup(options.cgroup.clone()))?;
        folder::make(folder)
            .map_err(|source| EbpfError::NoFolder { folder: folder.to_owned(), source })?;
        let in_bpffs =
            fstatfs(folder::open(folder)?).is_ok_and(|fs| fs.filesystem_type() == BPF_FS);
        if !in_bpffs {
            return Err(EbpfError::NoBpffs(folder.to_owned()));
        }
        let _lock = lock(folder, deadline)?;
        let fresh = !folder.join("maps").exists();
        let loaded = Self::load_all(folder, options, &cgroup);
        if fresh && loaded.is_err() {
            // What is pinned of it would be taken for programs that have lost something.
            for part in PARTS {
                let _gone = fs::remove_dir_all(folder.join(part));
            }
        }
        loaded
    }

    /// The same, with the lock held, in a folder that is ours.
    fn load_all(
        folder: &Path,
        options: &Options,
        cgroup: &File,
    ) -> Result<(Self, Loaded), EbpfError> {
        let maps = folder.join("maps");
        for part in PARTS {
            let made = folder::make(&folder.join(part));
            made.map_err(|source| EbpfError::NoFolder { folder: folder.to_owned(), source })?;
        }
        let mut loaded = Loaded { restored: put_back(folder)?, ..Loaded::default() };
        // What is there must be of this version, before anything is replaced.
        match Maps::open(&maps) {
            Ok(_) | Err(EbpfError::NotLoaded(_)) => {}
            Err(other) => return Err(other),
        }
        let mut loader = EbpfLoader::new();
        for name in NAMES {
            loader.map_pin_path(name, maps.join(name));
        }
        for name in ["PODS", "COUNTERS"] {
            loader.map_max_entries(name, options.max_pods);
        }
        // There may be some that nobody uses any more and nobody has taken away yet.
        loader.map_max_entries("LOOKUPS", options.max_pods.saturating_mul(2));
        // A pod has two for a moment when its policy changes.
        loader.map_max_entries("MORE", options.max_pods.saturating_mul(2));
        loader.map_max_entries("NETWORKS", options.max_networks);
        loader.map_max_entries("FLOWS", options.max_connections);
        let mut object = loader.load(options.object)?;
        let place = cgroup.metadata().map_err(|e| EbpfError::io(show(&options.cgroup), e))?.ino();
        let mut accepted = Vec::new();
        for (name, kind, since) in PROGRAMS {
            let program = accept(name, object.program_mut(name))?;
            accepted
                .push(program.as_fd().try_clone_to_owned().map_err(|e| EbpfError::io(name, e))?);
            let pin = folder.join("links").join(name);
            if attached_at(&pin)? == Some(place) && replace(&pin, program.as_fd())? {
                loaded.replaced.push(name.to_owned());
                continue;
            }
            let link = attach(program.as_fd(), cgroup.as_fd(), kind, since)?;
            // One that is attached no more, or elsewhere.
            unpin(&pin)?;
            sys_bpf::pin(link.as_fd(), &pin).map_err(|e| EbpfError::io(show(&pin), e))?;
            loaded.attached.push(name.to_owned());
        }
        let node = Self::open(folder)?;
        if options.accelerate {
            let program = accept(ACCELERATOR, object.program_mut(ACCELERATOR))?;
            let ends = pinned(&maps.join("ENDS"))?;
            let attached = sys_bpf::attach_to_map(program.as_fd(), ends.as_fd());
            attached.map_err(|e| EbpfError::io(ACCELERATOR, e))?;
        }
        let settings = node.maps.settings.get(&0)?.unwrap_or_default();
        let settings =
            Settings { accelerate: options.accelerate.into(), spares: options.spares, ..settings };
        node.maps.settings.set(&0, &settings)?;
        node.maps.limit(&maps)?;
        let program = accept(INBOUND, object.program_mut(INBOUND))?;
        let number = program.as_fd().as_raw_fd().cast_unsigned();
        let programs = pinned(&maps.join("INBOUND"))?;
        let set = sys_bpf::update(programs.as_fd(), 0_u32.bytes(), number.bytes());
        set.map_err(|e| EbpfError::io(INBOUND, e))?;
        // Not before all that decide are of this version.
        node.maps.settings.set(&0, &Settings { sources: sources(), ..settings })?;
        for (cookie, pin) in node.pins()? {
            // One that is not enrolled gets another program when it is.
            let Some(pod) = node.maps.policy(cookie)? else { continue };
            node.maps.lookups.set(&pod.lookup, &cookie)?;
            let program = node.lookup()?.load(pod.lookup)?;
            // The link of a namespace that is gone can't be changed, and needn't be.
            if replace(&pin, program.as_fd()).unwrap_or(false) {
                loaded.pods += 1;
            }
        }
        node.renew_preloaded()?;
        node.keep_lookups_on()?;
        node.unpin_earlier_programs()?;
        loaded.order = node.first(&accepted, cgroup)?;
        Ok((node, loaded))
    }

    /// An earlier version may have had programs that this one has not.
    fn unpin_earlier_programs(&self) -> Result<(), EbpfError> {
        let folder = self.folder.join("links");
        let entries = fs::read_dir(&folder).map_err(|e| EbpfError::io(show(&folder), e))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name != IDLE && !PROGRAMS.iter().any(|(known, ..)| name == *known) {
                unpin(&entry.path())?;
            }
        }
        Ok(())
    }

    /// With the first `sk_lookup` program of the machine the kernel changes its own code, which
    /// stops every processor and takes longer than capturing a pod. So there is always one, at the
    /// namespace of the node's own: it lets everything past. Without it nothing else is wrong.
    fn keep_lookups_on(&self) -> Result<(), EbpfError> {
        let pin = self.folder.join("links").join(IDLE);
        let link = sys_bpf::pinned(&pin).map_err(|e| EbpfError::io(show(&pin), e))?;
        let info = link.and_then(|link| sys_bpf::link_info(link.as_fd()).ok());
        if info.is_some_and(|info| info.attached_to().is_some()) {
            return Ok(());
        }
        unpin(&pin)?;
        let program = sys_bpf::load_lookup(&LET_PAST, IDLE)
            .map_err(|(source, log)| EbpfError::of_verifier(IDLE, source, log))?;
        let target = Target::current()?;
        let failed = |e| EbpfError::io(show(&pin), e);
        let link = sys_bpf::link_netns(program.as_fd(), target.netns.as_fd()).map_err(failed)?;
        sys_bpf::pin(link.as_fd(), &pin).map_err(failed)
    }

    /// Open the maps by their pins in `folder`; nothing is loaded or attached.
    ///
    /// # Errors
    /// [`EbpfError::NotLoaded`] where nothing is, [`EbpfError::NotWhole`] where maps are missing.
    pub fn open(folder: &Path) -> Result<Self, EbpfError> {
        folder::open(folder)?;
        let maps = Maps::open(&folder.join("maps")).map_err(|error| match error {
            EbpfError::NotLoaded(_) if !lost(folder).is_empty() => {
                let lost = lost(folder).into_iter().map(str::to_owned).collect();
                let faults = Faults { lost, ..Faults::default() };
                let what = faults.reported().unwrap_or_default();
                EbpfError::NotWhole { folder: folder.to_owned(), what }
            }
            error => error,
        })?;
        Ok(Self { folder: folder.to_owned(), maps, lookup: OnceLock::new(), deadline: None })
    }

    /// Wait so long for other runs that change programs or pods, and not [`WAIT`].
    #[must_use]
    pub fn until(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Take the folder's lock, until the deadline of [`Self::until`], else for [`WAIT`].
    pub(super) fn lock(&self) -> Result<Flock<File>, EbpfError> {
        lock(&self.folder, self.deadline.unwrap_or_else(|| Instant::now() + WAIT))
    }

    /// Open what is loaded, where eBPF is one way to capture of several; none where nothing is
    /// loaded, as far as this process may see.
    ///
    /// # Errors
    /// When something is and can't be opened.
    pub fn open_if_loaded(folder: &Path) -> Result<Option<Self>, EbpfError> {
        // Without privilege the kernel does not even say that there is nothing.
        if fs::symlink_metadata(folder).is_err() {
            return Ok(None);
        }
        match Self::open(folder) {
            Err(EbpfError::NotLoaded(_)) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// What programs of single pods are made of. Most runs need none.
    pub(super) fn lookup(&self) -> Result<&Lookup, EbpfError> {
        if let Some(lookup) = self.lookup.get() {
            return Ok(lookup);
        }
        let lookup = Lookup::new(&self.folder.join("maps"))?;
        Ok(self.lookup.get_or_init(|| lookup))
    }

    /// Detach all programs, of pods first, and forget everything. Connections that are captured go
    /// on; new ones are not captured. Without `force` nothing is done where pods are captured. False if
    /// nothing was there.
    ///
    /// # Errors
    /// When pods are captured, or something can't be removed.
    pub fn unload(folder: &Path, wait: Duration, force: bool) -> Result<bool, EbpfError> {
        if fs::symlink_metadata(folder).is_err() {
            // What can't be seen may be there.
            let seen = folder::is_in_bpffs(folder);
            return if seen { Ok(false) } else { Err(EbpfError::NotLoaded(folder.to_owned())) };
        }
        let _lock = lock(folder, Instant::now() + wait)?;
        let captured = if force { Vec::new() } else { captured(folder)? };
        if !captured.is_empty() {
            let known = known();
            let reported = |inode: u64| match known.get(&inode) {
                Some(path) => format!("{} (net:[{inode}])", path.display()),
                None => format!("net:[{inode}]"),
            };
            return Err(EbpfError::Captures(captured.into_iter().map(reported).collect()));
        }
        let mut any = false;
        for part in ["pods", "spares", "links", "maps"] {
            let part = folder.join(part);
            let Ok(entries) = fs::read_dir(&part) else { continue };
            for entry in entries.flatten() {
                unpin(&entry.path())?;
                any = true;
            }
            fs::remove_dir(&part).map_err(|e| EbpfError::io(show(&part), e))?;
        }
        // Another run may be about to use it again.
        drop(fs::remove_dir(folder));
        Ok(any)
    }

    /// Which programs are attached or missing, and settings and counts that the maps hold.
    ///
    /// # Errors
    /// When a pin can't be opened.
    pub fn state(&self) -> Result<State, EbpfError> {
        let settings = self.maps.settings.get(&0)?.unwrap_or_default();
        let mut state = State {
            current: settings.sources == sources(),
            accelerated: settings.accelerate != 0,
            sample: settings.sample,
            faults: self.faults()?,
            connections: self.maps.flows.keys()?.iter().filter(|key| key.is_captured()).count(),
            spares: self.count_preloaded()?,
            ..State::default()
        };
        let names = PROGRAMS.iter().map(|(name, ..)| (*name).to_owned());
        state.attached = names.filter(|name| !state.faults.missing.contains(name)).collect();
        Ok(state)
    }

    /// Let one of so many decisions be reported, or none with 0.
    ///
    /// # Errors
    /// When the setting can't be written.
    pub fn sample(&self, one_of: u32) -> Result<(), EbpfError> {
        let settings = self.maps.settings.get(&0)?.unwrap_or_default();
        self.maps.settings.set(&0, &Settings { sample: one_of, ..settings })
    }

    /// The pins of pods, by cookie.
    pub(super) fn pins(&self) -> Result<Vec<(u64, PathBuf)>, EbpfError> {
        by_number(&self.folder.join("pods"))
    }

    /// Where a pod's link is pinned.
    pub(super) fn pin_of(&self, cookie: u64) -> PathBuf {
        pin_in(&self.folder, cookie)
    }
}

/// Where a pod's link is pinned in a folder.
pub(super) fn pin_in(folder: &Path, cookie: u64) -> PathBuf {
    folder.join("pods").join(cookie.to_string())
}

/// The network namespaces, by inode, of the pods that are captured: by their links, which programs
/// of any version have. One without an entry in the maps, if those can be read, is not captured.
fn captured(folder: &Path) -> Result<Vec<u64>, EbpfError> {
    // A load that was killed may not have made it.
    let Ok(pins) = by_number::<u64>(&folder.join("pods")) else { return Ok(Vec::new()) };
    let maps = Maps::open(&folder.join("maps")).ok();
    let mut captured = Vec::new();
    for (cookie, pin) in pins {
        let policy = maps.as_ref().map(|maps| maps.policy(cookie)).transpose()?;
        if policy.is_none_or(|policy| policy.is_some()) {
            captured.extend(attached_at(&pin)?);
        }
    }
    Ok(captured)
}

pub(super) fn show(path: &Path) -> String {
    path.display().to_string()
}

/// Remove a pin, and let a link have no effect from now on.
pub(super) fn unpin(pin: &Path) -> Result<(), EbpfError> {
    // What has no link to detach, as a map, only has to go.
    if let Ok(Some(object)) = sys_bpf::pinned(pin) {
        drop(sys_bpf::detach_link(object.as_fd()));
    }
    match fs::remove_file(pin) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(EbpfError::io(show(pin), error))
        }
        _ => Ok(()),
    }
}

/// What must be pinned there.
pub(super) fn pinned(pin: &Path) -> Result<OwnedFd, EbpfError> {
    let found = sys_bpf::pinned(pin).map_err(|e| EbpfError::io(show(pin), e))?;
    found.ok_or_else(|| EbpfError::NotLoaded(pin.to_owned()))
}

/// Put a program in the place of a pinned link's; false if there is none.
fn replace(pin: &Path, program: BorrowedFd<'_>) -> Result<bool, EbpfError> {
    let failed = |e| EbpfError::io(show(pin), e);
    let Some(link) = sys_bpf::pinned(pin).map_err(failed)? else { return Ok(false) };
    sys_bpf::update_link(link.as_fd(), program).map_err(failed)?;
    Ok(true)
}
