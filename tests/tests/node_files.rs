//! The node agent's own files and folders: what it leaves of a list, what becomes of what others put
//! in the place of its own, and which folders it takes for its own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::node::Node;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

const LIST: &str = "10-net.conflist";
const TEXT: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [\n    {\n      \
                    \"type\": \"bridge\",\n      \"mtu\": 1400\n    }\n  ]\n}\n";
const GONE: [&str; 2] = ["--grace", "0s"];

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

fn mode(node: &Node, name: &str) -> Result<u32> {
    Ok(fs::metadata(node.folder().join(name))?.mode() & 0o7777)
}

/// Verify that nothing is left of the plugin in a list, however that is written: it is what it was,
/// byte for byte, also where its author changed it meanwhile.
#[test]
fn a_list_is_left_as_it_was() -> Result<()> {
    for text in [
        TEXT,
        r#"{"name":"net","plugins":[{"type":"bridge"}],"cniVersion":"1.0.0"}"#,
        "\n{ \"plugins\" : [ {\"type\":\"a\"} ,\r\n\t{\"mtu\": 1e400,\"type\":\"b\"}\t] , \"name\": \"net\" }",
    ] {
        for mode in ["chained", "own-file", "drop-in"] {
            let node = Node::new()?;
            node.write(LIST, text)?;
            node.do_("install", &["--mode", mode])?;
            // New settings, and the same again.
            for _ in 0..2 {
                node.do_("install", &["--mode", mode, "--settings", r#"{"deadline":"9s"}"#])?;
            }
            let path = node.conf().join(LIST);
            let now = fs::read_to_string(&path)?;
            assert_eq!(now.contains("millrace-cni"), mode == "chained", "{mode}: {now}");
            fs::write(&path, now.replace("\"net\"", "\"web\""))?;
            node.do_("install", &["--mode", mode])?;
            node.do_("uninstall", &[&["--mode", mode][..], &GONE].concat())?;
            assert_eq!(fs::read_to_string(&path)?, text.replace("\"net\"", "\"web\""), "{mode}");
        }
    }
    Ok(())
}

/// Verify that what is no configuration and stands under the name of the agent's own file is kept
/// before that is written or removed, and that it is said where.
#[test]
fn what_is_found_in_its_place_is_kept() -> Result<()> {
    for (mode, file) in [
        ("drop-in", "net/90-millrace.conf"),
        ("own-file", "00-millrace.conflist"),
        ("standalone", "millrace-cni.conf"),
    ] {
        let node = Node::new()?;
        node.write(LIST, TEXT)?;
        let way = ["--mode", mode];
        node.do_("install", &way)?;
        let path = node.conf().join(file);
        let ours = fs::read_to_string(&path)?;
        let found = |number: u32| {
            let name = format!("found-{}.{number}", file.replace('/', "-"));
            node.folder().join("state").join(name)
        };
        for (number, text) in [(1, "mtu: 1400\n"), (1, "mtu: 1400\n"), (2, "[not JSON")] {
            fs::write(&path, text)?;
            let output = node.once("install", &way)?;
            let said = said(&output);
            ensure!(output.status.success(), "{mode}: {said}");
            let kept = found(number);
            ensure!(said.contains(kept.to_str().context("a path")?), "{mode}: {said}");
            assert_eq!(fs::read_to_string(&kept)?, text, "{mode}");
            assert_eq!(fs::metadata(&kept)?.mode() & 0o7777, 0o600);
            assert_eq!(fs::read_to_string(&path)?, ours, "{mode}");
        }
        // Nothing of it is anybody's.
        fs::write(&path, "")?;
        node.do_("install", &way)?;
        fs::write(&path, "{}\n")?;
        let gone = node.do_("uninstall", &[&way[..], &GONE].concat())?;
        ensure!(gone.contains(&format!("removed: {}", path.display())), "{mode}: {gone}");
        assert_eq!(fs::read_to_string(found(3))?, "{}\n", "{mode}");
        ensure!(!path.exists() && !found(4).exists(), "{mode}");
        assert_eq!(fs::read_to_string(node.conf().join(LIST))?, TEXT, "{mode}");
    }
    Ok(())
}

/// Verify that a folder in the place of the binary, which nothing can take the place of, is an error that says
/// what to do, and is not told as replaced.
#[test]
fn a_folder_has_the_name_of_the_binary() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, TEXT)?;
    let binary = node.bin().join("millrace-cni");
    fs::create_dir(&binary)?;
    let output = node.once("install", &[])?;
    let told = said(&output);
    ensure!(!output.status.success() && told.contains("remove that folder"), "{told}");
    ensure!(!told.contains("is replaced") && fs::metadata(&binary)?.is_dir(), "{told}");
    Ok(())
}

/// Verify that what is no regular file in the place of the binary is named and replaced, and in the
/// place of a configuration named and left; and that no link is followed and no FIFO waited for.
#[test]
fn links_and_fifos() -> Result<()> {
    let make = |path: &Path, target: &Path, is_link: bool| -> Result<()> {
        if is_link {
            return Ok(symlink(target, path)?);
        }
        Ok(mkfifo(path, Mode::S_IRWXU)?)
    };
    for (is_link, what) in [(true, "symbolic link to"), (false, "FIFO")] {
        let node = Node::new()?;
        node.write(LIST, TEXT)?;
        let target = node.folder().join("target");
        fs::write(&target, "theirs")?;
        let binary = node.bin().join("millrace-cni");
        make(&binary, &target, is_link)?;
        let output = node.once("install", &[])?;
        let told = said(&output);
        ensure!(output.status.success() && told.contains(what), "{told}");
        ensure!(fs::symlink_metadata(&binary)?.is_file(), "{what}");
        fs::remove_file(&binary)?;
        make(&binary, &target, is_link)?;
        let gone = node.do_("uninstall", &GONE)?;
        ensure!(gone.contains(what), "{gone}");
        ensure!(fs::symlink_metadata(&binary).is_err(), "{what}");

        let way = ["--mode", "own-file"];
        node.do_("install", &way)?;
        let own = node.conf().join("00-millrace.conflist");
        fs::remove_file(&own)?;
        make(&own, &target, is_link)?;
        let output = node.once("install", &way)?;
        let told = said(&output);
        ensure!(!output.status.success() && told.contains("00-millrace.conflist"), "{told}");
        ensure!(!fs::symlink_metadata(&own)?.is_file(), "{told}");
        let output = node.once("uninstall", &[&way[..], &GONE].concat())?;
        let told = said(&output);
        ensure!(output.status.success() && told.contains(what), "{told}");
        ensure!(fs::symlink_metadata(&own).is_err(), "{what}");
        assert_eq!(fs::read_to_string(&target)?, "theirs");
    }
    Ok(())
}

/// Verify that a folder which others can write to, or which is another user's, is refused by name, and
/// that the mode of none is changed that the agent did not make.
#[test]
fn folders_of_others() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, TEXT)?;
    let theirs = node.folder().join("theirs");
    fs::create_dir(&theirs)?;
    let path = theirs.to_str().context("a path")?;
    for flag in ["--run-dir", "--state-dir"] {
        for (bits, user, is_taken) in
            [(0o1777, 0, false), (0o775, 0, false), (0o755, 77, false), (0o755, 0, true)]
        {
            fs::set_permissions(&theirs, fs::Permissions::from_mode(bits))?;
            std::os::unix::fs::chown(&theirs, Some(user), None)?;
            let output = node.once("install", &[flag, path])?;
            let told = said(&output);
            assert_eq!(output.status.success(), is_taken, "{flag} {bits:o}: {told}");
            if !is_taken {
                ensure!(told.contains(path) && told.contains(flag), "{told}");
                ensure!(fs::read_dir(&theirs)?.next().is_none(), "{flag} {bits:o}");
            }
            assert_eq!(mode(&node, "theirs")?, bits, "{flag}");
        }
        node.do_("uninstall", &[&[flag, path][..], &GONE].concat())?;
        fs::remove_dir_all(&theirs)?;
        fs::create_dir(&theirs)?;
    }
    assert_eq!((mode(&node, "run")?, mode(&node, "state")?), (0o700, 0o700));
    Ok(())
}

