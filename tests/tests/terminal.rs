//! What is printed at a terminal: colour, and a line of progress while something takes long. Where it is no
//! terminal, neither.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::capture::unattended;
use millrace_tests::netns::Namespace;

/// Begins every sequence that acts on a terminal (ECMA-48).
const ESCAPE: char = '\u{1b}';

/// Run a line of shell at a terminal of its own, with `millrace` as `$M`; what that has shown.
fn at_terminal(namespace: &Namespace, line: &str, env: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", line, "/dev/null"]);
    shown(namespace, command.env("TERM", "xterm"), env)
}

/// The same without a terminal.
fn piped(namespace: &Namespace, line: &str) -> Result<String> {
    shown(namespace, Command::new("sh").args(["-c", line]).env("TERM", "xterm"), &[])
}

fn shown(namespace: &Namespace, command: &mut Command, env: &[(&str, &str)]) -> Result<String> {
    command.env("M", binary::millrace()?).env_remove("NO_COLOR").envs(env.iter().copied());
    command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped());
    let output = namespace.enter(|| command.spawn()?.wait_with_output())??;
    Ok(String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?)
}

/// The text without colour, as lines that end as in a file.
fn plain(text: &str) -> String {
    let mut parts = text.split(ESCAPE);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain.replace("\r\n", "\n")
}

/// Verify that the four commands are in colour at a terminal and nowhere else, unless the environment or a
/// flag says otherwise, and that colour changes no letter.
#[test]
fn colour_is_for_terminals() -> Result<()> {
    let topology = unattended("nftables", &[])?;
    for words in [
        "status",
        "verify --timeout 10s",
        "explain --live --from uid=1000 --to 198.51.100.7:80",
        "explain --all --live",
        "diff 'apply --ipv6 off' 'apply --ipv6 off --exclude-outbound-ports 9092'",
    ] {
        let line = format!("$M {words} 2>/dev/null");
        let without = piped(&topology.pod, &line)?;
        ensure!(!without.is_empty() && !without.contains(ESCAPE), "{words}: {without:?}");
        let seen = at_terminal(&topology.pod, &line, &[])?;
        ensure!(seen.contains(ESCAPE), "{words}: {seen:?}");
        // Ports of one's own differ from run to run.
        if !words.starts_with("verify") {
            ensure!(plain(&seen) == without, "{words}: {seen}\nand {without}");
        }
        let first = plain(&seen).lines().next().map(str::to_owned);
        ensure!(first.as_deref() == without.lines().next(), "{words}: {first:?}");
        for env in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let seen = at_terminal(&topology.pod, &line, &[env])?;
            ensure!(!seen.contains(ESCAPE), "{words}, {env:?}: {seen:?}");
        }
        let never =
            at_terminal(&topology.pod, &format!("$M {words} --color never 2>/dev/null"), &[])?;
        ensure!(!never.contains(ESCAPE), "{words}: {never:?}");
        let always = piped(&topology.pod, &format!("$M {words} --color always 2>/dev/null"))?;
        ensure!(always.contains(ESCAPE), "{words}: {always:?}");
        let json = format!("$M {words} --color always --output json 2>/dev/null");
        ensure!(!piped(&topology.pod, &json)?.contains(ESCAPE), "{words}: JSON in colour");
    }
    Ok(())
}

/// Verify that a summary is the first line of each.
#[test]
fn the_summary_comes_first() -> Result<()> {
    let topology = unattended("nftables", &[])?;
    for (words, start) in [
        ("status", "captured: "),
        ("verify --timeout 10s", "verified: "),
        (
            "explain --live --from uid=1000 --to 198.51.100.7:80",
            "from uid=1000,gid=1000 to 198.51.100.7:80/tcp: redirected to port 15001",
        ),
        ("explain --all --live", "# "),
        (
            "diff 'apply --ipv6 off' 'apply --ipv6 off --exclude-outbound-ports 9092'",
            "traffic: 2 kinds of connections are treated differently",
        ),
        ("diff 'apply' 'apply'", "traffic: no connection is treated differently"),
    ] {
        let said = piped(&topology.pod, &format!("$M {words} 2>/dev/null"))?;
        ensure!(said.starts_with(start), "{words}: {said}");
    }
    let said = piped(&topology.pod, "$M explain --all --live 2>/dev/null")?;
    let summary = said.lines().next().context("a line")?;
    let counted: usize =
        summary.split([' ', ',']).skip(2).filter_map(|word| word.parse::<usize>().ok()).sum();
    let classes =
        said.lines().filter(|line| !line.starts_with(['#', ' ']) && !line.starts_with("who "));
    ensure!(summary.starts_with(&format!("# {counted} kinds ")), "{summary}");
    ensure!(classes.count() == counted, "{said}");
    Ok(())
}

/// Verify that what takes long says so on standard error at a terminal, and nothing is left of it; that it
/// says nothing where that is no terminal; and that standard output never has it.
#[test]
fn what_takes_long_says_so() -> Result<()> {
    let topology = unattended("nftables", &[])?;
    // What arrives nowhere takes as long as a connection may, and there are dozens.
    topology.pod.run("nft", &["add table inet slow"])?;
    topology.pod.run("nft", &["add chain inet slow in { type filter hook input priority 0 ; }"])?;
    topology.pod.run("nft", &["add rule inet slow in drop"])?;
    let verify = "$M verify --timeout 200ms";
    let seen = at_terminal(&topology.pod, &format!("{verify} >/dev/null"), &[])?;
    let lines = seen.matches(" connections, ").count();
    ensure!(lines > 0 && seen.contains("verify: "), "{seen:?}");
    let (_, last) = seen.rsplit_once(" s\u{1b}[K\r").context("the line of progress")?;
    ensure!(last.starts_with("\u{1b}[K"), "its end is not cleared: {last:?}");
    for line in [format!("{verify} 2>/dev/null"), format!("{verify} 2>&1 | cat")] {
        let seen = at_terminal(&topology.pod, &line, &[("NO_COLOR", "1")])?;
        ensure!(seen.contains("not verified") && !seen.contains(" connections, "), "{seen:?}");
    }
    Ok(())
}
