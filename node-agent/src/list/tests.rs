//! What a list says, and that it keeps its text.

use proptest::prelude::*;

use super::*;

const TEXT: &str = r#"{"zeta": 1500000000000000000001, "cniVersion": "0.3.1", "name": "k8s",
 "unknown": {"b": 1e400, "a": [ 1 ]}, "plugins": [
  {"type": "calico", "mtu": 123456789012345678901234567890, "a": {"z":1,"b":2}},
  {"type": "portmap"} ], "disableCheck": true}"#;

fn ours() -> Entry {
    Entry::parse(r#"{"type":"millrace-cni","deadline":"3s"}"#).unwrap()
}

#[test]
fn all_but_the_plugins_keeps_its_order_and_its_text() {
    let list = List::parse(TEXT).unwrap();
    let text = list.clone().with(ours()).text();
    for part in [
        "1500000000000000000001",
        r#"{"b": 1e400, "a": [ 1 ]}"#,
        r#"{"type": "calico", "mtu": 123456789012345678901234567890, "a": {"z":1,"b":2}}"#,
        r#""cniVersion": "0.3.1""#,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let order = ["zeta", "cniVersion", "name", "unknown", "plugins", "disableCheck"];
    let places: Vec<usize> =
        order.iter().map(|k| text.find(&format!("\"{k}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
    let again = List::parse(&text).unwrap();
    assert_eq!(again.plugins.last().unwrap().kind(), "millrace-cni");
    let without = again.clone().without(|kind| kind == "millrace-cni");
    assert!(without.says(&list));
    assert_eq!((again.text(), without.text()), (text, TEXT.to_owned()));
}

/// Verify how a new plugin is parted from the one before, and that what takes the place of another
/// one and gives it back leaves the text as it was.
#[test]
fn a_plugin_is_written_as_those_before_it() {
    let ours = ours();
    for (text, between) in [
        (r#"{"name":"n","plugins":[{"type":"a"}]}"#, ","),
        ("{\n  \"name\": \"n\",\n  \"plugins\": [\n    {\"type\":\"a\"}\n  ]\n}\n", ",\n    "),
        ("{\"name\":\"n\",\"plugins\":[\r\n\t{\"type\":\"a\"} ,\r\n{\"type\":\"b\"}]}", " ,\r\n"),
        ("{\"plugins\":[{\"type\":\"a\"},\n {\"type\":\"b\"}] ,\"name\":\"n\"}", ",\n "),
    ] {
        let list = List::parse(text).unwrap();
        let longer = list.clone().with(ours.clone()).text();
        assert!(longer.contains(&format!("}}{between}{}", ours.text())), "{longer}");
        // The last one is taken over, and comes back.
        let last = list.plugins.last().unwrap().clone();
        let taken = list.clone().without(|kind| kind == last.kind()).with(ours.clone()).text();
        let back = List::parse(&taken).unwrap().without(|kind| kind == "millrace-cni");
        assert_eq!(back.with(last).text(), text, "{taken}");
        // So does one from the middle, but for its place.
        let longer = List::parse(&longer).unwrap().with(ours.clone());
        let shorter = longer.without(|kind| kind == "a");
        assert!(List::parse(&shorter.text()).unwrap().says(&shorter), "{}", shorter.text());
    }
}

#[test]
fn what_runtimes_cannot_use_is_told() {
    for (text, bad) in [
        (r#"{"name":"a","plugins":[]}"#, BadList::Plugins),
        (r#"{"name":"a"}"#, BadList::Plugins),
        (r#"{"name":"a","Plugins":[{"type":"a"}]}"#, BadList::Plugins),
        (r#"{"name":"","plugins":[{"type":"a"}]}"#, BadList::Name),
        (r#"{"name":7,"plugins":[{"type":"a"}]}"#, BadList::Name),
        (r#"{"name":"a","plugins":[{"type":"a"},{"type":""}]}"#, BadList::Plugin(2)),
        (r#"{"name":"a","plugins":[7]}"#, BadList::Plugin(1)),
    ] {
        assert_eq!(List::parse(text).unwrap_err(), bad, "{text}");
    }
    for text in ["", "{", "[]", "null", "{}x"] {
        assert!(matches!(List::parse(text), Err(BadList::Json(_))), "{text}");
    }
}

#[test]
fn a_single_plugin_is_a_list_of_one() {
    let text = r#"{"cniVersion":"0.4.0","name":"n\"et","type":"bridge","mtu":7}"#;
    let list = List::of_single(text).unwrap();
    let read = List::parse(&list.with(ours()).text()).unwrap();
    assert_eq!(read.name, "n\"et");
    assert_eq!(read.plugins[0].text(), text);
    assert!(read.text().contains("\"cniVersion\": \"0.4.0\""));
    assert_eq!(List::of_single(TEXT).unwrap_err(), BadList::Ending);
    assert_eq!(List::of_single(r#"{"name":"a"}"#).unwrap_err(), BadList::Plugin(1));
}

#[test]
fn the_last_of_equal_names_counts() {
    let text = r#"{"plugins":[{"type":"a"}],"name":"x","name":"y","plugins":[{"type":"b"}]}"#;
    let list = List::parse(text).unwrap();
    assert_eq!((list.name.as_str(), list.plugins[0].kind()), ("y", "b"));
    let longer = list.with(ours()).text();
    let read: Value = serde_json::from_str(&longer).unwrap();
    assert_eq!(read["plugins"][1]["type"], "millrace-cni", "{longer}");
    let back = List::parse(&longer).unwrap().without(|kind| kind == "millrace-cni");
    assert_eq!(back.text(), text);
}

/// Verify that the type of a plugin is the one that libcni takes.
#[test]
fn a_type_is_what_runtimes_take_for_it() {
    for (text, kind) in [
        (r#"{"type":"a","type":"b"}"#, Some("b")),
        (r#"{"Type":"a"}"#, Some("a")),
        (r#"{"type":"b","Type":"a","TYPE":"c"}"#, Some("b")),
        (r#"{"Type":"a","type":null}"#, Some("a")),
        (r#"{"type":"a","type":null}"#, None),
        (r#"{"Type":7,"type":"a"}"#, None),
        (r#"{"type":"a","Type":""}"#, Some("a")),
    ] {
        assert_eq!(Entry::parse(text).ok().as_ref().map(Entry::kind), kind, "{text}");
    }
}

#[test]
fn drop_ins_can_be_refused() {
    let list = |said: &str| {
        List::parse(&format!(r#"{{"name":"a","plugins":[{{"type":"a"}}]{said}}}"#)).unwrap()
    };
    assert!(!list("").refuses_drop_ins());
    assert!(!list(r#","loadOnlyInlinedPlugins":false"#).refuses_drop_ins());
    assert!(list(r#","loadOnlyInlinedPlugins":true"#).refuses_drop_ins());
    assert!(list(r#","loadOnlyInlinedPlugins":"true""#).refuses_drop_ins());
}

/// Up to three of the four blanks that JSON has (RFC 8259, section 2).
fn blanks() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,3}"
}

proptest! {
    #[test]
    fn a_plugin_that_comes_and_goes_leaves_no_trace(
        kinds in prop::collection::vec(("[a-z]{1,8}", blanks(), blanks()), 1..5),
        (before, after, colon) in (blanks(), blanks(), blanks()),
        is_first in any::<bool>(),
    ) {
        let plugin = |(kind, before, after): &(String, String, String)| {
            format!(r#"{before}{{"type":{after}"{kind}"}}{after}"#)
        };
        let plugins: Vec<String> = kinds.iter().map(plugin).collect();
        let plugins = format!("\"plugins\":{colon}[{}]", plugins.join(","));
        let name = r#""name":"n","unknown":{"plugins":[ 1e400 ]}"#;
        let members = if is_first { [&plugins, name] } else { [name, plugins.as_str()] };
        let text = format!("{before}{{{after}{}{before}}}{after}", members.join(","));
        let list = List::parse(&text).unwrap();
        let longer = list.clone().with(ours()).text();
        let read = List::parse(&longer).unwrap();
        prop_assert_eq!(read.plugins.len(), kinds.len() + 1);
        let back = read.without(|kind| kind == "millrace-cni");
        prop_assert_eq!(back.text(), text);
    }

    #[test]
    fn any_list_is_written_as_it_was_read(
        kinds in prop::collection::vec("[a-z]{1,8}", 1..6),
        members in prop::collection::btree_map("[a-zA-Z\"\\\\é]{1,6}", any::<i128>(), 0..5),
    ) {
        let plugins: Vec<String> =
            kinds.iter().map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect();
        let more: Vec<String> = members
            .iter()
            .filter(|(name, _)| !["name", "plugins"].contains(&name.as_str()))
            .map(|(name, number)| format!(",{}:{number}", Value::String(name.clone())))
            .collect();
        let more = more.concat();
        let text = format!(r#"{{"name":"n","plugins":[{}]{more}}}"#, plugins.join(","));
        let list = List::parse(&text).unwrap();
        let again = List::parse(&list.rebuilt()).unwrap();
        prop_assert!(again.says(&list));
        prop_assert_eq!(list.text(), text);
        let read = again.plugins.iter().map(|entry| entry.kind().to_owned()).collect::<Vec<_>>();
        prop_assert_eq!(read, kinds);
    }
}