/// Verify that an error is told once, with what to do about it.
#[test]
fn errors_are_told_once() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, TEXT)?;
    let none = node.folder().join("none");
    let none = none.to_str().context("a path")?;
    let account = ["--kubeconfig", "service-account", "--service-account", none];
    let api = ["--kubernetes-host", "192.0.2.1", "--kubernetes-port", "443"];
    for (args, part, remedy) in [
        ([&account[..], &api].concat(), "can't be read", "--kubeconfig none"),
        ([&account[..], &["--kubernetes-host", ""]].concat(), "have to name", "--kubeconfig none"),
        (vec!["--plugin", none], "which is to be installed", "can't be read"),
        (vec!["--cni-conf-dir", none], "can't be opened", "none"),
    ] {
        let output = node.once("install", &args)?;
        let told = said(&output);
        ensure!(!output.status.success(), "{told}");
        assert_eq!(told.matches(part).count(), 1, "{told}");
        ensure!(told.contains(remedy), "{told}");
    }
    Ok(())
}

/// A program, whole from the first moment, as agents install theirs.
fn program(path: &Path) -> Result<()> {
    let temp = path.with_extension("new");
    fs::copy(binary::system("false")?, &temp)?;
    Ok(fs::rename(&temp, path)?)
}

/// The list of a node whose pods istio-cni captures.
fn of_istio() -> String {
    TEXT.replace("\n  ]", ",\n    {\n      \"type\": \"istio-cni\"\n    }\n  ]")
}

