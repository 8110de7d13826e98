//! Uninstalling: first no list names the plugin any more, then runtimes get the time to read that,
//! then the binary goes. Or what was taken over comes back in its place, its binary first.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::folder::{Folder, Owner, Replaced};
use crate::foreign::Mesh;
use crate::install::{InstallError, Installer, PLUGIN, SOCKET, SOCKET_BEING_MADE};
use crate::kept::{Kept, KeptFile};
use crate::kubeconfig;
use crate::list::{Entry, List};
use crate::observe::{Snapshot, look};
use crate::own_folder::{own_if_there, special};
use crate::plan::{Candidate, Cause, Step, is_list, withdraw};
use crate::taken::taken_kinds;

/// How often others may be in the way.
const TURNS: usize = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// What an uninstallation does beside removing the plugin's entry.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Put back what was taken over.
    pub restore: bool,
    /// Leave the binary: CRI-O calls the plugin for the end of each pod that began with it.
    pub keep_binary: bool,
    /// How long runtimes have to read the list without the plugin, before the binary goes.
    pub grace: Duration,
}

/// What an uninstallation put back, wrote, removed and left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Binaries, entries and files of others that are back, each in words.
    pub restored: Vec<String>,
    /// Paths of CNI configurations and drop-ins that were written, each once.
    pub written: Vec<PathBuf>,
    /// Paths of configurations, binaries and the agent's own files that were removed.
    pub removed: Vec<PathBuf>,
    /// What is not as one may expect, and why.
    pub words: Vec<String>,
}

impl Done {
    /// Note a change. What is written again and again is noted once.
    fn step(&mut self, conf: &Folder, drop_in: &str, step: &Step) {
        let (paths, path) = match step {
            Step::Write { file, .. } => (&mut self.written, conf.path().join(file)),
            Step::Remove { file } => (&mut self.removed, conf.path().join(file)),
            Step::WriteDropIn { network, .. } => {
                (&mut self.written, conf.path().join(network).join(drop_in))
            }
            Step::RemoveDropIn { network, file } => {
                (&mut self.removed, conf.path().join(network).join(file))
            }
            Step::Keep { .. } | Step::KeepFile { .. } | Step::Own { .. } => return,
        };
        if !paths.contains(&path) {
            paths.push(path);
        }
    }

    fn word(&mut self, word: String) {
        self.words.push(word);
    }
}

impl Installer {
    /// Uninstall, and tell what was done. It can be interrupted at any moment and run again.
    ///
    /// # Errors
    /// When something can't be read or written, or there is nothing to restore on a node that was
    /// not uninstalled yet.
    pub fn uninstall(&mut self, way: Way) -> Result<Done, InstallError> {
        let mut done = Done::default();
        let _held = self.store.hold()?;
        let mut kept = self.store.read()?;
        let (bin, conf) = (Folder::open(&self.config.bin_dir)?, self.conf()?);
        if !kept.plugins.contains(&self.config.kind) {
            self.is_free(&kept, &bin, &conf)?;
        }
        if way.restore && !kept.is_anything_taken() && self.store.is_uninstalled()? {
            done.words.push("it was uninstalled before: nothing is left to restore".to_owned());
        } else if way.restore {
            self.check_restorable(&kept, &bin)?;
        }
        self.store.set_uninstalled(true)?;
        for folder in [&bin, &conf] {
            folder.clean()?;
        }
        let is_back = !way.restore || self.restore(&mut kept, &bin, &conf, &mut done)?;
        self.leave(&mut kept, &conf, &mut done)?;
        thread::sleep(way.grace);
        // Who wrote an old list meanwhile did so with the binary still there.
        self.leave(&mut kept, &conf, &mut done)?;
        let is_gone = !way.keep_binary && self.remove_binaries(&kept, &bin, &conf, &mut done)?;
        match own_if_there(&self.config.run_dir) {
            Ok(Some(run)) => {
                for name in [kubeconfig::NAME, SOCKET, SOCKET_BEING_MADE] {
                    if run.remove(name)? {
                        done.removed.push(run.path().join(name));
                    }
                }
            }
            Ok(None) => {}
            Err(error) => done.word(format!("nothing in it is removed: {error}")),
        }
        // Which binaries are the agent's, and whose names they have, is known as long as one is there; and
        // what was to be restored and could not be stays where it was kept.
        if is_gone && is_back {
            self.store.forget()?;
        }
        Ok(done)
    }

    /// Have no list name the plugin, where something else captures; the binary stays, for runtimes that call
    /// it for the end of pods that began with it. Gives the files that were changed. Nothing is marked: an
    /// agent that installs puts the entry back.
    ///
    /// # Errors
    /// When something can't be read or written.
    pub fn withdraw(&mut self) -> Result<Vec<PathBuf>, InstallError> {
        let _held = self.store.hold()?;
        let (mut kept, mut done) = (self.store.read()?, Done::default());
        let conf = self.conf()?;
        conf.clean()?;
        self.leave(&mut kept, &conf, &mut done)?;
        Ok(done.written.into_iter().chain(done.removed).collect())
    }

