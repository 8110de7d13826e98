//! Millrace in place of Linkerd's proxy-init: its commands as they were recorded, the rules that these
//! commands really make, and connections, really made, that end where they were recorded to end.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::others;
use millrace_tests::recorded::{Proxy, Recorded, Recording};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::stage::Stage;
use millrace_tests::topology::{Family, Layout, Stack, Topology};
use millrace_tests::wire::Identity;
use millrace_tests::{binary, capture::Variant};

/// Linkerd's proxy, as its injector has it.
const PROXY: Proxy = Proxy {
    identity: Identity { uid: 2102, gid: 2102 },
    ports: &[4143, 4140],
    dns: 0,
    passthrough_v6: false,
};
/// A command line of its injector, in a pod with both families.
const ARGS: [&str; 8] =
    ["linkerd", "-p", "4143", "-o", "4140", "-u", "2102", "--inbound-ports-to-ignore=4190,4191"];

/// The messages of a log in the form of logrus.
fn messages(log: &str) -> Vec<String> {
    let message = |line: &str| {
        let (_, text) = line.split_once(" msg=").unwrap_or_default();
        text.trim_matches('"').replace("\\\"", "\"")
    };
    log.lines().map(message).collect()
}

/// Verify that the program logs and says what was recorded, under both its names, and without any
/// privilege; what differs is held by tests of the core.
#[test]
fn commands_are_those_that_were_recorded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let name = folder.path().join("linkerd2-proxy-init");
    symlink(binary::millrace()?, &name)?;
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/linkerd/argv");
    let mut compared = 0;
    for entry in fs::read_dir(recorded)? {
        let path = entry?.path();
        let case = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let differs = [
            "bad-port-yields-empty-multiport",
            "subnets-dualstack-fails",
            "uid0-is-omitted",
            "second-run",
        ];
        if differs.contains(&case.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let (line, rest) = text.split_once("\n# exit ").context("a case")?;
        let (code, wanted) = rest.split_once('\n').context("a case")?;
        let words: Vec<&str> = line.split(' ').skip(2).collect();
        let mut ours = millrace([&["linkerd"], words.as_slice(), &["--simulate"]].concat())?;
        let mut theirs = Command::new(&name);
        theirs.args(&words).arg("--simulate");
        for command in [&mut ours, &mut theirs] {
            let output = command.output()?;
            ensure!(output.status.code() == code.parse().ok(), "{case}: {output:?}");
            let said = String::from_utf8(output.stderr)?;
            let logged = messages(&String::from_utf8(output.stdout)?);
            if code == "0" {
                ensure!(logged.join("\n") == wanted.trim_end(), "{case}: {logged:#?}");
            } else {
                ensure!(said.lines().next() == Some(wanted.trim_end()), "{case}: {said}");
                ensure!(said.lines().skip(1).any(|line| line.contains("--")), "{case}: {said}");
            }
        }
        compared += 1;
    }
    ensure!(compared == 29, "{compared} cases were compared");
    Ok(())
}

/// A way to capture a pod as Linkerd does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The commands of a simulation, each run by the real iptables-nft.
    Commands,
    /// Millrace with the tables of iptables-nft, without any program.
    Netlink,
    /// Millrace with programs of iptables-legacy.
    Legacy,
    /// Millrace with native nftables, without any program.
    Nftables,
}

impl Way {
    const ALL: [Self; 4] = [Self::Commands, Self::Netlink, Self::Legacy, Self::Nftables];

    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Commands | Self::Netlink => &["--firewall-bin-path", "iptables-nft"],
            Self::Legacy => &[],
            Self::Nftables => &["--native-nftables"],
        }
    }

    fn apply(self, topology: &Topology, args: &[&str]) -> Result<String> {
        let mut command = millrace([args, self.flags()].concat())?;
        match self {
            Self::Netlink | Self::Nftables => drop(command.env("PATH", "/nowhere")),
            Self::Commands => drop(command.arg("--simulate")),
            Self::Legacy => {}
        }
        let (code, said) = ran(&topology.pod, &mut command)?;
        ensure!(code == Some(0), "{self:?}: {said}");
        if self == Self::Commands {
            for line in messages(&said) {
                let words: Vec<&str> = line.split(' ').collect();
                let (program, args) = words.split_first().context("a command")?;
                topology.pod.run(program, args)?;
            }
        }
        Ok(said)
    }
}

