//! The suites, built as `cargo test` builds them, and the disk on which a machine gets them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::disk;
use crate::repo;

/// What cargo built.
#[derive(Debug, Default)]
pub(super) struct Built {
    /// The suites, by name.
    pub(super) suites: BTreeMap<String, PathBuf>,
    /// The programs beside them.
    pub(super) programs: Vec<PathBuf>,
}

/// Build suites and the programs that they run.
pub(super) fn build(suites: &[&str]) -> Result<Built> {
    let mut command = repo::cargo();
    // With the features of all tests, so that nothing is compiled again that they have.
    command.args(["test", "--locked", "--workspace", "--no-run"]);
    for suite in suites {
        command.args(["--test", suite]);
    }
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    repo::say(&format!("+ {}", repo::command_line(&command)));
    let messages = repo::output(&mut command)?;
    let built = executables(&String::from_utf8_lossy(&messages));
    for suite in suites {
        ensure!(built.suites.contains_key(*suite), "cargo built no suite `{suite}`");
    }
    Ok(built)
}

/// The executables in cargo's messages.
fn executables(messages: &str) -> Built {
    let mut built = Built::default();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        let Some(file) = message["executable"].as_str().map(PathBuf::from) else { continue };
        let name = message["target"]["name"].as_str().unwrap_or_default();
        let is = |kind: &str| message["target"]["kind"][0] == kind;
        if is("test") {
            built.suites.insert(name.to_owned(), file);
        } else if is("bin") && message["profile"]["test"] == false {
            built.programs.push(file);
        }
    }
    built
}

/// Make the disk: the repository's files, and in their places what was built, without what is only
/// for debuggers. It becomes the repository's folder in the machine, whose path the suites know.
pub(super) fn image(own: &Path, built: &Built, script: &str) -> Result<PathBuf> {
    let root = repo::root();
    let tree = own.join("tests");
    let mut git = Command::new("git");
    git.current_dir(&root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let files = repo::output(&mut git)?;
    for name in files.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let name = std::str::from_utf8(name).context("a file's name")?;
        let (source, target) = (root.join(name), tree.join(name));
        fs::create_dir_all(target.parent().context("a folder")?).context("a folder")?;
        if source.is_file() {
            fs::copy(&source, &target).with_context(|| name.to_owned())?;
        }
    }
    for file in built.suites.values().chain(&built.programs) {
        let Ok(name) = file.strip_prefix(&root) else {
            bail!("{} is not in {}: a machine has only that", file.display(), root.display());
        };
        let target = tree.join(name);
        fs::create_dir_all(target.parent().context("a folder")?).context("a folder")?;
        repo::output(Command::new("strip").arg("-o").arg(&target).arg(file))?;
    }
    fs::write(tree.join("vm-run"), script).context("the machine's script")?;
    let image = own.join("tests.ext4");
    disk::image(&tree, &image, 16)?;
    fs::remove_dir_all(&tree).context("the disk's tree")?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_and_programs_are_found_among_cargos_messages() {
        let line = |kind: &str, name: &str, test: bool| {
            format!(
                "{{\"target\":{{\"kind\":[\"{kind}\"],\"name\":\"{name}\"}},\
                 \"profile\":{{\"test\":{test}}},\"executable\":\"/t/{name}\"}}\n"
            )
        };
        let messages = line("test", "traffic", true)
            + &line("bin", "probe", false)
            + &line("bin", "unit-tests-of-it", true)
            + "{\"executable\":null}\n";
        let built = executables(&messages);
        assert_eq!(built.suites.keys().collect::<Vec<_>>(), ["traffic"]);
        assert_eq!(built.programs, [PathBuf::from("/t/probe")]);
    }
}
