//! Container images made by hand: busybox of Debian's busybox-static and nothing else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::binary;

/// The image that pods' own containers are made of: it waits for a signal.
pub(super) const PAUSE: &str = "localhost/pause:1";
/// The image with a shell and its tools.
pub(super) const BUSYBOX: &str = "localhost/busybox:1";

const TOOLS: [&str; 8] = ["sh", "sleep", "nc", "wget", "cat", "ip", "id", "echo"];

/// The files of an image in this folder.
pub(super) fn root(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    for part in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(part)).context("an image's folders")?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(binary::system("busybox")?, &busybox).context("busybox")?;
    let bytes = fs::read(&busybox).context("busybox")?;
    let loader = b"/ld-linux";
    ensure!(
        !bytes.windows(loader.len()).any(|window| window == loader),
        "busybox is linked dynamically: install the package busybox-static"
    );
    for tool in TOOLS {
        symlink("busybox", root.join("bin").join(tool)).with_context(|| tool.to_owned())?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").context("an image's users")?;
    Ok(root)
}

/// Both images as archives that `ctr images import` and `podman load` take.
pub(super) fn archives(folder: &Path) -> Result<Vec<PathBuf>> {
    let root = root(folder)?;
    let layer = folder.join("layer.tar");
    run(
        "tar",
        &["--create", "--owner=0", "--group=0", "--file", text(&layer)?, "-C", text(&root)?, "."],
    )?;
    // Process 1 gets only the signals that it asks for.
    let wait = "trap 'exit 0' TERM INT; sleep 2147483647 & wait";
    [(PAUSE, json!(["/bin/sh", "-c", wait])), (BUSYBOX, json!(["/bin/sh"]))]
        .into_iter()
        .map(|(name, entrypoint)| archive(folder, &layer, name, &entrypoint))
        .collect()
}

/// An archive in docker's form: one layer, a configuration, a manifest.
fn archive(
    folder: &Path,
    layer: &Path,
    name: &str,
    entrypoint: &serde_json::Value,
) -> Result<PathBuf> {
    let sum = run("sha256sum", &[text(layer)?])?;
    let digest = sum.split(' ').next().context("a digest")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        "history": [{ "created_by": "by hand" }],
    });
    let manifest = json!([
        { "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }
    ]);
    fs::write(folder.join("config.json"), config.to_string()).context("an image")?;
    fs::write(folder.join("manifest.json"), manifest.to_string()).context("an image")?;
    let file = name.replace(['/', ':'], "-");
    let path = folder.join(format!("{file}.tar"));
    let parts = ["config.json", "layer.tar", "manifest.json"];
    let args = ["--create", "--file", text(&path)?, "-C", text(folder)?];
    run("tar", &[&args[..], &parts].concat())?;
    Ok(path)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}\n{said}", args.join(" "), output.status);
    String::from_utf8(output.stdout).with_context(|| program.to_owned())
}
