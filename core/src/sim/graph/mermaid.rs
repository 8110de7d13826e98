//! Mermaid's flow charts (<https://mermaid.js.org/syntax/flowchart.html>).

use std::fmt::Write as _;

use super::{Graph, Row, count};

/// Lines of a trail, and everything else on it.
const TRAIL: &str = "#d9480f";

pub(super) fn text(graph: &Graph) -> String {
    let mut text = "flowchart LR\n".to_owned();
    for (at, (table, chains)) in graph.tables().into_iter().enumerate() {
        writeln!(text, "  subgraph t{at}[\"{}\"]", escaped(table)).expect("a String takes all");
        for chain in chains {
            let node = &graph.nodes[chain];
            let mut lines = vec![format!("<b>{}</b>", escaped(&node.title))];
            lines.extend(node.hook.as_deref().map(escaped));
            lines.extend(node.rows.iter().map(line));
            writeln!(text, "    n{chain}[\"{}\"]", lines.join("<br/>"))
                .expect("a String takes all");
        }
        text.push_str("  end\n");
    }
    for (at, end) in graph.ends() {
        writeln!(text, "  n{at}([\"{}\"])", escaped(&end.title)).expect("a String takes all");
    }
    for edge in &graph.edges {
        let (from, row) = edge.from;
        let number = graph.nodes[from].rows[row].number;
        let seen = edge.packets.map_or_else(String::new, |n| format!(": {}", count(n)));
        writeln!(text, "  n{from} -->|\"{number}{seen}\"| n{}", edge.to)
            .expect("a String takes all");
    }
    for (at, edge) in graph.edges.iter().enumerate() {
        let color = if edge.taken { format!(",stroke:{TRAIL}") } else { String::new() };
        writeln!(text, "  linkStyle {at} stroke-width:{:.1}px{color}", edge.width())
            .expect("a String takes all");
    }
    let reached = graph.nodes.iter().enumerate().filter(|(_, node)| node.reached);
    let reached: Vec<String> = reached.map(|(at, _)| format!("n{at}")).collect();
    if !reached.is_empty() {
        writeln!(
            text,
            "  classDef trail stroke:{TRAIL},stroke-width:2px\n  class {} trail",
            reached.join(",")
        )
        .expect("a String takes all");
    }
    text
}

fn line(row: &Row) -> String {
    let text = format!("{}: {}", row.number, escaped(&row.text));
    match row.matched {
        Some(true) => format!("<b>{text}</b>"),
        Some(false) | None => text,
    }
}

/// Text in quotes, where `#` begins an entity.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '#' => safe.push_str("#35;"),
            '"' => safe.push_str("#quot;"),
            '&' => safe.push_str("#amp;"),
            '<' => safe.push_str("#lt;"),
            '>' => safe.push_str("#gt;"),
            c if c.is_control() => safe.push(char::REPLACEMENT_CHARACTER),
            c => safe.push(c),
        }
    }
    safe
}
