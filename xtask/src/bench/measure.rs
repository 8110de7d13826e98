//! Running one operation, and what it cost.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::repo;

use super::processes;

/// One program to run, as part of an operation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What it reads from standard input.
    pub stdin: String,
}

/// What one run of an operation cost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sample {
    /// From before the first program is started until the last one is reaped.
    pub wall: Duration,
    /// User and system time of the whole tree of processes.
    pub cpu: Duration,
}

/// Runs steps with their files in one scratch folder.
#[derive(Clone, Copy, Debug)]
pub struct Runner<'s> {
    /// A folder of this benchmark's own.
    pub scratch: &'s Path,
}

impl Runner<'_> {
    /// Runs the steps one after the other and measures them together.
    ///
    /// The caller's thread decides the namespace. Only one operation may run at a time, since
    /// CPU time is taken from the sum over all children of this process.
    ///
    /// # Errors
    /// When a program can't be started or fails; then with its standard error.
    pub fn run(self, steps: &[Step]) -> Result<Sample> {
        let mut commands = Vec::new();
        for step in steps {
            commands.push(self.command(&step.argv, &step.stdin)?);
        }
        let cpu_before = children_cpu()?;
        let start = Instant::now();
        for command in &mut commands {
            let status = command
                .status()
                .with_context(|| format!("can't start `{}`", repo::command_line(command)))?;
            if !status.success() {
                self.fail(command, &status.to_string())?;
            }
        }
        let wall = start.elapsed();
        Ok(Sample { wall, cpu: children_cpu()?.saturating_sub(cpu_before) })
    }

    /// Runs the steps under strace and counts the processes that they start.
    ///
    /// # Errors
    /// As [`Runner::run`], and when strace is missing or its trace can't be read.
    pub fn count_started(self, steps: &[Step]) -> Result<usize> {
        let trace = self.scratch.join("trace");
        let mut started = 0;
        for step in steps {
            let mut argv: Vec<String> =
                ["strace", "-f", "-qq", "-e", processes::TRACED, "-e", "signal=none", "-o"]
                    .map(str::to_owned)
                    .to_vec();
            argv.push(trace.to_string_lossy().into_owned());
            argv.push("--".to_owned());
            argv.extend_from_slice(&step.argv);
            self.run(&[Step { argv, stdin: step.stdin.clone() }])?;
            let text = fs::read_to_string(&trace).context("strace wrote no trace")?;
            started += processes::started(&text);
        }
        Ok(started)
    }

    /// Standard input and standard error are files, so that no pipe has to be served meanwhile.
    fn command(self, argv: &[String], stdin: &str) -> Result<Command> {
        let Some((program, args)) = argv.split_first() else { bail!("an empty command line") };
        let input = self.scratch.join("stdin");
        fs::write(&input, stdin)?;
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(File::open(&input)?)
            .stdout(Stdio::null())
            .stderr(File::create(self.scratch.join("stderr"))?)
            // The lock file is shared by all namespaces of a machine; this one is ours alone.
            .env("XTABLES_LOCKFILE", self.scratch.join("xtables.lock"));
        // Written anew for the next step: what is open keeps its contents.
        fs::remove_file(&input)?;
        Ok(command)
    }

    fn fail(self, command: &Command, status: &str) -> Result<()> {
        let stderr = fs::read_to_string(self.scratch.join("stderr")).unwrap_or_default();
        bail!("`{}` failed: {status}\n{}", repo::command_line(command), stderr.trim_end())
    }
}

/// CPU time of all children that were waited for, and of theirs.
fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage failed")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros).context("negative CPU time")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_step(script: &str, stdin: &str) -> Step {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        Step { argv, stdin: stdin.to_owned() }
    }

    #[test]
    fn each_step_reads_its_own_input() {
        let scratch = tempfile::tempdir().unwrap();
        let runner = Runner { scratch: scratch.path() };
        let steps = [mk_step("grep -qx one", "one\n"), mk_step("grep -qx two", "two\n")];
        assert!(runner.run(&steps).unwrap().wall > Duration::ZERO);
    }

    #[test]
    fn a_failing_step_shows_its_message() {
        let scratch = tempfile::tempdir().unwrap();
        let runner = Runner { scratch: scratch.path() };
        let error = runner.run(&[mk_step("echo broken >&2; exit 7", "")]).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains("exit status: 7"), "{error}");
    }

    #[test]
    fn grandchildren_cost_cpu_time_too() {
        let scratch = tempfile::tempdir().unwrap();
        let runner = Runner { scratch: scratch.path() };
        let busy = "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'; :";
        // Tests that run beside this one can only add to it.
        assert!(runner.run(&[mk_step(busy, "")]).unwrap().cpu > Duration::from_millis(5));
    }

    #[test]
    fn started_processes_are_counted() {
        let scratch = tempfile::tempdir().unwrap();
        let runner = Runner { scratch: scratch.path() };
        let steps = [mk_step("/bin/true; /bin/true | cat; :", ""), mk_step("exec /bin/true", "")];
        assert_eq!(runner.count_started(&steps).unwrap(), 3);
    }
}
