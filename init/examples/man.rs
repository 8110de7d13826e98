//! Writes man pages and completions of `millrace` into `man/` and `completions/` of a folder, for `cargo xtask
//! man`. They are made from its command line; the binary has no part of what makes them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap_complete::Shell;

/// The shells that completions are made for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).context("usage: man FOLDER")?;
    write(Path::new(&folder)).map(drop)
}

/// Write them into `man/` and `completions/` of a folder. The paths of all files.
fn write(folder: &Path) -> Result<Vec<PathBuf>> {
    // On a command line of its own, the name of the program is a word of it.
    let millrace = millrace::command().no_binary_name(false).name("millrace");
    let (pages, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&pages, &completions] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut written = Vec::new();
    for shell in SHELLS {
        let path =
            clap_complete::generate_to(shell, &mut millrace.clone(), "millrace", &completions)
                .with_context(|| format!("{}: completions of {shell}", completions.display()))?;
        written.push(path);
    }
    let shown = |command: &&clap::Command| !command.is_hide_set();
    let mut whole = millrace.clone();
    whole.build();
    written.push(page(&pages, &whole, "millrace")?);
    for command in whole.get_subcommands().filter(shown) {
        written.push(page(&pages, command, &format!("millrace-{}", command.get_name()))?);
        for inner in command.get_subcommands().filter(shown) {
            let name = format!("millrace-{}-{}", command.get_name(), inner.get_name());
            written.push(page(&pages, inner, &name)?);
        }
    }
    Ok(written)
}

/// Write the page of a command into section 8, that of administration.
fn page(folder: &Path, command: &clap::Command, name: &str) -> Result<PathBuf> {
    let title = name.to_owned();
    let man = clap_mangen::Man::new(command.clone().name(title.clone())).title(title).section("8");
    let mut text = Vec::new();
    man.render(&mut text).context("a page")?;
    let path = folder.join(format!("{name}.8"));
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_completion() {
        let folder = tempfile::tempdir().unwrap();
        let written = write(folder.path()).unwrap();
        let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(written.iter().all(|path| path.metadata().unwrap().len() > 0));
        let page = text("man/millrace-explain.8");
        assert!(page.contains("\\-\\-pod\\-address") && page.contains("Exit codes"), "{page}");
        assert!(text("man/millrace.8").contains("millrace\\-status(8)"));
        assert!(text("man/millrace-node-bpf-load.8").contains("\\-\\-cgroup"));
        assert!(!folder.path().join("man/millrace-dial.8").exists());
        for name in ["millrace.bash", "_millrace", "millrace.fish"] {
            let text = text(&format!("completions/{name}"));
            assert!(
                text.contains("exclude-outbound-ports") && text.contains("preflight"),
                "{name}"
            );
        }
    }
}
