//! `millrace preflight`: what is there, what is missing, and nothing changed.

use std::process::Command;

use anyhow::Result;
use millrace_tests::capture::{millrace, ran};
use millrace_tests::netns::Namespace;

/// Verify that a whole machine lets every backend work, and that looking changes nothing.
#[test]
fn every_backend_works_here() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.run("nft", &["add", "table", "inet", "somebody-elses"])?;
    let before = namespace.run("nft", &["list", "ruleset"])?;
    for args in [&["preflight"][..], &["preflight", "--backend", "nftables"]] {
        let (code, said) = ran(&namespace, &mut millrace(args)?)?;
        assert_eq!(code, Some(0), "{said}");
        for backend in ["iptables-nft works", "iptables-legacy works", "nftables works"] {
            assert!(said.contains(backend), "{said}");
        }
        assert!(!said.contains("\nno "), "{said}");
    }
    assert_eq!(namespace.run("nft", &["list", "ruleset"])?, before);
    Ok(())
}

/// Verify that what is missing is named for each backend that needs it, and for no other.
#[test]
fn what_is_missing_is_named() -> Result<()> {
    let namespace = Namespace::new()?;
    let preflight = |who: &[&str], backend: &str| -> Result<(Option<i32>, String)> {
        let plain = millrace(["preflight", "--backend", backend])?;
        let mut command = Command::new("setpriv");
        command.args(who).arg(plain.get_program()).args(plain.get_args());
        ran(&namespace, &mut command)
    };
    let raw = ["--bounding-set=-net_raw", "--inh-caps=-net_raw"];
    let (code, said) = preflight(&raw, "iptables-legacy")?;
    assert_eq!(code, Some(1), "{said}");
    let missing = "iptables-legacy does not work\n    capability NET_RAW: add it";
    assert!(said.contains(missing) && said.contains("nftables works"), "{said}");
    assert_eq!(preflight(&raw, "nftables")?.0, Some(0));

    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let (code, said) = preflight(&nobody, "nftables")?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("nftables does not work\n    capability NET_ADMIN: add it"), "{said}");
    Ok(())
}
