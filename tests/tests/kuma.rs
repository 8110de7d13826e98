//! Millrace in place of Kuma's `kumactl install transparent-proxy`: connections, really made, that end
//! where they were recorded to end, by whatever carries the rules out.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::capture::{Variant, millrace, ran};
use millrace_tests::others;
use millrace_tests::recorded::{Proxy, Recorded, Recording};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Family, Layout, Stack, Topology};
use millrace_tests::wire::Identity;

/// Kuma's proxy.
const PROXY: Proxy = Proxy {
    identity: Identity { uid: 5678, gid: 5678 },
    ports: &[15006, 15001],
    dns: 12345,
    passthrough_v6: true,
};
const INSTALL: [&str; 5] = ["kuma", "install", "transparent-proxy", "--kuma-dp-user", "5678"];
const UNINSTALL: [&str; 3] = ["kuma", "uninstall", "transparent-proxy"];

/// A way to capture a pod as Kuma does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The text of a dry run, loaded by the real iptables-nft.
    Text,
    /// Millrace with the tables of iptables-nft, without any program.
    Netlink,
    /// Millrace with programs of iptables-legacy.
    Legacy,
    /// Millrace with native nftables, without any program.
    Nftables,
}

impl Way {
    const ALL: [Self; 4] = [Self::Text, Self::Netlink, Self::Legacy, Self::Nftables];

    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["--dry-run"],
            Self::Netlink => {
                &["--iptables-executables=iptables-restore:/usr/sbin/iptables-nft-restore"]
            }
            Self::Legacy => {
                &["--iptables-executables=iptables-restore:/usr/sbin/iptables-legacy-restore"]
            }
            Self::Nftables => &["--native-nftables"],
        }
    }

    fn apply(self, topology: &Topology, args: &[&str]) -> Result<String> {
        let mut command = millrace([args, self.flags()].concat())?;
        if matches!(self, Self::Netlink | Self::Nftables) {
            command.env("PATH", "/nowhere");
        }
        let (code, said) = ran(&topology.pod, &mut command)?;
        ensure!(code == Some(0), "{self:?}: {said}");
        if self == Self::Text {
            load(topology, &said, Variant::Nft)?;
        }
        Ok(said)
    }
}

/// Do with the text of a dry run what kumactl does with it.
fn load(topology: &Topology, text: &str, variant: Variant) -> Result<()> {
    let (v4, v6) = text.split_once("### IPv6 ###").context("both families")?;
    topology.pod.run("ip", &["-6", "address", "replace", "::6/128", "dev", "lo"])?;
    let folder = tempfile::tempdir()?;
    for (family, text) in [("iptables", v4), ("ip6tables", v6)] {
        let program = format!("{family}-{}-restore", variant.as_str());
        let file = folder.path().join(family);
        fs::write(&file, text)?;
        topology.pod.run(&program, &["--noflush", file.to_str().context("a path")?])?;
    }
    Ok(())
}

/// Verify that every recorded connection ends where it did under kumactl, in both families, by whatever
/// carries the rules out, and under the text of a dry run.
#[test]
fn connections_end_where_they_were_recorded_to_end() -> Result<()> {
    for text in [
        include_str!("../../core/tests/kuma/verdicts.txt"),
        include_str!("../../core/tests/kuma/verdicts-dns.txt"),
    ] {
        let recording = Recording::read(text);
        let words = [&["kuma"], &recording.words()[1..]].concat();
        for way in Way::ALL {
            let pod = Recorded::new(Stack::Dual, PROXY)?;
            way.apply(&pod.topology, &words)?;
            let made = recording.verify(&pod, &[Family::V4, Family::V6]);
            let made = made.with_context(|| format!("{way:?}"))?;
            ensure!(made == 17 + 16, "{way:?}: {made} connections were made");
        }
    }
    Ok(())
}