/// Verify that a run or state directory that is a symbolic link is refused by name, whatever it leads to,
/// and that nothing is written there; a link above it is followed.
#[test]
fn links_are_no_folders_of_its_own() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, TEXT)?;
    let at = |name: &str| node.folder().join(name);
    fs::create_dir(at("real"))?;
    fs::set_permissions(at("real"), fs::Permissions::from_mode(0o700))?;
    symlink(at("real"), at("link"))?;
    symlink(at("none"), at("dangling"))?;
    for flag in ["--run-dir", "--state-dir"] {
        for name in ["link", "link/", "dangling"] {
            let path = format!("{}/{name}", node.folder().display());
            let mut tasks = vec![("install", &[][..]), ("uninstall", &GONE)];
            tasks.extend((flag == "--state-dir").then_some(("status", &[][..])));
            for (task, more) in tasks {
                let output = node.once(task, &[&[flag, path.as_str()], more].concat())?;
                let told = said(&output);
                let is_refused = told.contains(path.trim_end_matches('/'))
                    && told.contains("symbolic link to")
                    && told.contains(flag);
                ensure!(is_refused, "{task} {flag} {name}: {told}");
                // What a link of the run directory leads to is nobody's obstacle to get rid of the plugin.
                let fails = (task, flag) != ("uninstall", "--run-dir");
                assert_eq!(!output.status.success(), fails, "{task} {flag} {name}: {told}");
                ensure!(fs::read_dir(at("real"))?.next().is_none(), "{task} {flag} {name}");
                ensure!(fs::symlink_metadata(at("none")).is_err(), "{task} {flag} {name}");
            }
        }
    }
    let below = at("link").join("state");
    node.do_("install", &["--state-dir", below.to_str().context("a path")?])?;
    ensure!(at("real").join("state/kept.json").exists());
    Ok(())
}

/// Verify that a list that has its plugins twice, or a plugin that has its type twice, is read as libcni
/// reads it, and is what it was when the plugin is gone.
#[test]
fn members_are_there_twice() -> Result<()> {
    let twice = r#"{"name":"net","plugins":[{"type":"unused"},{"type":"istio-cni"}],
 "cniVersion":"1.0.0","plugins": [ {"type":"unused","type":"bridge"} , {"Type":"portmap"} ]}"#;
    for mode in ["chained", "own-file"] {
        let node = Node::new()?;
        node.write(LIST, twice)?;
        node.do_("install", &["--mode", mode])?;
        let file = if mode == "chained" { LIST } else { "00-millrace.conflist" };
        let text = fs::read_to_string(node.conf().join(file))?;
        // The last of equal names counts here, too.
        let list: Value = serde_json::from_str(&text)?;
        let plugins = list["plugins"].as_array().context("no plugins")?;
        assert_eq!(plugins.len(), 3, "{mode}: {text}");
        assert_eq!(plugins[0]["type"], "bridge", "{mode}: {text}");
        assert_eq!(plugins[2]["type"], "millrace-cni", "{mode}: {text}");
        node.do_("status", &["--mode", mode])?;
        node.do_("uninstall", &[&["--mode", mode][..], &GONE].concat())?;
        assert_eq!(fs::read_to_string(node.conf().join(LIST))?, twice, "{mode}");
    }
    Ok(())
}