/// Verify that every recorded connection ends where it did under proxy-init, in both families, by
/// whatever carries the rules out, and the commands of proxy-init themselves.
#[test]
fn connections_end_where_they_were_recorded_to_end() -> Result<()> {
    let recording = Recording::read(include_str!("../../core/tests/linkerd/verdicts.txt"));
    let words = [&["linkerd"], &recording.words()[1..]].concat();
    for way in Way::ALL {
        let pod = Recorded::new(Stack::Dual, PROXY)?;
        way.apply(&pod.topology, &words)?;
        let made = recording.verify(&pod, &[Family::V4, Family::V6]);
        let made = made.with_context(|| format!("{way:?}"))?;
        ensure!(made == 17 + 15, "{way:?}: {made} connections were made");
    }
    Ok(())
}

/// Verify that the tables which Millrace writes are those that proxy-init's commands make, rule for rule,
/// that it finds nothing to change in these, and that a cleanup leaves what was there before.
#[test]
fn rules_are_those_of_the_commands() -> Result<()> {
    for more in [
        &[][..],
        &[
            "--proxy-gid=7",
            "--outbound-ports-to-ignore=22,100-200",
            "--subnets-to-ignore=10.1.2.3/8,fd00::/8",
        ],
    ] {
        let args = [&ARGS, more].concat();
        let mut found = Vec::new();
        for way in [Way::Commands, Way::Netlink] {
            let topology = Topology::new(Stack::Dual, Layout::default())?;
            let untaken = Snapshot::take(&topology.pod)?;
            others::write(&topology.pod, Variant::Nft)?;
            let beside = Snapshot::take(&topology.pod)?;
            way.apply(&topology, &args)?;
            let again = Way::Netlink.apply(&topology, &args)?;
            ensure!(again.contains("no change: the rules are as desired"), "{way:?}: {again}");
            let status = ran(&topology.pod, &mut millrace(["status"])?)?;
            let wanted = "captured: IPv4 and IPv6 by iptables-nft, rules of Linkerd";
            ensure!(status.0 == Some(0) && status.1.contains(wanted), "{way:?}: {}", status.1);
            let captured = Snapshot::take(&topology.pod)?;
            others::untouched(&beside, &captured)?;
            found.push(captured.without_counters().tables());
            let cleaned = ran(&topology.pod, &mut millrace(["cleanup"])?)?;
            ensure!(cleaned.0 == Some(0), "{}", cleaned.1);
            let left = Snapshot::take(&topology.pod)?;
            others::untouched(&beside, &left)?;
            ensure!(left.chains.keys().eq(beside.chains.keys()), "{}", beside.differences(&left));
            ensure!(left.rules == untaken.rules && left.addresses == untaken.addresses);
        }
        ensure!(found[0] == found[1], "{found:#?}");
    }
    Ok(())
}

/// Verify that a run which fails half-way leaves rules and settings as they were.
#[test]
fn what_fails_is_taken_back() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let setting = ["-n", "net.netfilter.nf_conntrack_tcp_timeout_close_wait"];
    let said = Way::Legacy.apply(&topology, &ARGS)?;
    ensure!(said.contains("using iptables-legacy: the default of proxy-init"), "{said}");
    let (before, value) = (Snapshot::take(&topology.pod)?, topology.pod.run("sysctl", &setting)?);
    let other = [&ARGS, &["-u", "2103", "--timeout-close-wait-secs", "77"][..]].concat();
    let stage = Stage::failing_at("ip6tables-legacy-restore", "nat")?;
    let (code, said) = ran(&topology.pod, &mut stage.millrace(&other)?)?;
    ensure!(code == Some(1) && said.contains("is there again"), "{said}");
    let after = Snapshot::take(&topology.pod)?;
    ensure!(
        before.clone().without_counters() == after.clone().without_counters(),
        "{}",
        before.differences(&after)
    );
    ensure!(topology.pod.run("sysctl", &setting)? == value);
    Way::Legacy.apply(&topology, &other)?;
    ensure!(topology.pod.run("sysctl", &setting)?.trim() == "77");
    Ok(())
}

