//! eBPF capture as other meshes capture: recorded connections, really made, end where they did under these,
//! and what is told of such a pod is what its mesh's settings mean.

#[expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]
#[path = "../../core/tests/support/verdicts.rs"]
mod verdicts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::capture::{millrace, millrace_in_pod, ran};
use millrace_tests::ebpf::{APPLY, Cgroup, FOLDER, enrol, loaded, node};
use millrace_tests::process::{Listeners, dial};
use millrace_tests::sys_bpf::change;
use millrace_tests::topology::{APP, Family, ROOT, Spot, Stack, Topology};
use millrace_tests::wire::{Dial, Identity, Listen, Outcome, Proto, Serve};
use serde_json::Value;
use verdicts::{RecordedVerdict, Who};

/// A mesh whose connections were recorded.
struct Mesh {
    /// Its recording.
    text: &'static str,
    /// The words in front of those of the recording behind its first one.
    tool: &'static [&'static str],
    /// What is said besides, for both families where it has both.
    more: &'static [&'static str],
    proxy: u32,
    /// Where its proxy listens, by TCP.
    ports: [u16; 2],
    stack: Stack,
    /// Whether its proxy passes connections on from an address of its own, in IPv6 as well.
    passes_on: bool,
    /// How many connections are made.
    made: usize,
}

const LINKERD: Mesh = Mesh {
    text: include_str!("../../core/tests/linkerd/verdicts.txt"),
    tool: &["linkerd"],
    more: &[],
    proxy: 2102,
    ports: [4143, 4140],
    stack: Stack::Dual,
    passes_on: false,
    made: 17 + 15,
};

const KUMA: Mesh = Mesh {
    text: include_str!("../../core/tests/kuma/verdicts.txt"),
    tool: &["kumactl"],
    more: &[],
    proxy: 5678,
    ports: [15006, 15001],
    stack: Stack::Dual,
    passes_on: true,
    made: 17 + 16,
};

const CONSUL: Mesh = Mesh {
    text: include_str!("../../core/tests/consul/verdicts.txt"),
    tool: &["consul"],
    more: &["-dual-stack"],
    proxy: 5995,
    ports: [20000, 15001],
    stack: Stack::Dual,
    passes_on: false,
    made: 17 + 15,
};

const OSM: Mesh = Mesh {
    text: include_str!("../../core/tests/osm/verdicts.txt"),
    tool: &["osm"],
    more: &[],
    proxy: 1500,
    ports: [15003, 15001],
    stack: Stack::V4,
    passes_on: false,
    made: 17,
};

const APP_MESH: Mesh = Mesh {
    text: include_str!("../../core/tests/appmesh/verdicts.txt"),
    tool: &["appmesh"],
    more: &["--enable-ipv6=1"],
    proxy: 1337,
    ports: [15000, 15001],
    stack: Stack::Dual,
    passes_on: false,
    made: 17 + 15,
};

const MESHES: [Mesh; 8] = [
    LINKERD,
    KUMA,
    Mesh { text: include_str!("../../core/tests/kuma/verdicts-dns.txt"), ..KUMA },
    CONSUL,
    Mesh { text: include_str!("../../core/tests/consul/verdicts-dns.txt"), ..CONSUL },
    OSM,
    Mesh { text: include_str!("../../core/tests/osm/verdicts-pod-ip.txt"), ..OSM },
    APP_MESH,
];

/// A proxy, an application and neighbours on the ports of the recordings.
fn listeners(topology: &mut Topology, mesh: &Mesh) -> Result<[Listeners; 3]> {
    topology.stop_listeners();
    let everywhere = |ports: &[u16]| -> Vec<Listen> {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let all = ports.iter().flat_map(|port| any.map(|ip| SocketAddr::new(ip, *port)));
        all.map(|addr| Listen { proto: Proto::Tcp, addr, transparent: false }).collect()
    };
    let datagrams = |spot: Spot, port: u16| -> Result<Vec<Listen>> {
        let addr = |family: &Family| spot.at(*family, port);
        let addrs: Result<Vec<SocketAddr>> = mesh.stack.families().iter().map(addr).collect();
        let listen = |addr| Listen { proto: Proto::Udp, addr, transparent: false };
        Ok(addrs?.into_iter().map(listen).collect())
    };
    let mut proxy = everywhere(&mesh.ports);
    proxy.extend(datagrams(Spot::Localhost, 12345)?);
    let mut app = everywhere(&[8080, 4190, 15008, 15090]);
    app.extend(datagrams(Spot::Localhost, 53)?);
    app.extend(datagrams(Spot::Localhost, 8600)?);
    let mut peer = everywhere(&[9999, 53, 443]);
    peer.extend(datagrams(Spot::Peer, 53)?);
    let start = |namespace, name: &str, identity, listen| {
        Listeners::start(namespace, &Serve { name: name.to_owned(), identity, listen })
    };
    let identity = Identity { uid: mesh.proxy, gid: mesh.proxy };
    Ok([
        start(&topology.pod, "pod", identity, proxy)?,
        start(&topology.pod, "pod", ROOT, app)?,
        start(&topology.outside, "peer", ROOT, peer)?,
    ])
}

