//! The recorded runs of istio-iptables 1.32, repeated with the real program: the same command line
//! and environment in a namespace with the same addresses. The recordings are not part of the
//! repository; they are read from `../shared/reference` when that folder is there.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_core::infer::of_saved;
use millrace_core::observed::Observed;
use millrace_core::sim::of_nft_json;
use millrace_core::status::read_native_back;
use millrace_tests::binary;
use millrace_tests::capture::{self, Variant, ran};
use millrace_tests::netns::Namespace;
use millrace_tests::snapshot::Snapshot;
use serde_json::Value;

struct Recording {
    name: String,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    addresses: Vec<String>,
    name_servers: Vec<String>,
    golden: String,
    /// Whether the reference fails.
    fails: bool,
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| Some(v.as_str()?.to_owned())).collect()
}

/// Say it where the test harness can't keep it, as it keeps what a macro prints of a test that
/// passes.
fn skipped(suite: &str, place: &Path) -> Result<()> {
    writeln!(io::stderr(), "SKIPPED: {suite}: the recordings are not at {}", place.display())?;
    Ok(())
}

/// The recordings of a suite; none when the folder is not there.
fn recordings(suite: &str) -> Result<Vec<Recording>> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/istio").join(suite);
    let Ok(entries) = fs::read_dir(&folder) else {
        skipped(suite, &folder)?;
        return Ok(Vec::new());
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
    paths.sort();
    paths.iter().map(|path| read(path).with_context(|| path.display().to_string())).collect()
}

fn read(path: &Path) -> Result<Recording> {
    let json: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let env = json["env"].as_object().context("env")?;
    // The reference fails where it jumps to a chain that it did not make.
    let fails = json["exit_code"].as_u64() == Some(1);
    let golden =
        if fails { String::new() } else { fs::read_to_string(path.with_extension("golden"))? };
    Ok(Recording {
        name: path.display().to_string(),
        argv: strings(&json["argv"]),
        env: env.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or("").to_owned())).collect(),
        addresses: strings(&json["host"]["interface_addresses"]),
        name_servers: strings(&json["host"]["resolv_conf_nameservers"]),
        // The recorded test put in an address that a real resolver list gives back in hexadecimal.
        golden: golden.replace("::127.0.0.53", "::7f00:35"),
        fails,
    })
}

impl Recording {
    /// A namespace with the recorded addresses, in the order in which a kernel lists them.
    fn namespace(&self) -> Result<Namespace> {
        let servers: Vec<String> =
            self.name_servers.iter().map(|s| format!("nameserver {s}\n")).collect();
        let namespace = Namespace::with_resolv_conf(Some(&servers.concat()))?;
        let mut lines = "link set lo up\n".to_owned();
        for address in self.addresses.iter().filter(|a| !a.starts_with("127.") && *a != "::1/128") {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            lines.push_str(&format!("addr add {address} dev lo{nodad}\n"));
        }
        namespace.ip(&lines)?;
        Ok(namespace)
    }

    /// Whether a kernel lists the addresses in the recorded order: IPv4 in front.
    fn is_in_kernel_order(&self) -> bool {
        let families: Vec<bool> = self.addresses.iter().map(|a| a.contains(':')).collect();
        families.is_sorted()
    }

    /// The command line, with the reference's choice of families; `live` without its dry run, and
    /// with these words behind it.
    fn command(&self, out: &Path, live: Option<&[&str]>) -> Result<Command> {
        let mut command = Command::new(binary::millrace()?);
        command.arg0("istio-iptables").env_clear();
        command.env("PATH", std::env::var_os("PATH").context("PATH")?);
        command.env("MILLRACE_IPV6_AS_REFERENCE", "true");
        let is_dry = |word: &&String| *word == "--dry-run" || *word == "-n";
        let words = self.argv.iter().skip(1).filter(|w| live.is_none() || !is_dry(w));
        command.args(words);
        for (name, value) in self.env.iter().filter(|(name, _)| live.is_none() || name != "DRY_RUN")
        {
            command.env(name, value.replace("{OUT}", &out.display().to_string()));
        }
        command.env("DRY_RUN_FILE_PATH", out);
        command.args(live.into_iter().flatten());
        Ok(command)
    }