    /// The plugin's name, and those that it had before.
    fn names(&self, kept: &Kept) -> Vec<String> {
        let mut names = kept.plugins.clone();
        Kept::note(&mut names, &self.config.kind);
        names
    }

    /// Have no list name the plugin.
    fn leave(
        &mut self,
        kept: &mut Kept,
        conf: &Folder,
        done: &mut Done,
    ) -> Result<(), InstallError> {
        self.change(kept, conf, done, |installer, kept, look| {
            let wanted = installer.desired(kept, Vec::new())?;
            let names = installer.names(kept);
            let mut steps = names.iter().map(|name| withdraw(&look.seen, name, &wanted.own));
            Ok(steps.find(|steps| !steps.is_empty()).unwrap_or_default())
        })
    }

    /// Carry out what a look asks for, until it asks for nothing.
    fn change(
        &mut self,
        kept: &mut Kept,
        conf: &Folder,
        done: &mut Done,
        steps: impl Fn(&Self, &Kept, &Snapshot) -> Result<Vec<Step>, InstallError>,
    ) -> Result<(), InstallError> {
        for _ in 0..TURNS {
            let look = self.look(kept, conf)?;
            let steps = steps(self, kept, &look)?;
            if steps.is_empty() {
                return Ok(());
            }
            for step in &steps {
                if !self.step(conf, kept, &look, step)? {
                    thread::sleep(PAUSE);
                    break;
                }
                done.step(conf, &self.drop_in(), step);
            }
        }
        Err(InstallError::Busy)
    }

    fn check_restorable(&self, kept: &Kept, bin: &Folder) -> Result<(), InstallError> {
        if !kept.is_anything_taken() {
            return Err(InstallError::NothingTaken);
        }
        for kind in taken_kinds(kept) {
            if self.store.binary(&kind)?.is_some() {
                continue;
            }
            // A link is followed here: what it leads to would be called, whatever it is.
            let there = bin.path().join(&kind).is_file();
            if !there || self.is_ours(bin, &kind)? {
                return Err(InstallError::NoBinary(kind));
            }
        }
        Ok(())
    }

    /// Binaries first, then the files that are in front, then the entries, each in the place of ours. Gives
    /// whether every binary is back.
    fn restore(
        &mut self,
        kept: &mut Kept,
        bin: &Folder,
        conf: &Folder,
        done: &mut Done,
    ) -> Result<bool, InstallError> {
        let mut is_back = true;
        for kind in &kept.binaries {
            let path = bin.path().join(kind);
            if self.give_back(bin, kind)? {
                done.restored.push(format!("the binary {}", path.display()));
            } else if let Some(what) = special(bin, kind) {
                is_back = false;
                done.word(format!(
                    "{} is not put back: {what} has its name; remove that, and do it again",
                    path.display()
                ));
            }
        }
        // A drop-in directory is another file: ours is called from the list itself first.
        self.change(kept, conf, done, Self::inlined)?;
        let before = self.look(kept, conf)?;
        self.change(kept, conf, done, Self::put_back)?;
        let now = self.look(kept, conf)?;
        for own in &kept.entries {
            let kind = &own.kind;
            match (place(&before, kind), place(&now, kind)) {
                (None, Some(file)) => done.restored.push(format!("the entry of {kind} in {file}")),
                (Some(file), Some(_)) => {
                    done.word(format!(
                        "{file} has an entry of {kind} already, which is left as it is"
                    ));
                }
                (_, None) => {
                    done.word(format!(
                        "the entry of {kind} is not put back: there is no list of plugins in {}",
                        conf.path().display()
                    ));
                }
            }
        }
        kept.files.iter().try_for_each(|file| self.put_file_back(kept, conf, file, done))?;
        Ok(is_back)
    }

    /// A file that was taken over, with its mode and owner: where it was removed, or in the place of
    /// the agent's own, which has its name.
    fn put_file_back(
        &self,
        kept: &Kept,
        conf: &Folder,
        file: &KeptFile,
        done: &mut Done,
    ) -> Result<(), InstallError> {
        let wanted = self.desired(kept, Vec::new())?;
        let owner = Owner { uid: file.uid, gid: file.gid, mode: file.mode };
        let (name, bytes) = (file.name.as_str(), file.text.as_bytes());
        for _ in 0..TURNS {
            let look = self.look(kept, conf)?;
            let there = look.seen.files.iter().find(|there| there.name == name);
            let is_own = |there: &Candidate| wanted.own.has(there, &look.seen, &wanted.kind);
            match (there, look.files.get(name)) {
                (None, _) => {
                    if conf.create(name, bytes, owner)? {
                        done.restored.push(format!("the file {name}"));
                        return Ok(());
                    }
                }
                (Some(_), Some(seen)) if seen.bytes == bytes => {
                    let path = conf.path().join(name);
                    done.words.push(format!("{} is there already, as it was", path.display()));
                    return Ok(());
                }
                (Some(there), Some(seen)) if is_own(there) => {
                    let replaced = conf.replace_for(name, seen, bytes, owner)?;
                    if matches!(replaced, Replaced::Done(_)) {
                        done.restored.push(format!("the file {name}"));
                        return Ok(());
                    }
                }
                // Their agent wrote it anew meanwhile.
                _ => {
                    done.word(format!(
                        "{} is not put back: another file has its name by now, which is left as it is",
                        conf.path().join(name).display()
                    ));
                    return Ok(());
                }
            }
            thread::sleep(PAUSE);
        }
        Err(InstallError::Busy)
    }

