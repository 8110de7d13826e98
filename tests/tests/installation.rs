//! What is installed: programs that are missing, how many of them are run, Millrace's names, and its Debian
//! package.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::capture::{Variant, millrace, millrace_in_pod, ran, wrapped};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};
use xtask::deb;
use xtask::dist::Machine;
use xtask::image::Source;

const NFT: [&str; 4] =
    ["iptables-nft-save", "iptables-nft-restore", "ip6tables-nft-save", "ip6tables-nft-restore"];
const LEGACY: [&str; 4] = [
    "iptables-legacy-save",
    "iptables-legacy-restore",
    "ip6tables-legacy-save",
    "ip6tables-legacy-restore",
];

/// Millrace where of all programs of iptables only these are installed: in a mount namespace of
/// its own, in which the folder that has them is another one.
fn with_only(programs: &[&str], args: &[&str]) -> Result<Command> {
    const SCRIPT: &str = "set -e; names=$1; shift; mkdir -p /run/sbin; \
                          mount --bind /usr/sbin /run/sbin; mount -t tmpfs none /usr/sbin; \
                          for name in $names; do ln -s /run/sbin/$name /usr/sbin; done; exec \"$@\"";
    let names = programs.join(" ");
    let shell = ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", &names];
    Ok(wrapped(&shell, &millrace(args)?))
}

/// The programs that are there, a command line, its exit code, and what it must say.
type Case<'a> = (&'a [&'a str], &'a [&'a str], (i32, Vec<&'a str>));

/// Verify that no program is needed but by those who ask for one, and that what is missing then is
/// named together with what to install, and nothing stays changed.
#[test]
fn programs_are_missing() -> Result<()> {
    let apply = ["apply", "--mode", "tproxy"];
    let [nft, legacy] =
        ["nft", "legacy"].map(|variant| [&apply[..], &["--iptables", variant]].concat());
    let no_v6 = [&nft[..], &["--ipv6", "off"]].concat();
    let backend = |name| [&apply[..], &["--backend", name]].concat();
    let [by_netlink, by_legacy] = ["iptables-nft", "iptables-legacy"].map(backend);
    let istio = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*"];
    let captured = |said| (0, vec![said]);
    let refused = |said| (1, vec![said, "install the package iptables"]);
    let v6 = "ip6tables-nft-restore is not installed: install the package iptables with its IPv6";
    // Linkerd's proxy-init takes another iptables for one that is not there.
    let linkerd = ["linkerd", "-p", "4143", "-o", "4140", "-u", "2102"];
    let cases: [Case<'_>; 16] = [
        (&[], &linkerd, captured("using iptables-nft: the kernel has nf_tables")),
        (&LEGACY, &linkerd, captured("using iptables-legacy: the default of proxy-init")),
        (&[], &apply, captured("using nftables: the kernel has nf_tables")),
        (&[], &istio, captured("using iptables-nft: the kernel has nf_tables")),
        (&[], &by_netlink, captured("using iptables-nft: asked for")),
        (&NFT, &nft, captured("using iptables-nft by its programs: asked for")),
        (&LEGACY, &legacy, captured("using iptables-legacy: asked for")),
        (&LEGACY, &by_legacy, captured("using iptables-legacy: asked for")),
        (&NFT, &legacy, refused("iptables-legacy was asked for")),
        (&NFT, &by_legacy, refused("iptables-legacy was asked for")),
        (&LEGACY, &nft, refused("iptables-nft was asked for")),
        (&NFT[..2], &nft, refused(v6)),
        (&LEGACY[..2], &legacy, refused("ip6tables-legacy-restore is not installed")),
        (&NFT[..2], &no_v6, captured("using iptables-nft")),
        // Nothing is there, so nothing has to be run.
        (&[], &["cleanup"], (0, vec!["nothing to do"])),
        (&[], &["status"], (3, vec!["not captured"])),
    ];
    for (programs, args, (code, wanted)) in cases {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let before = Snapshot::take(&topology.pod)?;
        let (is, said) = ran(&topology.pod, &mut with_only(programs, args)?)?;
        let what = format!("{args:?} with {programs:?}: {said}");
        assert_eq!(is, Some(code), "{what}");
        for text in wanted {
            ensure!(said.contains(text), "{text:?} is not in {what}");
        }
        let after = Snapshot::take(&topology.pod)?;
        assert_eq!(code == 0 && args != ["cleanup"], before != after, "{what}");
    }
    Ok(())
}

