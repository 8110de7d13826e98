//! The repository a task works on, and how a task starts other programs.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The top folder of the workspace.
pub fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// Writes one line for the person at the terminal, to standard error. A closed terminal is no
/// reason to stop a task, so a failed write is passed over.
pub fn say(line: &str) {
    let end = millrace_host::progress::line_end();
    drop(write!(io::stderr(), "{line}{end}"));
}

/// Writes text to standard output.
///
/// # Errors
/// When standard output is closed or full.
pub fn print(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).context("can't write to standard output")
}

/// The cargo that runs this task, or else the one on `PATH`, started in the top folder.
pub fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// Runs a program in view of the user: its command line is printed, its output goes through.
///
/// # Errors
/// When it can't be started or its exit status is not 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = command_line(command);
    say(&format!("+ {line}"));
    let status = command.status().with_context(|| format!("can't start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a program and gives its standard output.
///
/// # Errors
/// When it can't be started or its exit status is not 0; then with its standard error.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let line = command_line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't start `{line}`; is it installed?"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}\n{}", output.status, stderr.trim_end());
    }
    Ok(output.stdout)
}

/// A program that ends with this one, however that does.
pub(crate) fn child(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// A command as it would be typed.
pub fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Builds the binary of a package of the same name and says where cargo put it.
///
/// `args` choose profile and target; `rustflags` are added to those of the environment, and
/// `variables` to the environment.
///
/// # Errors
/// When the build fails or makes no binary of that name.
pub fn build(
    name: &str,
    args: &[&str],
    rustflags: Option<&str>,
    variables: &[(String, String)],
) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--locked", "--package", name, "--bin", name])
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stderr(Stdio::inherit());
    if let Some(flags) = rustflags {
        let inherited = env::var("RUSTFLAGS").unwrap_or_default();
        command
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", format!("{inherited} {flags}").trim_start());
    }
    say(&format!("+ {}", command_line(&command)));
    let messages = output(&mut command)?;
    executable(&String::from_utf8_lossy(&messages)).with_context(|| {
        format!("cargo built no binary `{name}`; does its package still declare it?")
    })
}

/// The commit that is checked out; with `-dirty` behind it if a file of it is another here.
///
/// # Errors
/// When git is not there, or this is no repository of it.
pub fn revision() -> Result<String> {
    let git = |args: &[&str]| -> Result<String> {
        // The checkout may belong to another user.
        let owner = ["-c", "safe.directory=*"];
        let said = output(Command::new("git").args(owner).args(args).current_dir(root()))?;
        Ok(String::from_utf8(said).context("git")?.trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Ok(if changed.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// The last executable in cargo's JSON messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted_into_a_shell() {
        let mut command = Command::new("millrace");
        command.args(["-i", "*", "-x", "", "--why", "it's"]);
        assert_eq!(command_line(&command), r"millrace -i '*' -x '' --why 'it'\''s'");
    }

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\nnot json\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/millrace\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/millrace")));
        assert_eq!(executable("{\"reason\":\"build-finished\"}\n"), None);
    }

    #[test]
    fn a_failing_program_is_an_error_with_its_message() {
        let error = output(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"]))
            .expect_err("exit status 3");
        let text = error.to_string();
        assert!(text.contains("no luck") && text.contains("exit status: 3"), "{text}");
        run(Command::new("sh").args(["-c", "exit 4"])).expect_err("exit status 4");
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
