//! What the plugin reads and writes beside what it asks: standard streams, the log, its notes, the path
//! of a namespace. Whoever holds one of them up holds up no command.

use std::fs::{self, File};
use std::io::{PipeReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use millrace_tests::cni::{Call, Host, Pod, end_within, kept, mesh};
use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

/// The deadline of calls here, and that of DEL and of who can't read its configuration.
const DEADLINE: Duration = Duration::from_secs(8);
const DEL: Duration = Duration::from_secs(10);
const DEFAULT: Duration = Duration::from_secs(15);
/// Every command, in an order in which each has something to do.
const COMMANDS: [&str; 5] = ["ADD", "CHECK", "STATUS", "GC", "DEL"];

fn fifo(host: &Host) -> Result<PathBuf> {
    let path = host.folder().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).context("a FIFO")?;
    Ok(path)
}

/// A call of any command for a pod, which GC finds listed.
fn call(host: &Host, pod: &Pod) -> Call {
    let listed = json!([{ "containerID": pod.id, "ifname": "eth0" }]);
    let call = Call::new(host, "ADD", pod, mesh(&[])).with_key("deadline", json!("8s"));
    call.with_key("cni.dev/valid-attachments", listed)
}

/// How long a command may take whose entry names this deadline.
fn deadline(command: &str, named: Duration) -> Duration {
    if command == "DEL" { DEL } else { named }
}

/// Verify that nobody holds the plugin up by a log that is a FIFO, or one that is full and whose lock
/// somebody has.
#[test]
fn logs_that_hold_up() -> Result<()> {
    let host = Host::new()?;
    let full = host.folder().join("full");
    fs::write(&full, "x\n".repeat(4096))?;
    let held = Flock::lock(File::open(&full)?, FlockArg::LockExclusive);
    let _held = held.map_err(|(_, errno)| errno).context("the log's lock")?;
    for log in [fifo(&host)?, full] {
        let pod = host.pod()?;
        let call = call(&host, &pod)
            .with_key("log_file", json!(log))
            .with_key("log_max_bytes", json!(4096));
        for command in COMMANDS {
            let what = format!("{command} {}", log.display());
            let reply = call.clone().to(command).run_by(&host, deadline(command, DEADLINE));
            let reply = reply.context(what.clone())?;
            reply.success().context(what.clone())?;
            assert_eq!(host.rules(&pod)?.contains("millrace"), command != "DEL", "{what}");
        }
    }
    Ok(())
}

/// Verify that notes that are FIFOs, or that don't end, hold nobody up, and that the pod's rules stay
/// until DEL.
#[test]
fn notes_that_hold_up() -> Result<()> {
    let host = Host::new()?;
    for kind in ["fifo", "endless"] {
        let pod = host.pod()?;
        let call = call(&host, &pod);
        call.run(&host)?.success()?;
        let notes: Vec<PathBuf> = fs::read_dir(host.state_dir())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        ensure!(!notes.is_empty());
        for command in ["CHECK", "STATUS", "GC", "ADD", "DEL"] {
            for note in &notes {
                drop(fs::remove_file(note));
                if kind == "fifo" {
                    mkfifo(note, Mode::S_IRWXU)?;
                } else {
                    std::os::unix::fs::symlink("/dev/zero", note)?;
                }
            }
            let what = format!("{kind} {command}");
            let reply = call.clone().to(command).run_by(&host, deadline(command, DEADLINE));
            let reply = reply.context(what.clone())?;
            // GC can't look after a pod whose note it can't read, and says so.
            ensure!(reply.code == Some(0) || command == "GC", "{what}: {reply:?}");
            // Where the note tells nothing DEL leaves what may be another pod's, which ends with the pod.
            let captured = host.rules(&pod)?.contains("millrace");
            ensure!(captured || command == "DEL", "{what}: {reply:?}");
        }
        for note in &notes {
            drop(fs::remove_file(note));
        }
    }
    Ok(())
}

