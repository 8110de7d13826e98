//! The Node Resource Interface (NRI): the agent as a plugin of the container runtime, which tells it of
//! each pod sandbox before the pod's containers start, and takes a refusal.
//!
//! ```text
//! the runtime's socket ◄─► session ◄─► frames, messages (pure)
//!                             │
//!                             ▼
//!                       hook ──► decision and capture of the CNI plugin's ADD
//! ```

pub mod frames;
pub mod hook;
pub mod messages;
pub mod session;
mod users;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use self::hook::Hook;

/// Where runtimes listen when nobody says otherwise.
pub const SOCKET: &str = "/var/run/nri/nri.sock";
/// The plugin's name, which a list of required plugins has.
pub const NAME: &str = "millrace";
/// Its place among plugins, which are called in this order.
pub const INDEX: &str = "10";

/// The first pause between two attempts to connect; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A connection that held for so long is made again without a pause.
const HELD: Duration = Duration::from_secs(1);
/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Be the runtime's plugin for ever: a lost connection is made again at once.
pub async fn serve(socket: &Path, hook: &Arc<Hook>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let ended = match hook.withheld() {
            Some(why) => why,
            None => match connect(socket).await {
                Ok(stream) => Box::pin(session::run(stream, hook)).await,
                Err(why) => why,
            },
        };
        hook.disconnected(&format!("{}: {ended}", socket.display()));
        if began.elapsed() >= HELD {
            pause = FIRST_PAUSE;
            continue;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Connect. Who listens has to be root, or who runs this: the runtime is asked which pods there are.
async fn connect(socket: &Path) -> Result<UnixStream, String> {
    let stream = timeout(PATIENCE, UnixStream::connect(socket)).await;
    let stream = stream.map_err(|_late| format!("it does not accept within {PATIENCE:?}"))?;
    let stream = stream.map_err(|error| error.to_string())?;
    let peer = stream.peer_cred().map_err(|error| error.to_string())?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(format!("user {peer} listens there, who is not root"));
    }
    Ok(stream)
}
