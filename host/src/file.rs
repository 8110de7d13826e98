//! Files that somebody names, read so that none of them can hold a command up: up to a bound, and no
//! longer than a moment. A FIFO is one too, since that is what a shell makes of `<(iptables-save)`.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read as read_part;

/// How long a file may take to come to its end; what a program prints may be slow.
const PATIENCE: Duration = Duration::from_mins(1);
/// How much is read at once.
const PART: usize = 64 * 1024;

/// A file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel does not give it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is longer than this many bytes.
    #[error("it is longer than {0} bytes, which is the most that is read")]
    TooLong(usize),
    /// Nothing came from it for too long, or not all.
    #[error("it does not end: not all of it is there after {0:?}")]
    Slow(Duration),
    /// It is a folder, a FIFO, a device.
    #[error("it is no regular file")]
    NotRegular,
    /// Its bytes are not UTF-8.
    #[error("stream did not contain valid UTF-8")]
    NoText,
}

/// The text of a file of at most so many bytes. One whose end others decide (a FIFO, a device) has a
/// minute for it.
///
/// # Errors
/// See [`FileError`]; [`FileError::NoText`] where it is not UTF-8.
pub fn text(path: &Path, most: usize) -> Result<String, FileError> {
    bytes(path, most).and_then(as_text)
}

/// As [`text`], whatever the bytes are.
///
/// # Errors
/// See [`FileError`]; bytes that are not UTF-8 are no error.
pub fn bytes(path: &Path, most: usize) -> Result<Vec<u8>, FileError> {
    // Opening a FIFO would wait for somebody who writes.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    // The kernel has what is in a regular file ready, always.
    let patience = if file.metadata()?.is_file() { None } else { Some(PATIENCE) };
    to_end(&file, most, patience)
}

/// As [`bytes`], of a regular file alone.
///
/// # Errors
/// See [`FileError`]; [`FileError::NotRegular`] for a folder, a FIFO or a device.
pub fn regular(path: &Path, most: usize) -> Result<Vec<u8>, FileError> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(FileError::NotRegular);
    }
    to_end(&file, most, None)
}

/// As [`regular`], as text.
///
/// # Errors
/// See [`FileError`]; [`FileError::NoText`] where it is not UTF-8.
pub fn regular_text(path: &Path, most: usize) -> Result<String, FileError> {
    regular(path, most).and_then(as_text)
}

/// Put something in the place of what a regular file holds, of which so many bytes are read: by a file
/// beside it, so that it is never there in part. Where that can't be (it is mounted, as a pod's own files
/// are), it is written over, and what was there is put back where that fails. A file that is not there
/// is made.
///
/// # Errors
/// See [`FileError`]; the file is as it was then, unless that can't be written either.
pub fn replace(path: &Path, content: &[u8], most: usize) -> Result<(), FileError> {
    // What a link leads to, not the link.
    let path = match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        found => found?,
    };
    let old = match regular(&path, most) {
        Err(FileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
        old => Some(old?),
    };
    if old.as_deref() == Some(content) || beside(&path, content).is_ok() {
        return Ok(());
    }
    let open = || OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let write = |bytes: &[u8]| -> io::Result<()> {
        let mut file = open()?;
        file.write_all(bytes)?;
        file.set_len(bytes.len().try_into().unwrap_or(u64::MAX))?;
        file.sync_all()
    };
    write(content).or_else(|error| {
        match old {
            Some(old) => write(&old)?,
            None if path.exists() => fs::remove_file(&path)?,
            None => {}
        }
        Err(error.into())
    })
}

/// Write a file beside another with its owner and mode, and give it that one's name.
fn beside(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".millrace-{}", std::process::id()));
    let draft = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
        match path.metadata() {
            Ok(old) => {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
                file.set_permissions(old.permissions())?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    let written = write();
    if written.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
        // It may not have come to be.
        let _removed = fs::remove_file(&draft);
    }
    written
}