/// Verify that what is no regular file under the name of istio-cni's binary is never written through, stays,
/// and is named; whether it was there before the entry was taken over or after that.
#[test]
fn a_link_has_the_name_of_istios_binary() -> Result<()> {
    for is_before in [true, false] {
        for restore in [&["--restore"][..], &[]] {
            let node = Node::new()?;
            let (own, theirs) = (node.bin().join("istio-cni"), node.folder().join("theirs"));
            program(&theirs)?;
            node.write(LIST, &of_istio())?;
            if is_before {
                symlink(&theirs, &own)?;
            } else {
                program(&own)?;
                node.do_("install", &[])?;
                fs::remove_file(&own)?;
                symlink(&theirs, &own)?;
            }
            let named = format!("{} is a symbolic link to", own.display());
            for task in ["install", "status"] {
                let told = node.do_(task, &[])?;
                ensure!(told.contains(&named), "{task}: {told}");
            }
            let told = node.do_("uninstall", &[restore, &GONE].concat())?;
            let is_put_back = fs::read_to_string(node.conf().join(LIST))?.contains("istio-cni");
            assert_eq!(is_put_back, !restore.is_empty(), "{told}");
            if !is_before && is_put_back {
                let left = format!("{} is not put back: a symbolic link to", own.display());
                ensure!(told.contains(&left), "{told}");
            }
            ensure!(!node.bin().join("millrace-cni").exists(), "{told}");
            assert_eq!(fs::read_link(&own)?, theirs);
            ensure!(fs::read(&theirs)? == fs::read(binary::system("false")?)?, "it was written to");
        }
    }
    Ok(())
}

/// Verify that which binaries are the agent's is known as long as one is there: what `--keep-binary` leaves
/// goes, or comes back, with the next call; and that a list which has istio-cni's entry again gets
/// its binary.
#[test]
fn binaries_are_known_until_they_are_gone() -> Result<()> {
    let (ours, theirs) = (fs::read(binary::system("true")?)?, fs::read(binary::system("false")?)?);
    for next in [&["--restore"][..], &[], &["entry"]] {
        let node = Node::new()?;
        let own = node.bin().join("istio-cni");
        program(&own)?;
        node.write(LIST, &of_istio())?;
        node.do_("install", &[])?;
        ensure!(fs::read(&own)? == ours, "it is not taken over");
        let told = node.do_("uninstall", &[&["--keep-binary"][..], &GONE].concat())?;
        ensure!(fs::read(&own)? == ours && node.bin().join("millrace-cni").exists(), "{told}");
        let is_entry = next == ["entry"];
        if is_entry {
            node.write(LIST, &of_istio())?;
        }
        let next: Vec<&str> = next.iter().copied().filter(|word| word.starts_with('-')).collect();
        let told = node.do_("uninstall", &[&next[..], &GONE].concat())?;
        ensure!(!node.bin().join("millrace-cni").exists(), "{told}");
        if next.is_empty() && !is_entry {
            ensure!(!own.exists(), "{told}");
        } else {
            ensure!(told.contains(&format!("restored: the binary {}", own.display())), "{told}");
            ensure!(fs::read(&own)? == theirs, "{told}");
        }
        let list = fs::read_to_string(node.conf().join(LIST))?;
        assert_eq!(list == of_istio(), is_entry || !next.is_empty(), "{list}");
        ensure!(!node.folder().join("state/kept.json").exists(), "{told}");
    }
    Ok(())
}

