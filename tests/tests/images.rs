//! The container images of `cargo xtask image`, in a container runtime, as a mesh's injector and the
//! node agent's manifest write their pods.
//!
//! With `MILLRACE_BIN` and its like the images hold those binaries and nothing else. Without, they hold
//! the binaries that the tests build, and the libraries that these are linked with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::binary;
use millrace_tests::cni::{Containerd, Ended, Expected, Host, List, Sandbox};
use millrace_tests::topology::ROOT;
use serde_json::{Value, json};
use xtask::dist::Machine;
use xtask::elf;
use xtask::image::{
    Entry, INIT, INIT_IPTABLES, Image, LIMIT, NODE, Recipe, Source, entries, merged, oci_archive,
};

const INIT_IMAGE: &str = "localhost/millrace-init:test";
const NODE_IMAGE: &str = "localhost/millrace-node:test";

/// What Istio's injector gives its init container.
const ARGUMENTS: [&str; 16] = [
    "istio-iptables",
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-x",
    "",
    "-b",
    "*",
    "--log_output_level=default:info",
];

fn init() -> Expected<'static> {
    Expected {
        name: "istio-init",
        image: INIT_IMAGE,
        arguments: &ARGUMENTS,
        user: Some(0),
        capabilities: &["NET_ADMIN", "NET_RAW"],
        ..Default::default()
    }
}

/// And its validation, with no capability and the proxy's user.
fn validation(containerd: &Containerd, pod: &Sandbox, name: &str) -> Result<Ended> {
    let arguments = [&ARGUMENTS[..], &["--run-validation", "--skip-rule-apply"]].concat();
    let wanted = Expected {
        name,
        image: INIT_IMAGE,
        arguments: &arguments,
        user: Some(1337),
        ..Default::default()
    };
    containerd.run_to_end(pod, &wanted)
}

/// The image of the binaries under test.
fn image(recipe: &Recipe) -> Result<Image> {
    let mut libraries = BTreeMap::new();
    let mut binaries = Vec::new();
    for name in recipe.binaries {
        let path = match *name {
            "millrace" => binary::millrace()?,
            "millrace-cni" => binary::millrace_cni()?,
            _ => binary::millrace_node()?,
        };
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        if elf::parse(&bytes)?.has_interpreter {
            linked(&path, &mut libraries)?;
        }
        binaries.push(bytes);
    }
    let is_shipped = libraries.is_empty();
    let mut further: BTreeMap<String, Entry> = BTreeMap::new();
    // Of Debian's packages those that this machine has.
    if !recipe.packages.is_empty() {
        let files = entries(Path::new("/"), &files_of(recipe.packages)?)?;
        further.extend(files.into_iter().map(|entry| (entry.path.clone(), entry)));
        libraries = libraries.into_iter().map(|(path, bytes)| (merged(&path), bytes)).collect();
    }
    for (path, bytes) in libraries {
        further.entry(path.clone()).or_insert_with(|| Entry::program(&path, bytes));
    }
    let further: Vec<Entry> = further.into_values().collect();
    let source = Source { revision: "test".to_owned(), time: 1_700_000_000 };
    let image = recipe.image(Machine::here()?.image, &binaries, &further, &source)?;
    if is_shipped {
        ensure!(image.size() < LIMIT, "{}: {} bytes to fetch", recipe.name, image.size());
    }
    Ok(image)
}

/// The files and links of packages that are installed here, by their paths without the slash in front.
fn files_of(packages: &[&str]) -> Result<Vec<PathBuf>> {
    let output = Command::new("dpkg-query").arg("-L").args(packages).output().context("dpkg")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all = String::from_utf8(output.stdout)?;
    let paths = all.lines().filter(|path| !fs::symlink_metadata(path).is_ok_and(|at| at.is_dir()));
    let paths = paths
        .filter_map(|path| path.strip_prefix('/'))
        .filter(|path| Path::new("/").join(path).exists());
    Ok(paths.map(PathBuf::from).collect())
}

/// The libraries of a program and its loader, by their paths without the slash in front.
fn linked(program: &Path, libraries: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8(output.stdout)?;
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    for path in paths {
        let bytes = fs::read(path).with_context(|| path.to_owned())?;
        libraries.insert(path.trim_start_matches('/').to_owned(), bytes);
    }
    ensure!(!libraries.is_empty(), "ldd names no library of {}", program.display());
    Ok(())
}