/// The words that capture a pod as in the recording.
fn words(mesh: &Mesh, recorded: &[String]) -> Vec<String> {
    let rest = recorded.iter().skip(1).map(String::as_str);
    let words = APPLY.iter().copied().chain(["--"]).chain(mesh.tool.iter().copied());
    words.chain(rest).chain(mesh.more.iter().copied()).map(str::to_owned).collect()
}

fn capture(topology: &Topology, mesh: &Mesh, recorded: &[String]) -> Result<String> {
    let mut command = millrace(words(mesh, recorded))?;
    if let Some(ip) = Spot::Pod.ip(Family::V4) {
        command.env("POD_IP", ip.to_string());
    }
    let (code, said) = ran(&topology.pod, &mut command)?;
    ensure!(code == Some(0), "{said}");
    Ok(said)
}

/// Where a connection really ends, in the words of the recording. None where the family has no such
/// address.
fn measured(
    topology: &Topology,
    verdict: &RecordedVerdict,
    family: Family,
    mesh: &Mesh,
) -> Result<Option<String>> {
    let spot = match verdict.to.as_str() {
        "pod" => Spot::Pod,
        "peer" => Spot::Peer,
        "127.0.0.1" => Spot::Localhost,
        "127.0.0.2" => Spot::Localhost2,
        other => bail!("{other} is nowhere here"),
    };
    let has_source = family == Family::V4 || mesh.passes_on || verdict.from.is_none();
    let Some(to) = spot.ip(family).filter(|_| has_source) else { return Ok(None) };
    let (namespace, identity) = match verdict.who {
        Who::Peer => (&topology.outside, ROOT),
        Who::App => (&topology.pod, APP),
        Who::Proxy => (&topology.pod, Identity { uid: mesh.proxy, gid: mesh.proxy }),
    };
    let request = Dial {
        identity,
        proto: if verdict.udp { Proto::Udp } else { Proto::Tcp },
        from: verdict.from.as_ref().and_then(|_| Spot::Passthrough.ip(family)),
        from_port: None,
        transparent_mark: None,
        to: SocketAddr::new(to, verdict.port),
        timeout_ms: 5000,
    };
    let Outcome::Answered { answer, .. } = dial(namespace, &request)? else {
        return Ok(Some("nobody".to_owned()));
    };
    let localhost = Spot::Localhost.ip(family) == Some(answer.local.ip());
    let (name, port) = (answer.name, answer.port);
    Ok(Some(match (verdict.udp, localhost) {
        (true, _) => format!("{name}:udp{port}"),
        (false, true) => format!("{name}:{port}@lo"),
        (false, false) => format!("{name}:{port}@ip"),
    }))
}

