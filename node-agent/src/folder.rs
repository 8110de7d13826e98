//! A folder that others write to at the same time: files in it are read without following links,
//! and changed so that at every moment a whole file is there, and nobody else's change is lost.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{
    AtFlags, CWD, Dir, Gid, Mode, OFlags, RenameFlags, Stat, Uid, XattrFlags, fchmod, fchown,
    fgetxattr, fsetxattr, fstat, fsync, linkat, mkdirat, openat, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;

/// The longest file that is read: lists of plugins are written by hand or by small programs.
pub const MOST: u64 = 1024 * 1024;
/// What the names of files that are being made begin and end with: no runtime reads such a file.
const TEMP: (&str, &str) = (".millrace-node-", ".tmp");
/// How often a file that somebody else changed meanwhile is put back before that is given up.
const TURNS: usize = 16;
/// Where `SELinux` keeps a file's label.
const LABEL: &str = "security.selinux";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A file or a folder can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}: {why}", path.display())]
pub struct FolderError {
    /// Path of the file or folder that could not be read or written.
    pub path: PathBuf,
    what: &'static str,
    why: io::Error,
}

impl FolderError {
    /// What is wrong at a path, and why.
    pub fn new(path: &Path, what: &'static str, why: io::Error) -> Self {
        Self { path: path.to_owned(), what, why }
    }

    /// Whether the folder's file system is mounted so that nothing can be written.
    pub fn is_read_only(&self) -> bool {
        self.why.kind() == io::ErrorKind::ReadOnlyFilesystem
    }
}

/// A folder by its descriptor, whatever becomes of its path.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

/// Who may do what with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id, numeric.
    pub uid: u32,
    /// Group id, numeric.
    pub gid: u32,
    /// The bits of its mode, of which the type is none.
    pub mode: u32,
}

/// A file as it was read.
#[derive(Debug)]
pub struct Seen {
    /// All of it; a file longer than the reader allows is an error instead.
    pub bytes: Vec<u8>,
    /// Who may do what with it.
    pub owner: Owner,
    identity: (u64, u64),
    file: File,
}

/// What became of an exchange.
#[derive(Debug)]
pub enum Replaced {
    /// The new file is there. The old one has no name any more, but whoever had it open may still
    /// write to it.
    Done(File),
    /// Somebody else changed the file since it was read; theirs is there.
    Changed,
}

impl Seen {
    /// Its content as a text, if it is one.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok()
    }

    /// The most that is read to see whether it is still this one: a binary is longer than a list.
    fn most(&self) -> u64 {
        MOST.max(self.bytes.len() as u64)
    }

    fn is_as(&self, identity: (u64, u64), bytes: &[u8]) -> bool {
        self.identity == identity && self.bytes == bytes
    }
}