fn node(subnet: u8) -> Result<(Host, Containerd)> {
    let host = Host::new()?;
    let list = List::bridge(&host, "1.0.0", subnet);
    let containerd = Containerd::start(&host, &list)?;
    Ok((host, containerd))
}

fn load(host: &Host, containerd: &Containerd, name: &str, archive: &[u8]) -> Result<()> {
    let path = host.folder().join(name);
    fs::write(&path, archive).context("an archive")?;
    containerd.import_archive(host, &path)
}

/// Verify that the init container captures with the injector's arguments, user and capabilities, that the
/// validation sees it without any capability, and sees that nothing is captured where nothing is.
#[test]
fn the_init_image_captures_a_pod_as_the_injector_writes_it() -> Result<()> {
    let (host, containerd) = node(60)?;
    let archive = oci_archive(&[image(&INIT)?], INIT_IMAGE)?;
    load(&host, &containerd, "init.oci.tar", &archive)?;
    let pod = containerd.run_pod("meshed", &json!({ "a": "b" }))?;

    let before = validation(&containerd, &pod, "before")?;
    ensure!(before.code == 126, "nothing is captured yet: {before:?}");
    let without =
        containerd.run_to_end(&pod, &Expected { name: "without", capabilities: &[], ..init() })?;
    ensure!(without.code != 0 && without.log.contains("NET_ADMIN"), "{without:?}");

    let applied = containerd.run_to_end(&pod, &init())?;
    ensure!(applied.code == 0, "{applied:?}");
    let after = validation(&containerd, &pod, "istio-validation")?;
    ensure!(after.code == 0, "{after:?}");

    let _proxy = host.proxy(&pod.pod)?;
    let address = pod.addresses.first().context("a pod without an address")?;
    let inbound = host.dial(None, ROOT, &format!("{address}:8080"))?.context("inbound")?;
    assert_eq!((inbound.name.as_str(), inbound.port), ("proxy", 15006), "{inbound:?}");
    assert_eq!(inbound.original, Some(format!("{address}:8080").parse()?));
    Ok(())
}

/// Verify that `NET_ADMIN` alone does, from docker's archive, with the image's own user; that a second
/// run changes nothing; and that the program answers to the name of every mesh's tool that it has.
#[test]
fn the_init_image_needs_one_capability_and_answers_to_every_name() -> Result<()> {
    let (host, containerd) = node(61)?;
    load(&host, &containerd, "init.docker.tar", &image(&INIT)?.docker_archive(INIT_IMAGE)?)?;
    let pod = containerd.run_pod("meshed", &json!({ "a": "b" }))?;
    for name in ["first", "second"] {
        let wanted = Expected { name, user: None, capabilities: &["NET_ADMIN"], ..init() };
        let ended = containerd.run_to_end(&pod, &wanted)?;
        ensure!(ended.code == 0, "{name}: {ended:?}");
    }
    let after = validation(&containerd, &pod, "istio-validation")?;
    ensure!(after.code == 0, "{after:?}");
    for (number, link) in INIT.links.iter().enumerate() {
        let (command, name) = (format!("/{link}"), format!("help-{number}"));
        let (arguments, flag): (&[&str], _) = match command.rsplit('/').next() {
            Some("pilot-agent") => (&["istio-iptables", "--help"], "--inbound-capture-port"),
            Some("istio-iptables") => (&["--help"], "--inbound-capture-port"),
            Some("linkerd2-proxy-init") => (&["--help"], "--incoming-proxy-port"),
            Some("kumactl") => (&["install", "transparent-proxy", "--help"], "--kuma-dp-user"),
            Some("consul") => (&["connect", "redirect-traffic", "--help"], "-proxy-inbound-port"),
            _ => bail!("what does {command} answer?"),
        };
        let wanted = Expected {
            name: &name,
            image: INIT_IMAGE,
            command: &[&command],
            arguments,
            ..Default::default()
        };
        let ended = containerd.run_to_end(&pod, &wanted)?;
        ensure!(ended.code == 0 && ended.log.contains(flag), "{command}: {ended:?}");
    }
    // There is no shell.
    let shell =
        Expected { name: "shell", image: INIT_IMAGE, command: &["/bin/sh"], ..Default::default() };
    let error = containerd.run_to_end(&pod, &shell).err().context("a shell was started")?;
    ensure!(format!("{error:#}").contains("/bin/sh"), "{error:#}");
    Ok(())
}

