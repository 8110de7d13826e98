//! The README's commands print what it says.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::binary;
use millrace_tests::netns::Namespace;

const README: &str = include_str!("../../README.md");

/// A command line with what the README says that it prints.
type Session = Vec<(String, String)>;

/// What is not tried: the CNI plugin, whose runtime is not here, what a machine has, and what
/// follows connections that are not made.
const ELSEWHERE: [&str; 3] = ["millrace-cni", "millrace preflight", "millrace trace"];

/// The sessions of the README.
fn sessions() -> Vec<Session> {
    let blocks = README.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    let session = |block: &str| {
        let mut session = Session::new();
        for line in block.lines() {
            match (line.strip_prefix("$ "), session.last_mut()) {
                (Some(command), _) => session.push((command.to_owned(), String::new())),
                (None, Some((_, text))) => text.push_str(&format!("{line}\n")),
                (None, None) => {}
            }
        }
        session
    };
    let here = |session: &Session| {
        session.iter().all(|(command, _)| !ELSEWHERE.iter().any(|name| command.contains(name)))
    };
    blocks.map(session).filter(here).collect()
}

/// Verify every command in its order, in a namespace with the address that the README names.
#[test]
fn commands_print_what_the_readme_says() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n\
         link set eth1 up\naddr add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1\n")?;
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("millrace");
    fs::copy(binary::millrace()?, &program)?;
    let net = namespace.path();
    let net = net.to_str().context("UTF-8")?;
    let path = std::env::var("PATH")?;
    let path = format!("{}:{path}", folder.path().display());
    let (mut run, mut wrong) = (0, String::new());
    for (command, wanted) in sessions().into_iter().flatten() {
        if let Some(file) = command.strip_prefix("cat ") {
            ensure!(!file.contains('/'), "{file}");
            fs::write(folder.path().join(file), wanted)?;
            continue;
        }
        let real = command
            .replace("--netns pod-1", &format!("--netns {net}"))
            .replace("ip netns exec pod-1", &format!("nsenter --net={net}"));
        let output = Command::new("timeout")
            .args(["60", "sh", "-c", &format!("{real} 2>&1")])
            .current_dir(folder.path())
            .env("PATH", &path)
            .output()?;
        let printed = String::from_utf8(output.stdout)?;
        if printed != wanted {
            wrong.push_str(&format!("$ {command}\n{printed}--- README\n{wanted}\n"));
        }
        run += 1;
    }
    ensure!(wrong.is_empty(), "{wrong}");
    ensure!(run >= 15, "only {run} commands");
    Ok(())
}

/// Verify that the picture in the README is what its command prints.
#[test]
fn the_picture_is_drawn_by_its_command() -> Result<()> {
    let command = README
        .split('`')
        .find_map(|text| text.strip_prefix("millrace graph "))
        .context("the README shows a picture")?;
    let output =
        Command::new(binary::millrace()?).arg("graph").args(command.split(' ')).output()?;
    let drawn = String::from_utf8(output.stdout)?;
    if drawn != include_str!("../../docs/rules.svg") {
        bail!("docs/rules.svg is not what this prints: millrace graph {command}");
    }
    Ok(())
}
