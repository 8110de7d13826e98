//! iptables from 1.8.7 and nft from 0.9.8 to the newest, of other Debian releases: what Millrace writes
//! is what each of them reads, and what they write is what Millrace reads.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_core::iptables::Dump;
use millrace_core::observed::{Observed, Variant};
use millrace_core::plan::Preference;
use millrace_core::preflight::Backend;
use millrace_core::ruleset::{Rule, Ruleset};
use millrace_core::value::Family;
use millrace_core::value::Groups;
use millrace_host::engine::Session;
use millrace_host::exec;
use millrace_host::observe::Depth;
use millrace_tests::capture::{Capture as _, IptablesByNetlink, millrace, ran, write};
use millrace_tests::cases::{self, Config};
use millrace_tests::istio::golden;
use millrace_tests::netns::Namespace;
use millrace_tests::topology::{Layout, Stack, Topology};

/// The programs of a release.
struct Release {
    name: String,
    bin: PathBuf,
}

impl Release {
    /// All of them; they are fetched when they are not there.
    fn all() -> Result<Vec<Self>> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("iptables");
        // One test at a time fetches them.
        let lock = File::create(folder.with_extension("lock"))?;
        lock.lock()?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/other-iptables");
        let fetch = Command::new(script).arg(&folder).output().context("other-iptables")?;
        let said = String::from_utf8_lossy(&fetch.stderr);
        ensure!(fetch.status.success(), "scripts/other-iptables: {said}");
        let names = ["bullseye", "bookworm", "trixie", "sid"];
        let release =
            |name: &str| Self { name: name.to_owned(), bin: folder.join(name).join("bin") };
        Ok(names.map(release).into())
    }

    fn program(&self, name: &str) -> Result<String> {
        let path = self.bin.join(name);
        Ok(path.to_str().context("a path that is UTF-8")?.to_owned())
    }

    /// PATH with these in front of it.
    fn path(&self) -> Result<OsString> {
        let path = std::env::var_os("PATH").context("PATH is not set")?;
        let all = std::iter::once(self.bin.clone()).chain(std::env::split_paths(&path));
        Ok(std::env::join_paths(all)?)
    }

    /// What its iptables says of a family.
    fn saved(&self, namespace: &Namespace, family: Family) -> Result<Dump> {
        let name = match family {
            Family::V4 => "iptables-nft-save",
            Family::V6 => "ip6tables-nft-save",
        };
        let text = namespace.run(&self.program(name)?, &["-c"])?;
        ensure!(!text.contains("incompatible"), "{}: {text}", self.name);
        Ok(Dump::parse(&text)?)
    }
}

/// The rules of a dump in the form in which they can be compared, table by table and chain by chain.
type Rules = Vec<(String, Vec<Rule>)>;

