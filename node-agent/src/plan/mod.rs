//! What is to be done with the files in a folder of CNI configurations: decided from what was seen,
//! without touching anything.

mod own;
mod planner;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use crate::foreign::Mesh;
use crate::list::{BadList, Entry, List};
use crate::settings::Settings;

pub use own::Own;
pub use planner::plan;

/// Where among the CNI configurations the plugin's entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Last in the list that the runtime uses.
    Chained,
    /// In a copy, which sorts first, of the list that the runtime would use, with the plugin appended.
    OwnFile,
    /// In the list's drop-in directory (CNI 1.1; containerd from 2.2 on, CRI-O from 1.34 on).
    DropIn,
    /// In a file of its own with nothing else, for Multus.
    Standalone,
}

/// A file that runtimes may read.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// A file name in the folder of network configurations; the runtime takes the first in order.
    pub name: String,
    /// Its content; empty where it can't be read.
    pub text: String,
    /// What it says, or why it can't be used.
    pub list: Result<List, BadConf>,
}

/// Why a file is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConf {
    /// Its text is no configuration.
    #[error(transparent)]
    List(#[from] BadList),
    /// It can't be read, or is no UTF-8: which, in words.
    #[error("{0}")]
    File(String),
}

/// A file in a drop-in directory.
#[derive(Clone, Debug)]
pub struct DropIn {
    /// The directory, which has the name of the network.
    pub network: String,
    /// Name of the file in the directory.
    pub file: String,
    /// Its content, if it is one.
    pub entry: Option<Entry>,
    /// Whether it is the agent's.
    pub is_own: bool,
}

/// One snapshot of the folder of CNI configurations, and of its drop-in directories.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Files with the endings that runtimes read, in their order.
    pub files: Vec<Candidate>,
    /// The files in drop-in directories that are the agent's own, or have the name that it needs.
    pub drop_ins: Vec<DropIn>,
}

/// What the plugin's entry has to be, and where.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The name of the plugin's file.
    pub kind: String,
    /// Where its entry stands: in a list, in a file of its own, or in a drop-in directory.
    pub mode: Mode,
    /// The file of the agent's own, or the one whose list is used in place of the first.
    pub file: Option<String>,
    /// Which files are the agent's own.
    pub own: Own,
    /// What the operator sets, which holds over [`Self::kept`].
    pub settings: Settings,
    /// What was taken over before.
    pub kept: Settings,
    /// What the agent gives: where its kubeconfig and its socket are.
    pub places: Settings,
    /// Whose entries are taken over.
    pub take_over: Vec<Mesh>,
    /// Whose plugin puts its entry back again and again, so that it is left alone for a while.
    pub yield_to: Vec<Mesh>,
}

/// Why a file is written. In words: what it has in place of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The entry is not there.
    Missing,
    /// It is not the last one, or there are several.
    Moved,
    /// The entry, or a file of the agent's own, has other members than desired.
    Changed,
    /// Another mesh's entry, or its file, stands where the plugin's belongs.
    TakenOver,
    /// It has to be gone.
    Withdrawn,
    /// The list that a file of its own is made from says something else.
    Followed,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no entry of the plugin",
            Self::Moved => "the plugin's entry in another place than the last, or several times",
            Self::Changed => "other settings in the plugin's entry",
            Self::TakenOver => "an entry of another mesh in the place of the plugin's",
            Self::Withdrawn => "an entry that has to go",
            Self::Followed => "an older copy of the network's list",
        })
    }
}

/// A change to one file, or to what the agent keeps of it.
#[derive(Clone, Debug)]
pub enum Step {
    /// Keep what another plugin's entry said, before it is replaced.
    Keep {
        /// Whose plugin the entry calls.
        mesh: Mesh,
        /// Name of the list's file.
        file: String,
        /// The entry as it is in the list.
        entry: Entry,
        /// What of it holds from now on.
        settings: Settings,
    },
    /// Keep another plugin's whole file, before it is removed or the agent's own takes its name.
    KeepFile {
        /// Whose plugin the file calls.
        mesh: Mesh,
        /// Name of the file in the folder of CNI configurations.
        file: String,
        /// What of its entry holds from now on.
        settings: Settings,
    },
    /// Note that a file of this name is the agent's own, before it is written.
    Own {
        /// Name of the file in the folder of CNI configurations.
        file: String,
    },
    /// Have a file say this.
    Write {
        /// Name of the file in the folder of CNI configurations.
        file: String,
        /// The text that it has now; none where it isn't there.
        was: Option<String>,
        /// The text that it has afterwards, all of it.
        text: String,
        /// Why, for the log and the metrics.
        cause: Cause,
    },
    /// Remove a file from the folder of CNI configurations.
    Remove {
        /// Name of the file: the agent's own, or another's that was kept before.
        file: String,
    },
    /// Have the drop-in directory of a network hold this.
    WriteDropIn {
        /// Name of the network, which is the directory's as well.
        network: String,
        /// The text of the agent's own file in it.
        text: String,
        /// Why, for the log and the metrics.
        cause: Cause,
    },
    /// Remove a file from a drop-in directory.
    RemoveDropIn {
        /// Name of the network, which is the directory's as well.
        network: String,
        /// Name of the file in the directory.
        file: String,
    },
}

