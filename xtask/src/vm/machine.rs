//! One machine: QEMU, from its start to its end.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use crate::repo::{self, child};

/// How the processor is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Accel {
    /// By this machine's own.
    Kvm,
    /// By a program.
    Tcg,
}

impl Accel {
    /// As it was asked for: `auto` takes KVM where it is made by the processor. What else offers
    /// `/dev/kvm` boots only kernels that were made for it, and those of a distribution are not.
    pub(super) fn new(name: &str) -> Self {
        let is_there = |name: &&str| Path::new("/sys/module").join(name).is_dir();
        let can = Path::new("/dev/kvm").exists() && ["kvm_intel", "kvm_amd"].iter().any(is_there);
        match name {
            "kvm" => Self::Kvm,
            "tcg" => Self::Tcg,
            _ if can => Self::Kvm,
            _ => Self::Tcg,
        }
    }

    const fn words(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off"],
        }
    }
}

/// What all machines of a run have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings<'a> {
    /// Processors.
    pub(super) cpus: u32,
    /// Memory, in MiB.
    pub(super) memory: u32,
    /// How long it may run.
    pub(super) limit: Duration,
    /// How its processor is made.
    pub(super) accel: Accel,
    /// More words for its kernel.
    pub(super) append: &'a str,
}

/// Its disks. None of them is changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disks<'a> {
    /// The root.
    pub(super) root: &'a Path,
    /// `/lib/modules`.
    pub(super) modules: &'a Path,
    /// The suites.
    pub(super) tests: &'a Path,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// It went off, or its kernel gave up.
    Off,
    /// It was ended, as it had run for too long.
    Late(Duration),
    /// QEMU failed with this exit code.
    Failed(Option<i32>),
}

/// Boot a kernel and hand on every line of its results, to the machine's end.
///
/// # Errors
/// When QEMU can't be started, or a line can't be taken.
pub(super) fn run(
    settings: &Settings<'_>,
    kernel: &Kernel,
    disks: &Disks<'_>,
    console: &Path,
    take: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<End> {
    let mut command = child("qemu-system-x86_64");
    command.args([
        "-machine",
        "q35",
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-nic",
        "none",
    ]);
    command.args(settings.accel.words());
    command.args(["-smp", &settings.cpus.to_string(), "-m", &settings.memory.to_string()]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&kernel.initrd);
    let place = repo::root();
    command.arg("-append").arg(format!(
        "console=ttyS0 panic=-1 mitigations=off nokaslr nowatchdog tsc=reliable \
         rcupdate.rcu_cpu_stall_suppress=1 quiet vm.place={} {}",
        place.display(),
        settings.append
    ));
    let disks = [
        ("root", disks.root, "snapshot=on"),
        ("modules", disks.modules, "readonly=on"),
        ("tests", disks.tests, "readonly=on"),
    ];
    for (name, file, how) in disks {
        let file = file.display();
        command.arg("-drive").arg(format!("file={file},format=raw,if=none,id={name},{how}"));
        command.arg("-device").arg(format!("virtio-blk-pci,drive={name},serial={name}"));
    }
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-serial", "stdio", "-monitor", "none"]);
    let errors = console.with_extension("qemu");
    let file = fs::File::create(&errors).context("a log")?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    repo::say(&format!("vm: booting {}", kernel.version));
    let mut child = command.spawn().context("can't start QEMU")?;
    let outcome = follow(&mut child, settings.limit, take);
    // However it went, nothing is left running.
    let ended = outcome.as_ref().is_ok_and(|end| *end == End::Off);
    if !ended {
        drop(child.kill());
    }
    let status = child.wait().context("QEMU")?;
    match outcome? {
        End::Off if !status.success() => {
            repo::say(fs::read_to_string(&errors).unwrap_or_default().trim_end());
            Ok(End::Failed(status.code()))
        }
        end => Ok(end),
    }
}

/// Hand on lines until the machine closes its serial port, which it does at its end.
fn follow(
    child: &mut Child,
    limit: Duration,
    take: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<End> {
    const LINE: u64 = 64 * 1024;
    let start = Instant::now();
    let output = child.stdout.take().context("a pipe was asked for")?;
    let (sender, lines) = mpsc::sync_channel(1024);
    let reader = thread::spawn(move || {
        let mut output = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            match (&mut output).take(LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let end = loop {
        let left = limit.saturating_sub(start.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                take(line.trim_end_matches(['\n', '\r']))?;
            }
            Err(RecvTimeoutError::Timeout) => return Ok(End::Late(limit)),
            Err(RecvTimeoutError::Disconnected) => break End::Off,
        }
    };
    drop(reader.join());
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn started(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn every_line_is_handed_on() {
        let mut child = started("printf 'one\\r\\ntwo\\nthree'");
        let mut said = Vec::new();
        let end = follow(&mut child, Duration::from_mins(1), &mut |line| {
            said.push(line.to_owned());
            Ok(())
        });
        assert_eq!(end.unwrap(), End::Off);
        assert_eq!(said, ["one", "two", "three"]);
        child.wait().unwrap();
    }

    #[test]
    fn one_that_never_ends_is_told_so() {
        let mut child = started("echo one; exec sleep 600");
        let limit = Duration::from_millis(300);
        let end = follow(&mut child, limit, &mut |_| Ok(()));
        assert_eq!(end.unwrap(), End::Late(limit));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
