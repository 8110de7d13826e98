//! `millrace preflight`: what is there, what is missing, and nothing changed.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use millrace_tests::capture::{millrace, ran, wrapped};
use millrace_tests::ebpf::{Apart, Cgroup, FOLDER, load, load_with, mount_bpffs};
use millrace_tests::netns::Namespace;
use serde_json::Value;

/// Verify that a whole machine lets every backend work, and that looking changes nothing.
#[test]
fn every_backend_works_here() -> Result<()> {
    // The order of programs is looked at as well, and other tests load theirs.
    let apart = Apart::new("preflight")?;
    let namespace = Namespace::new()?;
    mount_bpffs(&namespace)?;
    load_with(&namespace, &apart.options()?)?;
    namespace.run("nft", &["add", "table", "inet", "somebody-elses"])?;
    let before = namespace.run("nft", &["list", "ruleset"])?;
    for backend in [&[][..], &["--backend", "nftables"], &["--backend", "ebpf"]] {
        let args = [&["preflight", "--bpffs", FOLDER], backend].concat();
        let (code, said) = ran(&namespace, &mut millrace(&args)?)?;
        assert_eq!(code, Some(0), "{said}");
        for backend in ["iptables-nft", "iptables-legacy", "nftables", "ebpf"] {
            assert!(said.contains(&format!("\n{backend} works\n")), "{said}");
        }
        // Which kernel this is tells whether programs can ask to be called first, and none works less for it.
        let lacking = |line: &&str| line.starts_with("no ") && !line.contains("BPF_F_PREORDER");
        assert_eq!(said.lines().find(lacking), None, "{said}");
    }
    assert_eq!(namespace.run("nft", &["list", "ruleset"])?, before);
    Ok(())
}

/// Verify that a verdict is for what the settings say: eBPF hands nothing to TPROXY, and rules do.
#[test]
fn a_verdict_is_for_a_configuration() -> Result<()> {
    let namespace = Namespace::new()?;
    mount_bpffs(&namespace)?;
    for (settings, ebpf) in [(&[][..], 0), (&["--mode", "tproxy"], 1), (&["--dns", "all"], 0)] {
        for (backend, wanted) in [("ebpf", ebpf), ("nftables", 0), ("iptables-nft", 0)] {
            let args = [&["preflight", "--bpffs", FOLDER, "--backend", backend], settings].concat();
            let (code, said) = ran(&namespace, &mut millrace(&args)?)?;
            assert_eq!(code, Some(wanted), "{args:?}: {said}");
            let verdict = match (backend, wanted) {
                (_, 1) => "does not work",
                // Its programs are loaded by nobody here.
                ("ebpf", _) => "will work",
                _ => "works",
            };
            assert!(said.contains(&format!("\n{backend} {verdict}\n")), "{args:?}: {said}");
        }
    }
    let (code, said) = ran(&namespace, &mut millrace(["preflight", "--mode", "no-such"])?)?;
    assert!(code == Some(1) && said.contains("no-such"), "{code:?}: {said}");
    Ok(())
}

/// What takes these capabilities from a command.
fn without(capabilities: &str) -> [String; 3] {
    let bounding = format!("--bounding-set={capabilities}");
    ["setpriv".to_owned(), bounding, format!("--inh-caps={capabilities}")]
}

/// Verify that a command line of a mesh's tool says what is to be captured, and that a kernel without what
/// its rules are made of is found.
#[test]
fn a_command_line_of_a_tool_is_asked_about() -> Result<()> {
    let namespace = Namespace::new()?;
    for tool in [
        &["linkerd", "-p", "4143", "-o", "4140", "-u", "2102"][..],
        &["istio-iptables", "-u", "1337", "-b", "*"],
        &["kumactl", "install", "transparent-proxy", "--kuma-dp-user", "5678"],
    ] {
        for backend in ["nftables", "iptables-nft"] {
            let args = [&["preflight", "--backend", backend, "--"], tool].concat();
            let (code, said) = ran(&namespace, &mut millrace(&args)?)?;
            assert_eq!(code, Some(0), "{args:?}: {said}");
            assert!(said.contains(&format!("\n{backend} works\n")), "{args:?}: {said}");
        }
    }
    // What eBPF does not take of it is said, and so is what is wrong in it.
    let ebpf = ["preflight", "--backend", "ebpf", "--"];
    let kuma = ["kumactl", "install", "transparent-proxy", "--kuma-dp-user", "5678"];
    let drops = [&ebpf[..], &kuma, &["--drop-invalid-packets"]].concat();
    let (code, said) = ran(&namespace, &mut millrace(&drops)?)?;
    let named = said.contains("ebpf does not work") && said.contains("--drop-invalid-packets");
    assert!(code == Some(1) && named, "{said}");
    let wrong = [&ebpf[..], &["linkerd", "-p", "4143", "-o", "0"]].concat();
    let (code, said) = ran(&namespace, &mut millrace(&wrong)?)?;
    assert!(code == Some(1) && said.contains("-o/--outgoing-proxy-port: \"0\""), "{said}");
    Ok(())
}

