//! Millrace in place of Consul's redirect-traffic and of Open Service Mesh's init container: the rules that their
//! commands really make, and connections, really made, that end where they were recorded to end.

use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{Variant, millrace, ran};
use millrace_tests::recorded::{Proxy, Recorded, Recording};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Family, Layout, Spot, Stack, Topology};
use millrace_tests::wire::Identity;
use millrace_tests::{binary, others};

/// Consul's proxy, as its injector has it.
const PROXY: Proxy = Proxy {
    identity: Identity { uid: 5995, gid: 5995 },
    ports: &[20000, 15001],
    dns: 0,
    passthrough_v6: false,
};
/// That of Open Service Mesh, which nobody chooses.
const OSM_PROXY: Proxy =
    Proxy { identity: Identity { uid: 1500, gid: 1500 }, ports: &[15003, 15001], ..PROXY };
/// A pod with both families, of which all that can be said is said.
const ARGS: [&str; 11] = [
    "consul",
    "connect",
    "redirect-traffic",
    "-proxy-uid=5995",
    "-proxy-inbound-port=20000",
    "-dual-stack",
    "-consul-dns-port=8600",
    "-exclude-uid=5996",
    "-exclude-outbound-cidr=10.0.0.0/8",
    "-exclude-outbound-port=22",
    "-exclude-inbound-port=20300-20310",
];

/// A way to capture a pod as Consul does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Consul's commands, each run by the real iptables-nft.
    Commands,
    /// Its batch, run by the real nft.
    Batch,
    /// Millrace with the tables of iptables-nft, without any program.
    Netlink,
    /// Millrace with native nftables, without any program.
    Nftables,
}

impl Way {
    const ALL: [Self; 4] = [Self::Commands, Self::Batch, Self::Netlink, Self::Nftables];

    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Commands => &["-dry-run"],
            Self::Batch => &["-dry-run", "-native-nftables"],
            Self::Netlink => &[],
            Self::Nftables => &["-native-nftables"],
        }
    }

    /// Who does the same without Consul's own commands.
    const fn ours(self) -> Self {
        match self {
            Self::Commands | Self::Netlink => Self::Netlink,
            Self::Batch | Self::Nftables => Self::Nftables,
        }
    }

    fn apply(self, topology: &Topology, args: &[&str]) -> Result<String> {
        let mut command = millrace([args, self.flags()].concat())?;
        command.env("PATH", "/nowhere");
        let (code, said) = ran(&topology.pod, &mut command)?;
        ensure!(code == Some(0), "{self:?}: {said}");
        match self {
            Self::Netlink | Self::Nftables => {}
            Self::Commands => {
                for line in said.lines() {
                    let words: Vec<&str> = line.split(' ').collect();
                    let (program, args) = words.split_first().context("a command")?;
                    topology.pod.run(&format!("{program}-nft"), args)?;
                }
            }
            Self::Batch => {
                let file = tempfile::NamedTempFile::new()?;
                std::fs::write(file.path(), &said)?;
                topology.pod.run("nft", &["-f", &file.path().to_string_lossy()])?;
            }
        }
        Ok(said)
    }
}

/// Verify that every recorded connection ends where it did under Consul, in both families, by whatever carries
/// the rules out, and by the commands and the batch of Consul themselves.
#[test]
fn connections_end_where_they_were_recorded_to_end() -> Result<()> {
    let recorded = [
        include_str!("../../core/tests/consul/verdicts.txt"),
        include_str!("../../core/tests/consul/verdicts-dns.txt"),
    ];
    for text in recorded {
        let recording = Recording::read(text);
        for way in Way::ALL {
            let pod = Recorded::new(Stack::Dual, PROXY)?;
            way.apply(&pod.topology, &[recording.words().as_slice(), &["-dual-stack"]].concat())?;
            let made = recording.verify(&pod, &[Family::V4, Family::V6]);
            let made = made.with_context(|| format!("{way:?}"))?;
            ensure!(made == 17 + 15, "{way:?}: {made} connections were made");
        }
    }
    Ok(())
}

/// Verify that rules which Consul's commands and batch make are known as whole and captured, that Millrace finds
/// nothing to change in those of iptables, that its own second run changes nothing, and that a cleanup leaves
/// what was there before.
#[test]
fn rules_are_those_of_the_commands() -> Result<()> {
    let mut found = Vec::new();
    for way in Way::ALL {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let untaken = Snapshot::take(&topology.pod)?;
        others::write(&topology.pod, Variant::Nft)?;
        let beside = Snapshot::take(&topology.pod)?;
        way.apply(&topology, &ARGS)?;
        let by = if way.ours() == Way::Nftables { "nftables" } else { "iptables-nft" };
        let wanted = format!("captured: IPv4 and IPv6 by {by}, rules of Consul");
        let status = ran(&topology.pod, &mut millrace(["status"])?)?;
        ensure!(status.0 == Some(0) && status.1.contains(&wanted), "{way:?}: {}", status.1);
        let again = way.ours().apply(&topology, &ARGS)?;
        if way != Way::Batch {
            ensure!(again.contains("no change: the rules are as desired"), "{way:?}: {again}");
        }
        let again = way.ours().apply(&topology, &ARGS)?;
        ensure!(again.contains("no change: the rules are as desired"), "{way:?}: {again}");
        let captured = Snapshot::take(&topology.pod)?;
        others::untouched(&beside, &captured)?;
        found.push(captured.without_counters().tables());
        let cleaned = ran(&topology.pod, &mut millrace(["cleanup"])?)?;
        ensure!(cleaned.0 == Some(0), "{}", cleaned.1);
        let left = Snapshot::take(&topology.pod)?;
        others::untouched(&beside, &left)?;
        ensure!(left.rules == untaken.rules && left.addresses == untaken.addresses);
    }
    ensure!(found[0] == found[2] && found[1] == found[3], "{found:#?}");
    Ok(())
}

