//! The agent as it runs on a node: the installer on a thread of its own, and what answers others.
//! When it is asked to stop it stops, and leaves everything: an upgrade or a reboot is no reason for
//! a pod to start uncaptured.

use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;
use millrace_host::stop::Stop;
use rustix::event::{PollFd, PollFlags, poll};

use crate::ambient::{Enroller, Parts, Settings as Ambient};
use crate::api::Clients;
use crate::follow::Keeper as _;
use crate::health::{self, What, listen};
use crate::install::{Config, Installer, SOCKET};
use crate::namespaces::Namespaces;
use crate::nri::{self, hook::Hook};
use crate::own_folder::open_own;
use crate::pods::Pods;
use crate::repair::{Repair, Repairer};
use crate::server::{self, Server};
use crate::state::{Hooks, Shared};
use crate::taint;
use crate::watch::Watch;
use crate::ztunnel::Ztunnel;

/// How soon it is looked again after somebody else was in the way.
const SOON: Duration = Duration::from_millis(20);

/// How soon it is looked again whether the runtime is connected.
const CONNECTED: Duration = Duration::from_millis(200);

/// How soon the socket and the clients are made again when they could not be.
const AGAIN: Duration = Duration::from_secs(2);

/// Where the agent serves HTTP, how often it looks, and what it does about pods.
#[derive(Clone, Debug)]
pub struct Places {
    /// How often everything is looked at, where nothing tells of a change.
    pub period: Duration,
    /// Where `/livez` and `/readyz` answer.
    pub health: Option<SocketAddr>,
    /// Where `/metrics` answers; none for nowhere.
    pub metrics: Option<SocketAddr>,
    /// What captures new pods.
    pub hook: Hooks,
    /// Where the runtime takes plugins.
    pub nri_socket: PathBuf,
    /// The node whose pods the plugin is told of, and how those that run are dealt with.
    pub repair: Option<Repair>,
    /// Pods that the node's proxy serves; none where there is no such proxy.
    pub ambient: Option<Ambient>,
}

/// Run until a signal comes.
///
/// # Errors
/// When an address can't be had, or there is no runtime.
pub fn run(installer: Installer, places: Places) -> Result<()> {
    let pods = places.repair.as_ref().map(|_| Arc::<Pods>::default());
    let namespaces = places.ambient.as_ref().map(|_| Arc::<Namespaces>::default());
    let shared = Shared::new(places.period, pods.clone()).with_hook(places.hook);
    let shared = shared.with_namespaces(namespaces);
    let shared = Arc::new(shared);
    let mut listeners = Vec::new();
    for (what, address) in [(What::Health, places.health), (What::Metrics, places.metrics)] {
        let Some(address) = address else { continue };
        let listener =
            listen(address).with_context(|| format!("{what} can't be served on {address}"))?;
        listeners.push((what, listener));
    }
    let watch = Watch::new().context("changes of files can't be watched (inotify)")?;
    // Threads that begin later leave these signals to this one.
    let stop = Stop::watch().context("signals can't be waited for")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = Arc::clone(&shared);
    let (config, repair, ambient) = (installer.config().clone(), places.repair, places.ambient);
    let (hook, socket) = (places.hook, places.nri_socket);
    // Both end with the process, wherever they are: that is what the installer is made for.
    let _installing = begin("installer", move || {
        install(installer, &watch, places.period, hook, &seen);
    })?;
    let _serving = begin("server", move || {
        runtime.block_on(async {
            for (what, listener) in listeners {
                let _task = tokio::spawn(health::serve(listener, what, Arc::clone(&shared)));
            }
            match repair.zip(pods) {
                Some((repair, pods)) => {
                    // It has much to remember.
                    let socket = hook.connects().then_some(socket);
                    let ambient = ambient.as_ref();
                    Box::pin(follow(&config, &repair, ambient, &pods, socket, &shared)).await;
                }
                None => std::future::pending().await,
            }
        });
    })?;
    while !stop.is_asked() {
        let mut signals = [PollFd::new(&stop, PollFlags::IN)];
        let _polled = poll(&mut signals, None);
    }
    tracing::info!("stopping on a signal; {}", hook.stays());
    Ok(())
}