fn rules(dump: &Dump, groups: &Groups) -> Result<Rules> {
    let mut all = Rules::new();
    for table in &dump.tables {
        for chain in table.chains.iter().filter(|chain| !chain.rules.is_empty()) {
            let rules = chain.rules.iter().map(|rule| {
                let known = rule.rule.as_ref().map(|known| known.canonical(groups));
                known.map_err(|why| anyhow::anyhow!("{}: {why:?}", rule.text))
            });
            all.push((format!("{} {}", table.name, chain.name), rules.collect::<Result<_>>()?));
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(all)
}

fn wanted(ruleset: &Ruleset, family: Family, groups: &Groups) -> Rules {
    let chains = ruleset.chains(family).into_iter().map(|((table, chain), emissions)| {
        let rules: Vec<Rule> = emissions.iter().map(|e| e.rule.canonical(groups)).collect();
        (format!("{table} {chain}"), rules)
    });
    let mut all: Rules = chains.collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all
}

fn seen(namespace: &Namespace) -> Result<Observed> {
    namespace.enter(|| Ok(Session::open()?.observe(&exec::Options::default(), Depth::Fast)?))?
}

fn pod() -> Result<Namespace> {
    let namespace = Namespace::new()?;
    namespace.run("ip", &["link", "set", "lo", "up"])?;
    Ok(namespace)
}

/// Verify for every golden file that each version reads what was written by netlink, rule by rule, and
/// that each nft can list it.
#[test]
fn what_is_written_by_netlink_is_read_by_every_version() -> Result<()> {
    let releases = Release::all()?;
    let (files, groups) = golden();
    for (path, ruleset) in files {
        let pod = pod()?;
        write(&pod, &ruleset, Preference::Backend(Backend::IptablesNft), &groups)?;
        for release in &releases {
            let what = || format!("{} by {}", path.display(), release.name);
            for family in ruleset.families() {
                let saved = rules(&release.saved(&pod, family)?, &groups).with_context(what)?;
                assert_eq!(saved, wanted(&ruleset, family, &groups), "{}", what());
            }
            pod.run(&release.program("nft")?, &["list", "ruleset"]).with_context(what)?;
        }
    }
    Ok(())
}

/// A configuration with ports, ranges, marks, users and both families, as istio-iptables has it.
const FLAGS: [&str; 15] = [
    "istio-iptables",
    "--dual-stack",
    "--redirect-dns",
    "--capture-all-dns",
    "--drop-invalid",
    "-m",
    "TPROXY",
    "-u",
    "1337",
    "-d",
    "15090,15021",
    "-o",
    "9092,1:5",
    "--force-iptables-binary",
    "nft",
];

fn by(release: &Release, args: &[&str]) -> Result<Command> {
    let mut command = millrace(args)?;
    command.env("PATH", release.path()?);
    Ok(command)
}

/// The kernel's numbers of all rules: none stays the same when it is written again.
fn handles(namespace: &Namespace) -> Result<Vec<u64>> {
    let observed = seen(namespace)?;
    let dumps = observed.holdings.iter().flat_map(|holding| &holding.dump.tables);
    let rules = dumps.flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    Ok(rules.filter_map(|rule| Some(rule.kernel.as_ref()?.handle)).collect())
}

fn succeeds(namespace: &Namespace, command: &mut Command) -> Result<()> {
    let (code, said) = ran(namespace, command)?;
    ensure!(code == Some(0), "{command:?}: {code:?}\n{said}");
    Ok(())
}

/// Verify that what programs of each version write is what netlink writes, that a second run changes
/// nothing whoever was first, that another configuration replaces it, and that a cleanup leaves nothing.
#[test]
fn what_every_version_writes_is_read() -> Result<()> {
    let there = Topology::new(Stack::Dual, Layout::default())?;
    let by_netlink = &there.pod;
    let netlink = &FLAGS[..FLAGS.len() - 2];
    succeeds(by_netlink, &mut millrace(netlink)?)?;
    let groups = Groups::new();
    let meaning = |namespace: &Namespace| -> Result<Vec<Rules>> {
        let observed = seen(namespace)?;
        let dump = |family| observed.holding(Variant::Nft, family).context("tables");
        Family::ALL.into_iter().map(|family| rules(dump(family)?, &groups)).collect()
    };
    for release in Release::all()? {
        let what = || release.name.clone();
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let pod = &topology.pod;
        succeeds(pod, &mut by(&release, &FLAGS)?).with_context(what)?;
        assert_eq!(meaning(pod)?, meaning(by_netlink)?, "{}", what());
        for namespace in [pod, by_netlink] {
            let before = handles(namespace)?;
            assert!(before.len() > 20, "{before:?}");
            succeeds(namespace, &mut by(&release, &FLAGS)?).with_context(what)?;
            succeeds(namespace, &mut millrace(netlink)?).with_context(what)?;
            assert_eq!(handles(namespace)?, before, "{}", what());
        }
        let other = [&FLAGS[..], &["--reconcile", "-b", "80,443"]].concat();
        succeeds(pod, &mut by(&release, &other)?).with_context(what)?;
        assert_ne!(meaning(pod)?, meaning(by_netlink)?, "{}", what());
        succeeds(pod, &mut millrace(["cleanup"])?).with_context(what)?;
        assert_eq!(handles(pod)?, Vec::<u64>::new(), "{}", what());
    }
    Ok(())
}

/// Everything about a namespace's rules that must be there again: their bytes, counters and order.
fn bytes(namespace: &Namespace) -> Result<Vec<String>> {
    let observed = seen(namespace)?;
    let mut lines = Vec::new();
    for holding in &observed.holdings {
        for table in &holding.dump.tables {
            for chain in &table.chains {
                for rule in &chain.rules {
                    let kernel = rule.kernel.as_ref().map(|kernel| &kernel.attributes);
                    let place = format!("{} {} {}", holding.family, table.name, chain.name);
                    lines.push(format!("{place} {} {:?} {kernel:?}", rule.text, rule.counters));
                }
            }
        }
    }
    Ok(lines)
}

/// Verify that a run by programs that fails halfway gives back, byte for byte, what programs of any
/// version and netlink had written, ports and counters included.
#[test]
fn what_is_taken_back_is_what_was_there() -> Result<()> {
    let releases = Release::all()?;
    let oldest = releases.first().context("a release")?;
    // IPv4 comes first, and is committed when IPv6 fails.
    let folder = tempfile::tempdir()?;
    let failing = folder.path().join("ip6tables-nft-restore");
    fs::write(&failing, "#!/bin/sh\necho no luck >&2\nexit 1\n")?;
    fs::set_permissions(&failing, fs::Permissions::from_mode(0o755))?;
    let path = |release: &Release| -> Result<OsString> {
        let all = [folder.path().to_owned(), release.bin.clone()];
        let rest = release.path()?;
        Ok(std::env::join_paths(all.into_iter().chain(std::env::split_paths(&rest)))?)
    };
    for writer in [None].into_iter().chain(releases.iter().map(Some)) {
        let topology = Topology::new(Stack::Dual, Layout::default())?.settled()?;
        let case =
            cases::all().into_iter().find(|case| matches!(case.config, Config::Istio { .. }));
        let case = case.context("a case")?;
        let pod = &topology.pod;
        match writer {
            None => IptablesByNetlink.apply(&topology, &case.config)?,
            Some(release) => succeeds(pod, &mut by(release, &FLAGS)?)?,
        }
        let others = ["-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", "2", "-j", "RETURN"];
        pod.run("iptables-nft", &others)?;
        // Packets that count.
        millrace_tests::scenario::astray(&topology, case.ports, &case.probes)?;
        topology.quiet()?;
        let before = bytes(pod)?;
        let other = [&FLAGS[..], &["--reconcile", "-b", "80,443", "-p", "15111"]].concat();
        let mut command = millrace(&other)?;
        command.env("PATH", path(oldest)?);
        let (code, said) = ran(pod, &mut command)?;
        let who = writer.map_or("netlink", |release| &release.name);
        assert!(code != Some(0) && said.contains("no luck"), "{who}: {code:?} {said}");
        assert!(said.contains("what was there before is there again"), "{who}: {said}");
        let after = bytes(pod)?;
        let pairs = before.iter().zip(&after).filter(|(a, b)| a != b);
        let differ: Vec<_> = pairs.map(|(a, b)| format!("{a}\n{b}")).collect();
        assert!(before == after, "{who}:\n{}", differ.join("\n"));
    }
    Ok(())
}
