//! Verify pictures of rules: whole, well-formed, and with the way of a connection in them.

#![expect(clippy::unwrap_used, reason = "a test that is built wrongly should stop")]

mod support;

use std::collections::BTreeSet;

use millrace_core::iptables::Dump;
use millrace_core::nft::Statement;
use millrace_core::ruleset::Routing;
use millrace_core::sim::graph::{Format, Trail, picture};
use millrace_core::sim::{Identity, Namespace, Program, Protocol, Question, of_dump, of_ruleset};
use millrace_core::value::{Family, Groups};
use proptest::prelude::*;
use roxmltree::{Document, Node};
use support::{configs, lines};

fn pod() -> Namespace {
    Namespace::pod(&["10.4.0.2".parse().unwrap()], &Routing::default())
}

fn question() -> Question {
    let owner = Identity { uid: 1000, gid: 1000 };
    Question::out(owner, Protocol::TCP, "10.9.9.9:80".parse().unwrap())
}

fn foreign(text: &str) -> Program {
    let dump = Dump::parse(text).unwrap();
    let mut nobody = |_, _: &str, _: &_| None;
    Program::new(of_dump(&dump, Family::V4, "iptables", &Groups::new(), &mut nobody))
}

fn class<'a>(node: &Node<'a, '_>) -> &'a str {
    node.attribute("class").unwrap_or_default()
}

fn number(node: &Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap().parse().unwrap()
}

/// Verify that a way is highlighted from the first rule to the end, and nothing else is.
#[test]
fn the_way_of_a_connection_is_highlighted() {
    let ruleset = lines::ruleset("istio-iptables -u 1337 -i * -b *");
    let program = Program::new(of_ruleset(&ruleset, &Groups::new()));
    let trail = Trail::of(&program.explain(&pod(), &question()));
    let draw = |format| picture(&program, format, Some(Family::V4), Some(&trail));

    let svg = draw(Format::Svg);
    let document = Document::parse(&svg).unwrap();
    let reached: Vec<&str> = document
        .descendants()
        .filter(|node| class(node).ends_with("reached"))
        .map(|node| node.next_sibling_element().unwrap().text().unwrap())
        .collect();
    assert_eq!(reached, ["OUTPUT", "ISTIO_OUTPUT", "ISTIO_REDIRECT", "port 15001"]);
    let taken = document.descendants().filter(|node| class(node) == "taken").count();
    assert_eq!(taken, 3);

    let mermaid = draw(Format::Mermaid);
    assert_eq!(mermaid.matches(",stroke:#d9480f\n").count(), 3, "{mermaid}");
    assert!(mermaid.contains("<b>1: -j ISTIO_OUTPUT</b>"), "{mermaid}");
    let dot = draw(Format::Dot);
    assert_eq!(dot.matches(", color=\"#d9480f\"]").count(), 3, "{dot}");
}

/// Verify that lines are wider where there was more traffic, and that counts are told.
#[test]
fn lines_are_as_wide_as_traffic() {
    let program = foreign(
        "*nat\n:OUTPUT ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n[0:0] -A OUTPUT -p udp -j A\n\
         [12345678:9] -A OUTPUT -j B\n[3:3] -A A -j DROP\n[5:5] -A B -j DROP\nCOMMIT\n",
    );
    let svg = picture(&program, Format::Svg, None, None);
    let document = Document::parse(&svg).unwrap();
    let paths = document.descendants().filter(|node| node.has_tag_name("path"));
    let widths: Vec<f64> = paths.map(|path| number(&path, "stroke-width")).collect();
    assert_eq!(widths, [1.0, 9.0, 1.7, 2.0]);
    assert!(svg.contains(">12M</text>"), "{svg}");
    assert!(picture(&program, Format::Mermaid, None, None).contains("-->|\"2: 12M\"|"));
    assert!(picture(&program, Format::Dot, None, None).contains("[penwidth=9.0]"));
}

/// Verify that names and texts which mean something to a format are only text in it.
#[test]
fn foreign_texts_stay_texts() {
    let program = foreign(
        "*filter\n:OUTPUT ACCEPT [0:0]\n:a\"]<b>&#\\ - [0:0]\n\
         -A OUTPUT -m comment --comment \"</text>\\\"]}|\" -j a\"]<b>&#\\\n-A a\"]<b>&#\\ -j DROP\nCOMMIT\n",
    );
    let svg = picture(&program, Format::Svg, None, None);
    let document = Document::parse(&svg).unwrap();
    let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
    assert!(texts.contains(&"a\"]<b>&#\\"), "{texts:?}");
    let mermaid = picture(&program, Format::Mermaid, None, None);
    assert!(mermaid.contains("<b>a#quot;]#lt;b#gt;#amp;#35;\\</b>"), "{mermaid}");
    let dot = picture(&program, Format::Dot, None, None);
    assert!(dot.contains("<B>a&quot;]&lt;b&gt;&amp;#\\</B>"), "{dot}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    /// Verify that every rule and every jump of random configurations is drawn, inside the
    /// picture, and that no chain covers another one.
    #[test]
    fn everything_is_drawn(config in configs()) {
        let ruleset = config.ruleset();
        let program = Program::new(of_ruleset(&ruleset, &Groups::new()));
        let svg = picture(&program, Format::Svg, None, None);
        let document = Document::parse(&svg).unwrap();
        let root = document.root_element();
        let (width, height) = (number(&root, "width"), number(&root, "height"));
        let of = |name: &str| {
            let nodes = document.descendants().filter(|node| node.has_tag_name(name));
            nodes.collect::<Vec<_>>()
        };
        let boxes: Vec<[f64; 4]> = of("rect")
            .iter()
            .filter(|node| class(node).starts_with("box") || class(node).starts_with("end"))
            .map(|node| ["x", "y", "width", "height"].map(|name| number(node, name)))
            .collect();
        for (at, [x, y, w, h]) in boxes.iter().enumerate() {
            prop_assert!(*x >= 0.0 && *y >= 0.0 && x + w <= width && y + h <= height);
            for [left, top, wide, high] in &boxes[at + 1..] {
                let beside = left + wide <= *x || x + w <= *left;
                let below = top + high <= *y || y + h <= *top;
                prop_assert!(beside || below, "chains cover each other");
            }
        }
        let titles: BTreeSet<&str> = of("title").iter().filter_map(Node::text).collect();
        let mut jumps = 0;
        for family in ruleset.families() {
            for (_, rules) in ruleset.chains(family) {
                for emission in rules {
                    let text = millrace_core::iptables::render_rule(&emission.rule);
                    let shown = titles.iter().any(|title| title.starts_with(&text));
                    prop_assert!(shown, "{} is not drawn", text);
                    let goes = ["ISTIO", "REDIRECT", "TPROXY", "DROP"];
                    let target = text.split("-j ").nth(1).unwrap_or_default();
                    jumps += usize::from(goes.iter().any(|name| target.starts_with(name)));
                }
            }
        }
        for emission in ruleset.guard.iter().flat_map(|guard| &guard.emissions) {
            let drops = emission.rule.ends_with(&[Statement::Drop]);
            jumps += usize::from(drops || emission.rule.ends_with(&[Statement::Accept]));
        }
        prop_assert_eq!(of("path").len(), jumps);
    }
}