/// Verify that Istio's rules follow on Consul's and the other way round, each alone.
#[test]
fn one_mesh_follows_on_the_other() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let istio = ["istio-iptables", "--dual-stack", "-b", "*", "-i", "*", "--force-apply"];
    let native = [&ARGS, &["-native-nftables"][..]].concat();
    for (args, by) in [
        (&ARGS[..], "iptables-nft, rules of Consul"),
        (&istio, "iptables-nft, rules of istio-iptables"),
        (&native, "nftables, rules of Consul"),
        (&istio, "iptables-nft, rules of istio-iptables"),
        (&ARGS, "iptables-nft, rules of Consul"),
    ] {
        let (code, said) = ran(&topology.pod, &mut millrace(args)?)?;
        ensure!(code == Some(0), "{args:?}: {said}");
        let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
        let wanted = format!("captured: IPv4 and IPv6 by {by}\n");
        ensure!(code == Some(0) && said == wanted, "{args:?}: {said}");
    }
    Ok(())
}

/// Verify that the program is consul's by its name, that it takes a pod's environment, and that what it does not
/// take changes nothing and is told.
#[test]
fn it_answers_by_its_name_and_environment() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let name = folder.path().join("consul");
    symlink(binary::millrace()?, &name)?;
    let json = r#"{"ProxyUserID":"5995","ProxyInboundPort":20000,"ExcludeUIDs":["5996"]}"#;
    let mut command = Command::new(&name);
    command.args(["connect", "redirect-traffic"]).env_clear();
    command.env("CONSUL_REDIRECT_TRAFFIC_CONFIG", json);
    let topology = Topology::new(Stack::V4, Layout::default())?;
    let (code, said) = ran(&topology.pod, &mut command)?;
    ensure!(code == Some(0), "{said}");
    let line = "consul connect redirect-traffic -proxy-uid=5995 -proxy-inbound-port=20000 \
                -exclude-uid=5996";
    let status = ["status", "--"].into_iter().chain(line.split_ascii_whitespace());
    let (code, said) = ran(&topology.pod, &mut millrace(status)?)?;
    let wanted = "captured: IPv4 by iptables-nft, rules of Consul\n";
    ensure!(code == Some(0) && said == wanted, "{said}");
    let before = Snapshot::take(&topology.pod)?;
    for (words, wanted) in [
        (&["connect", "redirect-traffic"][..], "Error: -proxy-uid is required\n"),
        (
            &["connect", "redirect-traffic", "-proxy-uid=1", "-proxy-id=web"],
            "would have to be looked up at a Consul agent",
        ),
        (&["connect", "envoy"], "Error: consul connect envoy: of Consul's commands there is only"),
        (
            &["connect", "redirect-traffic", "-proxy-gid=1"],
            "flag provided but not defined: -proxy-gid",
        ),
    ] {
        let mut command = Command::new(&name);
        command.args(words).env_clear();
        let (code, said) = ran(&topology.pod, &mut command)?;
        ensure!(code == Some(1) && said.contains(wanted), "{words:?}: {code:?} {said}");
    }
    let after = Snapshot::take(&topology.pod)?;
    ensure!(before.differences(&after).is_empty(), "{}", before.differences(&after));
    Ok(())
}

/// Verify the same of Open Service Mesh: by its script, carried out by a real shell and iptables, and by Millrace.
/// What the script wrote is captured, and twice as well.
#[test]
fn connections_of_open_service_mesh() -> Result<()> {
    let recorded = [
        include_str!("../../core/tests/osm/verdicts.txt"),
        include_str!("../../core/tests/osm/verdicts-pod-ip.txt"),
    ];
    for text in recorded {
        let recording = Recording::read(text);
        let words = recording.words();
        for flags in [&["--dry-run"][..], &[], &["--native-nftables"]] {
            let pod = Recorded::new(Stack::V4, OSM_PROXY)?;
            let topology = &pod.topology;
            let address = Spot::Pod.ip(Family::V4).context("an address")?.to_string();
            let run = |args: &[&str]| -> Result<String> {
                let mut command = millrace(args)?;
                let (code, said) = ran(&topology.pod, command.env("POD_IP", &address))?;
                ensure!(code == Some(0), "{args:?}: {said}");
                Ok(said)
            };
            let said = run(&[words.as_slice(), flags].concat())?;
            if flags == ["--dry-run"] {
                let script = said.replace("$POD_IP", &address);
                let script = script.replace("iptables-restore", "iptables-nft-restore");
                for _ in 0..2 {
                    topology.pod.run("sh", &["-c", &script])?;
                }
            } else {
                let again = run(&[words.as_slice(), flags].concat())?;
                ensure!(
                    again.contains("no change: the rules are as desired"),
                    "{flags:?}: {again}"
                );
            }
            let status = run(&["status"])?;
            ensure!(status.contains("rules of Open Service Mesh"), "{flags:?}: {status}");
            let made = recording.verify(&pod, &[Family::V4]);
            let made = made.with_context(|| format!("{flags:?}"))?;
            ensure!(made == 17, "{flags:?}: {made} connections were made");
            run(&["cleanup"])?;
            let (code, said) = ran(&topology.pod, &mut millrace(["status"])?)?;
            ensure!(code == Some(3), "{flags:?}: {said}");
        }
    }
    Ok(())
}