/// Verify that what `status` says is so, and that where it was installed with other flags it says what they
/// differ in; and that it changes nothing.
#[test]
fn status_says_what_differs() -> Result<()> {
    let node = Node::new()?;
    let (list, plugin) = (node.conf().join(LIST), node.bin().join("millrace-cni"));
    let said_by = |args: &[&str], code: i32, parts: &[&str]| -> Result<()> {
        let output = node.once("status", args)?;
        let told = said(&output);
        assert_eq!(output.status.code(), Some(code), "{told}");
        for part in parts {
            ensure!(told.contains(part), "{part:?} is not in {told}");
        }
        Ok(())
    };
    said_by(&[], 1, &["not installed yet: there is no list of plugins"])?;
    node.write(LIST, TEXT)?;
    said_by(&[], 1, &[&format!("not installed yet: {} is not there", plugin.display())])?;
    ensure!(!node.folder().join("state").exists() && !node.run_dir().exists());
    node.do_("install", &[])?;
    let (list, plugin) = (list.display(), plugin.display());
    said_by(&[], 0, &[&format!("installed: {list} has the entry, which calls {plugin}\n")])?;
    // The flags of another installation.
    let deadline = ["--settings", r#"{"deadline":"9s"}"#];
    said_by(&deadline, 1, &[r#"deadline is not set and should be "9s""#, &format!("{list}: ")])?;
    let account = ["--kubeconfig", "service-account"];
    said_by(&account, 1, &["kubeconfig", "is not there", "give them to status"])?;
    let config = ["--kubeconfig", "/x/kubeconfig"];
    said_by(&config, 1, &[r#"kubeconfig is not set and should be "/x/kubeconfig""#])?;
    said_by(&["--mode", "own-file"], 1, &["00-millrace.conflist is not there"])?;
    said_by(&["--node-name", "n"], 1, &["agent_socket is not set", "no agent answers on"])?;
    node.write(LIST, TEXT)?;
    said_by(&[], 1, &[&format!("{list} has no entry of the plugin")])?;
    node.do_("install", &[])?;
    node.do_("uninstall", &GONE)?;
    said_by(&[], 1, &["not installed: it was uninstalled by `millrace-node uninstall`"])?;
    said_by(&["--no-such-flag"], 2, &["--no-such-flag"])
}

/// Verify that the log of an agent says in words what it wrote and why, and what the user should know; and
/// that commands which somebody calls print lines, and no JSON.
#[test]
fn the_log_is_in_words() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, &TEXT.replace("bridge", "linkerd-cni"))?;
    let mut agent = node.run(&[])?;
    let has = |parts: &[&str]| {
        node.until(&format!("{parts:?} in the log"), || {
            node.log().lines().any(|line| parts.iter().all(|part| line.contains(part)))
        })
    };
    let list = node.conf().join(LIST);
    let path = list.to_str().context("a path")?;
    has(&["INFO", &format!("wrote {path}: it had no entry of the plugin")])?;
    has(&["INFO", "the plugin is installed: 10-net.conflist has its entry"])?;
    has(&["WARN", "linkerd-cni is left in the list"])?;
    let ours = fs::read_to_string(&list)?;
    fs::write(&list, ours.replace("annotations\":true", "annotations\":false"))?;
    has(&[&format!("wrote {path}: it had other settings in the plugin's entry")])?;
    agent.stop()?;
    let log = node.log();
    ensure!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
    for name in ["Missing", "Changed", "Moved", "Withdrawn", "TakenOver", "Followed", "Some("] {
        ensure!(!log.contains(name), "{name}: {log}");
    }
    assert_eq!(log.matches("linkerd-cni is left").count(), 1, "{log}");
    node.write(LIST, TEXT)?;
    let output = node.once("install", &[])?;
    assert_eq!(
        String::from_utf8(output.stderr)?,
        format!("wrote {path}: it had no entry of the plugin\n")
    );
    let output = node.once("install", &["--settings", "[]"])?;
    ensure!(String::from_utf8(output.stderr)?.starts_with("error: --settings: "));
    Ok(())
}

/// Verify that a plugin with another name is not put beside itself, and that what was installed under any
/// name is uninstalled.
#[test]
fn a_plugin_has_one_name() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, TEXT)?;
    node.do_("install", &["--plugin-name", "mesh"])?;
    let before = fs::read_to_string(node.conf().join(LIST))?;
    for task in ["install", "status"] {
        let output = node.once(task, &[])?;
        let told = said(&output);
        ensure!(!output.status.success() && told.contains("earlier name \"mesh\""), "{told}");
        assert_eq!(fs::read_to_string(node.conf().join(LIST))?, before, "{told}");
    }
    let told = node.do_("uninstall", &GONE)?;
    assert_eq!(fs::read_to_string(node.conf().join(LIST))?, TEXT, "{told}");
    assert_eq!(node.names(node.bin())?, Vec::<String>::new(), "{told}");
    node.do_("install", &[])?;
    assert_eq!(node.names(node.bin())?, ["millrace-cni"]);
    Ok(())
}
