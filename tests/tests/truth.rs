//! Answers of `explain --live` against the kernel, under random rules of anybody, routes and settings.
//! `cargo xtask truth` makes more of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::truth::{Plan, rounds};

fn setting(name: &str, usual: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(usual),
    }
}

/// Verify that no answer is false, and that few can't be told.
#[test]
fn no_answer_is_false() -> Result<()> {
    let plan = Plan {
        seed: setting("MILLRACE_SEED", 1)?,
        rounds: setting("MILLRACE_ROUNDS", 40)?,
        connections: 24,
    };
    println!("MILLRACE_SEED={} MILLRACE_ROUNDS={}", plan.seed, plan.rounds);
    let mut last = Instant::now();
    let found = rounds(plan, &mut |round, found| {
        if last.elapsed() > Duration::from_secs(20) {
            last = Instant::now();
            println!(
                "round {round}: {} answers, {} false, {} can't be told",
                found.answers,
                found.wrong.len(),
                found.untold()
            );
        }
    })?;
    println!("{found}");
    ensure!(found.wrong.is_empty(), "{}\n{found}", found.wrong.join("\n"));
    ensure!(found.share() < 5.0, "too much can't be told:\n{found}");
    let refused: usize = found.refused.values().sum();
    ensure!(refused * 20 <= found.steps, "rules that are none prove nothing:\n{found}");
    for kind in ["answered by app", "answered by proxy", "answered by outside", "TimedOut"] {
        ensure!(found.kinds.contains_key(kind), "no connection ended so: {kind}\n{found}");
    }
    Ok(())
}
