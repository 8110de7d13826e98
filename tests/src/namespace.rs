//! A network namespace that goes away with its value, and everything that runs in it.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with `lo` up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// What was run.
    pub command: String,
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said on standard error.
    pub stderr: String,
}

impl Run {
    /// The output, of a program that must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self}");
        self.stdout
    }

    /// Itself, having ended with this code.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    #[expect(clippy::return_self_not_must_use, reason = "the check is what it is called for")]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(f, "{command}\nexit code {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

impl Namespace {
    /// Make one.
    ///
    /// # Panics
    /// When it can't be made: the suites need root.
    #[expect(clippy::new_without_default, reason = "it makes a namespace: that should be seen")]
    pub fn new() -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mr{}-{count}", std::process::id());
        let added = Command::new("ip").args(["netns", "add", &name]).output();
        let added = added.expect("ip can be run: install iproute2");
        let said = String::from_utf8_lossy(&added.stderr);
        assert!(added.status.success(), "a namespace can be made (as root): {said}");
        let namespace = Self { name };
        namespace.run("ip", &["link", "set", "lo", "up"]).ok();
        namespace
    }

    /// The name, for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it can be opened.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Give programs in it this `/etc/resolv.conf`.
    ///
    /// # Panics
    /// When the file can't be written.
    pub fn set_resolv_conf(&self, text: &str) {
        let folder = self.etc();
        fs::create_dir_all(&folder).expect("/etc/netns can be written");
        fs::write(folder.join("resolv.conf"), text).expect("resolv.conf can be written");
    }

    /// `ip netns exec` puts the files of this folder over those of `/etc` (`ip-netns(8)`).
    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }

    /// A command that will run in it.
    pub fn command(&self, program: impl AsRef<Path>, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref()).args(args);
        command
    }

    /// Run a program in it.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> Run {
        self.run_env(program, args, &[])
    }

    /// Run a program in it with variables.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn run_env(&self, program: impl AsRef<Path>, args: &[&str], env: &[(&str, &str)]) -> Run {
        let mut command = self.command(program, args);
        command.envs(env.iter().copied());
        finish(&mut command)
    }

    /// Run a program in it that reads this.
    ///
    /// # Panics
    /// When it can't be started or does not read.
    pub fn run_input(&self, program: &str, args: &[&str], input: &str) -> Run {
        let mut command = self.command(program, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be started");
        let mut stdin = child.stdin.take().expect("its input is a pipe");
        stdin.write_all(input.as_bytes()).expect("the program reads");
        drop(stdin);
        let output = child.wait_with_output().expect("the program ends");
        to_run(&command, &output)
    }

    /// Start a program in it. It is killed with the namespace.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(&self, program: impl AsRef<Path>, args: &[&str]) -> Child {
        let mut command = self.command(program, args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command.spawn().expect("the program can be started")
    }

    /// Rules of both iptables and both families as they are printed, without comments, and with
    /// counters when asked for.
    pub fn rules(&self, counters: bool) -> String {
        let mut text = String::new();
        for program in [
            "iptables-nft-save",
            "ip6tables-nft-save",
            "iptables-legacy-save",
            "ip6tables-legacy-save",
        ] {
            let args: &[&str] = if counters { &["-c"] } else { &[] };
            let out = self.run(program, args).ok();
            text.push_str(&format!("== {program}\n"));
            text.extend(out.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")));
        }
        text
    }

    /// Everything that capture leaves besides rules: policy routing, routes of other tables, and
    /// addresses and names of `lo`.
    pub fn routing(&self) -> String {
        let mut text = String::new();
        for args in [
            &["-4", "rule"][..],
            &["-6", "rule"],
            &["-4", "route", "show", "table", "all", "type", "local", "0.0.0.0/0"],
            &["-6", "route", "show", "table", "all", "type", "local", "::/0"],
            &["-o", "address", "show", "dev", "lo"],
            &["-o", "link", "show", "dev", "lo"],
        ] {
            text.push_str(&self.run("ip", args).ok());
        }
        text
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let pids = Command::new("ip").args(["netns", "pids", &self.name]).output();
        let pids =
            pids.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        for pid in pids.split_ascii_whitespace().filter_map(|p| p.parse().ok()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _deleted = Command::new("ip").args(["netns", "del", &self.name]).output();
        let _removed = fs::remove_dir_all(self.etc());
    }
}

/// Run a command to its end.
///
/// # Panics
/// When it can't be started.
pub fn finish(command: &mut Command) -> Run {
    let output = command.stdin(Stdio::null()).output().expect("the program can be started");
    to_run(command, &output)
}

fn to_run(command: &Command, output: &Output) -> Run {
    Run {
        command: format!("{command:?}"),
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
