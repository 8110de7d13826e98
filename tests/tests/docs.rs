//! The documentation's commands print what it says, and it names all that there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::binary;
use millrace_tests::netns::Namespace;
use serde_json::Value;

/// A command line with what the document says that it prints.
type Session = Vec<(String, String)>;

/// What is not tried: the CNI plugin, whose runtime is not here, what a machine has, and what
/// follows connections that are not made. Its own suites try the plugin's.
const ELSEWHERE: [&str; 3] = ["millrace-cni", "millrace preflight", "millrace trace"];
/// Where a document's node has its lists of plugins.
const NODE_LISTS: &str = "/etc/cni/net.d";
/// The documents that have to have commands in them.
const WITH_COMMANDS: [&str; 6] = [
    "README.md",
    "docs/commands.md",
    "docs/explain.md",
    "docs/install.md",
    "docs/node-agent.md",
    "docs/troubleshooting.md",
];
/// What every command's help is printed into.
const REFERENCE: &str = "docs/reference.md";
/// Every command of `millrace`, and whose help is that of all of it.
const COMMANDS: [&str; 23] = [
    "apply",
    "dump",
    "cleanup",
    "status",
    "preflight",
    "explain",
    "diff",
    "graph",
    "verify",
    "trace",
    "lint",
    "node-bpf load",
    "node-bpf unload",
    "node-bpf status",
    "node-bpf gc",
    "istio-iptables",
    "linkerd",
    "kuma install transparent-proxy",
    "kuma uninstall transparent-proxy",
    "consul connect redirect-traffic",
    "osm",
    "appmesh",
    "ambient rules",
];
/// Those of the node agent.
const NODE_COMMANDS: [&str; 4] = ["run", "install", "uninstall", "status"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Each document by its path from the root, with its text.
fn documents() -> Result<Vec<(String, String)>> {
    let mut names = vec!["README.md".to_owned(), "ARCHITECTURE.md".to_owned()];
    for entry in fs::read_dir(root().join("docs"))? {
        let name = entry?
            .file_name()
            .into_string()
            .map_err(|name| anyhow::anyhow!("{} is no text", name.display()))?;
        let is_text = Path::new(&name).extension().is_some_and(|extension| extension == "md");
        names.extend(is_text.then(|| format!("docs/{name}")));
    }
    names.sort();
    names
        .into_iter()
        .map(|name| Ok((name.clone(), fs::read_to_string(root().join(name))?)))
        .collect()
}

/// The sessions of a document.
fn sessions(text: &str) -> Vec<Session> {
    let blocks = text.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
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

/// Verify every command of every document in its order, each document in a namespace with the address
/// that is named there.
#[test]
fn commands_print_what_is_said() -> Result<()> {
    let mut wrong = String::new();
    for (name, text) in documents()? {
        let run = prints_what_it_says(&name, &text, &mut wrong).context(name.clone())?;
        ensure!(run > 0 || !WITH_COMMANDS.contains(&name.as_str()), "{name}: no commands");
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// The folders of a node, below another one, by the variables of the agent: with its binaries, and those of
/// a network's plugin and of istio-cni.
fn node_folders(root: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let folders = [
        ("MILLRACE_NODE_CNI_CONF_DIR", NODE_LISTS),
        ("MILLRACE_NODE_CNI_BIN_DIR", "/opt/cni/bin"),
        ("MILLRACE_NODE_RUN_DIR", "/run/millrace-node"),
        ("MILLRACE_NODE_STATE_DIR", "/var/lib/millrace-node"),
    ];
    let folders = folders.map(|(name, path)| (name, root.join(path.trim_start_matches('/'))));
    for (_, path) in &folders[..2] {
        fs::create_dir_all(path)?;
    }
    binary::place(&binary::millrace_node()?, &root.join("millrace-node"))?;
    binary::place(&binary::millrace_cni()?, &root.join("millrace-cni"))?;
    for plugin in ["bridge", "istio-cni"] {
        fs::copy(binary::system("true")?, folders[1].1.join(plugin))?;
    }
    Ok(folders.into())
}

/// How many commands there were; what they printed otherwise goes into `wrong`.
fn prints_what_it_says(name: &str, text: &str, wrong: &mut String) -> Result<usize> {
    let sessions = sessions(text);
    if sessions.is_empty() {
        return Ok(0);
    }
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\nlink add eth0 type veth peer name eth1\n\
         link set eth0 addrgenmode none\nlink set eth1 addrgenmode none\nlink set eth0 up\n\
         link set eth1 up\naddr add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1\n")?;
    let folder = tempfile::tempdir()?;
    binary::place(&binary::millrace()?, &folder.path().join("millrace"))?;
    let node = sessions.iter().flatten().any(|(command, _)| command.contains("millrace-node"));
    let folders = if node { node_folders(folder.path())? } else { Vec::new() };
    let net = namespace.path();
    let net = net.to_str().context("UTF-8")?;
    let path = std::env::var("PATH")?;
    let path = format!("{}:{path}", folder.path().display());
    let mut run = 0;
    for (command, wanted) in sessions.into_iter().flatten() {
        if let Some(file) = command.strip_prefix("cat ") {
            ensure!(!file.contains('/') || file.starts_with(NODE_LISTS), "{file}");
            fs::write(folder.path().join(file.trim_start_matches('/')), wanted)?;
            continue;
        }
        let here = folder.path().display().to_string();
        let real = command
            .replace("--netns pod-1", &format!("--netns {net}"))
            .replace("netns:pod-1", &format!("netns:{net}"))
            .replace("ip netns exec pod-1", &format!("nsenter --net={net}"))
            .replace(&format!(" {NODE_LISTS}"), &format!(" {here}{NODE_LISTS}"));
        let output = Command::new("timeout")
            .args(["60", "sh", "-c", &format!("{real} 2>&1")])
            .current_dir(folder.path())
            .env("PATH", &path)
            .envs(folders.iter().map(|(name, path)| (name, path)))
            .output()?;
        let printed = String::from_utf8(output.stdout)?.replace(&here, "");
        if printed != wanted {
            wrong.push_str(&format!("$ {command}\n{printed}--- {name}\n{wanted}\n"));
        }
        run += 1;
    }
    Ok(run)
}

/// Verify that the picture is what its command prints.
#[test]
fn the_picture_is_drawn_by_its_command() -> Result<()> {
    let text = fs::read_to_string(root().join("docs/explain.md"))?;
    let command = text
        .split('`')
        .find_map(|text| text.strip_prefix("millrace graph "))
        .context("the page shows a picture")?;
    let output =
        Command::new(binary::millrace()?).arg("graph").args(command.split(' ')).output()?;
    let drawn = String::from_utf8(output.stdout)?;
    if drawn != include_str!("../../docs/rules.svg") {
        bail!("docs/rules.svg is not what this prints: millrace graph {command}");
    }
    Ok(())
}

/// Verify that the book has every page, and that every link inside it leads somewhere.
#[test]
fn every_page_is_in_the_book() -> Result<()> {
    let documents = documents()?;
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md"))?;
    let mut wrong = Vec::new();
    for (name, text) in &documents {
        let page = name.strip_prefix("docs/").filter(|page| *page != "SUMMARY.md");
        if let Some(page) = page.filter(|page| !summary.contains(&format!("({page})"))) {
            wrong.push(format!("docs/SUMMARY.md does not name {page}"));
        }
        let folder = root().join(name).parent().context("a folder")?.to_owned();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { root().join(name) } else { folder.join(file) };
            if page.is_some() && link.starts_with("../") {
                wrong.push(format!("{name}: {link} is not in the book"));
            } else if !target.exists() {
                wrong.push(format!("{name}: {link} is not there"));
            } else if !anchor.is_empty() && !anchors(&fs::read_to_string(&target)?).contains(anchor)
            {
                wrong.push(format!("{name}: {link} has no such heading"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What headings are called in links: lower case, words with hyphens between them, and no other marks.
fn anchors(text: &str) -> BTreeSet<String> {
    let heading = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        words
            .chars()
            .filter_map(|c| match c {
                ' ' => Some('-'),
                '-' | '_' => Some(c),
                c => c.is_alphanumeric().then_some(c),
            })
            .collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(heading).collect()
}

/// Verify that the reference is what the commands say of themselves, so that it has every flag; with
/// `UPDATE_GOLDEN` it is written.
#[test]
fn the_reference_is_every_help() -> Result<()> {
    let mut text = "# Reference\n\nWhat each command says of itself with `--help`.\n".to_owned();
    let own = COMMANDS.map(|command| (binary::millrace(), command, command.to_owned()));
    let node = NODE_COMMANDS
        .map(|command| (binary::millrace_node(), command, format!("millrace-node {command}")));
    for (program, command, title) in own.into_iter().chain(node) {
        let output = Command::new(program?)
            .args(command.split(' '))
            .arg("--help")
            .env("COLUMNS", "100")
            .output()?;
        ensure!(output.status.success(), "{command}: {output:?}");
        let help = String::from_utf8(output.stdout)?;
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        text.push_str(&format!("\n## {title}\n\n```text\n{}\n```\n", lines.join("\n").trim_end()));
    }
    is_kept(REFERENCE, &text)
}

/// Verify that a file is what is printed; with `UPDATE_GOLDEN` it is written.
fn is_kept(name: &str, text: &str) -> Result<()> {
    let path = root().join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text)?;
    }
    ensure!(
        fs::read_to_string(&path)? == text,
        "{name} is not what is printed: write it with UPDATE_GOLDEN=1, and read the change"
    );
    Ok(())
}

/// Verify that the schemas in docs/ are those that the programs print; with `UPDATE_GOLDEN` they are
/// written.
#[test]
fn the_schemas_are_what_is_printed() -> Result<()> {
    for (program, name) in [
        (binary::millrace()?, "docs/config.schema.json"),
        (binary::millrace_cni()?, "docs/cni.schema.json"),
    ] {
        let output = Command::new(&program).arg("schema").output()?;
        ensure!(output.status.success(), "{}: {output:?}", program.display());
        let schema: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(schema["properties"].is_object(), "{}: no schema", program.display());
        is_kept(name, &format!("{schema:#}\n"))?;
    }
    Ok(())
}

/// Verify that the reference leaves no command out.
#[test]
fn the_reference_has_every_command() -> Result<()> {
    for (program, parent) in [
        (binary::millrace()?, None),
        (binary::millrace()?, Some("node-bpf")),
        (binary::millrace_node()?, None),
    ] {
        let output = Command::new(&program).args(parent).arg("--help").output()?;
        let help = String::from_utf8(output.stdout)?;
        let (_, listed) = help.split_once("Commands:\n").context("a list of commands")?;
        // Two blanks in front of a name, and more in front of what goes on with its meaning.
        let lines = listed.lines().take_while(|line| !line.is_empty());
        let names =
            lines.filter_map(|line| line.strip_prefix("  ").filter(|l| !l.starts_with(' ')));
        let names: Vec<&str> = names.filter_map(|line| line.split(' ').next()).collect();
        ensure!(names.len() > 3, "{help}");
        let known = |name: &&str| {
            let name =
                parent.map_or_else(|| (*name).to_owned(), |parent| format!("{parent} {name}"));
            let is = |command: &str| command == name || command.starts_with(&format!("{name} "));
            // They have no flags.
            ["schema", "help"].contains(&name.as_str())
                || COMMANDS.iter().chain(&NODE_COMMANDS).any(|command| is(command))
        };
        let missing: Vec<_> = names.into_iter().filter(|name| !known(name)).collect();
        ensure!(missing.is_empty(), "{}: {missing:?}", program.display());
    }
    Ok(())
}

/// Verify that every block of a session is one that is tried: it begins with a command.
#[test]
fn every_session_begins_with_a_command() -> Result<()> {
    for (name, text) in documents()? {
        let blocks = text.split("```console").skip(1);
        let wrong = blocks.filter(|block| !block.starts_with("\n$ ")).count();
        ensure!(wrong == 0, "{name}: {wrong} console blocks begin with no command");
    }
    Ok(())
}
