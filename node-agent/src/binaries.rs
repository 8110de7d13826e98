//! The plugin's binary under its own name and under those of plugins that were taken over. What was
//! there is kept first; and what an earlier version of the agent put there is not taken for it.

use std::time::Instant;

use crate::binary::MOST;
use crate::folder::{Folder, FolderError, Replaced, Seen};
use crate::foreign::Mesh;
use crate::install::{InstallError, Installer, PLUGIN};
use crate::kept::Kept;
use crate::observe::look;
use crate::own_folder::special;
use crate::taken::{earlier_name, taken_kinds};

impl Installer {
    /// See to it that the plugin's name is no other plugin's, whose binary and entries would be taken
    /// for the plugin's, and note that it is the plugin's. The usual name is nobody else's.
    pub(crate) fn own_name(&self, bin: &Folder, conf: &Folder) -> Result<(), InstallError> {
        let mut kept = self.store.read()?;
        let is_new = Kept::note(&mut kept.plugins, &self.config.kind);
        if kept.plugins.len() > 1 {
            let look = look(conf, &kept, &self.drop_in(), &self.config.kind, &[])?;
            earlier_name(&look.seen, &kept, &self.config.kind)?;
        }
        if is_new {
            self.is_free(&kept, bin, conf)?;
            self.store.write(&kept)?;
        }
        Ok(())
    }

    /// Say where another plugin has the plugin's name.
    pub(crate) fn is_free(
        &self,
        kept: &Kept,
        bin: &Folder,
        conf: &Folder,
    ) -> Result<(), InstallError> {
        let kind = &self.config.kind;
        if kind == PLUGIN || self.binary.is_at(bin, kind) {
            return Ok(());
        }
        if special(bin, kind).is_some() || bin.read_at_most(kind, MOST)?.is_some() {
            return Err(InstallError::OtherPlugin(bin.path().join(kind)));
        }
        let look = look(conf, kept, &self.drop_in(), kind, &[])?;
        let mut files = look.seen.files.iter();
        let named = files.find(|file| {
            file.list.as_ref().is_ok_and(|list| !list.places(|own| own == kind).is_empty())
        });
        named.map_or(Ok(()), |file| Err(InstallError::OtherEntry(file.name.clone(), kind.clone())))
    }

    /// Have a newer binary stand under the names that were taken over before it has the plugin's: what
    /// stands there is known for the plugin by being the same as that.
    pub(crate) fn renew_binaries(&self, bin: &Folder) -> Result<(), InstallError> {
        let kept = self.store.read()?;
        if kept.binaries.is_empty() || self.binary.is_at(bin, &self.config.kind) {
            return Ok(());
        }
        let Some(before) = self.installed(bin)? else { return Ok(()) };
        for name in kept.binaries.iter().filter(|name| special(bin, name).is_none()) {
            let there = bin.read_at_most(name, MOST)?;
            if let Some(there) = there.filter(|there| there.bytes == before.bytes) {
                // Who changed it meanwhile put a newer one there.
                let _replaced = bin.replace(name, &there, self.binary.bytes())?;
            }
        }
        Ok(())
    }

    /// Have the plugin stand under the names of those whose entries were taken over: a runtime that
    /// still has such an entry, as CRI-O keeps it for pods that began with it, calls this one then.
    pub(crate) fn take_binaries(&mut self, bin: &Folder) -> Result<bool, InstallError> {
        let mut kept = self.store.read()?;
        for kind in taken_kinds(&kept) {
            // A link, say, is nothing that can be kept and put back as it was: it stays, and is told
            // of by the report. Ours is written to none.
            if self.binary.is_at(bin, &kind) || special(bin, &kind).is_some() {
                continue;
            }
            let Some(old) = bin.read_at_most(&kind, MOST)? else { continue };
            let Some(mesh) = Mesh::of(&kind) else { continue };
            if !self.rivalry.may_take(mesh, Instant::now()) {
                self.give_binaries_back(&kept, mesh)?;
                return Ok(true);
            }
            self.store.keep_binary(&kind, &old)?;
            if Kept::note(&mut kept.binaries, &kind) {
                self.store.write(&kept)?;
            }
            if let Replaced::Changed = bin.replace(&kind, &old, self.binary.bytes())? {
                return Ok(true);
            }
            self.rivalry.took(mesh, Instant::now());
            tracing::info!(
                "{} is this plugin from now on; `millrace-node uninstall --restore` puts the binary of \
                 {mesh} back",
                bin.path().join(&kind).display()
            );
        }
        Ok(false)
    }

    pub(crate) fn give_binaries_back(&self, kept: &Kept, mesh: Mesh) -> Result<(), InstallError> {
        let bin = Folder::open(&self.config.bin_dir)?;
        kept.binaries
            .iter()
            .filter(|kind| Mesh::of(kind) == Some(mesh))
            .try_for_each(|kind| self.give_back(&bin, kind).map(drop))
    }

    /// Put a binary back that was taken over, with its mode and owner, in the place of ours alone.
    /// Gives whether it was.
    pub(crate) fn give_back(&self, bin: &Folder, kind: &str) -> Result<bool, InstallError> {
        match self.store.binary(kind)? {
            Some(old) if self.is_ours(bin, kind)? => {
                bin.put(kind, &old.bytes, old.owner)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// What has the plugin's name, if it can be the plugin.
    fn installed(&self, bin: &Folder) -> Result<Option<Seen>, FolderError> {
        match special(bin, &self.config.kind) {
            Some(_) => Ok(None),
            None => bin.read_at_most(&self.config.kind, MOST),
        }
    }

    /// Whether the plugin, this version or the one that is installed, has this name. What is no regular
    /// file is not the agent's.
    pub(crate) fn is_ours(&self, bin: &Folder, name: &str) -> Result<bool, InstallError> {
        if self.binary.is_at(bin, name) {
            return Ok(true);
        }
        if special(bin, name).is_some() {
            return Ok(false);
        }
        let own = self.installed(bin)?;
        let there = bin.read_at_most(name, MOST)?;
        Ok(own.zip(there).is_some_and(|(own, there)| own.bytes == there.bytes))
    }
}
