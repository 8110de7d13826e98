//! The log: JSON lines on standard error, which runtimes put into their journal, and in a file.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Map, Value, json};

use crate::config::LogConfig;
use crate::level::Level;
use crate::own_file::append;

/// Where messages go. A message that can't be written is lost, and nothing else happens: a log
/// must never keep a pod from starting.
#[derive(Debug)]
pub struct Log {
    least: Level,
    /// JSON members of every line, beside its own; [`Log::know`] adds more.
    context: Map<String, Value>,
    file: Option<LogFile>,
    began: Instant,
}

impl Log {
    /// A log whose every line has these members.
    pub fn new(config: &LogConfig, context: Map<String, Value>, began: Instant) -> Self {
        let mut log = Self { least: config.level, context, file: None, began };
        if let Some(path) = &config.file {
            match LogFile::open(path, config.max_bytes) {
                Ok(file) => log.file = Some(file),
                Err(error) => {
                    log.warn(&format!("log_file {} can't be opened: {error}", path.display()));
                }
            }
        }
        log
    }

    /// Have every further line say this too.
    pub fn know(&mut self, name: &str, value: Value) {
        self.context.insert(name.to_owned(), value);
    }

    /// How long this process has been at it.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// For whoever looks for a fault here.
    pub fn debug(&mut self, message: &str) {
        self.write(Level::Debug, message, Map::new());
    }

    /// What the user should know.
    pub fn warn(&mut self, message: &str) {
        self.write(Level::Warn, message, Map::new());
    }

    /// What became of the request, with the time that it took.
    pub fn done(&mut self, level: Level, message: &str, mut members: Map<String, Value>) {
        let micros = u32::try_from(self.began.elapsed().as_micros()).unwrap_or(u32::MAX);
        members.insert("durationMs".to_owned(), json!(f64::from(micros) / 1000.0));
        self.write(level, message, members);
    }

    fn write(&mut self, level: Level, message: &str, members: Map<String, Value>) {
        if level < self.least || level == Level::None {
            return;
        }
        let mut line = line(level, message);
        line.extend(self.context.clone());
        line.extend(members);
        let text = format!("{}\n", Value::Object(line));
        let _written = io::stderr().lock().write_all(text.as_bytes());
        if let Some(file) = &mut self.file {
            let _written = file.write(&text);
        }
    }
}

/// The members that every line begins with.
pub(crate) fn line(level: Level, message: &str) -> Map<String, Value> {
    let time = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let members =
        [("time", json!(time)), ("level", json!(level.as_str())), ("msg", json!(message))];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// How long one process waits, all in all, for others that begin the file anew. Whoever may read the
/// file can hold its lock for ever.
const PATIENCE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(1);

/// A file that is begun anew when it is too long; the one before is kept with `.1` at its name's
/// end. Several processes write to it at once: each line is one write at the file's end. While
/// somebody holds its lock it becomes twice as long, and then nothing is written to it.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    file: File,
    /// What is left of the patience.
    patience: Duration,
}

impl LogFile {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), max_bytes, file: append(path)?, patience: PATIENCE })
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let length = |file: &File| Ok::<u64, io::Error>(file.metadata()?.len() + text.len() as u64);
        if length(&self.file)? > self.max_bytes
            && !self.rotate()?
            && length(&self.file)? > self.max_bytes.saturating_mul(2)
        {
            return Err(Errno::EWOULDBLOCK.into());
        }
        self.file.write_all(text.as_bytes())
    }

    /// Whoever has the lock of the file that still has the name renames it. False where somebody else
    /// keeps the lock.
    fn rotate(&mut self) -> io::Result<bool> {
        let mut file = self.file.try_clone()?;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((_, Errno::EWOULDBLOCK)) if self.patience.is_zero() => return Ok(false),
                Err((same, Errno::EWOULDBLOCK)) => file = same,
                Err((_, errno)) => return Err(errno.into()),
            }
            let began = Instant::now();
            thread::sleep(PAUSE);
            self.patience = self.patience.saturating_sub(began.elapsed());
        };
        let is_named = self.path.symlink_metadata().is_ok_and(|m| {
            lock.metadata().is_ok_and(|own| (m.dev(), m.ino()) == (own.dev(), own.ino()))
        });
        if is_named {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
        }
        self.file = append(&self.path)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn levels_are_found_by_name() {
        assert_eq!(Level::find("warn"), Some(Level::Warn));
        assert_eq!(Level::find("fatal"), Some(Level::None));
        assert_eq!(Level::find("loud"), None);
    }

    #[test]
    fn a_file_that_is_too_long_is_begun_anew_and_no_line_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        // Enough for about half of the lines: one rotation.
        let config = LogConfig { file: Some(path.clone()), max_bytes: 60_000, level: Level::Info };
        thread::scope(|scope| {
            for writer in 0..8 {
                let config = &config;
                scope.spawn(move || {
                    let context = Map::from_iter([("writer".to_owned(), json!(writer))]);
                    let mut log = Log::new(config, context, Instant::now());
                    for number in 0..100 {
                        log.done(
                            Level::Info,
                            "x",
                            Map::from_iter([("number".to_owned(), json!(number))]),
                        );
                    }
                });
            }
        });
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let (old, new) = (text("log.1"), text("log"));
        let mut seen: Vec<(u64, u64)> = [old.as_str(), &new]
            .iter()
            .flat_map(|text| text.lines())
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|line| (line["writer"].as_u64().unwrap(), line["number"].as_u64().unwrap()))
            .collect();
        seen.sort_unstable();
        let all: Vec<(u64, u64)> = (0..8).flat_map(|w| (0..100).map(move |n| (w, n))).collect();
        assert_eq!(seen, all);
        assert!(new.len() <= 60_000, "{}", new.len());
    }

    #[test]
    fn a_log_that_cannot_be_written_stops_nothing() {
        let config = LogConfig { file: Some("/no/such/folder/log".into()), ..LogConfig::default() };
        let mut log = Log::new(&config, Map::new(), Instant::now());
        log.warn("x");
    }

    #[test]
    fn a_log_is_no_link_and_no_pipe_and_no_other_name_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        std::fs::write(at("target"), "").unwrap();
        symlink(at("target"), at("link")).unwrap();
        symlink(at("new"), at("dangling")).unwrap();
        std::fs::hard_link(at("target"), at("name")).unwrap();
        for name in ["pipe", "link", "dangling", "name", "."] {
            assert!(LogFile::open(&at(name), 5000).is_err(), "{name}");
        }
        assert_eq!(std::fs::read_to_string(at("target")).unwrap(), "");
        assert!(!at("new").exists());
    }

    #[test]
    fn a_lock_that_somebody_keeps_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "x".repeat(4990)).unwrap();
        let held = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        let mut file = LogFile::open(&path, 5000).unwrap();
        let line = format!("{}\n", "y".repeat(999));
        let written = (0..20).filter(|_| file.write(&line).is_ok()).count();
        assert_eq!(written, 5);
        assert_eq!(path.metadata().unwrap().len(), 9990);
        held.unlock().unwrap();
        file.write(&line).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 1000);
    }
}
