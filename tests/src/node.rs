//! A node as its agent sees it: folders of a runtime, and the agent as a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::binary;

/// How long something is waited for that has to happen at once.
const PATIENCE: Duration = Duration::from_mins(1);

/// A node.
#[derive(Debug)]
pub struct Node {
    folder: TempDir,
    conf: PathBuf,
    bin: PathBuf,
    plugin: PathBuf,
}

/// A running agent, killed with the value.
#[derive(Debug)]
pub struct Agent {
    child: Child,
}

/// Numbers that look like chance (xorshift64*), the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Node {
    /// A node with empty folders, whose agent brings a small program in place of the plugin.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for a node")?;
        let (conf, bin) = (folder.path().join("net.d"), folder.path().join("bin"));
        for folder in [&conf, &bin] {
            fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        }
        Ok(Self { folder, conf, bin, plugin: binary::system("true")? })
    }

    /// A node whose runtime has these folders, and whose agent brings the plugin.
    pub fn of(conf: &Path, bin: &Path) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for a node")?;
        let (conf, bin) = (conf.to_owned(), bin.to_owned());
        Ok(Self { folder, conf, bin, plugin: binary::millrace_cni()? })
    }

    /// The same node, whose agent brings another binary.
    #[must_use]
    pub fn with_plugin(mut self, plugin: &Path) -> Self {
        plugin.clone_into(&mut self.plugin);
        self
    }

    /// The same node, whose runtime has these folders.
    #[must_use]
    pub fn with_runtime(mut self, conf: &Path, bin: &Path) -> Self {
        (self.conf, self.bin) = (conf.to_owned(), bin.to_owned());
        self
    }

    /// What the agent brings.
    pub fn plugin(&self) -> &Path {
        &self.plugin
    }

    /// The folder of CNI configurations.
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    /// The folder of plugins.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// The folder of all that is the node's.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The agent's folder for the plugin.
    pub fn run_dir(&self) -> PathBuf {
        self.folder().join("run")
    }

    /// Write a configuration.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.conf.join(name), text).with_context(|| name.to_owned())
    }

    /// The names of what is in a folder, but for those of folders.
    pub fn names(&self, folder: &Path) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn command(&self, task: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary::millrace_node()?);
        command.arg(task);
        for (flag, path) in [
            ("--cni-conf-dir", &self.conf),
            ("--cni-bin-dir", &self.bin),
            ("--plugin", &self.plugin),
            ("--run-dir", &self.run_dir()),
            ("--state-dir", &self.folder().join("state")),
        ] {
            if !args.contains(&flag) {
                command.arg(flag).arg(path);
            }
        }
        if !args.contains(&"--kubeconfig") {
            command.args(["--kubeconfig", "none"]);
        }
        command.args(args).stdin(Stdio::null());
        Ok(command)
    }

    /// Have the agent do something once.
    pub fn once(&self, task: &str, args: &[&str]) -> Result<Output> {
        self.command(task, args)?.output().with_context(|| task.to_owned())
    }

    /// The same, which has to succeed. Gives standard output.
    pub fn do_(&self, task: &str, args: &[&str]) -> Result<String> {
        let output = self.once(task, args)?;
        ensure!(output.status.success(), "{task} {args:?}: {output:?}");
        String::from_utf8(output.stdout).context("standard output")
    }

    /// Start the agent for a task, and don't wait for its end.
    pub fn start(&self, task: &str, args: &[&str]) -> Result<Agent> {
        let log = fs::File::options().create(true).append(true).open(self.log_file())?;
        let mut command = self.command(task, args)?;
        command.stdout(Stdio::null()).stderr(log);
        Ok(Agent { child: command.spawn().context("starting the agent")? })
    }

    /// Start the agent as a container does, by these words: what they are put before is its command.
    pub fn run_by(&self, words: &[&str], args: &[&str]) -> Result<Agent> {
        let log = fs::File::options().create(true).append(true).open(self.log_file())?;
        let own = self.command("run", args)?;
        let mut command = Command::new(words.first().context("no words")?);
        command.args(&words[1..]).arg(own.get_program()).args(own.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(Agent { child: command.spawn().context("starting the agent")? })
    }

    /// Start the agent.
    pub fn run(&self, args: &[&str]) -> Result<Agent> {
        let nowhere = ["--health-address", "none", "--metrics-address", "none"];
        let own: Vec<&str> = nowhere
            .chunks(2)
            .filter(|pair| !args.contains(&pair[0]))
            .flatten()
            .chain(args)
            .copied()
            .collect();
        self.start("run", &own)
    }

    fn log_file(&self) -> PathBuf {
        self.folder().join("log")
    }

    /// What agents logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Wait until something holds.
    pub fn until(&self, what: &str, holds: impl Fn() -> bool) -> Result<()> {
        let began = Instant::now();
        while !holds() {
            ensure!(began.elapsed() < PATIENCE, "never so: {what}\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Agent {
    /// Ask it to stop, and wait until it has.
    pub fn stop(&mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a process id")?);
        kill(pid, Signal::SIGTERM).context("SIGTERM")?;
        let status = self.child.wait().context("waiting for the agent")?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    /// Kill it, wherever it is.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("SIGKILL")?;
        self.child.wait().context("waiting for the agent").map(drop)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Random {
    /// Another row each time; `MILLRACE_SEED` repeats one.
    pub fn new() -> Result<Self> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let any = u64::from(now.subsec_nanos()) ^ now.as_secs();
        let seed = std::env::var("MILLRACE_SEED").ok().map(|text| text.parse());
        let seed = seed.transpose().context("MILLRACE_SEED")?.unwrap_or(any);
        Ok(Self { seed, state: seed | 1 })
    }

    /// What repeats it.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// A number below this one.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        if limit == 0 { 0 } else { number % limit }
    }
}
