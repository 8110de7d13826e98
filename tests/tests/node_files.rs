//! The node agent's own files and folders: what it leaves of a list, what becomes of what others put
//! in the place of its own, and which folders it takes for its own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::node::Node;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

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
    let make = |path: &std::path::Path, target: &std::path::Path, is_link: bool| -> Result<()> {
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