    fn look(&self, kept: &Kept, conf: &Folder) -> Result<Snapshot, InstallError> {
        Ok(look(conf, kept, &self.drop_in(), &self.config.kind, &[])?)
    }

    /// Steps after which the plugin is called by the list, and not from its drop-in directory.
    fn inlined(&self, kept: &Kept, look: &Snapshot) -> Result<Vec<Step>, InstallError> {
        if !look.seen.drop_ins.iter().any(|there| there.is_own) || kept.entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut wanted = self.desired(kept, Vec::new())?;
        wanted.mode = crate::plan::Mode::Chained;
        wanted.file = None;
        Ok(crate::plan::plan(&look.seen, &wanted).steps)
    }

    /// Entries that were taken over, in their lists again.
    fn put_back(&self, kept: &Kept, look: &Snapshot) -> Result<Vec<Step>, InstallError> {
        let wanted = self.desired(kept, Vec::new())?;
        let is_own = |file: &Candidate| wanted.own.has(file, &look.seen, &wanted.kind);
        let lists: Vec<(&Candidate, &List)> = look
            .seen
            .files
            .iter()
            .filter(|file| is_list(&file.name) && !is_own(file))
            .filter_map(|file| Some((file, file.list.as_ref().ok()?)))
            .collect();
        let mut back: Vec<(&Candidate, List)> = Vec::new();
        for own in &kept.entries {
            // The network's plugin may have another file by now.
            let named = lists.iter().find(|(file, _)| file.name == own.file);
            let Some((file, list)) = named.or(lists.first()) else { continue };
            let Ok(entry) = Entry::parse(&own.entry) else { continue };
            let mesh = Mesh::of(&own.kind);
            if list.plugins.iter().any(|entry| Mesh::of(entry.kind()) == mesh) {
                continue;
            }
            let at = back.iter().position(|(other, _)| other.name == file.name);
            let begun = at.map(|at| back.remove(at).1);
            let is_ours = |kind: &str| kind == self.config.kind;
            let list = begun.unwrap_or_else(|| (*list).clone().without(is_ours));
            back.push((file, list.with(entry)));
        }
        let write = |(file, list): (&Candidate, List)| Step::Write {
            file: file.name.clone(),
            was: Some(file.text.clone()),
            text: list.text(),
            cause: Cause::Withdrawn,
        };
        Ok(back.into_iter().map(write).collect())
    }

    /// Gives whether none is left.
    fn remove_binaries(
        &self,
        kept: &Kept,
        bin: &Folder,
        conf: &Folder,
        done: &mut Done,
    ) -> Result<bool, InstallError> {
        let look = self.look(kept, conf)?;
        let is_named = |name: &str| {
            let lists = look.seen.files.iter().filter_map(|file| file.list.as_ref().ok());
            lists.flat_map(|list| &list.plugins).any(|entry| entry.kind() == name)
        };
        // Those under others' names are ours alone where they were not put back.
        let mut names = Vec::new();
        for kind in taken_kinds(kept) {
            if self.is_ours(bin, &kind)? {
                names.push(kind);
            }
        }
        for kind in self.names(kept) {
            if kind == PLUGIN || kept.plugins.contains(&kind) || self.binary.is_at(bin, &kind) {
                names.push(kind);
            }
        }
        let mut are_gone = true;
        for name in names {
            let path = bin.path().join(&name);
            if is_named(&name) {
                // The mesh's agent put its entry back: it gets its own binary, where that is known.
                if kept.binaries.contains(&name) && self.give_back(bin, &name)? {
                    done.restored
                        .push(format!("the binary {}, which a list names", path.display()));
                } else {
                    done.word(format!(
                        "{} is left: a list names {name}, and no pod would start without it; once no \
                         list does, uninstall again",
                        path.display()
                    ));
                    are_gone = false;
                }
                continue;
            }
            if let Some(what) = special(bin, &name) {
                done.word(format!("{} was {what}, and is removed", path.display()));
            }
            if bin.remove(&name)? {
                done.removed.push(path);
            }
        }
        Ok(are_gone)
    }
}

/// The list that has an entry of this type.
fn place(look: &Snapshot, kind: &str) -> Option<String> {
    let has = |file: &&Candidate| {
        let list = file.list.as_ref().ok().filter(|_| is_list(&file.name));
        list.is_some_and(|list| !list.places(|own| own == kind).is_empty())
    };
    look.seen.files.iter().find(has).map(|file| file.name.clone())
}