impl Step {
    /// Whose entry it takes over.
    pub const fn mesh(&self) -> Option<Mesh> {
        match self {
            Self::Keep { mesh, .. } | Self::KeepFile { mesh, .. } => Some(*mesh),
            _ => None,
        }
    }
}

/// What holds when the steps are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The plugin is called for each pod.
    Installed {
        /// The file that says so.
        file: String,
    },
    /// There is nothing yet that it could be called from.
    Waiting(String),
    /// It is not called, for this reason.
    Blocked(String),
}

/// What is to be done, and what holds then.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The changes, in the order in which at every moment each pod is captured once.
    pub steps: Vec<Step>,
    /// Whether the plugin is called after the steps, by which file, or why not.
    pub state: State,
    /// What the user should know.
    pub words: Vec<String>,
    /// What of the settings that are taken over has no effect here: known as long as they are not.
    pub lost: Vec<String>,
}

/// The file of the agent's own that a mode needs when nobody names one.
pub const fn default_file(mode: Mode) -> &'static str {
    match mode {
        Mode::Chained | Mode::OwnFile => "00-millrace.conflist",
        Mode::DropIn => "90-millrace.conf",
        Mode::Standalone => "millrace-cni.conf",
    }
}

/// Whether runtimes read files of this name: containerd and CRI-O alike take these endings.
pub fn is_read(name: &str) -> bool {
    [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending))
}

/// Whether it may hold a list of plugins.
pub fn is_list(name: &str) -> bool {
    name.ends_with(".conflist")
}

/// Whether it holds a single plugin.
pub fn is_single(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending == "conf")
}

/// Decide how it is gone. A file of somebody else's stays, whatever its name.
pub fn withdraw(seen: &Seen, kind: &str, own: &Own) -> Vec<Step> {
    let is_own = |file: &&Candidate| own.has(file, seen, kind);
    let mut steps = Vec::new();
    for file in seen.files.iter().filter(|file| !is_own(file)) {
        steps.extend(withdrawn(file, kind));
    }
    // Where the list without the plugin is in front again, nothing is missing in between.
    steps.extend(seen.files.iter().filter(is_own).map(|file| {
        // Another mesh's agent put its entry into the first list, which was this one.
        let with_others =
            file.list.as_ref().is_ok_and(|list| own::of_meshes(list).next().is_some());
        let rest = withdrawn(file, kind).filter(|_| with_others);
        rest.unwrap_or_else(|| Step::Remove { file: file.name.clone() })
    }));
    let drop_ins = seen.drop_ins.iter().filter(|there| there.is_own);
    steps.extend(drop_ins.map(DropIn::removed));
    steps
}

impl Candidate {
    /// The step after which it says this.
    fn written(&self, list: &List, cause: Cause) -> Step {
        let (was, text) = (Some(self.text.clone()), list.text());
        Step::Write { file: self.name.clone(), was, text, cause }
    }
}

impl DropIn {
    fn removed(&self) -> Step {
        Step::RemoveDropIn { network: self.network.clone(), file: self.file.clone() }
    }
}

/// A list without the plugin's entry; none where it has none.
fn withdrawn(file: &Candidate, kind: &str) -> Option<Step> {
    let list = file.list.as_ref().ok().filter(|_| is_list(&file.name))?;
    if list.places(|own| own == kind).is_empty() {
        return None;
    }
    let rest = list.clone().without(|own| own == kind);
    if rest.plugins.is_empty() {
        // Nobody else's: a list has to have plugins.
        return Some(Step::Remove { file: file.name.clone() });
    }
    Some(file.written(&rest, Cause::Withdrawn))
}
