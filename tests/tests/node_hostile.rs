//! The node agent beside a program that does what it likes with the list of plugins: nothing that
//! the agent wrote is ever seen half, no list names a binary that isn't there, no change of the other
//! is lost, and in the end the list has both.
//!
//! `MILLRACE_HOSTILE_SECONDS` says for how long; a minute is a thorough run.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::node::{Node, Random};
use serde_json::{Value, json};

const LIST: &str = "10-net.conflist";

fn seconds() -> Result<u64> {
    match std::env::var("MILLRACE_HOSTILE_SECONDS") {
        Ok(text) => text.parse().context("MILLRACE_HOSTILE_SECONDS"),
        Err(_) => Ok(5),
    }
}

/// What the neighbour wants, in one of its generations.
fn list(generation: u64) -> String {
    let padding = "x".repeat(usize::try_from(generation % 7).unwrap_or(0) * 700);
    let list = json!({
        "cniVersion": "0.4.0", "name": "net", "generation": generation, "padding": padding,
        "plugins": [{ "type": "bridge", "generation": generation }, { "type": "portmap" }],
    });
    format!("{list:#}\n")
}

/// Do one thing of many with the list. Gives whether it is whole after that.
fn disturb(node: &Node, random: &mut Random, generation: u64) -> Result<bool> {
    let path = node.conf().join(LIST);
    let text = list(generation);
    let half = random.below(text.len() as u64).try_into().unwrap_or(0);
    match random.below(7) {
        // In place, in pieces.
        0 => {
            let mut file = File::create(&path)?;
            file.write_all(&text.as_bytes()[..half])?;
            thread::sleep(Duration::from_micros(random.below(3000)));
            file.write_all(&text.as_bytes()[half..])?;
            return Ok(true);
        }
        1 => drop(File::create(&path)?),
        2 => fs::write(&path, &text.as_bytes()[..half])?,
        3 => drop(fs::remove_file(&path)),
        4 => fs::write(&path, &text).map(drop)?,
        // As it should be done.
        _ => {
            let temp = node.conf().join("neighbour.tmp");
            fs::write(&temp, &text)?;
            fs::rename(&temp, &path)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// All of a file, from its beginning.
fn read_again(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether the neighbour wrote over a file of the agent's while it was read, so that the text is of both:
/// there is nothing of the agent left in it then.
fn is_overwritten(file: &mut File, text: &str) -> Result<bool> {
    let now = read_again(file)?;
    Ok(now != text && !now.contains("millrace-cni"))
}

/// Whether the list holds this generation, and the plugin at its end.
fn has_both(node: &Node, generation: u64) -> bool {
    let text = fs::read_to_string(node.conf().join(LIST)).unwrap_or_default();
    let Ok(value) = serde_json::from_str::<Value>(&text) else { return false };
    let kinds: Vec<&str> = value["plugins"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|plugin| plugin["type"].as_str())
        .collect();
    value["generation"] == generation && kinds == ["bridge", "portmap", "millrace-cni"]
}

fn settles(node: &Node, generation: u64) -> Result<()> {
    let began = Instant::now();
    while !has_both(node, generation) {
        if began.elapsed() > Duration::from_mins(1) {
            let text = fs::read_to_string(node.conf().join(LIST));
            bail!("generation {generation} never gets the plugin: {text:?}\n{}", node.log());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Verify what the head of this file says.
#[test]
fn a_hostile_neighbour() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, &list(0))?;
    let mut agent = node.run(&[])?;
    settles(&node, 0)?;
    let over = AtomicBool::new(false);
    let looks = AtomicUsize::new(0);
    thread::scope(|scope| {
        let watching = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                let Ok(mut file) = File::open(node.conf().join(LIST)) else { continue };
                let text = read_again(&mut file)?;
                // The neighbour never writes that.
                if !text.contains("millrace-cni") {
                    continue;
                }
                looks.fetch_add(1, Ordering::Relaxed);
                let whole = serde_json::from_str::<Value>(&text);
                if whole.is_err() && is_overwritten(&mut file, &text)? {
                    continue;
                }
                whole.with_context(|| format!("half: {text:?}"))?;
                let binary = fs::metadata(node.bin().join("millrace-cni"))?;
                ensure!(binary.mode() & 0o111 != 0 && binary.len() > 0, "{binary:?}");
            }
            Ok(())
        });
        let mut random = Random::new()?;
        let seed = random.seed();
        let mut disturbing = || -> Result<()> {
            let until = Instant::now() + Duration::from_secs(seconds()?);
            let mut generation = 0;
            while Instant::now() < until {
                generation += 1;
                let whole = disturb(&node, &mut random, generation)?;
                // Now and then it waits for what the agent makes of it.
                if whole && random.below(10) == 0 {
                    settles(&node, generation)?;
                }
                if random.below(4) == 0 {
                    thread::sleep(Duration::from_micros(random.below(20_000)));
                }
                if random.below(50) == 0 {
                    drop(fs::remove_file(node.conf().join(LIST)));
                }
            }
            generation += 1;
            fs::write(node.conf().join(LIST), list(generation))?;
            settles(&node, generation)
        };
        let disturbed = disturbing().with_context(|| format!("seed {seed}"));
        over.store(true, Ordering::Relaxed);
        let watched = watching.join().expect("the observer panicked");
        disturbed.and(watched)
    })?;
    ensure!(looks.load(Ordering::Relaxed) > 10, "the plugin was hardly ever there");
    // The list is there before the old one is gone; whoever ends the agent in between finds that.
    node.until("nothing is left in the making", || {
        node.names(node.conf())
            .is_ok_and(|names| names == [LIST] || names == [LIST, "neighbour.tmp"])
    })?;
    agent.stop()
}

/// Verify that the entry comes back, whatever is done to it, that the rest of the list, its mode and
/// its owner stay as they are, and that the binary comes back.
#[test]
fn what_is_changed_is_put_right() -> Result<()> {
    let node = Node::new()?;
    let text = "{\"zeta\": 123456789012345678901234567890,\n \"cniVersion\": \"0.3.1\", \"name\":\"net\",\
                \"plugins\":[ {\"type\": \"a\", \"z\":1.500000000000000000000,\"b\" : 2}], \"odd\":[ 1 ]}";
    node.write(LIST, text)?;
    let path = node.conf().join(LIST);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
    std::os::unix::fs::chown(&path, Some(123), Some(456))?;
    let mut agent = node.run(&["--settings", "{\"deadline\":\"7s\"}"])?;
    let entry = || -> Option<Value> {
        let value: Value = serde_json::from_str(&fs::read_to_string(&path).ok()?).ok()?;
        value["plugins"].as_array()?.last().cloned()
    };
    let is_right = || entry().is_some_and(|e| e["type"] == "millrace-cni" && e["deadline"] == "7s");
    node.until("the entry is there", is_right)?;
    let whole = fs::read_to_string(&path)?;
    for part in [
        "123456789012345678901234567890",
        "{\"type\": \"a\", \"z\":1.500000000000000000000,\"b\" : 2}",
        "\"cniVersion\": \"0.3.1\"",
        "[ 1 ]",
    ] {
        ensure!(whole.contains(part), "{part}: {whole}");
    }
    let edits: [&dyn Fn(&mut Value); 4] = [
        &|list| list["plugins"].as_array_mut().unwrap().truncate(1),
        &|list| list["plugins"][1]["deadline"] = json!("1s"),
        &|list| list["plugins"].as_array_mut().unwrap().reverse(),
        &|list| {
            let twice = list["plugins"][1].clone();
            list["plugins"].as_array_mut().unwrap().push(twice);
        },
    ];
    for edit in edits {
        let mut list: Value = serde_json::from_str(&whole)?;
        edit(&mut list);
        fs::write(&path, list.to_string())?;
        node.until("the entry is right again", || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            is_right() && text.matches("millrace-cni").count() == 1
        })?;
        let meta = fs::metadata(&path)?;
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 123, 456));
    }
    let binary = node.bin().join("millrace-cni");
    let good = fs::read(&binary)?;
    fs::remove_file(&binary)?;
    node.until("the binary is back", || fs::read(&binary).is_ok_and(|bytes| bytes == good))?;
    fs::write(&binary, "damaged")?;
    node.until("the binary is whole", || fs::read(&binary).is_ok_and(|bytes| bytes == good))?;
    agent.stop()?;
    ensure!(is_right(), "the end of the agent took the entry away");
    Ok(())
}
