//! `xtask schema`: the published JSON schemas of the file that `--config` takes, and of the CNI
//! plugin's entry in a list of plugins.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Arg, ArgAction, ArgMatches};
use serde_json::Value;

use crate::repo;

/// The binaries that print a schema each, and where it is kept.
const FILES: [(&str, &str); 2] =
    [("millrace", "docs/config.schema.json"), ("millrace-cni", "docs/cni.schema.json")];

/// The command line of `xtask schema`.
pub fn command() -> clap::Command {
    clap::Command::new("schema").about("Write the JSON schemas in docs/ from the binaries").arg(
        Arg::new("check")
            .long("check")
            .action(ArgAction::SetTrue)
            .help("Write nothing; fail when the file differs"),
    )
}

/// Writes the schemas, or compares them with `--check`.
///
/// # Errors
/// When a build fails, a binary prints no JSON object, or a file differs under `--check`.
pub fn run(args: &ArgMatches) -> Result<()> {
    for (binary, file) in FILES {
        let printed =
            repo::output(Command::new(repo::build(binary, &[], None, &[])?).arg("schema"))?;
        let wanted = normal(&printed).with_context(|| format!("`{binary} schema`"))?;
        let path = repo::root().join(file);
        if args.get_flag("check") {
            let found = fs::read_to_string(&path).with_context(|| format!("can't read {file}"))?;
            if found != wanted {
                bail!("{file} is not what `{binary} schema` prints; run `cargo xtask schema`");
            }
            continue;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).context("can't make docs/")?;
        }
        fs::write(&path, wanted).with_context(|| format!("can't write {file}"))?;
        repo::say(&format!("wrote {file}"));
    }
    Ok(())
}

/// The schema as it is kept in the repository: indented, one newline at the end.
fn normal(printed: &[u8]) -> Result<String> {
    let schema: Value = serde_json::from_slice(printed).context("it printed no JSON")?;
    if !schema.is_object() {
        bail!("it printed JSON that is no object");
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
