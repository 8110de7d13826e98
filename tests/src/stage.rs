//! Stand-ins in front of the real iptables programs, for what the real ones do too seldom: die
//! between two tables, or fail at one of them.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::binary;
use crate::capture::millrace;

/// Every program that writes rules.
pub const RESTORES: [&str; 4] = [
    "iptables-nft-restore",
    "ip6tables-nft-restore",
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
];

/// Hands the real program one table at a time, which is how the kernel gets them anyway, and
/// kills Millrace when as many moments have passed as were asked for.
const KILLER: &str = r#"#!/bin/sh
moment() {
    read -r left <STAGE/left
    echo $((left - 1)) >STAGE/left
    [ "$left" -eq 0 ] || return 0
    kill -9 $PPID
    exit 1
}
table=
while IFS= read -r line; do
    table="$table$line
"
    [ "$line" = COMMIT ] || continue
    moment
    printf '%s' "$table" | REAL "$@" || exit $?
    table=
done
moment
"#;

/// Does all tables but one, and fails at that one with a message of its own.
const FAILURE: &str = r#"#!/bin/sh
table=
while IFS= read -r line; do
    table="$table$line
"
    [ "$line" = COMMIT ] || continue
    case $table in
    "*TABLE"*) failed=yes ;;
    *) printf '%s' "$table" | REAL "$@" || exit $? ;;
    esac
    table=
done
if [ "$failed" ] && [ ! -e STAGE/failed ]; then
    : >STAGE/failed
    echo "NAME: the line is bad today" >&2
    exit 1
fi
"#;

/// A folder with stand-ins, in front of PATH for the programs that get it.
#[derive(Debug)]
pub struct Stage {
    folder: TempDir,
}

impl Stage {
    fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::tempdir().context("a folder for stand-ins")? })
    }

    /// Programs that kill Millrace once this many moments have passed: one before each table of
    /// each program, and one behind its last.
    pub fn killing_after(moments: usize) -> Result<Self> {
        let stage = Self::new()?;
        for name in RESTORES {
            stage.stand_in(name, KILLER)?;
        }
        fs::write(stage.path().join("left"), format!("{moments}\n")).context("a stand-in")?;
        Ok(stage)
    }

    /// A program that fails at a table, after it has done the others. It fails once only: what it
    /// then gets is to put things back.
    pub fn failing_at(name: &str, table: &str) -> Result<Self> {
        let stage = Self::new()?;
        stage.stand_in(name, &FAILURE.replace("TABLE", table).replace("NAME", name))?;
        Ok(stage)
    }

    /// A program that reads what it is given, does nothing, and says that all went well.
    pub fn lying(name: &str) -> Result<Self> {
        let stage = Self::new()?;
        stage.stand_in(
            name,
            "#!/bin/sh\ncase \"$1\" in -V|--version) exec REAL \"$@\" ;; esac\ncat >/dev/null\n",
        )?;
        Ok(stage)
    }

    fn stand_in(&self, name: &str, script: &str) -> Result<()> {
        let folder = self.path().to_str().context("a path that is not UTF-8")?;
        let real = binary::system(name)?;
        let real = real.to_str().context("a path that is not UTF-8")?;
        let path = self.path().join(name);
        let text = script.replace("STAGE", folder).replace("REAL", real);
        fs::write(&path, text).context("a stand-in")?;
        fs::set_permissions(&path, Permissions::from_mode(0o755)).context("a stand-in")
    }

    /// Where the stand-ins are.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Millrace with these arguments and the stand-ins in front of its PATH.
    pub fn millrace<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut command = millrace(args)?;
        let path = std::env::var_os("PATH").context("PATH is not set")?;
        let folders = [self.path().to_owned()].into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders)?);
        Ok(command)
    }
}
