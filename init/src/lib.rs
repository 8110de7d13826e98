//! The command line of Millrace. It answers under these names: `millrace` with its own commands,
//! `istio-iptables`, `pilot-agent istio-iptables`, `linkerd2-proxy-init`, `consul` with one of its commands, and
//! `kumactl` with two of its commands.

mod cli;
mod cmd;
mod exit;
mod log;
mod paint;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use cli::own::{self, NotTyped, Own};
pub use exit::Exit;

/// The command line of `millrace`, for whoever makes pages or completions of it.
pub fn command() -> clap::Command {
    cli::command()
}

/// Run what the program's own name and its arguments ask for.
pub fn main() -> ExitCode {
    run(std::env::args_os().collect()).into()
}

fn run(mut words: Vec<OsString>) -> Exit {
    let name = if words.is_empty() { OsString::new() } else { words.remove(0) };
    let name = Path::new(&name).file_name().unwrap_or_default();
    if name == "istio-iptables" {
        return cmd::istio(words);
    }
    if name == "linkerd2-proxy-init" {
        return cmd::linkerd(words);
    }
    if name == "kumactl" {
        return cmd::kuma(words);
    }
    if name == "consul" {
        return cmd::consul(words);
    }
    if name == "pilot-agent" && words.first().is_some_and(|w| w != "istio-iptables") {
        return bad(
            "under the name pilot-agent there is only the sub-command istio-iptables, set up by \
             an image whose init container is Millrace",
        );
    }
    match own::read(words) {
        Ok(Own::Istio(words)) => cmd::istio(words),
        Ok(Own::Linkerd(words)) => cmd::linkerd(words),
        Ok(Own::Kuma(words)) => cmd::kuma(words),
        Ok(Own::Consul(words)) => cmd::consul(words),
        Ok(Own::Osm(words)) => cmd::osm(words),
        Ok(Own::AppMesh(words)) => cmd::appmesh(words),
        Ok(Own::Ambient(words)) => cmd::ambient(words),
        Ok(Own::Apply(apply)) => done(cmd::apply(&apply)),
        Ok(Own::Dump(dump)) => done(cmd::dump(&dump)),
        Ok(Own::Cleanup(cleanup)) => done(cmd::cleanup(&cleanup)),
        Ok(Own::NodeBpf(node)) => done(cmd::node_bpf(&node)),
        Ok(Own::Status(status)) => done(cmd::status(&status)),
        Ok(Own::Preflight(preflight)) => done(cmd::preflight(&preflight)),
        Ok(Own::Explain(explain)) => done(cmd::explain(&explain)),
        Ok(Own::Graph(graph)) => done(cmd::graph(&graph)),
        // As diff(1), which has 1 for a difference.
        Ok(Own::Diff(diff)) => match done(cmd::diff(&diff)) {
            Exit::Failed => Exit::Trouble,
            exit => exit,
        },
        Ok(Own::Verify(verify)) => done(cmd::verify(&verify)),
        Ok(Own::Trace(trace)) => done(cmd::trace(&trace)),
        Ok(Own::Lint(lint)) => done(cmd::lint(&lint)),
        Ok(Own::Schema) => print(&format!("{:#}\n", millrace_core::dialect::native::schema())),
        Ok(Own::Dial(words)) => print(&format!("{}\n", millrace_host::probe::dial_main(&words))),
        Err(NotTyped::Print(text)) => print(&text),
        Err(NotTyped::Bad(text)) => bad(&text),
    }
}

/// Print to standard output; a reader that has gone away is no error of ours.
fn print(text: &str) -> Exit {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Exit::Ok,
        Err(_) => Exit::Failed,
    }
}

fn bad(text: &str) -> Exit {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    complain(text);
    Exit::Usage
}

/// Say what is wrong on standard error. When even that can't be written, the exit code is left.
fn complain(text: &str) {
    let text = millrace_core::visible::visible(text);
    let _written = writeln!(std::io::stderr().lock(), "Error: {text}");
}

/// Say what went wrong, with its causes. Who reads no further needs no word of it.
fn done(result: anyhow::Result<Exit>) -> Exit {
    result.unwrap_or_else(|error| {
        if !cmd::reader_has_gone(&error) {
            complain(&cmd::reported(&error));
        }
        cmd::exit_of(&error)
    })
}