/// Verify that rules of iptables-legacy that can't be removed, since its programs are not installed,
/// are not taken for nothing; they are read without any.
#[test]
fn rules_of_iptables_legacy_without_its_programs() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    millrace_in_pod(&topology, &["apply", "--iptables", "legacy"], 0)?;
    let before = Snapshot::take(&topology.pod)?;
    for args in [&["apply", "--dns", "all"][..], &["cleanup"], &["status"]] {
        let (code, said) = ran(&topology.pod, &mut with_only(&NFT, args)?)?;
        if args == ["status"] {
            assert_eq!(code, Some(0), "{said}");
            continue;
        }
        assert_eq!(code, Some(1), "{args:?}: {said}");
        let missing = "iptables-legacy-restore is not installed: install the package";
        ensure!(said.contains(missing), "{args:?}: {said}");
    }
    assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    Ok(())
}

/// Verify that rules which programs of iptables-nft wrote are changed and removed without them.
#[test]
fn rules_of_iptables_nft_without_its_programs() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let before = Snapshot::take(&topology.pod)?;
    millrace_in_pod(&topology, &["apply", "--iptables", "nft"], 0)?;
    for (args, wanted) in [
        (&["apply"][..], "using iptables-nft: it holds rules of an earlier run\nno change"),
        (&["apply", "--dns", "all"], "iptables-nft transaction of"),
        (&["status"], "captured: IPv4 and IPv6 by iptables-nft"),
        (&["cleanup"], "iptables-nft transaction of"),
    ] {
        let (code, said) = ran(&topology.pod, &mut with_only(&[], args)?)?;
        assert_eq!(code, Some(0), "{args:?}: {said}");
        ensure!(said.contains(wanted), "{args:?}: {said}");
    }
    assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    Ok(())
}

/// The programs that a run of millrace starts, by name.
fn started(topology: &Topology, args: &[&str]) -> Result<Vec<String>> {
    let file = tempfile::NamedTempFile::new().context("a trace")?;
    let path = file.path().to_str().context("a path that is not UTF-8")?;
    let strace = ["strace", "-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-o", path];
    let (code, said) = ran(&topology.pod, &mut wrapped(&strace, &millrace(args)?))?;
    ensure!(code == Some(0), "{args:?}: {said}");
    let trace = fs::read_to_string(path).context("a trace")?;
    let programs = trace.lines().filter_map(|line| line.split_once("execve(\"")?.1.split_once('"'));
    let names: Vec<String> =
        programs.filter_map(|(path, _)| Some(path.rsplit_once('/')?.1.to_owned())).collect();
    // The first is Millrace itself.
    Ok(names.get(1..).context("an empty trace")?.to_vec())
}

/// Verify how few programs are run, where any are asked for.
#[test]
fn few_programs_are_run() -> Result<()> {
    for way in [&["--backend", "nftables"][..], &["--backend", "iptables-nft"], &[]] {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let apply = [&["apply", "--mode", "tproxy"], way].concat();
        for args in [&apply[..], &apply, &["status"], &["cleanup"]] {
            ensure!(started(&topology, args)?.is_empty(), "{args:?} runs a program");
        }
    }
    for variant in Variant::ALL {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let apply = ["apply", "--mode", "tproxy", "--dns", "all", "--iptables", variant.as_str()];
        let other = ["apply", "--iptables", variant.as_str()];
        let restore: BTreeSet<String> =
            ["iptables", "ip6tables"].map(|f| format!("{f}-{}-restore", variant.as_str())).into();
        // The kernel itself gives the rules of either, so a run that changes nothing runs none.
        let steps = [
            (&apply[..], restore.clone()),
            (&apply, BTreeSet::new()),
            (&other, restore.clone()),
            // Rules of iptables-nft are removed by netlink, whoever wrote them.
            (&["cleanup"], if variant == Variant::Nft { BTreeSet::new() } else { restore }),
        ];
        for (args, wanted) in steps {
            let run = started(&topology, args)?;
            let set: BTreeSet<String> = run.iter().cloned().collect();
            ensure!(set == wanted && set.len() == run.len(), "{args:?} runs {run:?}");
        }
    }
    Ok(())
}