/// Run `preflight --backend ebpf` behind these words; its exit code, and what eBPF lacks.
fn ebpf(namespace: &Namespace, words: &[&str]) -> Result<(Option<i32>, String)> {
    let args = ["preflight", "--backend", "ebpf", "--bpffs", FOLDER];
    let (code, said) = ran(namespace, &mut wrapped(words, &millrace(args)?))?;
    let (_, verdict) = said.split_once("\nebpf ").context("a verdict")?;
    Ok((code, verdict.to_owned()))
}

/// Verify that eBPF's capabilities, mounts and parts of the kernel are each named when they are
/// missing, that the other backends don't mind, and that `node-bpf load` says it as well.
#[test]
fn what_ebpf_lacks_is_named() -> Result<()> {
    let namespace = Namespace::new()?;
    let folder = "bpffs for /run/bpf/millrace: mount -t bpf bpf /sys/fs/bpf";
    let (code, said) = ebpf(&namespace, &[])?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("does not work\n") && said.contains(folder), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    mount_bpffs(&namespace)?;
    // Programs that are not loaded yet are no obstacle, but what to do first.
    let (code, said) = ebpf(&namespace, &[])?;
    let first =
        "will work\n    first, the node's programs in /run/bpf/millrace: `millrace node-bpf load`";
    assert!(code == Some(0) && said.starts_with(first), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    let args = ["preflight", "--bpffs", FOLDER, "--output", "json"];
    let (_, said) = ran(&namespace, &mut millrace(args)?)?;
    let json: Value = serde_json::from_str(&said)?;
    let find = |list: &str, name: &str, value: &str| {
        let list = json[list].as_array().into_iter().flatten();
        list.clone().find(|item| item[name].as_str() == Some(value)).cloned()
    };
    let node = find("findings", "what", "the node's programs in /run/bpf/millrace");
    assert_eq!(node.context("a finding")?["there"], false);
    let verdict = find("backends", "backend", "ebpf").context("a verdict")?;
    assert_eq!(verdict["works"], true);
    assert_eq!(verdict["first"].as_array().map(Vec::len), Some(1), "{verdict}");

    for capability in ["bpf", "perfmon", "net_admin"] {
        let set = format!("-{capability},-sys_admin");
        let (code, said) = ebpf(&namespace, &without(&set).each_ref().map(String::as_str))?;
        assert_eq!(code, Some(1), "{said}");
        let named = format!("\n    capability {}", capability.to_uppercase());
        assert!(said.starts_with("does not work\n") && said.contains(&named), "{said}");
        assert_eq!(said.lines().count(), 2, "{said}");
    }

    // A system call filter that refuses bpf(2), and a kernel that has nothing of it but arrays.
    let strace = ["strace", "-qq", "-o", "/dev/null", "-e"];
    let (code, said) = ebpf(&namespace, &[&strace[..], &["inject=bpf:error=EPERM"]].concat())?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("\n    the system call bpf(2): ") && said.contains("seccomp"), "{said}");
    let old = [&strace[..], &["inject=bpf:error=EINVAL:when=2+"]].concat();
    let (code, said) = ebpf(&namespace, &old)?;
    assert_eq!(code, Some(1), "{said}");
    for part in [
        "eBPF programs for connect() (connect4, connect6): it takes a kernel with CONFIG_CGROUP_BPF",
        "eBPF programs for inbound connections (sk_lookup): it takes a kernel with CONFIG_INET",
        "bpf_get_netns_cookie, by which pods are told apart: programs of type sock_addr lack it",
        "bpf_sk_assign, which hands connections to the proxy: programs of type sk_lookup lack it",
        "eBPF maps: ring buffer, for trace: it takes Linux 5.8",
        "links of eBPF programs, which can be replaced: it takes Linux 5.9",
    ] {
        assert!(said.contains(&format!("\n    {part}")), "{part}\n{said}");
    }
    let load = millrace(["node-bpf", "load", "--bpffs", FOLDER])?;
    let (code, said) = ran(&namespace, &mut wrapped(&old, &load))?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("eBPF can't work here: eBPF programs for connect()"), "{said}");
    // It is refused before anything is made or given to the verifier.
    assert!(!said.contains("does not accept") && !said.contains("node's programs in"), "{said}");
    assert_eq!(namespace.run("find", &["/run/bpf", "-name", "millrace"])?, "");
    Ok(())
}