/// Verify that the tables which Millrace writes are those that the text of a dry run makes, that it finds
/// nothing to change in these, that status knows both, and that uninstall leaves what was there before.
#[test]
fn rules_are_those_of_the_text() -> Result<()> {
    for more in [
        &[][..],
        &["--redirect-all-dns-traffic", "--drop-invalid-packets"],
        &[
            "--exclude-outbound-ips=10.1.2.3/8,fd00::/8",
            "--exclude-inbound-ips=10.1.2.3,fd00::1",
            "--exclude-outbound-ports=22,80",
            "--exclude-outbound-ports-for-uids=tcp:1,3,5,7,9,11,13,15,17,19,21-22,24,26,28,30,32:9-10",
            "--exclude-outbound-ports-for-uids=53:7",
            "--redirect-all-dns-traffic",
        ],
    ] {
        let args = [&INSTALL, more].concat();
        let mut found = Vec::new();
        for way in [Way::Text, Way::Netlink] {
            let topology = Topology::new(Stack::Dual, Layout::default())?;
            let untaken = Snapshot::take(&topology.pod)?;
            others::write(&topology.pod, Variant::Nft)?;
            let beside = Snapshot::take(&topology.pod)?;
            way.apply(&topology, &args)?;
            let again = Way::Netlink.apply(&topology, &args)?;
            ensure!(again.contains("no change: the rules are as desired"), "{way:?}: {again}");
            let status = ran(&topology.pod, &mut millrace(["status"])?)?;
            let wanted = "captured: IPv4 and IPv6 by iptables-nft, rules of Kuma";
            ensure!(status.0 == Some(0) && status.1.contains(wanted), "{way:?}: {}", status.1);
            let captured = Snapshot::take(&topology.pod)?;
            others::untouched(&beside, &captured)?;
            found.push(captured.without_counters().tables());
            let cleaned = ran(&topology.pod, &mut millrace(UNINSTALL)?)?;
            ensure!(cleaned.0 == Some(0), "{}", cleaned.1);
            let left = Snapshot::take(&topology.pod)?;
            others::untouched(&beside, &left)?;
            ensure!(left.rules == untaken.rules && left.addresses == untaken.addresses);
            let nothing = ran(&topology.pod, &mut millrace(UNINSTALL)?)?;
            ensure!(nothing.1.contains("no rules of Kuma are here"), "{}", nothing.1);
        }
        ensure!(found[0] == found[1], "{found:#?}");
    }
    Ok(())
}

/// Verify that Kuma's rules follow on Istio's and the other way round, under kumactl's name as well, and
/// that Kuma's uninstall leaves those of another mesh alone.
#[test]
fn one_mesh_follows_on_the_other() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let name = folder.path().join("kumactl");
    symlink(binary::millrace()?, &name)?;
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let istio = [
        "istio-iptables",
        "-p",
        "15001",
        "-z",
        "15006",
        "-b",
        "*",
        "-i",
        "*",
        "--dual-stack",
        "--reconcile",
    ];
    let mut kuma = Command::new(&name);
    kuma.args(&INSTALL[1..]);
    for (command, mesh) in [
        (&mut millrace(istio)?, "rules of istio-iptables"),
        (&mut kuma, "rules of Kuma"),
        (&mut millrace(istio)?, "rules of istio-iptables"),
        (&mut millrace(UNINSTALL)?, "rules of istio-iptables"),
    ] {
        let (code, said) = ran(&topology.pod, command)?;
        ensure!(code == Some(0), "{mesh}: {said}");
        let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
        ensure!(code == Some(0) && said.contains(mesh), "{mesh}: {said}");
    }
    Ok(())
}

/// Verify that Kuma's uninstall takes Kuma's rules away from beside those of another mesh, which stay whole
/// with the routing and the address that they need, whatever holds either.
#[test]
fn uninstall_leaves_another_mesh_whole() -> Result<()> {
    let istio = |more: &[&'static str]| {
        let words = ["istio-iptables", "-p15001", "-z15006", "-b*", "-i*", "--dual-stack"];
        [&words, more].concat()
    };
    let native = ["apply", "--ipv6", "on", "--proxy-uid", "1337", "--dns", "all"];
    for other in [
        istio(&["-mREDIRECT"]),
        istio(&["-mTPROXY"]),
        istio(&["-mREDIRECT", "--native-nftables"]),
        [&native[..], &["--backend", "iptables-nft"]].concat(),
    ] {
        for variant in [Variant::Legacy, Variant::Nft] {
            let topology = Topology::new(Stack::Dual, Layout::default())?;
            let (code, said) = ran(&topology.pod, &mut millrace(&other)?)?;
            ensure!(code == Some(0), "{other:?}: {said}");
            let before = Snapshot::take(&topology.pod)?.without_counters();
            let text = [&INSTALL[..], &["--redirect-all-dns-traffic", "--dry-run"]].concat();
            let (code, text) = ran(&topology.pod, &mut millrace(text)?)?;
            ensure!(code == Some(0), "{text}");
            load(&topology, &text, variant)?;
            let (code, said) = ran(&topology.pod, &mut millrace(UNINSTALL)?)?;
            ensure!(code == Some(0) && said.contains("done: "), "{other:?} {variant:?}: {said}");
            let after = Snapshot::take(&topology.pod)?.without_counters();
            let differences = before.differences(&after);
            ensure!(before == after, "{other:?} {variant:?}: {differences}");
            let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
            ensure!(
                code == Some(0) && said.contains("captured: "),
                "{other:?} {variant:?}: {said}"
            );
            let (code, said) = ran(&topology.pod, &mut millrace(UNINSTALL)?)?;
            ensure!(code == Some(0) && said.contains("no rules of Kuma are here"), "{said}");
        }
    }
    Ok(())
}