impl Folder {
    /// Open a folder, through a link as well.
    ///
    /// # Errors
    /// When it isn't there, or is none.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty());
        let fd = fd.map_err(|errno| error(path, "it can't be opened as a folder", errno.into()))?;
        Ok(Self::of(path, fd))
    }

    /// One that was opened at this path.
    pub fn of(path: &Path, fd: OwnedFd) -> Self {
        Self { path: path.to_owned(), fd }
    }

    /// The path that it was opened by, for messages and to join names to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of what is in it, in the order of their bytes. Names that are no text are left out:
    /// nothing here has one.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn names(&self) -> Result<Vec<String>, FolderError> {
        let failed = |errno: Errno| error(&self.path, "it can't be listed", errno.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_str();
            names.extend(name.filter(|name| ![".", ".."].contains(name)).map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Read a file; none where it isn't there.
    ///
    /// # Errors
    /// When it is no regular file, a link, too long, or can't be read.
    pub fn read(&self, name: &str) -> Result<Option<Seen>, FolderError> {
        self.read_at_most(name, MOST)
    }

    /// The same for a file that may have so many bytes.
    ///
    /// # Errors
    /// When it is no regular file, a link, longer, or can't be read.
    pub fn read_at_most(&self, name: &str, most: u64) -> Result<Option<Seen>, FolderError> {
        let failed = |why| error(&self.path.join(name), "it can't be read", why);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(failed(io::Error::other("it is a symbolic link"))),
            opened => opened.map_err(|errno| failed(errno.into()))?,
        };
        seen(File::from(fd), most).map(Some).map_err(failed)
    }

    /// Put a file there, whole, in the place of what has that name; it is on the disk after that.
    ///
    /// # Errors
    /// When it can't be written; what was there still is.
    pub fn put(&self, name: &str, bytes: &[u8], owner: Owner) -> Result<(), FolderError> {
        let temp = self.temp(bytes, owner, None)?;
        let renamed = renameat(&self.fd, &temp.name, &self.fd, name);
        self.or_without(&temp.name, renamed, name)?;
        self.sync()
    }

    /// Put a file there, whole, where nothing has that name. Gives whether it did.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn create(&self, name: &str, bytes: &[u8], owner: Owner) -> Result<bool, FolderError> {
        let temp = self.temp(bytes, owner, None)?;
        // Unlike rename(2), link(2) replaces nothing; without links there is a last look.
        let made = match linkat(&self.fd, &temp.name, &self.fd, name, AtFlags::empty()) {
            Err(Errno::PERM | Errno::OPNOTSUPP) if self.read(name)?.is_none() => {
                renameat(&self.fd, &temp.name, &self.fd, name)
            }
            made => made,
        };
        if made != Err(Errno::EXIST) {
            self.or_without(&temp.name, made, name)?;
        }
        self.remove(&temp.name)?;
        self.sync().map(|()| made.is_ok())
    }

    /// Take a file away that was read, if a last look finds it as it was. Gives false where it is not.
    ///
    /// # Errors
    /// When it can't be read or removed.
    pub fn take_away(&self, name: &str, was: &Seen) -> Result<bool, FolderError> {
        match self.read_at_most(name, was.most())? {
            Some(now) if now.bytes != was.bytes => Ok(false),
            _ => self.remove(name).map(|_| true),
        }
    }

    /// Put a file in the place of one that was read, if that is still as it was. It gets the mode and
    /// the owner of that one.
    ///
    /// The new file and the old one change places in one step (renameat2(2), `RENAME_EXCHANGE`), and
    /// then the old one is looked at: if it isn't what was read, somebody else changed it meanwhile,
    /// and it is put back. So a change of somebody else is never written over, and a file that was
    /// removed doesn't come back. A file system without that has it renamed, after a last look.
    ///
    /// # Errors
    /// When it can't be written; what was there still is.
    pub fn replace(&self, name: &str, was: &Seen, bytes: &[u8]) -> Result<Replaced, FolderError> {
        self.replace_for(name, was, bytes, was.owner)
    }

    /// The same with a mode and an owner of its own.
    ///
    /// # Errors
    /// As [`Folder::replace`], but that the new file gets this mode and owner.
    pub fn replace_for(
        &self,
        name: &str,
        was: &Seen,
        bytes: &[u8],
        owner: Owner,
    ) -> Result<Replaced, FolderError> {
        let temp = self.temp(bytes, owner, Some(&was.file))?;
        match self.exchange(&temp.name, name) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                self.remove(&temp.name)?;
                return Ok(Replaced::Changed);
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return self.replace_plainly(&temp.name, name, was);
            }
            failed => self.or_without(&temp.name, failed, name)?,
        }
        self.sync()?;
        // What had the name has that of the temporary file now.
        match self.read_at_most(&temp.name, was.most()) {
            Ok(Some(old)) if old.bytes == was.bytes => {
                self.remove(&temp.name)?;
                Ok(Replaced::Done(old.file))
            }
            changed => {
                // Theirs, which may not even be readable, goes back to its place.
                let theirs = changed.ok().flatten().map(|seen| (seen.identity, seen.bytes));
                self.put_back(&temp.name, name, (temp.identity, bytes.to_vec()), theirs)?;
                Ok(Replaced::Changed)
            }
        }
    }

    /// `mine` has the name, and somebody else's file that of the temporary one: exchange them. If
    /// what comes back isn't what was put there, somebody changed that as well, and theirs is newer.
    fn put_back(
        &self,
        temp: &str,
        name: &str,
        mine: ((u64, u64), Vec<u8>),
        theirs: Option<((u64, u64), Vec<u8>)>,
    ) -> Result<(), FolderError> {
        let (mut put, mut aside) = (Some(mine), theirs);
        for _ in 0..TURNS {
            match self.exchange(temp, name) {
                // It was removed meanwhile, and that is the newest that somebody wants.
                Err(Errno::NOENT) => break,
                exchanged => self.or_without(temp, exchanged, name)?,
            }
            let most = put.as_ref().map_or(MOST, |(_, bytes)| MOST.max(bytes.len() as u64));
            let back = self.read_at_most(temp, most).ok().flatten();
            let same = back.as_ref().zip(put.as_ref());
            if same.is_some_and(|(back, (identity, bytes))| back.is_as(*identity, bytes)) {
                break;
            }
            (put, aside) = (aside, back.map(|seen| (seen.identity, seen.bytes)));
        }
        self.remove(temp)?;
        self.sync()
    }

    fn replace_plainly(&self, temp: &str, name: &str, was: &Seen) -> Result<Replaced, FolderError> {
        let now = self.read_at_most(name, was.most());
        if !matches!(&now, Ok(Some(now)) if now.is_as(was.identity, &was.bytes)) {
            self.remove(temp)?;
            return Ok(Replaced::Changed);
        }
        self.or_without(temp, renameat(&self.fd, temp, &self.fd, name), name)?;
        self.sync()?;
        let again = was.file.try_clone();
        again.map(Replaced::Done).map_err(|why| error(&self.path.join(name), "it is lost", why))
    }

    fn exchange(&self, one: &str, other: &str) -> Result<(), Errno> {
        renameat_with(&self.fd, one, &self.fd, other, RenameFlags::EXCHANGE)
    }

    /// Take a file away; it may be gone already. Gives whether it was there.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove(&self, name: &str) -> Result<bool, FolderError> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => self.sync().map(|()| true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(error(&self.path.join(name), "it can't be removed", errno.into())),
        }
    }

    /// A folder in it, for which runtimes have to be able to read it; it is made if it isn't there.
    ///
    /// # Errors
    /// When it can't be made or opened.
    pub fn inner(&self, name: &str) -> Result<Self, FolderError> {
        let path = self.path.join(name);
        match mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => self.sync()?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(error(&path, "it can't be made", errno.into())),
        }
        self.inner_if_there(name)?
            .ok_or_else(|| error(&path, "it can't be opened", Errno::NOENT.into()))
    }

    /// A folder in it; none where there is no folder of this name.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn inner_if_there(&self, name: &str) -> Result<Option<Self>, FolderError> {
        let path = self.path.join(name);
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { path, fd })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(error(&path, "it can't be opened", errno.into())),
        }
    }

    /// Have whoever watches the folder look at it: a file comes and goes.
    ///
    /// # Errors
    /// When it can't be written to.
    pub fn poke(&self) -> Result<(), FolderError> {
        let owner = Owner { uid: rustix::process::geteuid().as_raw(), ..Owner::private() };
        let temp = self.temp(&[], owner, None)?;
        self.remove(&temp.name).map(drop)
    }

    /// Take files away that a run which was killed left in the making.
    ///
    /// # Errors
    /// When the folder can't be read, or one can't be removed.
    pub fn clean(&self) -> Result<(), FolderError> {
        let is_temp = |name: &&String| name.starts_with(TEMP.0) && name.ends_with(TEMP.1);
        self.names()?.iter().filter(is_temp).try_for_each(|name| self.remove(name).map(drop))
    }

    fn temp(&self, bytes: &[u8], owner: Owner, like: Option<&File>) -> Result<Temp, FolderError> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}-{number}{}", TEMP.0, std::process::id(), TEMP.1);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || openat(&self.fd, &name, flags, Mode::from_raw_mode(0o600));
        // A process with this number may have been killed while it wrote.
        let fd = match make() {
            Err(Errno::EXIST) => {
                self.remove(&name)?;
                make()
            }
            made => made,
        };
        let path = self.path.join(&name);
        let fd = fd.map_err(|errno| error(&path, "it can't be made", errno.into()))?;
        let written = fill(File::from(fd), bytes, owner, like);
        match written {
            Ok(stat) => Ok(Temp { name, identity: (stat.st_dev, stat.st_ino) }),
            Err(why) => {
                self.remove(&name)?;
                Err(error(&path, "it can't be written", why))
            }
        }
    }

    /// An error of what was tried, for which the temporary file isn't needed any more.
    fn or_without(
        &self,
        temp: &str,
        tried: Result<(), Errno>,
        name: &str,
    ) -> Result<(), FolderError> {
        tried.or_else(|errno| {
            self.remove(temp)?;
            let what = match errno {
                Errno::ISDIR => "it can't be replaced; remove that folder",
                _ => "it can't be replaced",
            };
            Err(error(&self.path.join(name), what, errno.into()))
        })
    }

    fn sync(&self) -> Result<(), FolderError> {
        fsync(&self.fd)
            .map_err(|errno| error(&self.path, "it can't be brought to the disk", errno.into()))
    }
}

