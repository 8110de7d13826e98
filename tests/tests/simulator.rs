//! The simulator against the kernel: random policies, random connections, really made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use millrace_core::sim::compare::{compare, difference_text};
use millrace_tests::ebpf::Cgroup;
use millrace_tests::fates::{Dice, Ground, Try, alike, differs, policy};
use millrace_tests::wire::Outcome;

/// Connections for each policy.
const CONNECTIONS: usize = 20;

fn setting(name: &str, usual: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(usual),
    }
}

/// How many policies there are (`MILLRACE_POLICIES`), and what they follow from (`MILLRACE_SEED`).
fn settings() -> Result<(u64, u64)> {
    let seed = setting("MILLRACE_SEED", u64::from(std::process::id()))?;
    Ok((setting("MILLRACE_POLICIES", 8)?, seed))
}

/// Verify that where eBPF captures, what is read back from its maps says what becomes of connections,
/// under random policies.
#[test]
fn the_kernel_does_what_the_ebpf_maps_say() -> Result<()> {
    let (policies, seed) = settings()?;
    println!("MILLRACE_SEED={seed} MILLRACE_POLICIES={policies}");
    let mut dice = Dice(seed);
    let _cgroup = Cgroup::enter()?;
    let mut ground = Ground::new()?;
    ground.load_ebpf()?;
    let (mut wrong, mut able, mut refused) = (String::new(), 0, 0);
    let mut names = BTreeSet::new();
    while able < policies {
        let flags = policy(&mut dice);
        let Some((program, around)) = ground.by_ebpf(&flags)? else {
            refused += 1;
            ensure!(refused < 60 * policies, "{able} policies can be carried out, and so many not");
            continue;
        };
        able += 1;
        // Programs can't give a socket an address that has a port already.
        let connection = |_| ground.connection(&mut dice).unbound();
        let tries: Vec<Try> = (0..CONNECTIONS).map(connection).collect();
        let outcomes = ground.make(&tries)?;
        for (one, outcome) in tries.iter().zip(&outcomes) {
            if let Outcome::Answered { answer, .. } = outcome {
                names.insert(answer.name.clone());
            }
            if let Some(why) = differs(&program, &around, &one.as_answered(outcome), outcome) {
                writeln!(wrong, "policy {able}: {}\n{why}", flags.join(" "))?;
            }
        }
    }
    let count = wrong.matches("\nreally: ").count();
    ensure!(wrong.is_empty(), "MILLRACE_SEED={seed}: {count} connections differ\n{wrong}");
    for name in ["app", "proxy", "outside"] {
        ensure!(names.contains(name), "nobody reached {name}");
    }
    Ok(())
}

/// Verify that what becomes of connections is what the simulator says, under random policies, with
/// both iptables and with nftables; that all have the same effect; and that what their programs
/// print is read as the rules that are there.
#[test]
fn the_kernel_does_what_the_simulator_says() -> Result<()> {
    let (policies, seed) = settings()?;
    println!("MILLRACE_SEED={seed} MILLRACE_POLICIES={policies}");
    let mut dice = Dice(seed);
    let mut ground = Ground::new()?;
    let mut wrong = String::new();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for number in 1..=policies {
        let flags = policy(&mut dice);
        let start = dice.clone();
        let mut before: Option<Vec<Outcome>> = None;
        for backend in ["iptables-nft", "iptables-legacy", "nftables"] {
            // The same connections with every backend.
            dice = start.clone();
            ground.apply(backend, &flags)?;
            let (program, around) = ground.rules()?;
            let printed = ground.printed(backend)?;
            let difference = compare((&program, &around), (&printed, &around));
            if !difference.traffic.is_empty() || !difference.rules.is_empty() {
                let text = difference_text(&program, &printed, &difference);
                writeln!(wrong, "policy {number}, {backend}, as printed:\n{text}")?;
            }
            let tries: Vec<Try> = (0..CONNECTIONS).map(|_| ground.connection(&mut dice)).collect();
            let outcomes = ground.make(&tries)?;
            for (one, (was, is)) in tries.iter().zip(before.iter().flatten().zip(&outcomes)) {
                if !alike(was, is) {
                    let what = &one.question;
                    writeln!(wrong, "policy {number}, {backend}: {what}\nreally: {is}, not {was}")?;
                }
            }
            for (one, outcome) in tries.iter().zip(&outcomes) {
                let kind = match outcome {
                    Outcome::Answered { answer, .. } => format!("answered by {}", answer.name),
                    Outcome::Failed(failure) => format!("{failure:?}"),
                };
                *kinds.entry(kind).or_default() += 1;
                if let Some(why) = differs(&program, &around, &one.question, outcome) {
                    writeln!(wrong, "policy {number}, {backend}: {}\n{why}", flags.join(" "))?;
                }
            }
            before = Some(outcomes);
        }
    }
    let count = wrong.matches("\nreally: ").count();
    ensure!(wrong.is_empty(), "MILLRACE_SEED={seed}: {count} connections differ\n{wrong}");
    println!("{policies} policies, {CONNECTIONS} connections each, three backends: 0 differences");
    println!("{kinds:?}");
    for name in ["app", "proxy", "outside"] {
        ensure!(kinds.contains_key(&format!("answered by {name}")), "nobody reached {name}");
    }
    Ok(())
}
