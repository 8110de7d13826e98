//! Files of the host that this plugin, as root, reads and writes: where others can put something in
//! their place, it is neither followed nor waited for.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// Mode of folders: nobody but the owner may list, enter or change them.
const PRIVATE: u32 = 0o700;
/// What lets others change what is in a folder.
const WRITABLE: u32 = 0o022;

/// Open a regular file; anything else is an error at once.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = options.mode(0o600).custom_flags(flags.bits()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(refused("it is no regular file"));
    }
    // Where links to others' files may be made, one could be root's.
    if meta.nlink() > 1 {
        return Err(refused("it has more than one name"));
    }
    Ok(file)
}

fn refused(why: impl Into<String>) -> io::Error {
    io::Error::other(why.into())
}

/// A file that is written to at its end; it is made if it isn't there.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().create(true).append(true), path)
}

/// A new file; one that is there is replaced.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let new = || open(OpenOptions::new().create_new(true).write(true), path);
    new().or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => fs::remove_file(path).and_then(|()| new()),
        _ => Err(error),
    })
}

/// The text of a file that has at most so many bytes.
pub(crate) fn read(path: &Path, longest: u64) -> io::Result<String> {
    let mut text = String::new();
    open(OpenOptions::new().read(true), path)?.take(longest + 1).read_to_string(&mut text)?;
    if text.len() as u64 > longest {
        return Err(refused(format!("it is longer than {longest} bytes")));
    }
    Ok(text)
}

/// See to it that a folder is there and that nobody else reaches what is in it.
pub(crate) fn make_own(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(folder)?;
    let opened = own(folder)?;
    if opened.metadata()?.mode() & 0o777 != PRIVATE {
        opened.set_permissions(Permissions::from_mode(PRIVATE))?;
    }
    Ok(())
}

/// Open a folder that nobody else writes to.
pub(crate) fn own(folder: &Path) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(folder)?;
    let meta = opened.metadata()?;
    if meta.uid() != 0 && meta.uid() != geteuid().as_raw() {
        return Err(refused(format!("the folder is user {}'s, and not root's", meta.uid())));
    }
    if meta.mode() & WRITABLE != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(refused(format!("others may write to the folder (mode {mode:04o})")));
    }
    Ok(opened)
}
