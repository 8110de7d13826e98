//! The agent's own folders, and what there is under a name that it needs.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::folder::{Folder, FolderError};

/// Open a folder of the agent's own; where it isn't there it is made, with those above it, for the
/// agent's user alone (mode 0700). One that is there already may be somebody's who named it by
/// mistake, or the kubelet's, which made it for the agent: its mode is left as it is, since what the
/// agent puts there has a mode of its own.
///
/// # Errors
/// When it can't be made, is a symbolic link or another user's, or others could put their files there.
pub fn open_own(path: &Path) -> Result<Folder, FolderError> {
    use std::os::unix::fs::DirBuilderExt as _;
    if let Some(folder) = own_if_there(path)? {
        return Ok(folder);
    }
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(|why| FolderError::new(path, "it can't be made", why))?;
    own_if_there(path)?
        .ok_or_else(|| FolderError::new(path, "it can't be opened", Errno::NOENT.into()))
}

/// The same where nothing is made: none where nothing has this name. A symbolic link is refused, since
/// whoever may change it chooses where root's files go; those above it are followed, as `/var/run` is.
///
/// # Errors
/// When it is a symbolic link, no folder or another user's, or others could put their files there.
pub fn own_if_there(path: &Path) -> Result<Option<Folder>, FolderError> {
    let failed = |what: &'static str, why: io::Error| FolderError::new(path, what, why);
    let refused = |why: String| {
        let why = format!("{why}: choose a folder that is root's alone (--run-dir, --state-dir)");
        failed("it can't be the agent's own folder", io::Error::other(why))
    };
    // Without a slash or a dot behind it, which would have the kernel follow a link.
    let plain: PathBuf = path.components().collect();
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let folder = match openat(CWD, &plain, flags, Mode::empty()) {
        Ok(fd) => Folder::of(path, fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => {
            return Err(match readlinkat(CWD, &plain, Vec::new()) {
                Ok(target) => {
                    refused(format!("it is a symbolic link to {:?}", target.to_string_lossy()))
                }
                Err(_) => failed("it can't be opened as a folder", errno.into()),
            });
        }
    };
    let stat = fstat(&folder).map_err(|errno| failed("it can't be looked at", errno.into()))?;
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid != user {
        return Err(refused(format!(
            "it is of user {}, and the agent runs as {user}",
            stat.st_uid
        )));
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o022 != 0 {
        return Err(refused(format!("others may write to it (mode {mode:04o})")));
    }
    Ok(Some(folder))
}

/// What has this name and is no regular file; none where that is one, or nothing has the name. No
/// link is followed, and nothing is opened.
pub fn special(folder: &Folder, name: &str) -> Option<String> {
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return None,
        FileType::Symlink => match readlinkat(folder, name, Vec::new()) {
            Ok(target) => format!("a symbolic link to {:?}", target.to_string_lossy()),
            Err(_) => "a symbolic link".to_owned(),
        },
        FileType::Fifo => "a FIFO".to_owned(),
        FileType::Socket => "a socket".to_owned(),
        FileType::Directory => "a folder".to_owned(),
        _ => "a device".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_folder_is_made_for_its_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        open_own(&path).unwrap();
        open_own(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o700, 0o700));
    }

    #[test]
    fn one_of_others_is_left_as_it_is_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (bits, is_taken) in
            [(0o700, true), (0o755, true), (0o750, true), (0o775, false), (0o1777, false)]
        {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(bits)).unwrap();
            let opened = open_own(dir.path());
            assert_eq!(opened.is_ok(), is_taken, "{bits:o}");
            if let Err(error) = opened {
                assert!(error.to_string().contains(&format!("{bits:04o}")), "{error}");
            }
            assert_eq!(mode(dir.path()), bits);
        }
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(open_own(&dir.path().join("file")).is_err());
    }

    #[test]
    fn a_link_is_no_folder_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("real")).unwrap();
        fs::set_permissions(at("real"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink(at("real"), at("link")).unwrap();
        symlink(at("none"), at("dangling")).unwrap();
        for name in ["link", "link/", "link/.", "dangling", "dangling/"] {
            let error = open_own(&at(name)).unwrap_err().to_string();
            assert!(error.contains("symbolic link to"), "{name}: {error}");
            assert!(own_if_there(&at(name)).is_err(), "{name}");
        }
        assert!(!at("none").exists());
        open_own(&at("link/below")).unwrap();
        assert!(own_if_there(&at("none")).unwrap().is_none());
    }

    #[test]
    fn what_is_no_regular_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        symlink("/no/such\nfile", at("link")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        rustix::fs::mkfifoat(CWD, at("fifo"), Mode::RWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for (name, what) in [
            ("none", None),
            ("file", None),
            ("link", Some(r#"a symbolic link to "/no/such\nfile""#)),
            ("folder", Some("a folder")),
            ("fifo", Some("a FIFO")),
            ("socket", Some("a socket")),
        ] {
            assert_eq!(special(&folder, name).as_deref(), what, "{name}");
        }
    }
}