/// Verify that under the names of the reference tool Millrace is that tool.
#[test]
fn other_names() -> Result<()> {
    let folder = tempfile::tempdir().context("a folder for links")?;
    let flags =
        ["-p", "15101", "-z", "15106", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-b", "*"];
    let mut states = Vec::new();
    for words in [
        &["millrace", "istio-iptables"][..],
        &["istio-iptables"],
        &["pilot-agent", "istio-iptables"],
    ] {
        let link = folder.path().join(words[0]);
        symlink(binary::millrace()?, &link).context("a link")?;
        let command = |args: &[&str]| {
            let mut command = Command::new(&link);
            command.args(&words[1..]).args(args).env_clear();
            command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
            command
        };
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let (code, said) = ran(&topology.pod, &mut command(&["--help"]))?;
        assert_eq!(code, Some(0), "{words:?}: {said}");
        for flag in ["--istio-inbound-interception-mode", "--inbound-capture-port", "--dry-run"] {
            ensure!(said.contains(flag), "{words:?} --help has no {flag}: {said}");
        }
        let (code, said) = ran(&topology.pod, &mut command(&["--no-such-flag"]))?;
        assert_eq!(code, Some(255), "{words:?}: {said}");
        let (code, said) = ran(&topology.pod, &mut command(&flags))?;
        assert_eq!(code, Some(0), "{words:?}: {said}");
        states.push(Snapshot::take(&topology.pod)?);
        let chains: Vec<_> = states[0].chains.keys().collect();
        ensure!(chains.iter().any(|c| c.ends_with(" ISTIO_OUTPUT")), "{chains:?}");
    }
    for state in &states {
        let [a, b] = [&states[0], state].map(|s| s.clone().without_counters());
        assert_eq!(a.differences(&b), "");
    }
    let mut proxy = Command::new(folder.path().join("pilot-agent"));
    let topology = Topology::new(Stack::V4, Layout::default())?;
    let (code, said) = ran(&topology.pod, proxy.args(["proxy", "sidecar"]))?;
    assert_eq!(code, Some(2), "{said}");
    ensure!(said.contains("only the sub-command istio-iptables"), "{said}");
    Ok(())
}

/// A program's standard output, if it succeeds.
fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().context(program.to_owned())?;
    ensure!(output.status.success(), "{program} {args:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Verify that dpkg installs the Debian package and removes it without a trace, that everything is where
/// Debian looks for it, and that its bytes follow from its contents.
#[test]
fn the_debian_package() -> Result<()> {
    let folder = tempfile::tempdir().context("a folder")?;
    let at = |name: &str| folder.path().join(name);
    for (place, text) in [
        ("man/millrace.8", ".TH millrace 8\n"),
        ("completions/millrace.bash", "complete\n"),
        ("completions/_millrace", "#compdef millrace\n"),
        ("completions/millrace.fish", "complete -c millrace\n"),
    ] {
        fs::create_dir_all(at(place).parent().context("a folder")?)?;
        fs::write(at(place), text)?;
    }
    let further = deb::documentation(folder.path())?;
    // What is in them is nothing to the package: these are small.
    let binaries = ["true", "false", "true"].map(|name| fs::read(binary::system(name).ok()?).ok());
    let binaries: Vec<Vec<u8>> =
        binaries.into_iter().collect::<Option<_>>().context("coreutils")?;
    let make = |time| {
        let source = Source { revision: "test".to_owned(), time };
        deb::package(Machine::here()?, &binaries, &further, &source, deb::MAINTAINER)
    };
    let package = make(1_700_000_000)?;
    ensure!(package == make(1_700_000_000)?, "the same makes another package");
    ensure!(package != make(1_700_000_001)?, "files do not have the time of the commit");
    let file = at(&deb::file_name(Machine::here()?));
    fs::write(&file, package)?;
    let file = file.to_str().context("a path")?;

    let fields = output("dpkg-deb", &["--field", file])?;
    let architecture = output("dpkg", &["--print-architecture"])?;
    for field in ["Package: millrace\n", "Version: ", &format!("Architecture: {architecture}")] {
        ensure!(fields.contains(field), "{field:?} is not in {fields}");
    }
    let root = at("root");
    for folder in ["updates", "info"] {
        fs::create_dir_all(root.join("var/lib/dpkg").join(folder))?;
    }
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    let of_root = format!("--root={}", root.display());
    output("dpkg", &[&of_root, "--install", file])?;
    let listed = output("dpkg", &[&of_root, "--listfiles", "millrace"])?;
    let wanted = [
        ("usr/sbin/millrace", 0o755),
        ("usr/sbin/millrace-cni", 0o755),
        ("usr/sbin/millrace-node", 0o755),
        ("usr/share/bash-completion/completions/millrace", 0o644),
        ("usr/share/fish/vendor_completions.d/millrace.fish", 0o644),
        ("usr/share/man/man8/millrace.8.gz", 0o644),
        ("usr/share/zsh/vendor-completions/_millrace", 0o644),
    ];
    for (path, mode) in wanted {
        ensure!(listed.lines().any(|line| line == format!("/{path}")), "{path}: {listed}");
        let meta = fs::metadata(root.join(path)).context(path)?;
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, 0, 0), "{path}");
    }
    ensure!(fs::read(root.join("usr/sbin/millrace-cni"))? == binaries[1], "another binary");
    let changed = || output("dpkg", &[&of_root, "--verify", "millrace"]);
    ensure!(changed()?.is_empty(), "{}", changed()?);
    fs::write(root.join("usr/sbin/millrace-cni"), "another")?;
    let said = Command::new("dpkg").args([&of_root, "--verify", "millrace"]).output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(said.contains("usr/sbin/millrace-cni") && said.lines().count() == 1, "{said}");
    output("dpkg", &[&of_root, "--remove", "millrace"])?;
    for (path, _) in wanted {
        ensure!(fs::symlink_metadata(root.join(path)).is_err(), "{path} is left");
    }
    Ok(())
}
