//! Following packets through the rules of `nf_tables`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use millrace_core::trace::report::{journey_json, journey_text};
use millrace_core::trace::{Follower, Heard, Journey, Rulebook};
use millrace_host::nft;
use millrace_host::stop::Stop;
use millrace_host::trace::Tracer;

use super::super::output::warn;
use super::super::{namespace, rules};
use super::{Count, now, tell};
use crate::cli::trace::Trace;
use crate::exit::Exit;
use crate::log::Log;

/// How long to wait before looking again for packets that nothing more is told of.
const TICK: Duration = Duration::from_millis(200);

pub(super) fn follow(trace: &Trace) -> Result<Exit> {
    namespace::enter(&trace.common.place)?;
    let mut book = read()?;
    let stop = Stop::watch().context("signals can't be waited for")?;
    let tracer = Tracer::begin(&trace.filter)?;
    let began = Instant::now();
    Log::own().info("following connections; Ctrl-C ends it");
    let mut follower = Follower::new(tracer.table().to_owned(), trace.filter.every_packet);
    let mut count = Count(trace.count);
    loop {
        let left = trace.timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        let word = tracer.wait(&stop, left.unwrap_or(TICK).min(TICK))?;
        if word.lost {
            warn("the kernel told more than could be taken: some packets are told of in part");
        }
        if word.heard.iter().any(|heard| !book.knows(heard) && !is_trace(heard)) {
            book = read()?;
        }
        for heard in word.heard {
            follower.hear(heard, began.elapsed());
        }
        let over = word.stop || left.is_some_and(|left| left.is_zero());
        let ended = if over { follower.rest() } else { follower.ended(began.elapsed()) };
        for journey in ended {
            if !told(trace, &book, &journey)? || !count.next() {
                return Ok(Exit::Ok);
            }
        }
        if over {
            return Ok(Exit::Ok);
        }
    }
}

/// The rules as they are now.
fn read() -> Result<Rulebook> {
    let program = rules::of_here()?;
    Ok(Rulebook { program, handles: nft::handles()? })
}

/// Whether it is of a trace's own table.
fn is_trace(heard: &Heard) -> bool {
    heard.table.starts_with(millrace_core::trace::TABLE_PREFIX)
}

fn told(trace: &Trace, book: &Rulebook, journey: &Journey) -> Result<bool> {
    let when = now();
    if trace.common.json {
        tell("", Some(&journey_json(book, journey, &when)))
    } else {
        tell(&journey_text(book, journey, &when), None)
    }
}
