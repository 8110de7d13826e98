//! `xtask vm`: suites on kernels of Debian's releases, in QEMU.
//!
//! ```text
//! apt (packages of other releases, in a state of their own)
//!    |  kernel: vmlinuz, modules, an initial file system      root: Debian, by debootstrap
//!    v                                                          |
//! machine (QEMU)  <-  guest (what runs in it)  <-  tests (built by cargo, stripped)
//!    |  lines of its second serial port
//!    v
//! report (which suites passed)
//! ```
//!
//! Nothing of another release is installed on this machine, and a machine's disks are thrown away.

mod disk;
mod guest;
mod kernel;
mod machine;
mod report;
mod root;
mod suites;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, value_parser};

use self::kernel::{Kernel, Release};
use self::report::Report;
use crate::apt::Apt;
use crate::repo;

/// The suite that is meant for every kernel: what is said to work works, and what is said not to is
/// refused in the same words.
const USUAL: [&str; 1] = ["kernels"];

/// The command line of `xtask vm`.
pub fn command() -> clap::Command {
    let number = |name: &'static str, usual: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .help(help)
            .value_parser(value_parser!(u32).range(1..))
            .default_value(usual)
    };
    clap::Command::new("vm")
        .about(
            "Run live suites on kernels of Debian's releases, in QEMU; needs root, the network, and \
             what `scripts/setup ci` installs",
        )
        .arg(
            Arg::new("suite")
                .value_name("SUITE")
                .help("Suites of tests/tests [default: kernels]")
                .action(ArgAction::Append),
        )
        .arg(
            Arg::new("kernel")
                .long("kernel")
                .value_name("RELEASE")
                .help(
                    "Whose kernel, several times or with commas: a release of Debian, `newest` of its \
                     backports and sid, or `all`",
                )
                .value_parser(["bullseye", "bookworm", "trixie", "newest", "all"])
                .value_delimiter(',')
                .action(ArgAction::Append)
                .default_value("all"),
        )
        .arg(
            Arg::new("root")
                .long("root")
                .value_name("RELEASE")
                .help("The release whose programs the machine has [default: this machine's]"),
        )
        .arg(number("machines", "2", "How many machines run at once"))
        .arg(number("cpus", "1", "Processors of each"))
        .arg(number("memory", "2048", "Memory of each, in MiB"))
        .arg(number("minutes", "60", "How long each may run, the time to boot included"))
        .arg(
            Arg::new("accel")
                .long("accel")
                .value_name("HOW")
                .help("How the processor is made; auto takes KVM where the machine has Intel's or AMD's")
                .value_parser(["auto", "kvm", "tcg"])
                .default_value("auto"),
        )
        .arg(
            Arg::new("append")
                .long("append")
                .value_name("WORDS")
                .help("More words for the kernel's command line, such as ipv6.disable=1")
                .default_value(""),
        )
        .arg(
            Arg::new("without")
                .long("without")
                .value_name("MODULE")
                .help("A module that the machine lacks, several times or with commas")
                .value_delimiter(',')
                .action(ArgAction::Append),
        )
        .arg(
            Arg::new("prepare")
                .long("prepare")
                .help("Only fetch and make what machines are made of")
                .action(ArgAction::SetTrue),
        )
        .arg(Arg::new("args").last(true).action(ArgAction::Append).help(
            "For the tests, as after `cargo test --`: a filter, --test-threads, --nocapture",
        ))
}

/// What is asked for.
struct Request<'a> {
    suites: Vec<&'a str>,
    releases: Vec<Release>,
    root: Option<&'a str>,
    machines: u32,
    args: Vec<&'a str>,
    without: Vec<&'a str>,
    settings: machine::Settings<'a>,
}

