//! Whose a file is, and what becomes of one that is in the way.

use super::*;
use crate::list::List;

const NET: &str = r#"{"type":"bridge"}"#;
const OURS: &str =
    r#"{"type":"millrace-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true}}"#;
const ISTIO: &str = r#"{"type":"istio-cni","plugin_log_level":"debug"}"#;
const LINKERD: &str = r#"{"type":"linkerd-cni"}"#;
const OTHER: &str = r#"{"type":"cilium-cni"}"#;

fn file(name: &str, plugins: &[&str]) -> Candidate {
    let text = if is_single(name) {
        plugins[0].replacen('{', r#"{"name":"net","#, 1)
    } else {
        let plugins = plugins.join(",");
        format!(r#"{{"cniVersion":"1.0.0","name":"net","plugins":[{plugins}]}}"#)
    };
    let list = if is_list(name) { List::parse(&text) } else { List::of_single(&text) };
    Candidate { name: name.to_owned(), text, list: list.map_err(BadConf::from) }
}

fn wanted(mode: Mode, named: Option<&str>, written: &[&str]) -> Desired {
    Desired {
        kind: "millrace-cni".to_owned(),
        mode,
        file: named.map(str::to_owned),
        own: Own {
            written: written.iter().map(|name| (*name).to_owned()).collect(),
            named: named.map(str::to_owned).filter(|_| mode != Mode::Chained),
        },
        settings: Settings::default(),
        kept: Settings::default(),
        places: Settings::default(),
        take_over: vec![Mesh::Istio],
        yield_to: Vec::new(),
    }
}

fn decide(files: &[Candidate], wanted: &Desired) -> Plan {
    plan(&Seen { files: files.to_vec(), drop_ins: Vec::new() }, wanted)
}

/// The steps in words: what is done, and with which file.
fn reported(plan: &Plan) -> Vec<String> {
    let word = |step: &Step| match step {
        Step::Keep { file, .. } => format!("keep the entry in {file}"),
        Step::KeepFile { file, .. } => format!("keep {file}"),
        Step::Own { file } => format!("own {file}"),
        Step::Write { file, .. } => format!("write {file}"),
        Step::Remove { file } => format!("remove {file}"),
        Step::WriteDropIn { network, .. } => format!("write into {network}"),
        Step::RemoveDropIn { network, file } => format!("remove {network}/{file}"),
    };
    plan.steps.iter().map(word).collect()
}

fn refused(plan: &Plan, part: &str) {
    assert!(matches!(&plan.state, State::Blocked(why) if why.contains(part)), "{plan:?}");
    assert!(plan.steps.is_empty(), "{plan:?}");
}

/// Verify that a file of istio-cni's that has the name of the agent's own is kept before it is written
/// over, in either mode and whatever the list behind it says by now.
#[test]
fn a_file_in_the_way_is_kept_first() {
    let name = "02-istio-cni.conflist";
    for behind in [&[NET][..], &[NET, r#"{"type":"portmap"}"#]] {
        let files = [file(name, &[NET, ISTIO]), file("10-net.conflist", behind)];
        let plan = decide(&files, &wanted(Mode::OwnFile, Some(name), &[]));
        let steps = [format!("keep {name}"), format!("own {name}"), format!("write {name}")];
        assert_eq!(reported(&plan), steps);
        let Step::Write { text, cause: Cause::TakenOver, .. } = &plan.steps[2] else {
            panic!("{plan:?}");
        };
        assert!(text.contains("debug") && !text.contains("istio-cni"), "{text}");
        assert_eq!(text.contains("portmap"), behind.len() == 2, "{text}");
    }
    let name = "istio-cni.conf";
    let plan = decide(&[file(name, &[ISTIO])], &wanted(Mode::Standalone, Some(name), &[]));
    assert_eq!(
        reported(&plan),
        [format!("keep {name}"), format!("own {name}"), format!("write {name}")]
    );
    // Its agent wrote it again over the agent's own.
    let plan = decide(&[file(name, &[ISTIO])], &wanted(Mode::Standalone, Some(name), &[name]));
    assert_eq!(reported(&plan), [format!("keep {name}"), format!("write {name}")]);
}

/// Verify that a file that can't be kept, or is the network's own, is refused and nothing changed.
#[test]
fn a_file_of_nobody_that_is_taken_over_is_refused() {
    let behind = || file("10-net.conflist", &[NET]);
    for plugins in [&[NET][..], &[LINKERD], &[NET, OURS]] {
        let files = [file("05-own.conflist", plugins), file("10-net.conflist", &[NET, LINKERD])];
        let plan = decide(&files, &wanted(Mode::OwnFile, Some("05-own.conflist"), &[]));
        refused(&plan, "choose another name");
    }
    let plan = decide(&[file("x.conf", &[NET])], &wanted(Mode::Standalone, Some("x.conf"), &[]));
    refused(&plan, "choose another name");
    // The list of the network's plugin itself, with the plugin chained into it before.
    let name = "10-net.conflist";
    let own = [file(name, &[NET, OURS])];
    refused(&decide(&own, &wanted(Mode::OwnFile, Some(name), &[])), "choose another name");
    for mode in [Mode::Chained, Mode::OwnFile] {
        let files = [file("00-millrace.conflist", &[NET]), behind()];
        refused(&decide(&files, &wanted(mode, None, &[])), "rename it");
    }
    let mut alone = wanted(Mode::Standalone, Some("istio-cni.conf"), &[]);
    alone.take_over.clear();
    let plan = decide(&[file("istio-cni.conf", &[ISTIO])], &alone);
    assert!(matches!(&plan.state, State::Blocked(why) if why.contains("--take-over istio-cni")));
    assert!(plan.steps.is_empty(), "{plan:?}");
}

/// Verify that what the agent wrote is its own also where the note of that is lost, and that what
/// others put in its place is not.
#[test]
fn whose_a_file_is() {
    let own = |written: &[&str]| Own {
        written: written.iter().map(|name| (*name).to_owned()).collect(),
        named: Some("05-own.conflist".to_owned()),
    };
    let behind = file("10-net.conflist", &[NET]);
    for (name, plugins, written, is_own) in [
        ("05-own.conflist", &[NET, OURS][..], false, true),
        ("05-own.conflist", &[OURS], false, true),
        ("05-own.conflist", &[LINKERD, OURS], false, false),
        ("05-own.conflist", &[NET], false, false),
        ("05-own.conflist", &[NET], true, true),
        ("05-own.conflist", &[NET, ISTIO], true, false),
        ("05-own.conflist", &[OTHER], true, false),
        ("05-own.conflist", &[NET, OURS, ISTIO], true, true),
        ("00-millrace.conflist", &[LINKERD, OURS], false, true),
        ("00-millrace.conflist", &[NET], false, false),
        ("07-x.conflist", &[NET, OURS], false, false),
        ("07-x.conflist", &[NET, OURS], true, true),
    ] {
        let file = file(name, plugins);
        let seen = Seen { files: vec![file.clone(), behind.clone()], drop_ins: Vec::new() };
        let written: &[&str] = if written { &[name] } else { &[] };
        assert_eq!(own(written).has(&file, &seen, "millrace-cni"), is_own, "{name} {plugins:?}");
        let steps = withdraw(&seen, "millrace-cni", &own(written));
        let removes =
            steps.iter().any(|step| matches!(step, Step::Remove { file } if file == name));
        let with_others = plugins.contains(&ISTIO) || plugins.contains(&LINKERD);
        assert_eq!(removes, is_own && !with_others, "{name} {plugins:?}: {steps:?}");
    }
}

/// Verify that an entry that another agent put into the agent's own list, which sorts first, is taken
/// over or stays, and is not fought over.
#[test]
fn entries_in_the_agents_own_list() {
    let name = "00-millrace.conflist";
    let behind = file("10-net.conflist", &[NET]);
    let files = [file(name, &[NET, OURS, ISTIO]), behind.clone()];
    let plan = decide(&files, &wanted(Mode::OwnFile, None, &[name]));
    assert_eq!(reported(&plan), [format!("keep the entry in {name}"), format!("write {name}")]);
    for mode in [Mode::OwnFile, Mode::Chained, Mode::DropIn] {
        let files = [file(name, &[NET, OURS, LINKERD]), behind.clone()];
        let plan = decide(&files, &wanted(mode, None, &[name]));
        let (to, more) = match mode {
            Mode::OwnFile => (name, &[][..]),
            _ => ("10-net.conflist", &[format!("remove {name}")][..]),
        };
        assert_eq!(reported(&plan), [&[format!("write {to}")][..], more].concat(), "{mode:?}");
        let Step::Write { text, .. } = &plan.steps[0] else { panic!("{plan:?}") };
        let places = ["bridge", "linkerd-cni", "millrace-cni"].map(|kind| text.find(kind));
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    }
    // At rest: nothing is left to do.
    let files = [file(name, &[NET, LINKERD, OURS]), behind];
    assert_eq!(reported(&decide(&files, &wanted(Mode::OwnFile, None, &[name]))), [""; 0]);
}

/// Verify that another plugin's file in a drop-in directory stays, and that one of the agent's with an
/// older name goes.
#[test]
fn drop_ins_of_others_stay() {
    let drop_in = |file: &str, entry: &str, is_own: bool| DropIn {
        network: "net".to_owned(),
        file: file.to_owned(),
        entry: Entry::parse(entry).ok(),
        is_own,
    };
    let files = vec![file("10-net.conflist", &[NET])];
    let wanted = wanted(Mode::DropIn, Some("50-x.conf"), &[]);
    let seen = Seen { files, drop_ins: vec![drop_in("50-x.conf", NET, false)] };
    refused(&plan(&seen, &wanted), "net/50-x.conf");
    assert!(withdraw(&seen, "millrace-cni", &wanted.own).is_empty());
    let drop_ins = vec![drop_in("50-x.conf", OURS, true), drop_in("40-old.conf", OURS, true)];
    let seen = Seen { drop_ins, ..seen };
    assert_eq!(reported(&plan(&seen, &wanted)), ["remove net/40-old.conf"]);
}

/// Verify that a list has no drop-in directory where its name would lead out of the folder.
#[test]
fn a_name_that_leads_elsewhere_has_no_drop_in() {
    for (name, is_folder) in
        [("net", true), ("../net", false), ("..", false), (".", false), ("/x", false)]
    {
        let mut list = file("10-net.conflist", &[NET]);
        list.text = list.text.replace("\"net\"", &format!("{name:?}"));
        list.list = List::parse(&list.text).map_err(BadConf::from);
        let plan = decide(&[list], &wanted(Mode::DropIn, None, &[]));
        let writes = plan.steps.iter().any(|step| matches!(step, Step::WriteDropIn { .. }));
        let installed = matches!(plan.state, State::Installed { .. });
        assert_eq!((writes, installed), (is_folder, is_folder), "{name}: {plan:?}");
    }
}