    /// The same with a number for the group that exists on no machine but in the recordings.
    fn without_names(&self) -> Self {
        let number = |text: &String| text.replace("java", "202");
        Self {
            name: self.name.clone(),
            argv: self.argv.clone(),
            env: self.env.iter().map(|(name, value)| (name.clone(), number(value))).collect(),
            addresses: self.addresses.clone(),
            name_servers: self.name_servers.clone(),
            golden: number(&self.golden),
            fails: self.fails,
        }
    }

    /// What iptables-restore of IPv4 and of IPv6 got. Tables come in order, so that one that comes
    /// again, or too late, begins the second family.
    fn restores(&self) -> [String; 2] {
        let mut inputs = [String::new(), String::new()];
        let (mut family, mut last) = (0, "");
        for line in self.golden.lines() {
            if let Some(table) = line.strip_prefix("* ") {
                if table <= last {
                    family = 1;
                }
                last = table;
            }
            if !last.is_empty() && !line.ends_with("-save") {
                inputs[family.min(1)].push_str(&format!("{line}\n"));
            }
        }
        inputs
    }
}

/// Dry runs of a suite, word for word.
fn dry_runs(suite: &str, expected: usize) -> Result<()> {
    let recordings = recordings(suite)?;
    ensure!(recordings.is_empty() || recordings.len() == expected, "{} cases", recordings.len());
    let folder = tempfile::tempdir()?;
    let mut left_out = 0;
    for recording in &recordings {
        if !recording.is_in_kernel_order() {
            left_out += 1;
            continue;
        }
        let out = folder.path().join("out");
        let (code, said) = ran(&recording.namespace()?, &mut recording.command(&out, None)?)?;
        assert_eq!(code, Some(0), "{}: {said}", recording.name);
        let text = fs::read_to_string(&out)?;
        assert_eq!(text.trim(), recording.golden.trim(), "{}", recording.name);
    }
    ensure!(left_out * 10 <= recordings.len(), "{left_out} can't be had from a kernel");
    Ok(())
}

#[test]
fn the_references_own_cases() -> Result<()> {
    dry_runs("istio-iptables-capture", 27)
}

#[test]
fn random_command_lines() -> Result<()> {
    dry_runs("oracle-iptables-capture", 250)
}

/// Verify that what is written is what iptables-restore makes of the recorded text, with one
/// iptables, with the other, and by netlink in turn.
#[test]
fn rules_are_those_that_the_reference_restores() -> Result<()> {
    let all = recordings("oracle-iptables-capture")?;
    let folder = tempfile::tempdir()?;
    for (index, recording) in all.iter().map(Recording::without_names).enumerate() {
        let ways: [(Variant, &[&str]); 3] = [
            (Variant::Nft, &["--force-iptables-binary", "nft"]),
            (Variant::Legacy, &["--force-iptables-binary", "legacy"]),
            (Variant::Nft, &[]),
        ];
        let (variant, way) = ways[index % 3];
        let (written, restored) = (recording.namespace()?, recording.namespace()?);
        let out = folder.path().join("out");
        let (code, said) = ran(&written, &mut recording.command(&out, Some(way))?)?;
        assert_eq!(code, Some(0), "{}: {said}", recording.name);
        for (family, input) in ["iptables", "ip6tables"].iter().zip(recording.restores()) {
            let program = format!("{family}-{}-restore", variant.as_str());
            if !input.is_empty() {
                restored.feed(&program, &["--noflush"], &input)?;
            }
        }
        let (written, restored) = (Snapshot::take(&written)?, Snapshot::take(&restored)?);
        let (mut written, restored) = (written.without_counters(), restored.without_counters());
        // What Millrace adds, the reference has not.
        written.chains.retain(|name, _| !name.contains("istio-proxy-guard"));
        assert_eq!(written.chains, restored.chains, "{}, {way:?}", recording.name);
    }
    Ok(())
}