/// Verify that an uninstall puts the kept resolv.conf back, also where it is mounted; that it changes nothing
/// where what was kept is unfit, and leaves it alone where nothing of Kuma is here.
#[test]
fn uninstall_puts_resolv_conf_back() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let millrace = binary::millrace()?;
    let uninstall = format!("{} {}", millrace.display(), UNINSTALL.join(" "));
    let install = format!("{} {}", millrace.display(), INSTALL.join(" "));
    let etc = "set -e; mount -t tmpfs none /etc; echo old > /etc/resolv.conf; kept=/etc/resolv.conf.kuma-backup";
    let mounted = "echo old > /etc/other; mount --bind /etc/other /etc/resolv.conf";
    for (prepare, code, resolver, here) in [
        ("echo new > $kept", 0, "new", false),
        (&format!("echo new > $kept; {mounted}"), 0, "new", false),
        (": > $kept", 1, "old", true),
        ("mkfifo $kept", 1, "old", true),
        (&format!("echo new > $kept; {uninstall}; echo old > /etc/resolv.conf"), 0, "old", false),
        (
            &format!(
                "echo new > $kept; {mounted}; mount -o remount,ro,bind /etc/resolv.conf; mount -o remount,ro /etc"
            ),
            1,
            "old",
            true,
        ),
    ] {
        let script = format!(
            "{etc}; {install}; {prepare}; code=0; timeout 20 {uninstall} || code=$?; \
             echo code=$code resolver=$(cat /etc/resolv.conf)"
        );
        let (_, said) =
            ran(&topology.pod, Command::new("unshare").args(["-m", "sh", "-c", &script]))?;
        ensure!(said.contains(&format!("code={code} resolver={resolver}")), "{prepare}: {said}");
        let (_, status) = ran(&topology.pod, Command::new(&millrace).arg("status"))?;
        ensure!(status.contains("captured: ") == here, "{prepare}: {said}{status}");
    }
    Ok(())
}

/// Verify that an uninstall finishes what an interrupted one left: the address, and the note.
#[test]
fn uninstall_finishes_an_interrupted_one() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let untaken = Snapshot::take(&topology.pod)?;
    for rest in [
        &["-6", "address", "add", "::6/128", "dev", "lo"][..],
        &["link", "property", "add", "dev", "lo", "altname", "millrace-change-in-progress"],
    ] {
        topology.pod.run("ip", rest)?;
        let (code, said) = ran(&topology.pod, &mut millrace(UNINSTALL)?)?;
        ensure!(code == Some(0) && said.contains("done: "), "{rest:?}: {said}");
        let left = Snapshot::take(&topology.pod)?;
        ensure!(left.rules == untaken.rules && left.addresses == untaken.addresses);
        let (code, said) = ran(&topology.pod, &mut millrace(UNINSTALL)?)?;
        ensure!(code == Some(0) && said.contains("nothing to do"), "{rest:?}: {said}");
    }
    Ok(())
}

/// Verify what Millrace's own commands say of a pod that is captured as Kuma does it, whatever carries the
/// rules out: with the settings that can be read back, and with those of a command line.
#[test]
fn other_commands_know_it() -> Result<()> {
    let args = [&INSTALL, &["--redirect-all-dns-traffic"][..]].concat();
    for way in Way::ALL {
        let mut topology = Topology::new(Stack::Dual, Layout::default())?;
        topology.stop_listeners();
        way.apply(&topology, &args)?;
        let native: &[&str] = if way == Way::Nftables { &["--native-nftables"] } else { &[] };
        for (command, args, code) in [
            ("status", &[][..], 0),
            ("status", &args, 0),
            ("status", &INSTALL, 5),
            ("verify", &[], 0),
            ("verify", &args, 0),
            ("verify", &INSTALL, 126),
        ] {
            let dashes: &[&str] = if args.is_empty() { &[] } else { &["--"] };
            let native = if args.is_empty() { &[] } else { native };
            let words = [&[command], dashes, args, native].concat();
            let (is, said) = ran(&topology.pod, &mut millrace(&words)?)?;
            ensure!(is == Some(code), "{way:?} {words:?}: {is:?} {said}");
        }
    }
    Ok(())
}
