//! The reason of an end, where the kubelet looks for it: `kubectl describe pod` shows it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use millrace_core::visible::visible;
use nix::fcntl::OFlag;

/// Where the kubelet looks unless a container says otherwise (Kubernetes, `terminationMessagePath`).
const FILE: &str = "/dev/termination-log";
/// As much as it takes of it, in bytes (Kubernetes, «Customizing the termination message»).
const MAX: usize = 4096;

/// Leave the reasons of an end, if this is a container that has a place for them. It is not this
/// program's work, so nothing that goes wrong with it counts.
pub(super) fn tell(reasons: &[String]) {
    write(Path::new(FILE), reasons);
}

fn write(file: &Path, reasons: &[String]) {
    // Neither made nor followed, and not waited for: a pipe without a reader has nobody to tell.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = OpenOptions::new().write(true).custom_flags(flags.bits()).open(file);
    let Ok(mut opened) = opened else { return };
    if !opened.metadata().is_ok_and(|data| data.is_file()) || opened.set_len(0).is_err() {
        return;
    }
    let _written = opened.write_all(bounded(reasons).as_bytes());
}

/// The first reasons, as far as there is room; a part of one ends in three dots.
fn bounded(reasons: &[String]) -> String {
    const CUT: &str = "...";
    let text = reasons.iter().map(|reason| visible(reason)).collect::<Vec<_>>().join("\n");
    if text.len() <= MAX {
        return text;
    }
    let mut end = MAX - CUT.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn reasons(list: &[&str]) -> Vec<String> {
        list.iter().map(|reason| (*reason).to_owned()).collect()
    }

    #[test]
    fn what_was_there_is_replaced() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "an older and longer reason\n").unwrap();
        write(file.path(), &reasons(&["one", "two\u{1b}[31m"]));
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.starts_with("one\ntwo") && !text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn only_a_plain_file_is_written_and_none_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| folder.path().join(name);
        write(&of("none"), &reasons(&["x"]));
        assert!(!of("none").exists());
        fs::write(of("other"), "kept").unwrap();
        symlink(of("other"), of("link")).unwrap();
        write(&of("link"), &reasons(&["x"]));
        assert_eq!(fs::read_to_string(of("other")).unwrap(), "kept");
        mkfifo(&of("pipe"), Mode::S_IRWXU).unwrap();
        write(&of("pipe"), &reasons(&["x"]));
        write(folder.path(), &reasons(&["x"]));
        assert!(Path::new("/dev/null").exists());
        write(Path::new("/dev/null"), &reasons(&["x"]));
    }

    #[test]
    fn it_is_bounded() {
        for reason in ["x", "ü", "€"] {
            let text = bounded(&reasons(&[&reason.repeat(3000), &reason.repeat(3000)]));
            assert!(
                text.len() <= MAX && text.len() > MAX - 8 && text.ends_with("..."),
                "{}",
                text.len()
            );
        }
        assert_eq!(bounded(&reasons(&["a", "b"])), "a\nb");
    }
}