/// Follow the pods of the node, tell the plugin of them and look at those that run, for ever. What is
/// in the way is tried again.
async fn follow(
    config: &Config,
    repair: &Repair,
    ambient: Option<&Ambient>,
    pods: &Arc<Pods>,
    socket: Option<PathBuf>,
    shared: &Arc<Shared>,
) {
    // Proxies stay connected, and what they were told stays known, whatever is begun anew here.
    let mut ztunnel = None;
    loop {
        match start(config, repair, ambient, &mut ztunnel, pods, shared) {
            Ok((server, listener, clients)) => {
                let (config, shared, client) =
                    (config.clone(), Arc::clone(shared), clients.patient.clone());
                let (proc, known) = (repair.proc.clone(), server.clone());
                let hook = Hook::new(config.clone(), proc, known, Arc::clone(&shared));
                let hook = connect(socket.clone(), Arc::new(hook));
                let untaint = untaint(client.clone(), repair, Arc::clone(&shared));
                let enroller = server.enroller.clone();
                let namespaces = shared.namespaces.clone();
                let repairer = Repairer::new(repair.clone(), config, shared, client.clone());
                tokio::select! {
                    ended = server.serve(listener) => {
                        let why = ended.map_or_else(|why| why.to_string(), |()| "it ended".to_owned());
                        pods.failed(&format!("the plugin's questions can't be answered: {why}"));
                    }
                    () = pods.follow(clients.patient, &repair.node) => {}
                    () = repairer.run() => {}
                    () = hook => {}
                    () = untaint => {}
                    () = enrol(enroller, namespaces, client) => {}
                }
            }
            Err(why) => pods.failed(&format!("{why:#}")),
        }
        if socket.is_some() {
            shared.disconnected("the agent can't follow the pods of its node");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Be the runtime's plugin, where that is wanted; it is never over.
async fn connect(socket: Option<PathBuf>, hook: Arc<Hook>) {
    match socket {
        Some(socket) => nri::serve(&socket, &hook).await,
        None => std::future::pending().await,
    }
}

/// Follow namespaces, and enrol pods with the node's proxy, where there is one; it is never over.
async fn enrol(
    enroller: Option<Arc<Enroller>>,
    namespaces: Option<Arc<Namespaces>>,
    client: Client,
) {
    match enroller.zip(namespaces) {
        Some((enroller, namespaces)) => tokio::select! {
            () = namespaces.follow(client) => {}
            () = enroller.run() => {}
        },
        None => std::future::pending().await,
    }
}

/// Take the taint off the node, where there is to be one; it is never over.
async fn untaint(client: Client, repair: &Repair, shared: Arc<Shared>) {
    if let Some(key) = &repair.untaint {
        taint::remove(client, &repair.node, key, &shared).await;
    }
    std::future::pending::<()>().await;
}

fn start(
    config: &Config,
    repair: &Repair,
    ambient: Option<&Ambient>,
    ztunnel: &mut Option<Ztunnel>,
    pods: &Arc<Pods>,
    shared: &Arc<Shared>,
) -> Result<(Server, UnixListener, Clients)> {
    let clients = Clients::new(&config.account)?;
    let (pods, metrics) = (Arc::clone(pods), shared.metrics.clone());
    let mut enroller = None;
    if let Some((settings, namespaces)) = ambient.zip(shared.namespaces.clone()) {
        let own = match ztunnel.take() {
            Some(own) => own,
            None => Ztunnel::serve(&settings.socket)?,
        };
        *ztunnel = Some(own.clone());
        let parts = Parts {
            settings: settings.clone(),
            node: repair.node.clone(),
            proc: repair.proc.clone(),
            period: repair.period,
            pods: Arc::clone(&pods),
            namespaces,
            metrics: metrics.clone(),
        };
        let own = Enroller::new(parts, config.clone(), clients.clone(), own);
        enroller = Some(Arc::new(own));
    }
    let path = config.run_dir.join(SOCKET);
    open_own(&config.run_dir)?;
    let listener = server::listen(&path).with_context(|| path.display().to_string())?;
    let (client, shared) = (clients.prompt.clone(), Arc::clone(shared));
    let server = Server { pods, client, metrics, enroller, shared };
    Ok((server, listener, clients))
}

fn begin(name: &str, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(f).with_context(|| format!("a thread for the {name}"))
}

fn install(
    mut installer: Installer,
    watch: &Watch,
    period: Duration,
    hook: Hooks,
    shared: &Shared,
) {
    loop {
        // What changes from here on is seen by the next turn.
        for folder in installer.watched() {
            watch.add(&folder);
        }
        let limit = if hook.installs() {
            let result = installer.pass();
            shared.passed(&result);
            if result.is_ok_and(|report| report.again) { SOON } else { period }
        } else {
            // As long as the runtime tells of no pod, an entry that is there goes on capturing.
            let is_connected = shared.is_connected();
            let withdrawn = if is_connected { installer.withdraw() } else { Ok(Vec::new()) };
            shared.withdrawn(&withdrawn);
            if is_connected { period } else { CONNECTED }
        };
        let limit = limit.min(period);
        if let Err(error) = watch.wait(limit) {
            tracing::warn!(
                "changes of files can't be waited for, and are found once in {period:?} (--period): {error}"
            );
            thread::sleep(limit);
        }
    }
}
