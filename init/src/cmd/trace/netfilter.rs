//! Following packets through the rules of `nf_tables`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use millrace_core::trace::report::{journey_json, journey_text};
use millrace_core::trace::{Follower, Heard, Journey, Rulebook, Tables};
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
    let mut book = Book::read()?;
    let asked = trace.filter.families();
    let legacy: Vec<Family> =
        book.rules.legacy().into_iter().filter(|f| asked.contains(f)).collect();
    let stop = Stop::watch().context("signals can't be waited for")?;
    let tracer = Tracer::begin(&trace.filter, &legacy)?;
    Log::own().info("following connections; Ctrl-C ends it");
    let reported = tell_all(trace, &mut book, &stop, &tracer);
    tracer.end()?;
    reported.map(|()| Exit::Ok)
}

fn tell_all(trace: &Trace, book: &mut Book, stop: &Stop, tracer: &Tracer) -> Result<()> {
    let began = Instant::now();
    let mut follower = Follower::new(tracer.table().to_owned(), trace.filter.every_packet);
    let mut count = Count(trace.count);
    loop {
        let left = trace.timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        let word = tracer.wait(stop, left.unwrap_or(TICK).min(TICK))?;
        if word.lost {
            warn("the kernel told more than could be taken: some packets are told of in part");
        }
        if !word.heard.is_empty() {
            book.refresh(&word.heard)?;
        }
        follower.hear(word.heard, began.elapsed());
        let over = word.stop || left.is_some_and(|left| left.is_zero());
        let ended = if over { follower.rest() } else { follower.ended(began.elapsed()) };
        for journey in ended {
            if !reported(trace, &book.rules, &journey)? || !count.next() {
                return Ok(());
            }
        }
        if over {
            return Ok(());
        }
    }
}

/// The rules as they were when they were read.
struct Book {
    rules: Rulebook,
    /// The number of the last change of `nf_tables` before that.
    generation: Option<u32>,
}

impl Book {
    fn read() -> Result<Self> {
        let generation = nft::generation()?;
        let rules = Rulebook { program: rules::of_here(None)?.program, handles: nft::handles()? };
        Ok(Self { rules, generation })
    }

    /// Read them again if they are others: those of a table that was made anew have the same numbers
    /// as the ones before. Of iptables-legacy nobody tells whether they are.
    fn refresh(&mut self, heard: &[Heard]) -> Result<()> {
        let logged = heard.iter().any(|heard| matches!(heard.tables, Tables::Legacy(_)));
        if logged || nft::generation()? != self.generation {
            *self = Self::read()?;
        }
        Ok(())
    }
}

fn reported(trace: &Trace, book: &Rulebook, journey: &Journey) -> Result<bool> {
    let when = now();
    if trace.common.json {
        tell("", Some(&journey_json(book, journey, &when)))
    } else {
        tell(&journey_text(book, journey, &when), None)
    }
}
