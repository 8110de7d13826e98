//! Files of others, read so that none of them can hold the plugin up: without waiting, and up to a
//! bound.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;

/// The longest file that is read: all of them are written by hand or by programs for people.
const MOST: u64 = 1024 * 1024;

/// A file can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub(crate) struct FileError {
    path: PathBuf,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no regular file")]
    Other,
    #[error("it is longer than {MOST} bytes")]
    TooLong,
    #[error("it is no text in UTF-8")]
    NoText,
}

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    read_here(path).map_err(|why| FileError { path: path.to_owned(), why })
}

fn read_here(path: &Path) -> Result<String, Why> {
    // Opening a FIFO would wait for somebody who writes.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Why::Other);
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(Why::TooLong);
    }
    String::from_utf8(bytes).map_err(|_not_text| Why::NoText)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_regular_files_that_end_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        fs::write(path("long"), vec![b'x'; 1024 * 1024 + 1]).unwrap();
        fs::write(path("bytes"), [0xff, 0xff]).unwrap();
        fs::write(path("text"), "x").unwrap();
        std::os::unix::fs::symlink(path("text"), path("link")).unwrap();
        assert_eq!(read(&path("link")).unwrap(), "x");
        for (name, why) in [
            ("fifo", "no regular file"),
            ("", "no regular file"),
            ("long", "longer than 1048576 bytes"),
            ("bytes", "UTF-8"),
            ("none", "No such file"),
        ] {
            let error = read(&path(name)).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(name), "{error}");
        }
        assert!(read(Path::new("/dev/zero")).unwrap_err().to_string().contains("no regular file"));
    }
}
