//! Clients of ZDS that do wrong: each is disconnected, and disturbs nobody else. And who may be one.

use std::fs::{self, File, Permissions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use millrace_node::ztunnel::messages::Request;
use millrace_tests::sys_calls::{become_user, raise_open_files};
use millrace_tests::topology::APP;
use millrace_tests::ztunnel::{Client, Heard, Server, Ztunnel, netns, place};

/// How long something is waited for that has to happen at once.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a client does wrong once it is connected.
type Wrong = fn(&Client) -> Result<()>;

/// Say hello and wait for the first pod.
fn told(client: &Client) -> Result<()> {
    client.hello()?;
    client.request().map(drop)
}

/// Each name, and what is done. A pod is known when it connects.
const WRONG: [(&str, Wrong); 20] = [
    ("says nothing", |_| Ok(())),
    ("an empty packet", |client| client.send(b"")),
    ("no protobuf", |client| client.send(&[0xff; 16])),
    ("no version", |client| client.send(b"\x10\x01")),
    ("version 2", |client| client.send(b"\x08\x02")),
    ("a long hello", |client| {
        client.send(&[b"\x08\x01\x7a\x90\x4e".as_slice(), &[0; 10000]].concat())
    }),
    ("hello with a file descriptor", |client| {
        client.send_with(b"\x08\x01", &[File::open("/dev/null")?.as_fd()])
    }),
    ("closes its side", |client| {
        client.hello()?;
        client.shut()
    }),
    ("hello twice", |client| {
        told(client)?;
        client.hello()
    }),
    ("never reads", Client::hello),
    ("answers late", |client| {
        told(client)?;
        thread::sleep(Duration::from_secs(7));
        // There may be nobody who hears it.
        let _sent = client.ack("");
        Ok(())
    }),
    ("an empty answer", |client| {
        told(client)?;
        client.send(b"")
    }),
    ("an answer without anything", |client| {
        told(client)?;
        client.send(b"\x7a\x01x")
    }),
    ("half an answer", |client| {
        told(client)?;
        client.send(b"\x0a\x05\x0a")
    }),
    ("an endless answer", |client| {
        told(client)?;
        client.send(&Client::ack_of(&"x".repeat(10000)))
    }),
    ("an answer with a file descriptor", |client| {
        told(client)?;
        client.send_with(&Client::ack_of(""), &[File::open("/dev/null")?.as_fd()])
    }),
    ("an answer with two", |client| {
        told(client)?;
        let null = File::open("/dev/null")?;
        client.send_with(&Client::ack_of("failed"), &[null.as_fd(), null.as_fd()])
    }),
    ("two answers", |client| {
        told(client)?;
        client.ack("")?;
        client.ack("")?;
        // Should the second have been taken for the answer to this.
        let _rest = client.request().and_then(|_| client.ack(""));
        Ok(())
    }),
    ("an answer before the question", |client| {
        client.hello()?;
        client.ack("")?;
        let _rest = client.request().and_then(|_| client.ack(""));
        let _more = client.request().and_then(|_| client.ack(""));
        Ok(())
    }),
    ("refuses the snapshot", |client| {
        told(client)?;
        client.ack("")?;
        ensure!(matches!(client.request()?, Request::SnapshotSent(_)));
        client.ack("no")
    }),
];

/// One that does right stays connected, misses nothing and is asked soon, whatever another does.
fn disturbs_nobody(wrong: Wrong) -> Result<()> {
    let (_folder, path) = place()?;
    let server = Server::complete(&path)?;
    let (one, other) = (netns()?, netns()?);
    let good = Ztunnel::start(&path);
    good.until_ready()?;
    ensure!(server.add("known", &one)? == Ok(()));
    let bad = Client::connect(&path)?;
    wrong(&bad)?;
    // Were it the newest until now, the one before it is told.
    ensure!(server.add("new", &other)? == Ok(()));
    bad.is_ended()?;
    server.until_connected(1)?;
    ensure!(server.delete("known")? == Ok(()));
    good.until("it has what there is", |held| held.pods.keys().eq(["new"]))?;
    ensure!(good.held().hellos == 1, "it had to connect again");
    Ok(())
}

/// Verify that a client that does wrong is disconnected, and that nobody else is.
#[test]
fn misbehaving_clients_are_disconnected() -> Result<()> {
    raise_open_files()?;
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let run = |(name, wrong): &(&'static str, Wrong)| {
            let (name, wrong) = (*name, *wrong);
            scope.spawn(move || disturbs_nobody(wrong).context(name))
        };
        let running: Vec<_> = WRONG.iter().map(run).collect();
        let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|end| end.unwrap_or_else(|_| Err(anyhow!("a panic")))).collect()
    });
    let failed: Vec<String> =
        results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Verify that a ztunnel is asked while others that said nothing are connected, and is not counted among