/// Verify that a namespace's path that leads to a FIFO is refused at once, and stops no DEL.
#[test]
fn a_namespace_that_is_a_fifo() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let fifo = fifo(&host)?.display().to_string();
    let call = Call::new(&host, "ADD", &pod, mesh(&[])).with_env("CNI_NETNS", &fifo);
    for command in ["ADD", "CHECK"] {
        let said = call.clone().to(command).run_by(&host, DEFAULT)?.failure(4)?;
        ensure!(said.contains(&fifo), "{said}");
    }
    call.to("DEL").run_by(&host, DEL)?.success()?;
    Ok(())
}

/// A pipe that is full, for a process to write to.
fn full_pipe() -> Result<(PipeReader, Stdio)> {
    let (reader, mut writer) = std::io::pipe()?;
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer.into()))
}

/// Verify that a runtime that does not close standard input, that never ends it, or that does not
/// read what it is told, holds the plugin up no longer than the deadline, and DEL still does its
/// work.
#[test]
fn a_runtime_that_stops_talking() -> Result<()> {
    let program = millrace_tests::binary::millrace_cni()?;
    let started = |host: &Host, call: &Call, stdin: Stdio, stdout: Stdio, stderr: Stdio| {
        let mut command = Command::new(&program);
        command.env_clear().envs(call.env.iter().map(|(n, v)| (n, v)));
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        host.namespace.enter(|| command.spawn())?.context("the plugin")
    };
    let input = |host: &Host, call: &Call, command: &str| -> Result<Stdio> {
        let path = host.folder().join(command);
        fs::write(&path, call.config.to_string())?;
        Ok(File::open(path)?.into())
    };
    let holds_up = |command: &str| -> Result<()> {
        // GC takes away what is not said to be valid: no pods of other threads.
        let host = Host::new()?;
        let pod = host.pod()?;
        // By the notes, which are where they are as usual, DEL knows whose the rules are.
        let add = call(&host, &pod).without_key("state_dir");
        add.run(&host)?.success()?;
        let code = i32::from(command != "DEL");
        let unread = kept(&host, deadline(command, DEFAULT))?;
        let named = kept(&host, deadline(command, Duration::from_secs(1)))?;
        let call = add.with_key("deadline", json!("1s")).to(command);
        // It is open, and nothing comes.
        let (_silent, stdin) = {
            let (r, w) = std::io::pipe()?;
            (w, Stdio::from(r))
        };
        let child = started(&host, &call, stdin, Stdio::piped(), Stdio::piped())?;
        let reply = end_within(child, unread)?;
        assert_eq!(reply.code, Some(code), "{reply:?}");
        ensure!(reply.log.contains("standard input"), "{reply:?}");
        assert_eq!(host.rules(&pod)?.contains("millrace"), command != "DEL");
        let zeros = File::open("/dev/zero")?.into();
        let child = started(&host, &call, zeros, Stdio::piped(), Stdio::piped())?;
        let reply = end_within(child, unread)?;
        assert_eq!(reply.code, Some(code), "{reply:?}");
        // Nobody reads its log, or what it answers. The agent hears how it ended all the same.
        let socket = host.folder().join("agent.sock");
        let agent = UnixListener::bind(&socket)?;
        agent.set_nonblocking(true)?;
        let told = call.clone().with_key("agent_socket", json!(socket));
        let told = told.with_key("proxy_identity", json!("annotations"));
        let (_reader, full) = full_pipe()?;
        end_within(
            started(&host, &told, input(&host, &told, command)?, Stdio::piped(), full)?,
            named,
        )?;
        let outcome = match command {
            "ADD" => Some("try_again"),
            "DEL" => Some("left_behind"),
            _ => None,
        };
        if let Some(outcome) = outcome {
            let text = std::io::read_to_string(agent.accept().context("a report")?.0)?;
            ensure!(text.contains(&format!("\"outcome\":{outcome:?}")), "{text}");
        }
        let (_reader, full) = full_pipe()?;
        end_within(
            started(&host, &call, input(&host, &call, command)?, full, Stdio::piped())?,
            named,
        )?;
        Ok(())
    };
    thread::scope(|scope| {
        let holds_up = &holds_up;
        let threads: Vec<_> =
            COMMANDS.into_iter().map(|c| (c, scope.spawn(move || holds_up(c)))).collect();
        for (command, thread) in threads {
            let held = thread.join().map_err(|_panic| anyhow!("{command}: a panic"))?;
            held.context(command)?;
        }
        Ok(())
    })
}
