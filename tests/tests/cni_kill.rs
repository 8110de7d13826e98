//! ADD and DEL that are killed: the next run ends as if nothing had been.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Call, Host, Pod, mesh};
use millrace_tests::snapshot::Snapshot;
use serde_json::json;

/// Verify that an ADD that is killed at any moment is finished by the next, and undone by DEL.
#[test]
fn killed_at_any_moment() -> Result<()> {
    let host = Host::new()?;
    for backend in ["nftables", "iptables"] {
        let model = host.pod()?;
        let add = |pod: &Pod| {
            let annotations = mesh(&[("sidecar.istio.io/interceptionMode", "TPROXY")]);
            Call::new(&host, "ADD", pod, annotations).with_key("backend", json!(backend))
        };
        let nothing = host.inside(&model, Snapshot::take)?;
        let began = Instant::now();
        add(&model).run(&host)?.success()?;
        let whole = began.elapsed();
        let wanted = host.inside(&model, Snapshot::take)?.without_counters();
        let (mut done, mut undone) = (0, 0);
        for step in 0..40_u32 {
            let pod = host.pod()?;
            let mut child = add(&pod).start(&host)?;
            // The moment itself is what is tried.
            thread::sleep(whole * step / 36);
            child.kill().context("SIGKILL")?;
            child.wait_with_output()?;
            let rules = host.rules(&pod)?;
            if rules.contains("millrace") || rules.contains("MILLRACE") {
                done += 1;
            } else {
                undone += 1;
            }
            if step % 2 == 0 {
                add(&pod).run(&host)?.success()?;
                let now = host.inside(&pod, Snapshot::take)?.without_counters();
                assert_eq!(wanted.differences(&now), "", "{backend}, step {step}");
            }
            add(&pod).to("DEL").run(&host)?.success()?;
            let now = host.inside(&pod, Snapshot::take)?;
            assert_eq!(nothing.differences(&now), "", "{backend}, step {step}");
            host.remove(&pod)?;
        }
        ensure!(done > 0 && undone > 0, "every moment was alike: {done} done, {undone} not");
    }
    Ok(())
}

/// The rules of a pod and the rest of its state; and whether they are there.
fn state(host: &Host, pod: &Pod) -> Result<Snapshot> {
    Ok(host.inside(pod, Snapshot::take)?.without_counters())
}

/// The system calls by which a call changes anything, or tells anybody, each as often as it is made:
/// a process that dies between two of them dies before the second.
fn system_calls(host: &Host, call: &Call) -> Result<BTreeMap<String, usize>> {
    const CHANGES: [&str; 9] =
        ["bind", "mkdir", "openat", "rename", "sendmsg", "sendto", "setns", "unlink", "write"];
    let trace = host.folder().join("trace");
    let file = trace.to_str().context("a path")?;
    call.run_under(host, &["strace", "-f", "-qqq", "-o", file])?.success()?;
    let mut calls = BTreeMap::new();
    for line in fs::read_to_string(&trace)?.lines() {
        // The process's id, then the call.
        let Some((name, _)) = line.split_once(' ').and_then(|(_, rest)| rest.split_once('('))
        else {
            continue;
        };
        let name = name.trim();
        if CHANGES.contains(&name) {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    Ok(calls)
}

/// Verify that an ADD that is killed before any step that it makes leaves all of the rules or none,
/// that another ADD finishes it, and that a DEL that is killed likewise is finished by the next.
#[test]
fn killed_before_every_step() -> Result<()> {
    before_every_step("REDIRECT")
}

/// The same where there are a mark, a route and a rule of routing besides.
#[test]
fn killed_before_every_step_of_tproxy() -> Result<()> {
    before_every_step("TPROXY")
}

fn before_every_step(mode: &str) -> Result<()> {
    let host = Host::new()?;
    let annotations = mesh(&[("sidecar.istio.io/interceptionMode", mode)]);
    let add = |pod: &Pod| Call::new(&host, "ADD", pod, annotations.clone());
    // The first one makes the folder for notes.
    add(&host.pod()?).run(&host)?.success()?;
    let model = host.pod()?;
    let nothing = state(&host, &model)?;
    let adding = system_calls(&host, &add(&model))?;
    let wanted = state(&host, &model)?;
    // Counters are not part of it.
    let rules = |pod: &Pod| -> Result<String> {
        let text = host.rules(pod)?;
        let words = |line: &str| line.split(" counter packets").next().map(str::to_owned);
        Ok(text.lines().filter_map(words).collect::<Vec<_>>().join("\n"))
    };
    let all_rules = rules(&model)?;
    ensure!(all_rules.contains("table inet millrace"), "{all_rules}");
    let deleting = system_calls(&host, &add(&model).to("DEL"))?;
    ensure!(adding.contains_key("sendto") && adding.contains_key("rename"), "{adding:?}");
    for (command, calls) in [("ADD", adding), ("DEL", deleting)] {
        let (mut none, mut all, mut killed) = (0, 0, 0);
        let moments = calls.iter().flat_map(|(name, count)| (1..=*count).map(move |n| (name, n)));
        for (step, (name, number)) in moments.enumerate() {
            let pod = host.pod()?;
            if command == "DEL" {
                add(&pod).run(&host)?.success()?;
            }
            let what = format!("{command} at {name} {number}");
            let inject = format!("inject={name}:signal=SIGKILL:when={number}");
            let words = ["strace", "-f", "-qqq", "-o", "/dev/null", "-e", &inject];
            let reply = add(&pod).to(command).run_under(&host, &words)?;
            // A call more or less may be made each time.
            ensure!(reply.code.is_none_or(|code| code == 0), "{what}: {reply:?}");
            killed += usize::from(reply.code.is_none());
            let found = rules(&pod)?;
            ensure!(found.is_empty() || found == all_rules, "{what}: {found}");
            *if found.is_empty() { &mut none } else { &mut all } += 1;
            if step % 2 == 0 {
                add(&pod).run(&host)?.success()?;
                add(&pod).to("CHECK").run(&host)?.success()?;
                assert_eq!(wanted.differences(&state(&host, &pod)?), "", "{what}");
            }
            add(&pod).to("DEL").run(&host)?.success()?;
            assert_eq!(nothing.differences(&state(&host, &pod)?), "", "{what}");
            host.remove(&pod)?;
        }
        ensure!(killed > 20, "{command} was killed {killed} times");
        ensure!(none > 2 && all > 2, "{command}: {none} times nothing, {all} times all");
    }
    Ok(())
}
