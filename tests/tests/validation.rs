//! `--run-validation`: real connections, whoever makes them, and the rule that is missing.

use anyhow::Result;
use millrace_tests::capture::{Variant, millrace};
use millrace_tests::process::Listeners;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};

const FLAGS: [&str; 9] =
    ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "--dual-stack", "--probe-timeout=300ms"];

/// A captured pod whose proxy is not there yet, as when the validation container runs.
fn captured(variant: Variant, extra: &[&str]) -> Result<Topology> {
    let mut topology = Topology::new(Stack::Dual, Layout::default())?;
    topology.stop_listeners();
    let args = [&FLAGS[..], &["--force-iptables-binary", variant.as_str()], extra].concat();
    let output = topology.pod.output(&mut millrace(args)?)?;
    assert!(output.status.success(), "{output:?}");
    Ok(topology)
}

/// Validate as this user and group, with or without every capability. Gives the exit code and what
/// was said.
fn validate(topology: &Topology, user: Option<u32>, extra: &[&str]) -> Result<(i32, String)> {
    let program = millrace([""; 0])?;
    let program = program.get_program().to_str().unwrap_or_default().to_owned();
    let ids = user.map(|id| (format!("--reuid={id}"), format!("--regid={id}")));
    let mut words = vec!["setpriv"];
    if let Some((uid, gid)) = &ids {
        words.extend([uid, gid, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
    }
    words.push(&program);
    words.extend(FLAGS);
    words.extend(["--skip-rule-apply", "--run-validation"]);
    words.extend(extra);
    let mut command = std::process::Command::new(words[0]);
    let output = topology.pod.output(command.args(&words[1..]))?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
}

/// Verify that root, the proxy and anybody else can validate, and that each checks both
/// directions of both families as far as it may.
#[test]
fn any_user_can_validate() -> Result<()> {
    for variant in Variant::ALL {
        let topology = captured(variant, &[])?;
        let before = Snapshot::take(&topology.pod)?.without_counters();
        let direction = |said: &str, what: &str| {
            let good = |l: &&str| l.contains(what) && l.contains("with its original destination");
            said.lines().filter(good).count()
        };
        for (user, outbound, inbound) in
            [(None, 2, 2), (Some(1337), 0, 2), (Some(1000), 2, 0), (Some(65534), 2, 0)]
        {
            let (code, said) = validate(&topology, user, &[])?;
            assert_eq!(code, 0, "{user:?}: {said}");
            assert_eq!(direction(&said, "outbound"), outbound, "{user:?}: {said}");
            assert_eq!(direction(&said, "inbound"), inbound, "{user:?}: {said}");
        }
        let after = Snapshot::take(&topology.pod)?.without_counters();
        assert_eq!(before.differences(&after), "");
    }
    Ok(())
}

/// Verify that every rule that a connection needs is named when it is gone, in each family.
#[test]
fn a_missing_rule_is_named() -> Result<()> {
    let gone = [
        "PREROUTING -p tcp -j ISTIO_INBOUND",
        "ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
        "ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006",
        "ISTIO_OUTPUT -j ISTIO_REDIRECT",
        "ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
        "OUTPUT -j ISTIO_OUTPUT",
    ];
    for variant in Variant::ALL {
        let topology = captured(variant, &[])?;
        for (program, family) in [("iptables", "IPv4"), ("ip6tables", "IPv6")] {
            let program = format!("{program}-{}", variant.as_str());
            for rule in gone {
                let delete = format!("-t nat -D {rule}");
                let words: Vec<&str> = delete.split(' ').collect();
                topology.pod.run(&program, &words)?;
                let (code, said) = validate(&topology, None, &[])?;
                assert_eq!(code, 126, "{rule}: {said}");
                assert!(said.contains(&format!("missing in table nat: -A {rule}\n")), "{said}");
                assert!(said.contains(&format!("error\t{family} ")), "{said}");
                let repair = [&FLAGS[..], &["--reconcile"]].concat();
                assert!(topology.pod.output(&mut millrace(repair)?)?.status.success());
            }
        }
    }
    Ok(())
}

/// Verify that without any rule every user gets exit code 126.
#[test]
fn nothing_captured_is_not_valid() -> Result<()> {
    let topology = captured(Variant::Nft, &["--dry-run"])?;
    for user in [None, Some(1337), Some(1000)] {
        let (code, said) = validate(&topology, user, &[])?;
        assert_eq!(code, 126, "{user:?}: {said}");
        assert!(said.contains("the CNI plugin did not capture this pod"), "{said}");
        // There never were to be rules of istio-iptables.
        assert!(!said.contains("missing in table"), "{said}");
        let seen = if user.is_none() { "no rules of it are here" } else { "can't be seen" };
        assert!(said.contains(seen), "{user:?}: {said}");
    }
    Ok(())
}

/// Verify that a proxy that already listens is told from rules that are missing.
#[test]
fn a_port_that_is_taken_proves_nothing() -> Result<()> {
    let topology = Topology::new(Stack::V4, Layout::default())?;
    assert!(topology.listeners().iter().map(Listeners::pid).all(|pid| pid > 0));
    let (code, said) = validate(&topology, None, &[])?;
    assert_eq!(code, 126, "{said}");
    assert!(said.contains("the proxy's port 15001 can't be listened on"), "{said}");
    Ok(())
}

/// Verify that a pod that the plugin captured is valid without a warning, whichever rules those are, and
/// whoever looks; and that what they lack is found.
#[test]
fn rules_of_the_plugin_are_proved_by_connections() -> Result<()> {
    for backend in ["nftables", "iptables-nft"] {
        let mut topology = Topology::new(Stack::Dual, Layout::default())?;
        topology.stop_listeners();
        let apply = ["apply", "--backend", backend];
        let output = topology.pod.output(&mut millrace(apply)?)?;
        assert!(output.status.success(), "{output:?}");
        for user in [Some(1337), None] {
            let (code, said) = validate(&topology, user, &[])?;
            assert_eq!(code, 0, "{backend} {user:?}: {said}");
            assert!(!said.contains("warn\t") && !said.contains("missing"), "{user:?}: {said}");
        }
        let gone = match backend {
            "nftables" => "flush chain inet millrace nat-prerouting",
            _ => "flush chain ip nat PREROUTING",
        };
        topology.pod.run("nft", &gone.split(' ').collect::<Vec<_>>())?;
        let (code, said) = validate(&topology, None, &[])?;
        assert_eq!(code, 126, "{backend}: {said}");
        assert!(said.contains("rules are here that lack something"), "{said}");
    }
    Ok(())
}

/// Verify that a failure is told where the kubelet looks for it, within its bounds, and that a success
/// tells nothing.
#[test]
fn the_reason_is_left_for_the_kubelet() -> Result<()> {
    let mut topology = Topology::new(Stack::V4, Layout::default())?;
    topology.stop_listeners();
    let folder = tempfile::tempdir()?;
    let (null, log) = (folder.path().join("null"), folder.path().join("termination-log"));
    std::fs::write(&null, "")?;
    let program = millrace([""; 0])?;
    let program = program.get_program().to_str().unwrap_or_default().to_owned();
    // A container has a `/dev` of its own, in which the kubelet puts this file.
    let script = "mount --bind /dev/null \"$0/null\" && mount --bind \"$0\" /dev && exec \"$@\"";
    let folder = folder.path().to_str().unwrap_or_default();
    let run = |words: &[&str]| -> Result<(Option<i32>, String)> {
        std::fs::write(&log, "")?;
        let mut command = std::process::Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script, folder, &program, "istio-iptables"])
            .args(words);
        let output = topology.pod.output(&mut command)?;
        Ok((output.status.code(), std::fs::read_to_string(&log)?))
    };
    let validate = [
        "-u",
        "1337",
        "-i",
        "*",
        "-b",
        "*",
        "--probe-timeout=300ms",
        "--run-validation",
        "--skip-rule-apply",
    ];
    let (code, text) = run(&validate)?;
    assert_eq!(code, Some(126), "{text}");
    assert!(
        text.contains("the CNI plugin did not capture this pod") && text.len() <= 4096,
        "{text}"
    );
    let (code, text) = run(&["-p", "no-port"])?;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no-port"), "{text}");
    let (code, text) = run(&["--no-such-flag"])?;
    assert_eq!(code, Some(255), "{text}");
    assert!(text.contains("--no-such-flag"), "{text}");
    let (code, text) = run(&validate[..6])?;
    assert_eq!((code, text.as_str()), (Some(0), ""));
    Ok(())
}