/// Verify that a first load that fails, wherever it does, leaves nothing pinned.
#[test]
fn a_load_that_fails_leaves_nothing() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let namespace = Namespace::new()?;
    mount_bpffs(&namespace)?;
    let cgroup = Cgroup::path()?.display().to_string();
    let small = ["--cgroup", &cgroup, "--max-pods", "64", "--spares", "1"];
    let args = [&["node-bpf", "load", "--bpffs", FOLDER][..], &small].concat();
    let mut failed = 0;
    for at in (20..400).step_by(19) {
        let inject = format!("inject=bpf:error=ENOMEM:when={at}");
        let strace = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=bpf", "-e", &inject];
        let load = millrace(&args)?;
        let (code, said) = ran(&namespace, &mut wrapped(&strace, &load))?;
        if code == Some(0) {
            ran(&namespace, &mut millrace(["node-bpf", "unload", "--bpffs", FOLDER])?)?;
            continue;
        }
        failed += 1;
        let left = namespace.run("find", &["/run/bpf", "-mindepth", "2"])?;
        assert_eq!(left, "", "{at}: {said}");
    }
    assert!(failed > 2, "{failed}");
    Ok(())
}

/// Verify that programs which another `/sys` hides, as that of `ip netns exec`, are spoken of where
/// rules are written without them, and that others are not.
#[test]
fn programs_that_a_mount_hides_are_spoken_of() -> Result<()> {
    let script = "mkdir -p /run/bpf && mount -t bpf bpf /run/bpf && mkdir /run/bpf/millrace; \
                  unshare --mount sh -c \"$0 && exec \\\"\\$@\\\"\" sh \"$@\"; exit $?";
    let unshare = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "sh", "-c", script];
    for (hide, hidden) in [("umount /run/bpf", true), ("true", false)] {
        let namespace = Namespace::new()?;
        namespace.ip("link set lo up\n")?;
        let apply = millrace(["apply", "--bpffs", FOLDER, "--ipv6", "off"])?;
        let (code, said) =
            ran(&namespace, &mut wrapped(&[&unshare[..], &[hide]].concat(), &apply))?;
        assert!(code == Some(0) && said.contains("using nftables: "), "{said}");
        assert_eq!(said.contains(&format!("{FOLDER} is on no bpffs here")), hidden, "{said}");
    }
    Ok(())
}

/// Verify that `auto` writes rules where the node's programs are loaded and can't be used, and says
/// what is missing in preflight's words.
#[test]
fn auto_falls_back_and_says_why() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\n")?;
    load(&namespace)?;
    let args = ["apply", "--bpffs", FOLDER, "--ipv6", "off"];
    let unable = without("-bpf,-sys_admin");
    let unable = unable.each_ref().map(String::as_str);
    let (code, said) = ran(&namespace, &mut wrapped(&unable, &millrace(args)?))?;
    assert_eq!(code, Some(0), "{said}");
    let why = "rules are written, since eBPF can't be used: capability BPF";
    assert!(said.contains(why) && said.contains("using nftables: "), "{said}");
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
    // As Kubernetes does it: the container has the capability, and its user does not.
    assert!(
        said.contains("user 65534 has none in effect") && said.contains("runAsUser: 0"),
        "{said}"
    );
    let program = fs::canonicalize(millrace(["preflight"])?.get_program())?;
    let remedy = format!("setcap cap_net_raw,cap_net_admin+eip {}", program.display());
    assert!(said.contains(&remedy), "{said}");
    let nothing = [&nobody[..], &["--bounding-set=-all"]].concat();
    let (_, said) = preflight(&nothing, "nftables")?;
    assert!(!said.contains("has none in effect"), "{said}");
    // So it is where a run needs it.
    let plain = millrace(["apply"])?;
    let mut command = Command::new("setpriv");
    command.args(nobody).arg(plain.get_program()).args(plain.get_args());
    let (code, said) = ran(&namespace, &mut command)?;
    assert!(code == Some(1) && said.contains("user 65534 has none in effect"), "{said}");
    Ok(())
}