/// them; and that of many, the newest are left.
#[test]
fn a_crowd_of_clients() -> Result<()> {
    let (_folder, path) = place()?;
    let server = Server::complete(&path)?;
    let silent: Vec<Client> = (0..4).map(|_| Client::connect(&path)).collect::<Result<_>>()?;
    let ztunnel = Ztunnel::start(&path);
    ztunnel.until_ready()?;
    ensure!(server.add("a", &netns()?)? == Ok(()));
    ensure!(server.agent.connected() == 1);
    drop((silent, ztunnel));
    server.until_connected(0)?;
    let all: Vec<Ztunnel> = (0..12).map(|_| Ztunnel::start(&path)).collect();
    let began = Instant::now();
    while all.iter().map(|one| one.held().hellos).sum::<usize>() < 30 {
        ensure!(server.agent.connected() <= 8);
        ensure!(began.elapsed() < PATIENCE, "they don't take turns");
        thread::sleep(Duration::from_millis(2));
    }
    drop(all);
    let last = Ztunnel::start(&path);
    last.until_ready()?;
    ensure!(server.add("b", &netns()?)? == Ok(()));
    last.until("it has both", |held| held.pods.keys().eq(["a", "b"]))
}

/// Verify that the socket is root's alone, by its mode and by who connects, and what it does not replace.
#[test]
fn the_socket_is_roots_alone() -> Result<()> {
    let (folder, path) = place()?;
    let server = Server::complete(&path)?;
    let meta = fs::symlink_metadata(&path)?;
    ensure!(meta.file_type().is_socket() && meta.mode() & 0o777 == 0o600, "{meta:?}");
    let below = path.parent().context("a folder")?;
    ensure!(fs::metadata(below)?.mode() & 0o777 == 0o700);
    let files: Vec<_> = fs::read_dir(below)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(files.len() == 1, "{files:?}");
    // Somebody let everybody in.
    for (at, mode) in [(folder.path(), 0o755), (below, 0o755), (path.as_path(), 0o666)] {
        fs::set_permissions(at, Permissions::from_mode(mode))?;
    }
    let own = path.clone();
    let other = thread::spawn(move || -> Result<Client> {
        become_user(APP.uid)?;
        let client = Client::connect(&own)?;
        let _sent = client.hello();
        Ok(client)
    });
    let client = other.join().unwrap_or_else(|_| Err(anyhow!("a panic")))?;
    // It is told nothing at all.
    let heard = client.receive(PATIENCE)?;
    ensure!(matches!(heard, Heard::End), "{heard:?}");
    ensure!(server.agent.connected() == 0);
    drop(server);
    // An agent that was killed left its socket.
    drop(Server::start(&path)?);
    fs::remove_file(&path)?;
    let refused = |what: &str| -> Result<()> {
        let Err(error) = Server::start(&path) else { bail!("{what} was replaced") };
        ensure!(error.to_string().contains("no socket"), "{what}: {error}");
        Ok(())
    };
    fs::write(&path, "mine")?;
    refused("a file")?;
    ensure!(fs::read_to_string(&path)? == "mine");
    fs::remove_file(&path)?;
    fs::create_dir(&path)?;
    refused("a folder")?;
    fs::remove_dir(&path)?;
    symlink("/dev/null", &path)?;
    refused("a link")?;
    fs::set_permissions(below, Permissions::from_mode(0o777))?;
    let Err(error) = Server::start(&path) else { bail!("others may put their sockets there") };
    ensure!(error.to_string().contains("others may write"), "{error}");
    Ok(())
}