/// Verify that what proxy-init leaves when it fails half-way is told and completed.
#[test]
fn half_of_it_is_completed() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let half = [
        "-N PROXY_INIT_REDIRECT",
        "-A PROXY_INIT_REDIRECT -p tcp -j REDIRECT --to-port 4143",
        "-A PREROUTING -j PROXY_INIT_REDIRECT",
    ];
    for rule in half {
        let words: Vec<&str> = ["-t", "nat"].into_iter().chain(rule.split(' ')).collect();
        topology.pod.run("ip6tables-nft", &words)?;
    }
    for (args, code, wanted) in [
        (&["status"][..], 5, "rules of Linkerd"),
        (&[&ARGS, Way::Netlink.flags()].concat(), 0, "done: iptables-nft transaction"),
        (&["status"], 0, "captured: IPv4 and IPv6 by iptables-nft, rules of Linkerd"),
        (&["cleanup"], 0, "iptables-nft transaction"),
        (&["status"], 3, "not captured"),
    ] {
        let (is, said) = ran(&topology.pod, &mut millrace(args)?)?;
        ensure!(is == Some(code) && said.contains(wanted), "{args:?}: {said}");
    }
    Ok(())
}

/// Verify the way in which Linkerd's init container runs it: as user 65534, who gets two capabilities from
/// the file and no more, with a root file system that can't be written. Rules of iptables-legacy can't be
/// seen so, so those of iptables-nft are written, also where no flag asks for them.
#[test]
fn as_the_init_container_runs_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    let program = folder.path().join("linkerd2-proxy-init");
    fs::copy(binary::millrace()?, &program)?;
    let program = program.to_str().context("a path that is not UTF-8")?;
    for flags in [&["--firewall-bin-path", "iptables-nft"][..], &[]] {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        topology.pod.run("setcap", &["cap_net_raw,cap_net_admin+eip", program])?;
        topology.pod.run("mount", &["-o", "remount,bind,ro", "/run"])?;
        let mut command = Command::new("capsh");
        command.args([
            "--keep=1",
            "--gid=65534",
            "--uid=65534",
            "--caps=cap_net_admin,cap_net_raw=p",
        ]);
        command.args(["--no-new-privs", &format!("--shell={program}"), "--"]);
        let (code, said) = ran(&topology.pod, command.args(&ARGS[1..]).args(flags))?;
        ensure!(code == Some(0) && said.contains("using iptables-nft"), "{flags:?}: {said}");
        let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
        let wanted = "captured: IPv4 and IPv6 by iptables-nft, rules of Linkerd";
        ensure!(code == Some(0) && said.contains(wanted), "{flags:?}: {said}");
    }
    Ok(())
}

/// Verify what Millrace's own commands say of a pod that is captured as Linkerd does it, whatever carries
/// the rules out: with the settings that can be read back, with those of a command line, and with others.
#[test]
fn other_commands_know_it() -> Result<()> {
    let other = [&ARGS, &["--outbound-ports-to-ignore=443"][..]].concat();
    for way in Way::ALL {
        let mut topology = Topology::new(Stack::Dual, Layout::default())?;
        topology.stop_listeners();
        way.apply(&topology, &ARGS)?;
        let native: &[&str] = if way == Way::Nftables { &["--native-nftables"] } else { &[] };
        for (command, args, code) in [
            ("status", &[][..], 0),
            ("status", &ARGS, 0),
            ("status", &other, 5),
            ("verify", &[], 0),
            ("verify", &ARGS, 0),
            ("verify", &other, 126),
        ] {
            let dashes: &[&str] = if args.is_empty() { &[] } else { &["--"] };
            let native = if args.is_empty() { &[] } else { native };
            let words = [&[command], dashes, args, native].concat();
            let (is, said) = ran(&topology.pod, &mut millrace(&words)?)?;
            ensure!(is == Some(code), "{way:?} {words:?}: {is:?} {said}");
        }
        let explain = ["explain", "--live", "--from", "uid=1000", "--to", "198.51.100.1:80"];
        let (code, said) = ran(&topology.pod, &mut millrace(explain)?)?;
        let wanted = "delivered to 127.0.0.1 on port 4140, original destination 198.51.100.1:80";
        ensure!(code == Some(0) && said.contains(wanted), "{way:?}: {said}");
        ensure!(said.contains("flag -o/--outgoing-proxy-port"), "{way:?}: {said}");
        let live =
            ["diff", "live", "linkerd -p 4143 -o 4140 -u 2102 --inbound-ports-to-ignore=4190,4191"];
        let (code, said) = ran(&topology.pod, &mut millrace(live)?)?;
        ensure!(code == Some(0), "{way:?}: {said}");
    }
    Ok(())
}
