//! Which files are the agent's own: those that it may write over and remove. A name alone makes none
//! of them, since the operator may name one that is there already.

use super::{Candidate, Mode, Seen, default_file};
use crate::foreign::Mesh;
use crate::list::{Entry, List};

/// What is known of the agent's own files in the folder of configurations.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// The names of those that it wrote, or was about to.
    pub written: Vec<String>,
    /// The name that the operator gives to its own.
    pub named: Option<String>,
}

/// The entries of other meshes' plugins in a list, and whose they are.
pub(super) fn of_meshes(list: &List) -> impl Iterator<Item = (Mesh, &Entry)> {
    list.plugins.iter().filter_map(|entry| Some((Mesh::of(entry.kind())?, entry)))
}

/// Whether the agent's own files have this name where nobody names one.
pub(super) fn is_default(name: &str) -> bool {
    [Mode::OwnFile, Mode::Standalone].iter().any(|mode| default_file(*mode) == name)
}

impl Own {
    /// Whether a file is the agent's. `kind` is the plugin's type.
    ///
    /// What it wrote is its own as long as it has the plugin, is of a list that is there, or can't be
    /// read: not where another network's list or another mesh's has its name by now. Where nothing is
    /// known of that, as after the agent's folder was lost, it tells by the content: nothing but the
    /// plugin; or under the usual name, the plugin; or under the operator's, what the agent makes of
    /// a later list.
    pub fn has(&self, file: &Candidate, seen: &Seen, kind: &str) -> bool {
        let written = self.written.contains(&file.name);
        let Ok(list) = &file.list else { return written };
        let has_plugin = !list.places(|own| own == kind).is_empty();
        let others = |list: &List| -> Vec<String> {
            let kinds = list.plugins.iter().map(Entry::kind).filter(|own| *own != kind);
            kinds.map(str::to_owned).collect()
        };
        let is_source = |other: &Candidate| {
            let same = |other: &List| other.name == list.name && others(other) == others(list);
            other.name > file.name && other.list.as_ref().is_ok_and(same)
        };
        let has_source = || seen.files.iter().any(is_source);
        if written {
            let is_bare = || of_meshes(list).next().is_none() && has_source();
            return has_plugin || is_bare();
        }
        let named = self.named.as_ref() == Some(&file.name);
        if !has_plugin || !(named || is_default(&file.name)) {
            return false;
        }
        is_default(&file.name) || others(list).is_empty() || has_source()
    }
}