/// Verify that the image with iptables captures by iptables-legacy, on a root file system that can't be
/// written, and by the binaries of iptables-nft.
#[test]
fn the_image_with_iptables_has_both() -> Result<()> {
    let (host, containerd) = node(63)?;
    let archive = oci_archive(&[image(&INIT_IPTABLES)?], INIT_IMAGE)?;
    load(&host, &containerd, "init.oci.tar", &archive)?;
    for which in ["legacy", "nft"] {
        let pod = containerd.run_pod(which, &json!({ "a": "b" }))?;
        let arguments = [&ARGUMENTS[..], &["--force-iptables-binary", which]].concat();
        if which == "legacy" {
            // A raw socket is how it talks to the kernel.
            let capabilities = &["NET_ADMIN"];
            let wanted = Expected { name: "no-raw", arguments: &arguments, capabilities, ..init() };
            let ended = containerd.run_to_end(&pod, &wanted)?;
            ensure!(ended.code == 1 && ended.log.contains("NET_RAW"), "{ended:?}");
        }
        let wanted = Expected { arguments: &arguments, ..init() };
        let ended = containerd.run_to_end(&pod, &wanted)?;
        ensure!(ended.code == 0, "{which}: {ended:?}");
        let save = Expected {
            name: "save",
            image: INIT_IMAGE,
            command: &[&format!("/usr/sbin/iptables-{which}-save")],
            arguments: &[],
            ..init()
        };
        let saved = containerd.run_to_end(&pod, &save)?;
        ensure!(
            saved.log.contains("-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001"),
            "{which}: {saved:?}"
        );
        let _proxy = host.proxy(&pod.pod)?;
        let address = pod.addresses.first().context("a pod without an address")?;
        let inbound = host.dial(None, ROOT, &format!("{address}:8080"))?.context("inbound")?;
        ensure!((inbound.name.as_str(), inbound.port) == ("proxy", 15006), "{which}: {inbound:?}");
    }
    Ok(())
}

/// Verify that the node agent's image installs the plugin on a host whose folders it is given, and has it found
/// installed, without any capability.
#[test]
fn the_node_image_installs_the_plugin() -> Result<()> {
    let (host, containerd) = node(62)?;
    let archive = oci_archive(&[image(&NODE)?], NODE_IMAGE)?;
    load(&host, &containerd, "node.oci.tar", &archive)?;
    let pod = containerd.run_pod("agent", &json!({ "a": "b" }))?;
    let folder = |name: &str| -> Result<_> {
        let path = host.folder().join("of-the-node").join(name);
        fs::create_dir_all(&path).context("a folder")?;
        Ok(path)
    };
    let (bin, conf, run, state) =
        (folder("bin")?, folder("net.d")?, folder("run")?, folder("state")?);
    let list = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "bridge" }] });
    let file = conf.join("10-pods.conflist");
    fs::write(&file, list.to_string()).context("a list")?;
    let folders = [
        (bin.as_path(), "/opt/cni/bin"),
        (conf.as_path(), "/etc/cni/net.d"),
        (run.as_path(), "/run/millrace-node"),
        (state.as_path(), "/var/lib/millrace-node"),
    ];
    for verb in ["install", "status"] {
        let wanted = Expected {
            name: verb,
            image: NODE_IMAGE,
            arguments: &[verb, "--kubeconfig", "none"],
            folders: &folders,
            ..Default::default()
        };
        let ended = containerd.run_to_end(&pod, &wanted)?;
        ensure!(ended.code == 0, "{verb}: {ended:?}");
    }
    let list: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    assert_eq!(list["plugins"][1]["type"], "millrace-cni", "{list}");
    let installed = fs::read(bin.join("millrace-cni")).context("the plugin")?;
    ensure!(installed == fs::read(binary::millrace_cni()?)?, "another plugin was installed");
    Ok(())
}
