//! The language of Graphviz (<https://graphviz.org/doc/info/lang.html>).

use std::fmt::Write as _;

use super::{Graph, Node, count, escaped};

const TRAIL: &str = "#d9480f";

pub(super) fn text(graph: &Graph) -> String {
    let mut text =
        "digraph rules {\n  rankdir=LR\n  node [fontname=\"monospace\", fontsize=10]\n  \
                    edge [color=\"#868e96\"]\n"
            .to_owned();
    for (at, (table, chains)) in graph.tables().into_iter().enumerate() {
        writeln!(text, "  subgraph cluster_{at} {{\n    label=\"{}\"", quoted(table))
            .expect("a String takes all");
        for chain in chains {
            let label = label(&graph.nodes[chain]);
            writeln!(text, "    n{chain} [shape=plain, label=<{label}>]")
                .expect("a String takes all");
        }
        text.push_str("  }\n");
    }
    for (at, end) in graph.ends() {
        let color = if end.reached { TRAIL } else { "black" };
        let title = quoted(&end.title);
        writeln!(text, "  n{at} [shape=box, style=rounded, color=\"{color}\", label=\"{title}\"]")
            .expect("a String takes all");
    }
    for edge in &graph.edges {
        let (from, row) = edge.from;
        let color = if edge.taken { format!(", color=\"{TRAIL}\"") } else { String::new() };
        let width = edge.width();
        writeln!(text, "  n{from}:r{row} -> n{} [penwidth={width:.1}{color}]", edge.to)
            .expect("a String takes all");
    }
    text.push_str("}\n");
    text
}

/// A chain as a table with a row for each rule.
fn label(node: &Node) -> String {
    let mut rows = format!("<TR><TD COLSPAN=\"2\"><B>{}</B></TD></TR>", escaped(&node.title));
    if let Some(hook) = &node.hook {
        rows.push_str(&format!("<TR><TD COLSPAN=\"2\">{}</TD></TR>", escaped(hook)));
    }
    for (at, row) in node.rows.iter().enumerate() {
        let text = format!("{}: {}", row.number, escaped(&row.text));
        let text = match row.matched {
            Some(true) => format!("<FONT COLOR=\"{TRAIL}\"><B>{text}</B></FONT>"),
            Some(false) | None => text,
        };
        let seen = row.packets.map(count).unwrap_or_default();
        rows.push_str(&format!(
            "<TR><TD ALIGN=\"LEFT\">{text}</TD><TD PORT=\"r{at}\" ALIGN=\"RIGHT\">{seen}</TD></TR>"
        ));
    }
    let color = if node.reached { TRAIL } else { "black" };
    format!(
        "<TABLE BORDER=\"0\" CELLBORDER=\"1\" CELLSPACING=\"0\" COLOR=\"{color}\">{rows}</TABLE>"
    )
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