/// Verify that every recorded connection ends where it did, in both families, that a second run changes
/// nothing, and that nothing is left of a pod that leaves.
#[test]
fn connections_end_where_they_were_recorded_to_end() -> Result<()> {
    for mesh in MESHES {
        let (recorded, verdicts) = verdicts::read(mesh.text);
        let (_cgroup, mut topology) = loaded(mesh.stack)?;
        let _listeners = listeners(&mut topology, &mesh)?;
        let case = recorded.join(" ");
        let said = capture(&topology, &mesh, &recorded)?;
        ensure!(said.contains("the pod is enrolled"), "{case}: {said}");
        let mut made = 0;
        for family in mesh.stack.families() {
            for verdict in &verdicts {
                if let Some(end) = measured(&topology, verdict, *family, &mesh)? {
                    made += 1;
                    ensure!(end == verdict.end, "{case}, {family:?}: {}, but {end}", verdict.line);
                }
            }
        }
        ensure!(made == mesh.made, "{case}: {made} connections were made");
        let again = capture(&topology, &mesh, &recorded)?;
        ensure!(again.contains("no change: the pod's entry is as desired"), "{case}: {again}");
        let status = ["status", "--backend", "ebpf", "--bpffs", FOLDER];
        let status = millrace_in_pod(&topology, &status, 0)?;
        ensure!(status.contains("captured: by eBPF"), "{case}: {status}");
        let verified = ["verify", "--backend", "ebpf", "--bpffs", FOLDER];
        let verified = millrace_in_pod(&topology, &verified, 0)?;
        ensure!(!verified.contains("not as expected"), "{case}: {verified}");
        millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 0)?;
        let left = node(&topology.pod, |node| Ok(node.sizes()?))?;
        ensure!(left == millrace_host::ebpf::Sizes::default(), "{case}: {left:?}");
    }
    Ok(())
}

/// Verify what `explain` tells of a pod that is captured as another mesh captures: which decision of the
/// programs it is, also of what only that mesh asks.
#[test]
fn what_is_told_of_it() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    let line = [
        &APPLY[..],
        &["--", "kumactl", "install", "transparent-proxy", "--kuma-dp-user", "5678"],
        &["--redirect-all-dns-traffic", "--exclude-inbound-ips=10.0.0.0/8"],
        &["--exclude-outbound-ports-for-uids=tcp:1000-1010:7", "--ip-family-mode=ipv4"],
    ]
    .concat();
    millrace_in_pod(&topology, &line, 0)?;
    for (words, class) in [
        (&["--from", "uid=7", "--to", "203.0.113.9:1005/tcp"][..], "excluded-flow"),
        (&["--from", "uid=7", "--to", "203.0.113.9:80/tcp"], "network"),
        (&["--from", "uid=7", "--to", "203.0.113.9:53/udp"], "dns"),
        (&["--from", "uid=5678", "--to", "203.0.113.9:53/udp"], "other-dns"),
        (&["--from", "uid=7", "--to", "203.0.113.9:53/tcp"], "other-dns"),
        (&["--in", "--src", "10.1.1.1", "--to-port", "80"], "excluded-source"),
    ] {
        let live = ["explain", "--live", "--bpffs", FOLDER, "--output", "json"];
        let said = millrace_in_pod(&topology, &[&live[..], words].concat(), 0)?;
        let found: Value =
            serde_json::from_str(&said).with_context(|| format!("{words:?}: {said}"))?;
        let rule = found["decidedBy"][0]["rule"].as_str().unwrap_or_default();
        ensure!(rule.split(':').next() == Some(class), "{words:?}: {said}");
    }
    Ok(())
}

/// Verify that programs of another version get no pod with settings that they may not know, whoever asks,
/// and get those that every version knows; and that this version's take their place while such a pod is
/// captured.
#[test]
fn programs_of_another_version() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    let maps = Path::new(FOLDER).join("maps");
    topology.pod.enter(|| {
        change(&maps.join("SETTINGS"), &[0; 4], |settings: &mut [u8; 28]| settings[12] ^= 1)
    })??;
    let linkerd = [&APPLY[..], &["--", "linkerd", "-p", "4143", "-o", "4140", "-u", "2102"]];
    let linkerd = linkerd.concat();
    let said = millrace_in_pod(&topology, &linkerd, 1)?;
    ensure!(said.contains("`millrace node-bpf load` puts this version's in their place"), "{said}");
    ensure!(node(&topology.pod, |node| Ok(node.pods()?.len()))? == 0);
    enrol(&topology, &[])?;
    let cgroup = Cgroup::path()?.display().to_string();
    let load = ["node-bpf", "load", "--bpffs", FOLDER, "--cgroup", &cgroup];
    millrace_in_pod(&topology, &load, 0)?;
    ensure!(node(&topology.pod, |node| Ok(node.pods()?.len()))? == 1);
    let said = millrace_in_pod(&topology, &linkerd, 0)?;
    ensure!(said.contains("the pod's entry is replaced"), "{said}");
    Ok(())
}
