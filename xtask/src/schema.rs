//! `xtask schema`: the published JSON schema of the file that `--config` takes.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Arg, ArgAction, ArgMatches};
use serde_json::Value;

use crate::repo;

const FILE: &str = "docs/config.schema.json";

/// The command line of `xtask schema`.
pub fn command() -> clap::Command {
    clap::Command::new("schema")
        .about("Write docs/config.schema.json from the millrace binary")
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Write nothing; fail when the file differs"),
        )
}

/// Writes the schema, or compares it with `--check`.
///
/// # Errors
/// When the build fails, the binary prints no JSON object, or the file differs under `--check`.
pub fn run(args: &ArgMatches) -> Result<()> {
    let millrace = repo::build_millrace(&[], None)?;
    let printed = repo::output(Command::new(millrace).arg("schema"))?;
    let wanted = normal(&printed)?;
    let path = repo::root().join(FILE);
    if args.get_flag("check") {
        let found = fs::read_to_string(&path).with_context(|| format!("can't read {FILE}"))?;
        if found != wanted {
            bail!("{FILE} is not what `millrace schema` prints; run `cargo xtask schema`");
        }
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).context("can't make docs/")?;
    }
    fs::write(&path, wanted).with_context(|| format!("can't write {FILE}"))?;
    repo::say(&format!("wrote {FILE}"));
    Ok(())
}

/// The schema as it is kept in the repository: indented, one newline at the end.
fn normal(printed: &[u8]) -> Result<String> {
    let schema: Value =
        serde_json::from_slice(printed).context("`millrace schema` printed no JSON")?;
    if !schema.is_object() {
        bail!("`millrace schema` printed JSON that is no object");
    }
    Ok(format!("{schema:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_indented_and_keeps_its_order() {
        assert_eq!(normal(b"{\"b\":1,\"a\":2}").unwrap(), "{\n  \"b\": 1,\n  \"a\": 2\n}\n");
    }

    #[test]
    fn what_is_no_schema_is_refused() {
        assert!(normal(b"usage: millrace").unwrap_err().to_string().contains("no JSON"));
        assert!(normal(b"[]").unwrap_err().to_string().contains("no object"));
    }
}
