//! The agent as it runs on a node: the installer on a thread of its own, and what answers others.
//! When it is asked to stop it stops, and leaves everything: an upgrade or a reboot is no reason for
//! a pod to start uncaptured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use millrace_host::stop::Stop;
use rustix::event::{PollFd, PollFlags, poll};

use crate::health::{self, What, listen};
use crate::install::Installer;
use crate::state::Shared;
use crate::watch::Watch;

/// How soon it is looked again after somebody else was in the way.
const SOON: Duration = Duration::from_millis(20);

/// Where and how often.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// How often everything is looked at, where nothing tells of a change.
    pub period: Duration,
    /// Where `/livez` and `/readyz` answer.
    pub health: Option<SocketAddr>,
    /// Where `/metrics` answers.
    pub metrics: Option<SocketAddr>,
}

/// Run until a signal comes.
///
/// # Errors
/// When an address can't be had, or there is no runtime.
pub fn run(installer: Installer, places: Places) -> Result<()> {
    let shared = Arc::new(Shared::new(places.period));
    let mut listeners = Vec::new();
    for (what, address) in [(What::Health, places.health), (What::Metrics, places.metrics)] {
        let Some(address) = address else { continue };
        let listener = listen(address).with_context(|| format!("{what:?} on {address}"))?;
        listeners.push((what, listener));
    }
    let watch = Watch::new().context("inotify")?;
    // Threads that begin later leave these signals to this one.
    let stop = Stop::watch().context("signals")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = Arc::clone(&shared);
    // Both end with the process, wherever they are: that is what the installer is made for.
    let _installing = begin("installer", move || {
        install(installer, &watch, places.period, &seen);
    })?;
    let _serving = begin("server", move || {
        runtime.block_on(async {
            for (what, listener) in listeners {
                let _task = tokio::spawn(health::serve(listener, what, Arc::clone(&shared)));
            }
            std::future::pending::<()>().await;
        });
    })?;
    while !stop.is_asked() {
        let mut signals = [PollFd::new(&stop, PollFlags::IN)];
        let _polled = poll(&mut signals, None);
    }
    tracing::info!("stopping; the plugin stays installed");
    Ok(())
}

fn begin(name: &str, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(f).with_context(|| format!("a thread for the {name}"))
}

fn install(mut installer: Installer, watch: &Watch, period: Duration, shared: &Shared) {
    loop {
        // What changes from here on is seen by the next turn.
        for folder in installer.watched() {
            watch.add(&folder);
        }
        let result = installer.pass();
        let again = result.as_ref().is_ok_and(|report| report.again);
        shared.passed(&result);
        let limit = if again { SOON.min(period) } else { period };
        if let Err(error) = watch.wait(limit) {
            tracing::warn!("changes can't be waited for: {error}");
            thread::sleep(limit);
        }
    }
}
