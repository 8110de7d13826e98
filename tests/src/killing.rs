//! Runs that are killed at a given moment: before the nth message to the kernel, or before the nth
//! commit of a table.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::capture::millrace;
use crate::netns::Namespace;

/// A moment in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the nth message that millrace itself sends, counted from 1.
    Message(usize),
    /// Before the nth table is committed, counted from 1.
    Commit(usize),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was killed.
    Killed,
    /// It came to its end before that moment, with this exit code and these words.
    Itself(i32, String),
}

/// Programs in front of the real iptables-restore, which hand on one table after the other, and
/// kill whoever called them before the one that is counted down to.
#[derive(Debug)]
pub struct Killer {
    folder: TempDir,
}

const SCRIPT: &str = r#"#!/bin/bash
# Hands on one table after the other; kills its parent and itself before the commit that is due.
set -u
real=/usr/sbin/${0##*/}
folder=${0%/*}
part=
while IFS= read -r line; do
    part+=$line$'\n'
    [ "$line" = COMMIT ] || continue
    left=$(<"$folder/left")
    if [ "$left" = 1 ]; then
        kill -KILL "$PPID"
        exit 1
    fi
    echo "$((left - 1))" >"$folder/left"
    printf %s "$part" | "$real" "$@" || exit
    part=
done
"#;

impl Killer {
    /// Set up the programs.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder")?;
        for variant in ["nft", "legacy"] {
            for program in ["iptables", "ip6tables"] {
                let path = folder.path().join(format!("{program}-{variant}-restore"));
                fs::write(&path, SCRIPT).context("a script")?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            }
        }
        Ok(Self { folder })
    }

    fn left(&self) -> PathBuf {
        self.folder.path().join("left")
    }

    /// Run millrace with these arguments in a namespace, and kill it at a moment.
    pub fn run(&self, namespace: &Namespace, args: &[&str], moment: Moment) -> Result<Ended> {
        let plain = millrace(args)?;
        let path = std::env::var("PATH").context("PATH")?;
        let mut command = match moment {
            Moment::Message(n) => {
                let mut traced = Command::new("strace");
                traced.args(["-qq", "-o", "/dev/null", "-e", "trace=sendto", "-e"]);
                traced.arg(format!("inject=sendto:signal=KILL:when={n}"));
                traced.arg(plain.get_program()).args(args).env("PATH", path);
                traced
            }
            Moment::Commit(n) => {
                fs::write(self.left(), n.to_string()).context("the countdown")?;
                let mut command = plain;
                command.env("PATH", format!("{}:{path}", self.folder.path().display()));
                command
            }
        };
        let output = namespace.output(&mut command)?;
        let said = [output.stdout, output.stderr].concat();
        Ok(match output.status.code() {
            None | Some(137) => Ended::Killed,
            Some(code) => Ended::Itself(code, String::from_utf8_lossy(&said).into_owned()),
        })
    }
}
