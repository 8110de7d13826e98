//! Carrying out what was decided of the files in the folder of CNI configurations. A file of somebody
//! else's is on the disk in the agent's folder before another one has its name.

use crate::folder::{Folder, Owner, Replaced, Seen};
use crate::install::{InstallError, Installer};
use crate::kept::{Kept, KeptEntry, KeptFile};
use crate::list::Entry;
use crate::observe::{Late, Snapshot, is_own_drop_in};
use crate::own_folder::special;
use crate::plan::Step;

impl Installer {
    /// Carry a step out. Gives false where somebody else changed the file since it was looked at.
    pub(crate) fn step(
        &mut self,
        conf: &Folder,
        kept: &mut Kept,
        look: &Snapshot,
        step: &Step,
    ) -> Result<bool, InstallError> {
        let owner = Owner::private().of_this_process();
        match step {
            Step::Keep { mesh, file, entry, settings } => {
                let path = conf.path().join(file);
                tracing::info!(
                    "taking over the entry of {mesh} in {}; `millrace-node uninstall --restore` puts \
                     it back",
                    path.display()
                );
                kept.keep_entry(KeptEntry {
                    file: file.clone(),
                    entry: entry.text().to_owned(),
                    kind: entry.kind().to_owned(),
                });
                kept.keep_settings(settings);
                self.store.write(kept)?;
            }
            Step::KeepFile { mesh, file, settings } => {
                let Some(seen) = look.files.get(file) else { return Ok(false) };
                // It was read as a list, so it is a text; or somebody writes to it by now.
                let Some(text) = seen.text() else { return Ok(false) };
                let path = conf.path().join(file);
                tracing::info!(
                    "taking over {} from {mesh}; `millrace-node uninstall --restore` puts it back",
                    path.display()
                );
                let (Owner { uid, gid, mode }, text) = (seen.owner, text.to_owned());
                kept.keep_file(KeptFile { name: file.clone(), text, uid, gid, mode });
                kept.keep_settings(settings);
                self.store.write(kept)?;
            }
            Step::Own { file } => {
                if Kept::note(&mut kept.own_files, file) {
                    self.store.write(kept)?;
                }
            }
            Step::Write { file, was: None, text, .. } => {
                let is_new = conf.create(file, text.as_bytes(), owner)?;
                if is_new {
                    tracing::info!("created {}", conf.path().join(file).display());
                }
                return Ok(is_new);
            }
            Step::Write { file, text, cause, .. } => {
                let Some(seen) = look.files.get(file) else {
                    // A link or a FIFO, say: who made it is not known.
                    return match unreadable(look, file) {
                        Some(why) => Err(InstallError::InTheWay(file.clone(), why)),
                        None => Ok(false),
                    };
                };
                if unreadable(look, file).is_some() {
                    self.keep_observed(file, seen)?;
                }
                match conf.replace(file, seen, text.as_bytes())? {
                    Replaced::Changed => return Ok(false),
                    Replaced::Done(old) => {
                        let path = conf.path().join(file);
                        tracing::info!("wrote {}: it had {cause}", path.display());
                        let late = Late::new(file, old, &seen.bytes, text.as_bytes());
                        self.late.retain(|late| late.name != *file);
                        self.late.push(late);
                    }
                }
            }
            Step::Remove { file } => {
                let gone = if let Some(seen) = look.files.get(file) {
                    if unreadable(look, file).is_some() {
                        self.keep_observed(file, seen)?;
                    }
                    conf.take_away(file, seen)?
                } else {
                    // It can't be read, and is the agent's by its name.
                    let what = special(conf, file).map(|what| format!("it is {what}"));
                    let why = what.or_else(|| unreadable(look, file)).unwrap_or_default();
                    let path = conf.path().join(file);
                    tracing::warn!(
                        "{} has the name of the agent's own file, and is removed without a copy of \
                         it: {why}",
                        path.display()
                    );
                    conf.remove(file)?;
                    true
                };
                if gone {
                    tracing::info!("removed {}", conf.path().join(file).display());
                }
                // Whoever has the name from now on is somebody else.
                if gone && kept.own_files.contains(file) {
                    kept.own_files.retain(|own| own != file);
                    self.store.write(kept)?;
                }
                return Ok(gone);
            }
            Step::WriteDropIn { network, text, cause } => {
                let wrote = kept.has_drop_in(network);
                if Kept::note(&mut kept.drop_ins, network) {
                    self.store.write(kept)?;
                }
                let (inner, name) = (conf.inner(network)?, self.drop_in());
                let written = match inner.read(&name)? {
                    None => inner.create(&name, text.as_bytes(), owner)?,
                    Some(seen) => {
                        let entry = entry_of(&seen);
                        let is_own = is_own_drop_in(entry.as_ref(), &self.config.kind, wrote);
                        if is_own && entry.is_none() {
                            self.keep_observed(&format!("{network}/{name}"), &seen)?;
                        }
                        let replaced = || inner.replace(&name, &seen, text.as_bytes());
                        is_own && matches!(replaced()?, Replaced::Done(_))
                    }
                };
                // Runtimes watch the folder itself, and not those in it.
                conf.poke()?;
                if written {
                    tracing::info!(
                        "wrote {}: there was {cause}",
                        inner.path().join(&name).display()
                    );
                }
                return Ok(written);
            }
            Step::RemoveDropIn { network, file } => {
                if let Some(inner) = conf.inner_if_there(network)? {
                    match inner.read(file) {
                        Ok(Some(seen)) if entry_of(&seen).is_none() => {
                            self.keep_observed(&format!("{network}/{file}"), &seen)?;
                        }
                        Ok(_) => {}
                        Err(error) => tracing::warn!(
                            "the agent's own file is removed without a copy of it: {error}"
                        ),
                    }
                    if inner.remove(file)? {
                        tracing::info!("removed {}", inner.path().join(file).display());
                    }
                    conf.poke()?;
                }
            }
        }
        Ok(true)
    }

    /// Keep what stands under a name of the agent's own and is no configuration, so that somebody
    /// else wrote it, or a disk lost it.
    fn keep_observed(&self, name: &str, seen: &Seen) -> Result<(), InstallError> {
        if seen.bytes.trim_ascii().is_empty() {
            return Ok(());
        }
        let path = self.store.keep_observed(name, seen)?;
        tracing::warn!(
            "{} held no CNI configuration, and is replaced or removed; a copy of it is {}",
            self.config.conf_dir.join(name).display(),
            path.display()
        );
        Ok(())
    }
}

/// Why what has this name is of no use, if it is.
fn unreadable(look: &Snapshot, name: &str) -> Option<String> {
    let file = look.seen.files.iter().find(|file| file.name == name)?;
    file.list.as_ref().err().map(ToString::to_string)
}

fn entry_of(seen: &Seen) -> Option<Entry> {
    Entry::parse(seen.text()?).ok()
}
