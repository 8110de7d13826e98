//! A pod whose packets come over a bridge: where that gives them to rules first, TPROXY captures nothing,
//! and every command says so.

use anyhow::{Context as _, Result};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::netns::Namespace;
use millrace_tests::process::{Listeners, dial};
use millrace_tests::topology::{APP, PROXY, ROOT};
use millrace_tests::wire::{Dial, Identity, Listen, Outcome, Proto, Serve};
use serde_json::Value;

const APPLY: [&str; 5] = ["apply", "--backend", "nftables", "--mode", "tproxy"];

/// A pod with a bridge, and its neighbour behind that.
fn pair() -> Result<(Namespace, Namespace)> {
    let (pod, outside) = (Namespace::new()?, Namespace::new()?);
    pod.ip(&format!(
        "link set lo up\nlink add br0 type bridge\nlink set br0 up\n\
         link add port0 type veth peer name eth0 netns {}\n\
         link set port0 master br0 up\naddr add 10.61.0.1/24 dev br0\n",
        outside.path().display()
    ))?;
    outside.ip("link set lo up\naddr add 10.61.0.2/24 dev eth0\nlink set eth0 up\n")?;
    Ok((pod, outside))
}

fn call_rules(pod: &Namespace, calls: &str) -> Result<()> {
    for which in ["iptables", "ip6tables"] {
        pod.run("sysctl", &["-qw", &format!("net.bridge.bridge-nf-call-{which}={calls}")])?;
    }
    Ok(())
}

fn listen(pod: &Namespace, name: &str, identity: Identity, port: u16) -> Result<Listeners> {
    let addr = format!("0.0.0.0:{port}").parse()?;
    let listen = vec![Listen { proto: Proto::Tcp, addr, transparent: identity == PROXY }];
    Listeners::start(pod, &Serve { name: name.to_owned(), identity, listen })
}

/// Who really answers, and the port that `explain` says gets it.
fn answers(pod: &Namespace, outside: &Namespace) -> Result<(String, Value)> {
    let asked = Dial {
        identity: ROOT,
        proto: Proto::Tcp,
        from: None,
        from_port: None,
        transparent_mark: None,
        to: "10.61.0.1:80".parse()?,
        timeout_ms: 5000,
    };
    let Outcome::Answered { answer, .. } = dial(outside, &asked)? else {
        anyhow::bail!("nobody answers")
    };
    let words = ["explain", "--live", "--output", "json", "--in", "--src", "10.61.0.2"];
    let output =
        pod.output(&mut millrace([&words[..], &["--to", "10.61.0.1:80/tcp"]].concat())?)?;
    let said: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((answer.name, said["fate"]["port"].clone()))
}

/// Verify that what TPROXY does behind a bridge is what is said, with each setting that decides it.
#[test]
fn tproxy_behind_a_bridge_is_told_as_it_is() -> Result<()> {
    let (pod, outside) = pair()?;
    let _listeners = [listen(&pod, "proxy", PROXY, 15006)?, listen(&pod, "app", APP, 80)?];
    call_rules(&pod, "0")?;
    pod.output(&mut millrace(APPLY)?)?;
    assert_eq!(answers(&pod, &outside)?, ("proxy".to_owned(), 15006.into()));
    call_rules(&pod, "1")?;
    assert_eq!(answers(&pod, &outside)?, ("app".to_owned(), 80.into()));
    call_rules(&pod, "0")?;
    pod.ip("link set br0 type bridge nf_call_iptables 1\n")?;
    assert_eq!(answers(&pod, &outside)?, ("app".to_owned(), 80.into()));
    Ok(())
}

/// Verify that such a capture is refused, and that REDIRECT is not.
#[test]
fn capture_that_catches_nothing_is_refused() -> Result<()> {
    let (pod, _outside) = pair()?;
    call_rules(&pod, "1")?;
    let (code, said) = ran(&pod, &mut millrace(APPLY)?)?;
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains("br0 is a bridge") && said.contains("bridge-nf-call-iptables"), "{said}");
    assert_eq!(pod.run("nft", &["list", "ruleset"])?, "");
    let (code, said) = ran(&pod, &mut millrace(["preflight", "--backend", "nftables"])?)?;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("br0 is a bridge"), "{said}");
    let (code, said) = ran(&pod, &mut millrace(["apply", "--backend", "nftables"])?)?;
    assert_eq!(code, Some(0), "{said}");
    Ok(())
}

/// Verify that a proof does not pass where packets come over a bridge, and its own link is behind none.
#[test]
fn a_proof_does_not_go_around_the_bridge() -> Result<()> {
    let (pod, _outside) = pair()?;
    call_rules(&pod, "0")?;
    pod.output(&mut millrace(APPLY)?)?;
    let verify = || ran(&pod, &mut millrace(["verify", "--output", "json"])?);
    let (code, said) = verify()?;
    assert_eq!(code, Some(0), "{said}");
    call_rules(&pod, "1")?;
    let (code, said) = verify()?;
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains("\"verified\": false"), "{said}");
    assert!(said.contains("br0 is a bridge") && said.contains("bridge-nf-call-iptables"), "{said}");
    // REDIRECT needs no socket.
    pod.output(&mut millrace(["apply", "--backend", "nftables"])?)?;
    let (code, said) = verify()?;
    assert_eq!(code, Some(0), "{said}");
    Ok(())
}
