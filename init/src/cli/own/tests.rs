//! Command lines of Millrace's own commands.

use super::*;

fn typed(words: &[&str]) -> Result<Own, NotTyped> {
    read(words.iter().map(OsString::from).collect())
}

#[test]
fn the_commands_are_sound() {
    command().debug_assert();
}

#[test]
fn settings_and_options_are_read() {
    let words = ["apply", "--netns", "pod", "--proxy-uid", "1", "--proxy-uid", "2", "--wait", "5s"];
    let Own::Apply(apply) = typed(&words).unwrap() else { panic!("not apply") };
    assert_eq!(apply.common.place, NetnsTarget::Netns("pod".to_owned()));
    assert_eq!(apply.common.wait, Duration::from_secs(5));
    assert_eq!(apply.config.flags.len(), 2);
}

#[test]
fn a_namespace_is_named_in_one_way() {
    let place = |words: &[&str]| match typed(words).unwrap() {
        Own::Status(status) => status.common.place,
        other => panic!("{other:?}"),
    };
    assert_eq!(place(&["status"]), NetnsTarget::Here);
    assert_eq!(place(&["status", "--pid", "7"]), NetnsTarget::Process(7));
    let endpoint = |path: &str| NetnsTarget::Pod { name: "a/b".to_owned(), endpoint: path.into() };
    assert_eq!(place(&["status", "--pod", "a/b"]), endpoint("/run/containerd/containerd.sock"));
    let words = ["status", "--pod", "a/b", "--runtime-endpoint", "unix:///run/crio/crio.sock"];
    assert_eq!(place(&words), endpoint("/run/crio/crio.sock"));
    assert!(typed(&["status", "--pid", "7", "--pod", "a"]).is_err());
    assert!(typed(&["status", "--netns", "x", "--pid", "7"]).is_err());
    assert!(typed(&["status", "--pid", "x"]).is_err());
    assert!(typed(&["status", "--runtime-endpoint", "/x"]).is_err());
}

#[test]
fn a_command_line_of_a_tool_is_a_configuration() {
    let tool = |words: &[&str]| match typed(words).unwrap() {
        Own::Dump(dump) => dump.config.tool.unwrap(),
        other => panic!("{other:?}"),
    };
    let words = ["dump", "--from-config", "--", "istio-iptables", "-p", "1"];
    assert!(matches!(tool(&words), Tool::Istio(words) if words.len() == 2));
    assert!(
        matches!(tool(&["dump", "--", "linkerd", "-w"]), Tool::Linkerd(words) if words == ["-w"])
    );
    assert!(typed(&["dump", "--", "-p", "1"]).is_err());
    assert!(typed(&["dump", "--dns", "all", "--", "istio-iptables"]).is_err());
}

#[test]
fn everything_behind_istio_iptables_is_its_own() {
    let words = ["istio-iptables", "-p", "15001", "--help", "-x", "", "--dry-run=false"];
    let Own::Istio(rest) = typed(&words).unwrap() else { panic!("not istio-iptables") };
    assert_eq!(rest.len(), 6);
}

#[test]
fn what_is_not_known_is_an_error() {
    assert!(matches!(typed(&["apply", "--no"]), Err(NotTyped::Bad(_))));
    assert!(matches!(typed(&["apply", "--wait", "x"]), Err(NotTyped::Bad(_))));
    assert!(matches!(typed(&["nothing"]), Err(NotTyped::Bad(_))));
    assert!(matches!(typed(&[]), Err(NotTyped::Print(_))));
    assert!(matches!(typed(&["--help"]), Err(NotTyped::Print(_))));
}
