//! Uninstalling: first no list names the plugin any more, then runtimes get the time to read that,
//! then the binary goes. Or what was taken over comes back in its place, its binary first.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::binaries::taken_kinds;
use crate::folder::{Folder, Owner, Replaced};
use crate::foreign::Mesh;
use crate::install::{InstallError, Installer, PLUGIN, SOCKET};
use crate::kept::{Kept, KeptFile};
use crate::kubeconfig;
use crate::list::{Entry, List};
use crate::observe::{Snapshot, look};
use crate::own_folder::special;
use crate::plan::{Candidate, Cause, Step, is_list, withdraw};

/// How often others may be in the way.
const TURNS: usize = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// How to uninstall.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Put back what was taken over.
    pub restore: bool,
    /// Leave the binary: CRI-O calls the plugin for the end of each pod that began with it.
    pub keep_binary: bool,
    /// How long runtimes have to read the list without the plugin, before the binary goes.
    pub grace: Duration,
}

/// What an uninstallation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// What was put back.
    pub restored: Vec<String>,
    /// Files that were written.
    pub written: Vec<PathBuf>,
    /// Files that were removed.
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
        tracing::warn!("{word}");
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
        if way.restore {
            self.restore(&mut kept, &bin, &conf, &mut done)?;
        }
        self.leave(&mut kept, &conf, &mut done)?;
        thread::sleep(way.grace);
        // Who wrote an old list meanwhile did so with the binary still there.
        self.leave(&mut kept, &conf, &mut done)?;
        if !way.keep_binary {
            self.remove_binaries(&kept, &bin, &conf, &mut done)?;
        }
        for name in [kubeconfig::NAME, SOCKET] {
            let path = self.config.run_dir.join(name);
            match fs::remove_file(&path) {
                Ok(()) => done.removed.push(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => done.word(format!("{} can't be removed: {error}", path.display())),
            }
        }
        self.store.forget()?;
        Ok(done)
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
            Ok(withdraw(&look.seen, &installer.config.kind, &wanted.own))
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
            let there = bin.read_at_most(&kind, crate::binary::MOST)?.is_some();
            let theirs = there && !self.is_ours(bin, &kind)?;
            if !theirs && self.store.binary(&kind)?.is_none() {
                return Err(InstallError::NoBinary(kind));
            }
        }
        Ok(())
    }

    /// Binaries first, then the files that are in front, then the entries, each in the place of ours.
    fn restore(
        &mut self,
        kept: &mut Kept,
        bin: &Folder,
        conf: &Folder,
        done: &mut Done,
    ) -> Result<(), InstallError> {
        for kind in &kept.binaries {
            if self.give_back(bin, kind)? {
                done.restored.push(format!("the binary {}", bin.path().join(kind).display()));
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
                    done.word(format!("{file} has an entry of {kind} already, which stays"));
                }
                (_, None) => {
                    done.word(format!("the entry of {kind} is not put back: no list is there"));
                }
            }
        }
        kept.files.iter().try_for_each(|file| self.put_file_back(kept, conf, file, done))
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
                    done.words.push(format!("{name} is there already, as it was"));
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
                    done.word(format!("{name} is not put back: another one is there by now"));
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

    fn remove_binaries(
        &self,
        kept: &Kept,
        bin: &Folder,
        conf: &Folder,
        done: &mut Done,
    ) -> Result<(), InstallError> {
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
        let kind = &self.config.kind;
        if kind == PLUGIN || kept.plugins.contains(kind) || self.binary.is_at(bin, kind) {
            names.push(kind.clone());
        }
        for name in names {
            if is_named(&name) {
                done.word(format!("{name} is left: a list names it"));
                continue;
            }
            if let Some(what) = special(bin, &name) {
                done.word(format!("{} was {what}", bin.path().join(&name).display()));
            }
            if bin.remove(&name)? {
                done.removed.push(bin.path().join(&name));
            }
        }
        Ok(())
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
