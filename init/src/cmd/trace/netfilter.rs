//! Following packets through the rules of `nf_tables`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use millrace_core::trace::report::{journey_json, journey_text};
use millrace_core::trace::{Follower, Heard, Journey, Rulebook};
use millrace_core::value::Family;
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
    let asked = trace.filter.families();
    let legacy: Vec<Family> = book.legacy().into_iter().filter(|f| asked.contains(f)).collect();
    let stop = Stop::watch().context("signals can't be waited for")?;
    let tracer = Tracer::begin(&trace.filter, &legacy)?;
    Log::own().info("following connections; Ctrl-C ends it");
    let told = tell_all(trace, &mut book, &stop, &tracer);
    tracer.end()?;
    told.map(|()| Exit::Ok)
}

fn tell_all(trace: &Trace, book: &mut Rulebook, stop: &Stop, tracer: &Tracer) -> Result<()> {
    let began = Instant::now();
    let mut follower = Follower::new(tracer.table().to_owned(), trace.filter.every_packet);
    let mut count = Count(trace.count);
    loop {
        let left = trace.timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        let word = tracer.wait(stop, left.unwrap_or(TICK).min(TICK))?;
        if word.lost {
            warn("the kernel told more than could be taken: some packets are told of in part");
        }
        if word.heard.iter().any(|heard| !book.knows(heard) && !is_trace(heard)) {
            *book = read()?;
        }
        follower.hear(word.heard, began.elapsed());
        let over = word.stop || left.is_some_and(|left| left.is_zero());
        let ended = if over { follower.rest() } else { follower.ended(began.elapsed()) };
        for journey in ended {
            if !told(trace, book, &journey)? || !count.next() {
                return Ok(());
            }
        }
        if over {
            return Ok(());
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