/// Verify that native rules, as nft lists them, are those that nft makes of the recorded
/// transaction, and that their settings are read back from the kernel and from the list. The few that
/// nft refuses to read have no rules to compare with.
fn native_rules(suite: &str, expected: usize) -> Result<()> {
    let recordings = recordings(suite)?;
    ensure!(recordings.is_empty() || recordings.len() >= expected, "{} cases", recordings.len());
    let out = tempfile::NamedTempFile::new()?;
    let mut compared = 0;
    for recording in recordings.iter().map(Recording::without_names) {
        if !recording.is_in_kernel_order() || recording.fails {
            continue;
        }
        let (written, wanted) = (recording.namespace()?, recording.namespace()?);
        if wanted.feed("nft", &["-f", "-"], &recording.golden).is_err() {
            continue;
        }
        let mut command = recording.command(out.path(), Some(&["--native-nftables"]))?;
        let (code, said) = ran(&written, &mut command)?;
        assert_eq!(code, Some(0), "{}: {said}", recording.name);
        let list =
            |namespace: &Namespace| namespace.run("nft", &["--stateless", "list", "ruleset"]);
        // What Millrace adds, the reference has not.
        let (own, guard) = (list(&written)?, "table inet istio-proxy-guard {");
        let (tables, _) = own.split_once(guard).unwrap_or((&own, ""));
        assert_eq!(tables, list(&wanted)?, "{}", recording.name);
        let (code, said) = ran(&written, &mut capture::millrace(["status"])?)?;
        assert_eq!(code, Some(0), "{}: {said}", recording.name);
        let saved = written.run("nft", &["-j", "list", "ruleset"])?;
        let native = of_saved(&of_nft_json(&saved)?.tables);
        let saved = Observed { native, ..Observed::default() };
        ensure!(read_native_back(&saved).is_some(), "{}: {saved:#?}", recording.name);
        compared += 1;
    }
    ensure!(recordings.is_empty() || compared * 10 >= 9 * expected, "{compared} compared");
    Ok(())
}

#[test]
fn native_rules_of_the_references_own_cases() -> Result<()> {
    native_rules("istio-nftables-capture", 28)
}

#[test]
fn native_rules_of_random_command_lines() -> Result<()> {
    native_rules("oracle-nftables-capture", 238)
}

/// Verify that every command line that Istio's injector writes captures a pod, or validates one,
/// and that the same line run again finds nothing to do.
#[test]
fn what_the_injector_writes_is_taken() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/reference/istio/injected-argv/corpus.json");
    let Ok(text) = fs::read_to_string(&corpus) else {
        return skipped("injected-argv", &corpus);
    };
    let corpus: Value = serde_json::from_str(&text)?;
    let rows = corpus["rows"].as_array().context("rows")?;
    ensure!(rows.len() >= 18, "{} rows", rows.len());
    for row in rows {
        let recording = Recording {
            name: row["argv"].to_string(),
            argv: strings(&row["argv"]),
            env: row["env"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.as_str().unwrap_or("").to_owned()))
                .collect(),
            addresses: vec!["10.4.0.2/32".to_owned(), "fd00:4::2/128".to_owned()],
            name_servers: vec!["10.96.0.10".to_owned()],
            golden: String::new(),
            fails: false,
        };
        // The validation container comes after the CNI plugin, which has written the rules.
        let validates = recording.argv.iter().any(|word| word == "--run-validation");
        let writes = Recording {
            argv: recording.argv.iter().filter(|w| !w.ends_with("-rule-apply")).cloned().collect(),
            name: recording.name.clone(),
            ..recording.without_names()
        };
        let writes = if validates { &writes } else { &recording };
        let namespace = recording.namespace()?;
        let out = tempfile::NamedTempFile::new()?;
        for run in [writes, &recording] {
            let (code, said) = ran(&namespace, &mut run.command(out.path(), Some(&[]))?)?;
            assert_eq!(code, Some(0), "{}: {said}", recording.name);
        }
        let snapshot = Snapshot::take(&namespace)?;
        ensure!(snapshot.chains.keys().any(|c| c.contains("ISTIO_")), "{}", recording.name);
    }
    Ok(())
}
