//! A network namespace with the addresses of a pod.

use std::fs::File;
use std::thread;

use anyhow::{Result, bail};

use super::case::Families;

/// Keeps a namespace alive. The kernel takes a dead one apart in the background, which would
/// disturb the next measurement, so they are dropped together when a case is done.
#[derive(Debug)]
pub struct Pod {
    /// Held open only.
    _namespace: File,
}

/// Does `work` in a namespace of its own, in which every program that `work` starts also runs.
///
/// # Errors
/// When the namespace can't be made (it needs root), or those of `work`.
pub fn in_pod<T: Send>(
    families: Families,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<(T, Pod)> {
    // A namespace belongs to a thread: this one ends with the work and affects no other.
    let on_thread = || {
        let namespace = super::pair::namespace()?;
        configure(families)?;
        Ok((work()?, Pod { _namespace: namespace }))
    };
    thread::scope(|scope| {
        let worker = scope.spawn(on_thread);
        worker.join().unwrap_or_else(|_| bail!("a benchmark thread panicked"))
    })
}

/// Loopback, and an interface with the addresses a pod would have.
fn configure(families: Families) -> Result<()> {
    let mut batch = "link set lo up\n\
                     link add eth0 type veth peer name peer0\n\
                     addr add 192.0.2.2/24 dev eth0\n"
        .to_owned();
    if families == Families::Dual {
        batch.push_str("addr add 2001:db8::2/64 dev eth0 nodad\n");
    }
    batch.push_str("link set peer0 up\nlink set eth0 up\n");
    super::pair::configure(&batch)
}