/// The text of standard input, as [`text`] reads it. Somebody who types has all the time in the world.
///
/// # Errors
/// See [`FileError`]; [`FileError::Slow`] only where it is no terminal.
pub fn standard_input(most: usize) -> Result<String, FileError> {
    let stdin = io::stdin();
    let patience = if stdin.is_terminal() { None } else { Some(PATIENCE) };
    to_end(&stdin, most, patience).and_then(as_text)
}

fn as_text(bytes: Vec<u8>) -> Result<String, FileError> {
    String::from_utf8(bytes).map_err(|_not_text| FileError::NoText)
}

fn to_end(file: &impl AsFd, most: usize, patience: Option<Duration>) -> Result<Vec<u8>, FileError> {
    let until = patience.map(|patience| (Instant::now() + patience, patience));
    let (mut bytes, mut part) = (Vec::new(), vec![0; PART]);
    loop {
        if let Some((until, patience)) = until {
            let left = until.saturating_duration_since(Instant::now());
            let limit = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], limit) {
                Ok(0) => return Err(FileError::Slow(patience)),
                Err(Errno::EINTR) => continue,
                polled => drop(polled.map_err(io::Error::from)?),
            }
        }
        match read_part(file, &mut part) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(part.get(..count).unwrap_or_default()),
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        if bytes.len() > most {
            return Err(FileError::TooLong(most));
        }
        // One that never ends and always has more is not slow, but has no end either.
        if let Some((_, patience)) = until.filter(|(until, _)| Instant::now() >= *until) {
            return Err(FileError::Slow(patience));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::thread;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    const MOST: usize = 100_000;

    #[test]
    fn files_have_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("longest"), vec![b'x'; MOST]).unwrap();
        fs::write(path("long"), vec![b'x'; MOST + 1]).unwrap();
        fs::write(path("bytes"), [0xff, 0xff]).unwrap();
        assert_eq!(text(&path("longest"), MOST).unwrap().len(), MOST);
        assert_eq!(text(Path::new("/dev/null"), MOST).unwrap(), "");
        for (path, why) in [
            (path("long"), "longer than 100000 bytes"),
            ("/dev/zero".into(), "longer than 100000 bytes"),
            (path("bytes"), "UTF-8"),
            (path("none"), "No such file"),
            (path(""), "directory"),
        ] {
            let error = text(&path, MOST).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_fifo_is_waited_for_but_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        // Nobody writes.
        assert!(matches!(regular_text(&path, MOST), Err(FileError::NotRegular)));
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
        let short = Duration::from_millis(50);
        let error = to_end(&file, MOST, Some(short)).unwrap_err().to_string();
        assert_eq!(error, "it does not end: not all of it is there after 50ms");
        drop(file);
        // Somebody does, late and in parts.
        let writer = thread::spawn({
            let path = path.clone();
            move || {
                thread::sleep(Duration::from_millis(50));
                let mut file = File::create(path)?;
                for _ in 0..3 {
                    file.write_all(&[b'x'; 8_000])?;
                    thread::sleep(Duration::from_millis(20));
                }
                Ok::<_, io::Error>(())
            }
        });
        assert_eq!(text(&path, MOST).unwrap().len(), 24_000);
        writer.join().unwrap().unwrap();
        // Somebody never stops.
        let (reader, mut writer) = io::pipe().unwrap();
        thread::spawn(move || while writer.write_all(b"x").is_ok() {});
        assert!(matches!(to_end(&reader, MOST, Some(PATIENCE)), Err(FileError::TooLong(MOST))));
    }

    #[test]
    fn a_file_is_replaced_behind_its_link_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let [path, link] = ["path", "link"].map(|name| folder.path().join(name));
        fs::write(&path, "what is there is longer").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        symlink(&path, &link).unwrap();
        replace(&link, b"new", MOST).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o604);
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(matches!(replace(&fifo, b"new", MOST), Err(FileError::NotRegular)));
    }
}
