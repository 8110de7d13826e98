//! Network namespaces that live as long as a value, and threads in them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;

use crate::dumps;

/// How long the kernel may take to route an address.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace without a name, together with a mount namespace that has its own `/run`
/// (so its own xtables lock) and can have its own `/etc/resolv.conf`. Both end with the value, once
/// the processes in them have.
#[derive(Debug)]
pub struct Namespace {
    net: File,
    mounts: File,
}

impl Namespace {
    /// A new namespace; only `lo` is in it, and it is down.
    ///
    /// Fails without root.
    pub fn new() -> Result<Self> {
        Self::with_resolv_conf(None)
    }

    /// A new namespace whose processes see this text as `/etc/resolv.conf`.
    pub fn with_resolv_conf(text: Option<&str>) -> Result<Self> {
        ensure!(geteuid().is_root(), "the live suites make network namespaces: run them as root");
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .context("making a network and a mount namespace")?;
            settle_sysctls()?;
            settle_mounts(text)?;
            let open = |name: &str| {
                let path = format!("/proc/thread-self/ns/{name}");
                File::open(&path).with_context(|| path)
            };
            Ok(Self { net: open("net")?, mounts: open("mnt")? })
        })?
    }

    /// Another network namespace, with the mounts of this one.
    pub fn sibling(&self, net: File) -> Result<Self> {
        let mounts = self.mounts.try_clone().context("a mount namespace")?;
        Ok(Self { net, mounts })
    }

    /// A path that other processes of this machine can open the network namespace by.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd()).into()
    }

    /// Run a closure on a thread that is in the namespace, and wait for it. Processes that it
    /// starts are in the namespace too.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            // A thread can have mounts of its own only if it shares its root and working
            // directory with no other (setns(2)).
            unshare(CloneFlags::CLONE_FS).context("unsharing a thread's root directory")?;
            setns(&self.net, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            setns(&self.mounts, CloneFlags::CLONE_NEWNS).context("entering a mount namespace")?;
            Ok(f())
        })?
    }

    /// Run a command in the namespace to its end, whatever its exit code.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let what = format!("{command:?}");
        self.enter(|| command.stdin(Stdio::null()).output())?.with_context(|| what)
    }

    /// Run a command in the namespace; anything but success is an error that shows its output.
    /// Gives its standard output; rules in it are held against the readers of `explain`.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.output(Command::new(program).args(args))?;
        let printed = accept(&format!("{program} {}", args.join(" ")), &output)?;
        dumps::check(program, args, &printed)?;
        Ok(printed)
    }

    /// Run a command in the namespace with this text as its standard input; otherwise as `run`.
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        let output = self.enter(|| -> Result<Output> {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| program.to_owned())?;
            let mut stdin = child.stdin.take().context("a pipe was asked for")?;
            // A program that fails early closes the pipe: its own message says more.
            let _written = stdin.write_all(input.as_bytes());
            drop(stdin);
            child.wait_with_output().with_context(|| program.to_owned())
        })??;
        accept(&format!("{program} {} with input\n{input}", args.join(" ")), &output)
    }

    /// Run `ip` with one command in each line. Addresses of IPv6 that come without a look for others which
    /// have them can be used afterwards.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines)?;
        lines.lines().filter(|line| line.contains(" nodad")).for_each(|line| self.settle(line));
        Ok(())
    }

    /// Wait until an address that was added is routed: the kernel does that a little later, in a work of its
    /// own (`addrconf_dad_work()`), and not before the interface is up. Whoever needs one that never is will
    /// say so.
    fn settle(&self, line: &str) {
        let after = |name: &str| line.split_whitespace().skip_while(|word| *word != name).nth(1);
        let (Some(address), Some(device)) = (after("add"), after("dev")) else { return };
        let address = address.split('/').next().unwrap_or(address);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let link = self.run("ip", &["-o", "link", "show", "dev", device]);
            let routes = self.run("ip", &["-6", "route", "show", "table", "local", address]);
            // It may have gone to another namespace.
            if !link.is_ok_and(|link| link.contains("LOWER_UP"))
                || !routes.is_ok_and(|routes| routes.is_empty())
            {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Success, or an error with all that the program said.
fn accept(what: &str, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}\n{stdout}{stderr}", output.status);
    Ok(stdout)
}

/// A thread of its own for each entry: a thread that has been in a namespace is never used again.
fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, f).context("starting a thread")?;
        thread.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    })
}

/// Settings that a new namespace may inherit from the machine, and that must not differ:
/// addresses are usable at once (no duplicate address detection), and packets may come in by an
/// interface that the way back would not take. What the kernel sends by itself when an interface
/// comes up is sent at once: counters of rules see it.
fn settle_sysctls() -> Result<()> {
    let settings = [
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/lo/disable_ipv6", "0"),
        // Group memberships are told within milliseconds of an address, and not of a second.
        ("ipv6/conf/default/mldv1_unsolicited_report_interval", "1"),
        ("ipv6/conf/default/mldv2_unsolicited_report_interval", "1"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/ip_forward", "0"),
        // Any user may bind any port: listeners on port 53 need no privilege.
        ("ipv4/ip_unprivileged_port_start", "0"),
    ];
    for (name, value) in settings {
        let path = format!("/proc/sys/net/{name}");
        fs::write(&path, value).with_context(|| path)?;
    }
    Ok(())
}

/// Mounts as a container has them: nothing comes in from the machine or goes out to it, `/run` is
/// empty, and `/etc/resolv.conf` is the one given.
fn settle_mounts(resolv_conf: Option<&str>) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("mounts of /")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("tmpfs on /run")?;
    let Some(text) = resolv_conf else { return Ok(()) };
    let mut file = tempfile::NamedTempFile::new().context("a resolv.conf")?;
    file.write_all(text.as_bytes()).context("a resolv.conf")?;
    // As in a pod: everybody can read it.
    let everybody = fs::Permissions::from_mode(0o644);
    file.as_file().set_permissions(everybody).context("a resolv.conf")?;
    // Where it is a link into /run, as with systemd-resolved, its target is gone with /run.
    if let Ok(link) = fs::read_link("/etc/resolv.conf") {
        let target = Path::new("/etc").join(link);
        if !target.exists() {
            let folder = target.parent().context("/etc/resolv.conf is a link to nowhere")?;
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            fs::write(&target, "").with_context(|| target.display().to_string())?;
        }
    }
    // The mount keeps the file once its name is gone.
    mount(Some(file.path()), "/etc/resolv.conf", none, MsFlags::MS_BIND, none)
        .context("mounting a file over /etc/resolv.conf")
}