impl<'a> Request<'a> {
    fn new(args: &'a ArgMatches) -> Self {
        let words = |name: &str| -> Vec<&'a str> {
            args.get_many::<String>(name).into_iter().flatten().map(String::as_str).collect()
        };
        let number = |name: &str| args.get_one::<u32>(name).copied().unwrap_or(1);
        let text = |name: &str| args.get_one::<String>(name).map(String::as_str);
        let suites = match words("suite") {
            none if none.is_empty() => USUAL.to_vec(),
            some => some,
        };
        let settings = machine::Settings {
            cpus: number("cpus"),
            memory: number("memory"),
            limit: Duration::from_secs(u64::from(number("minutes")) * 60),
            accel: machine::Accel::new(text("accel").unwrap_or("auto")),
            append: text("append").unwrap_or_default(),
        };
        Self {
            suites,
            releases: Release::chosen(&words("kernel")),
            root: text("root"),
            machines: number("machines"),
            args: words("args"),
            without: words("without"),
            settings,
        }
    }
}

/// Boots the kernels, runs the suites, and tells which passed.
///
/// # Errors
/// When the machines can't be made. Tests that fail are told by the exit code.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let request = Request::new(args);
    needed()?;
    let place = repo::root().join("target/vm");
    fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    let (kernels, root) = {
        // Another run may be making the same.
        let lock = File::create(place.join("lock")).context("the lock of target/vm")?;
        lock.lock().context("the lock of target/vm")?;
        disk::sweep(&place)?;
        let mut apt = Apt::new(&place)?;
        let root = root::ready(&place, &apt, request.root)?;
        let mut kernels = Vec::new();
        for release in &request.releases {
            let kernel = kernel::ready(&place, &mut apt, *release, &root.busybox)?;
            // Two releases can have the same one.
            if !kernels.iter().any(|known: &Kernel| known.version == kernel.version) {
                kernels.push(kernel);
            }
        }
        (kernels, root)
    };
    if args.get_flag("prepare") {
        return Ok(ExitCode::SUCCESS);
    }
    let own = disk::Own::new(&place)?;
    let built = suites::build(&request.suites)?;
    let tests =
        suites::image(own.path(), &built, &guest::script(&built, &request.args, &request.without))?;
    let reports = boot(&request, &kernels, &root, &tests, own.path())?;
    repo::print(&report::table(&reports))?;
    let passed = reports.iter().all(Report::is_good);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Boots every kernel, so many at once.
fn boot(
    request: &Request<'_>,
    kernels: &[Kernel],
    root: &root::Root,
    tests: &Path,
    own: &Path,
) -> Result<Vec<Report>> {
    let waiting = Mutex::new(kernels.iter());
    let done = Mutex::new(Vec::new());
    let one = || -> Result<()> {
        loop {
            let next = waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some(kernel) = next else { return Ok(()) };
            let disks = machine::Disks { root: &root.image, modules: &kernel.modules, tests };
            let mut report = Report::new(&kernel.version, &request.suites);
            let console = own.join(format!("{}.console", kernel.version));
            let end = machine::run(&request.settings, kernel, &disks, &console, &mut |line| {
                if let Some(name) = report::begins(line) {
                    repo::say(&format!("vm: {}: {name} begins", kernel.version));
                }
                // A suite's lines are told together: another machine's may come between.
                report.take(line).map_or(Ok(()), |told| repo::print(&told))
            })?;
            report.end(&end, &console);
            if let Some(why) = &report.broken {
                repo::say(&format!("vm: {}: {why}", kernel.version));
            }
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(report);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..request.machines).map(|_| scope.spawn(one)).collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = |report: &Report| kernels.iter().position(|one| one.version == report.kernel);
    done.sort_by_key(place);
    Ok(done)
}

/// Refuses before anything is made.
fn needed() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a root of Debian's is made with owners and devices: run this as root");
    }
    let path = std::env::var_os("PATH").context("PATH is not set")?;
    let is_there = |name: &&str| {
        std::env::split_paths(&path).any(|folder: PathBuf| folder.join(name).is_file())
    };
    let all = [
        "qemu-system-x86_64",
        "debootstrap",
        "depmod",
        "mke2fs",
        "dpkg-deb",
        "apt-get",
        "setpriv",
        "unshare",
        "strip",
        "xz",
    ];
    let missing: Vec<&str> = all.into_iter().filter(|name| !is_there(name)).collect();
    if !missing.is_empty() {
        bail!("no {} here: scripts/setup ci installs it", missing.join(", "));
    }
    Ok(())
}
