//! `millrace graph` as a program: rules of a namespace with the traffic that they saw.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::netns::Namespace;

fn drawn(words: &[&str]) -> Result<String> {
    let output = Command::new(binary::millrace()?).arg("graph").args(words).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The widths of a picture's lines in tenths.
fn widths(svg: &str) -> Result<Vec<u32>> {
    let lines = svg.lines().filter(|line| line.starts_with("<path"));
    let width = |line: &str| {
        let (_, rest) = line.split_once("stroke-width=\"").context("a line without a width")?;
        Ok(rest.split('"').next().unwrap_or_default().replace('.', "").parse()?)
    };
    lines.map(width).collect()
}

/// Verify for each backend that the lines of a live picture grow with traffic.
#[test]
fn traffic_is_seen_in_a_live_picture() -> Result<()> {
    for backend in ["iptables-nft", "iptables-legacy", "nftables"] {
        let namespace = Namespace::new()?;
        namespace
            .ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n\
             link set eth1 up\naddr add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1\n")?;
        let millrace = binary::millrace()?;
        let millrace = millrace.to_str().context("UTF-8")?;
        namespace.run(millrace, &["apply", "--backend", backend])?;
        let path = namespace.path();
        let live = ["--format", "svg", "--netns", path.to_str().context("UTF-8")?];
        let before = drawn(&live)?;
        ensure!(widths(&before)?.iter().all(|width| *width == 10), "{backend}: {before}");
        for _ in 0..4 {
            // Nobody listens: the connection is redirected, and refused.
            namespace.run("bash", &["-c", "! : < /dev/tcp/10.9.9.9/80"])?;
        }
        let after = drawn(&live)?;
        // Four packets are three bits: OUTPUT to the chain for what goes out, on to the one that
        // redirects, and from there to the port.
        let wide = widths(&after)?.iter().filter(|width| **width == 20).count();
        ensure!(wide == 3, "{backend}: {after}");
        let asked = drawn(&[&live[..], &["--to", "10.9.9.9:80"]].concat())?;
        ensure!(asked.matches("<path class=\"taken\"").count() == 3, "{backend}: {asked}");
    }
    Ok(())
}

/// Verify that every source and every format gives a picture.
#[test]
fn every_source_is_drawn() -> Result<()> {
    let mermaid = drawn(&["--family", "ipv4", "--exclude-outbound-ports", "9092"])?;
    ensure!(mermaid.starts_with("flowchart LR\n") && mermaid.contains("--dport 9092"), "{mermaid}");
    let dot = drawn(&["--format", "dot", "--", "istio-iptables", "-i", "*"])?;
    ensure!(dot.starts_with("digraph rules {\n") && dot.contains("ISTIO_OUTPUT"), "{dot}");
    let svg = drawn(&[
        "--format",
        "svg",
        "--backend",
        "nftables",
        "--in",
        "--src",
        "10.1.2.3",
        "--to-port",
        "80",
    ])?;
    ensure!(svg.contains("<title>") && svg.contains("class=\"taken\""), "{svg}");
    Ok(())
}