impl Owner {
    /// Root's, whom alone it concerns.
    pub const fn private() -> Self {
        Self { uid: 0, gid: 0, mode: 0o600 }
    }

    /// Root's, who lets everybody run it.
    pub const fn program() -> Self {
        Self { uid: 0, gid: 0, mode: 0o755 }
    }

    /// As this process' own files are where it isn't root, who could give them away.
    #[must_use]
    pub fn of_this_process(self) -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Self { uid: uid.as_raw(), gid: gid.as_raw(), ..self }
    }
}

struct Temp {
    name: String,
    identity: (u64, u64),
}

fn fill(mut file: File, bytes: &[u8], owner: Owner, like: Option<&File>) -> io::Result<Stat> {
    file.write_all(bytes)?;
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    let stat = fstat(&file)?;
    if (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid) {
        fchown(&file, Some(uid), Some(gid))?;
    }
    fchmod(&file, Mode::from_raw_mode(owner.mode))?;
    if let Some(like) = like {
        let mut label = [0; 1024];
        // Without SELinux there is none, and without the right to set it the folder's rules do.
        if let Ok(length) = fgetxattr(like, LABEL, &mut label[..]) {
            let set = fsetxattr(&file, LABEL, &label[..length], XattrFlags::empty());
            if let Err(errno) = set {
                tracing::debug!("the SELinux label can't be kept: {errno}");
            }
        }
    }
    fsync(&file)?;
    Ok(fstat(&file)?)
}

fn seen(file: File, most: u64) -> io::Result<Seen> {
    let stat = fstat(&file)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let bytes = content(&file, most)?;
    let owner = Owner { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 };
    Ok(Seen { bytes, owner, identity: (stat.st_dev, stat.st_ino), file })
}

/// What an open file holds, from its beginning.
///
/// # Errors
/// When it is longer than `most` bytes, or can't be read.
pub fn content(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut from = file;
    from.rewind()?;
    from.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is longer than {most} bytes")));
    }
    Ok(bytes)
}

fn error(path: &Path, what: &'static str, why: io::Error) -> FolderError {
    FolderError::new(path, what, why)
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
