//! What fails is taken back, and the message says what to do.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use anyhow::{Context as _, Result};
use millrace_tests::capture::{Variant, millrace};
use millrace_tests::netns::Namespace;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};
use nix::mount::{MsFlags, mount};
use tempfile::TempDir;

const REDIRECT: [&str; 8] = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "--dual-stack"];
const TPROXY: [&str; 6] =
    ["-m", "TPROXY", "--redirect-dns", "--capture-all-dns", "--drop-invalid", "--reconcile"];

/// Run a command in a namespace; gives the exit code and all that was said.
fn run(namespace: &Namespace, command: &mut Command) -> Result<(i32, String)> {
    let output = namespace.output(command)?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
}

fn look(namespace: &Namespace) -> Result<Snapshot> {
    Ok(Snapshot::take(namespace)?.without_counters())
}

/// A program in front of the real one of this name that carries out every table but one, and fails
/// at that.
fn failing(program: &str, table: &str) -> Result<TempDir> {
    let folder = tempfile::tempdir().context("a folder")?;
    let path = folder.path().join(program);
    let script = format!(
        r#"#!/bin/bash
part=
while IFS= read -r line; do
    part+=$line$'\n'
    [ "$line" = COMMIT ] || continue
    if [[ $part = "*{table}"* ]]; then
        echo "{program}: line 7 failed: no luck today" >&2
        exit 1
    fi
    printf %s "$part" | /usr/sbin/{program} "$@" || exit
    part=
done
"#
    );
    fs::write(&path, script).context("a script")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// Verify that a table that can't be written leaves everything as it was, in both families.
#[test]
fn a_table_that_fails_takes_everything_back() -> Result<()> {
    for variant in Variant::ALL {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let force = ["--force-iptables-binary", variant.as_str()];
        let new = [&REDIRECT[..], &TPROXY, &force].concat();
        for old in [None, Some([&REDIRECT[..], &force].concat())] {
            if let Some(old) = &old {
                let (code, said) = run(&topology.pod, &mut millrace(old)?)?;
                assert_eq!(code, 0, "{said}");
            }
            let before = look(&topology.pod)?;
            for (family, table) in
                [("iptables", "nat"), ("ip6tables", "mangle"), ("ip6tables", "nat")]
            {
                let program = format!("{family}-{}-restore", variant.as_str());
                let folder = failing(&program, table)?;
                let mut command = millrace(&new)?;
                let path = std::env::var("PATH")?;
                command.env("PATH", format!("{}:{path}", folder.path().display()));
                let (code, said) = run(&topology.pod, &mut command)?;
                assert_eq!(code, 1, "{said}");
                assert!(said.contains("what was there before is there again"), "{said}");
                assert!(said.contains(&format!("{program} --noflush")), "{said}");
                assert!(said.contains("no luck today"), "{said}");
                assert_eq!(before.differences(&look(&topology.pod)?), "", "{program} {table}");
            }
        }
    }
    Ok(())
}

/// Verify that a route that can't be added leaves no rule of either family.
#[test]
fn a_route_that_is_refused_takes_everything_back() -> Result<()> {
    for variant in Variant::ALL {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        topology.pod.run("sysctl", &["-qw", "net.ipv6.conf.lo.disable_ipv6=1"])?;
        let before = look(&topology.pod)?;
        let args =
            [&REDIRECT[..], &TPROXY, &["--force-iptables-binary", variant.as_str()]].concat();
        let (code, said) = run(&topology.pod, &mut millrace(args)?)?;
        assert_eq!(code, 1, "{said}");
        let route = "IPv6 route local default dev lo table 133 can't be added: EACCES";
        assert!(said.contains(route), "{said}");
        assert!(said.contains("IPv6 is switched off on lo: set the sysctl"), "{said}");
        assert!(said.contains("what was there before is there again"), "{said}");
        assert_eq!(before.differences(&look(&topology.pod)?), "");
    }
    Ok(())
}

/// Verify that without IPv6 in the namespace IPv4 is captured alone.
#[test]
fn without_ipv6_ipv4_is_captured() -> Result<()> {
    for variant in Variant::ALL {
        let topology = Topology::new(Stack::V4, Layout::default())?;
        for which in ["all", "default", "lo", "eth0"] {
            topology
                .pod
                .run("sysctl", &["-qw", &format!("net.ipv6.conf.{which}.disable_ipv6=1")])?;
        }
        let args =
            [&REDIRECT[..], &TPROXY, &["--force-iptables-binary", variant.as_str()]].concat();
        let (code, said) = run(&topology.pod, &mut millrace(args)?)?;
        assert_eq!(code, 0, "{said}");
        let snapshot = look(&topology.pod)?;
        assert!(snapshot.chains.keys().all(|chain| chain.starts_with("IPv4")), "{snapshot:?}");
    }
    Ok(())
}

/// A namespace in which `/usr/sbin` holds nothing but some of the programs of iptables.
fn with_programs_alone(stack: Stack, programs: &[&str]) -> Result<(Topology, TempDir)> {
    let topology = Topology::new(stack, Layout::default())?;
    let folder = tempfile::tempdir().context("a folder")?;
    for multi in ["xtables-nft-multi", "xtables-legacy-multi"] {
        fs::copy(format!("/usr/sbin/{multi}"), folder.path().join(multi)).context(multi)?;
    }
    for program in programs {
        let nft = program.contains("-nft-");
        let multi = if nft { "xtables-nft-multi" } else { "xtables-legacy-multi" };
        symlink(multi, folder.path().join(program))?;
    }
    topology.pod.enter(|| -> Result<()> {
        let none: Option<&str> = None;
        for hidden in ["/usr/sbin", "/sbin"] {
            mount(Some(folder.path()), hidden, none, MsFlags::MS_BIND, none).context("hiding")?;
        }
        Ok(())
    })??;
    Ok((topology, folder))
}

/// Verify that a missing program is named with the package that has it, that one family's programs
/// are enough for a pod of that family, and that IPv6 is never left out silently.
#[test]
fn a_missing_program_is_named() -> Result<()> {
    let v4 =
        |variant: &str| [format!("iptables-{variant}-save"), format!("iptables-{variant}-restore")];
    for variant in Variant::ALL {
        let name = variant.as_str();
        let programs = v4(name);
        let programs: Vec<&str> = programs.iter().map(String::as_str).collect();
        let (topology, _folder) = with_programs_alone(Stack::V4, &programs)?;
        let (code, said) = run(&topology.pod, &mut millrace(REDIRECT)?)?;
        assert_eq!(code, 0, "{said}");
        assert!(said.contains(&format!("using iptables-{name}")), "{said}");

        let (topology, _folder) = with_programs_alone(Stack::Dual, &programs)?;
        let (code, said) = run(&topology.pod, &mut millrace(REDIRECT)?)?;
        assert_eq!(code, 1, "{said}");
        let wanted = format!(
            "ip6tables-{name}-restore is not installed: install the package iptables with its IPv6 \
             half"
        );
        assert!(said.contains(&wanted), "{said}");
        let (code, said) = run(&topology.pod, &mut millrace(["status"])?)?;
        assert_eq!(code, 3, "nothing is left: {said}");
    }
    let (topology, _folder) = with_programs_alone(Stack::V4, &[])?;
    let (code, said) = run(&topology.pod, &mut millrace(REDIRECT)?)?;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("install the package iptables"), "{said}");
    Ok(())
}

/// Verify that who may not change rules gets one error that says what to grant.
#[test]
fn without_privilege_one_error_says_what_to_grant() -> Result<()> {
    for variant in Variant::ALL {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let before = look(&topology.pod)?;
        let force = ["--force-iptables-binary", variant.as_str()];
        let apply = [&REDIRECT[..], &force].concat();
        let cleanup = ["cleanup"];
        for who in [
            &["--bounding-set=-net_admin", "--inh-caps=-net_admin"][..],
            &["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"],
        ] {
            for args in [&apply[..], &cleanup[..]] {
                let plain = millrace(args)?;
                let mut command = Command::new("setpriv");
                command.args(who).arg(plain.get_program()).args(args);
                let (code, said) = run(&topology.pod, &mut command)?;
                assert_eq!(code, 1, "{who:?} {args:?}: {said}");
                assert!(said.contains("the capability NET_ADMIN"), "{who:?} {args:?}: {said}");
                let errors =
                    said.lines().filter(|l| l.contains("\terror\t") || l.starts_with("Error:"));
                assert_eq!(errors.count(), 1, "{said}");
            }
        }
        assert_eq!(before.differences(&look(&topology.pod)?), "");
    }
    Ok(())
}
