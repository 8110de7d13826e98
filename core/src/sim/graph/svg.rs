//! A picture in SVG: chains from left to right in the order in which packets come to them.

use std::fmt::Write as _;

use super::{Edge, Graph, Node, count, escaped};

/// Lengths in the picture's units, which are pixels where nobody scales it. Letters of the font
/// are as wide as the widest of the usual fixed-width ones.
const LETTER: f64 = 7.3;
const LINE: f64 = 18.0;
const MARGIN: f64 = 10.0;
const BETWEEN_COLUMNS: f64 = 90.0;
const BETWEEN_NODES: f64 = 22.0;
/// The most letters of a rule; the others are in what a pointer that rests there shows.
const LONGEST: usize = 100;

const STYLE: &str = "\
text{font:12px ui-monospace,Menlo,Consolas,DejaVu Sans Mono,monospace;fill:#212529}\
.title{font-weight:bold}\
.small,.count{fill:#868e96}\
.count{text-anchor:end}\
.box{fill:#fff;stroke:#adb5bd}\
.end{fill:#f1f3f5;stroke:#adb5bd}\
.reached{stroke:#d9480f;stroke-width:2}\
.met{fill:#fff4e6}\
.matched{fill:#ffd8a8}\
path{fill:none;stroke:#adb5bd}\
.taken{stroke:#d9480f}";

/// A node with its place.
struct Placed<'g> {
    node: &'g Node,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Placed<'_> {
    fn lines(node: &Node) -> usize {
        1 + usize::from(node.table.is_some()) + usize::from(node.hook.is_some()) + node.rows.len()
    }

    /// The middle of a rule's line.
    fn row(&self, row: usize) -> f64 {
        let above = Self::lines(self.node) - self.node.rows.len();
        self.y + MARGIN / 2.0 + LINE * (float(above + row) + 0.5)
    }
}

pub(super) fn text(graph: &Graph) -> String {
    let placed = place(graph);
    let most =
        |far: &dyn Fn(&Placed<'_>) -> f64| placed.iter().map(far).fold(0.0, f64::max) + MARGIN;
    let (width, height) = (most(&|p| p.x + p.width), most(&|p| p.y + p.height));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\">\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    // The trail is drawn last, so that nothing covers it.
    let (trail, others): (Vec<&Edge>, Vec<&Edge>) = graph.edges.iter().partition(|edge| edge.taken);
    for edge in others.into_iter().chain(trail) {
        let (from, to) = (&placed[edge.from.0], &placed[edge.to]);
        let (x, y) = (from.x + from.width, from.row(edge.from.1));
        let (end, down) = (to.x, to.y + MARGIN / 2.0 + LINE / 2.0);
        let bend = (end - x).abs().max(BETWEEN_COLUMNS) / 2.0;
        let taken = if edge.taken { " class=\"taken\"" } else { "" };
        let (first, second) = (x + bend, end - bend);
        writeln!(
            text,
            "<path{taken} stroke-width=\"{:.1}\" d=\"M{x:.1} {y:.1}C{first:.1} {y:.1} {second:.1} {down:.1} {end:.1} {down:.1}\"/>",
            edge.width()
        )
        .expect("a String takes all");
    }
    for node in &placed {
        draw(&mut text, node);
    }
    text.push_str("</svg>\n");
    text
}

fn draw(text: &mut String, placed: &Placed<'_>) {
    let Placed { node, x, y, width, height } = placed;
    let kind = if node.table.is_some() { "box" } else { "end" };
    let reached = if node.reached { " reached" } else { "" };
    writeln!(
        text,
        "<g>\n<rect class=\"{kind}{reached}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"4\"/>"
    )
    .expect("a String takes all");
    let left = x + MARGIN;
    let mut line = y + MARGIN / 2.0 + LINE * 0.75;
    let mut write = |class: &str, words: &str| {
        let words = escaped(words);
        writeln!(text, "<text class=\"{class}\" x=\"{left:.1}\" y=\"{line:.1}\">{words}</text>")
            .expect("a String takes all");
        line += LINE;
    };
    write("title", &node.title);
    for words in node.table.iter().chain(&node.hook) {
        write("small", words);
    }
    for (at, row) in node.rows.iter().enumerate() {
        let middle = placed.row(at);
        if let Some(matched) = row.matched {
            let class = if matched { "matched" } else { "met" };
            writeln!(
                text,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{LINE}\"/>",
                x + 1.0,
                middle - LINE / 2.0,
                width - 2.0
            )
            .expect("a String takes all");
        }
        let base = middle + LINE / 4.0;
        let words = escaped(&shown(row.number, &row.text));
        let more = match &row.reason {
            Some(reason) => format!("{}\n{reason}", row.text),
            None => row.text.clone(),
        };
        writeln!(
            text,
            "<text x=\"{left:.1}\" y=\"{base:.1}\">{words}<title>{}</title></text>",
            escaped_lines(&more)
        )
        .expect("a String takes all");
        if let Some(packets) = row.packets {
            let right = x + width - MARGIN;
            writeln!(
                text,
                "<text class=\"count\" x=\"{right:.1}\" y=\"{base:.1}\">{}</text>",
                count(packets)
            )
            .expect("a String takes all");
        }
    }
    text.push_str("</g>\n");
}

fn escaped_lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

fn shown(number: usize, text: &str) -> String {
    let mut shown: String = text.chars().take(LONGEST).collect();
    if text.chars().count() > LONGEST {
        shown.push('…');
    }
    format!("{number}: {shown}")
}

/// A node's place in columns: behind everything that leads to it; ends behind all chains.
fn columns(graph: &Graph) -> Vec<usize> {
    let mut columns = vec![0; graph.nodes.len()];
    // As many rounds as there are nodes settle every graph without a loop.
    for _ in 0..graph.nodes.len() {
        let mut settled = true;
        for edge in &graph.edges {
            let behind = columns[edge.from.0] + 1;
            if columns[edge.to] < behind && behind < graph.nodes.len() {
                columns[edge.to] = behind;
                settled = false;
            }
        }
        if settled {
            break;
        }
    }
    let chains = graph.nodes.iter().zip(&columns).filter(|(node, _)| node.table.is_some());
    let last = chains.map(|(_, column)| column + 1).max().unwrap_or_default();
    for (at, _) in graph.ends() {
        columns[at] = last;
    }
    columns
}

fn place(graph: &Graph) -> Vec<Placed<'_>> {
    let columns = columns(graph);
    let mut placed: Vec<Placed<'_>> = graph
        .nodes
        .iter()
        .map(|node| {
            let (width, lines) = (width(node), Placed::lines(node));
            let height = MARGIN + LINE * float(lines);
            Placed { node, x: 0.0, y: 0.0, width, height }
        })
        .collect();
    let mut x = MARGIN;
    for column in 0..=columns.iter().copied().max().unwrap_or_default() {
        let mut nodes: Vec<usize> = (0..placed.len()).filter(|at| columns[*at] == column).collect();
        // Beside what leads there, so that lines cross as little as may be.
        let height = |at: usize| -> f64 {
            let from = graph.edges.iter().filter(|edge| edge.to == at);
            let rows: Vec<f64> = from.map(|edge| placed[edge.from.0].row(edge.from.1)).collect();
            rows.iter().sum::<f64>() / float(rows.len().max(1))
        };
        let heights: Vec<f64> = (0..placed.len()).map(height).collect();
        nodes.sort_by(|a, b| heights[*a].total_cmp(&heights[*b]));
        let (mut y, mut widest) = (MARGIN, 0.0_f64);
        for at in nodes {
            let node = &mut placed[at];
            (node.x, node.y) = (x, y);
            y += node.height + BETWEEN_NODES;
            widest = widest.max(node.width);
        }
        x += widest + BETWEEN_COLUMNS;
    }
    placed
}

fn width(node: &Node) -> f64 {
    let rows = node.rows.iter().map(|row| {
        let seen = row.packets.map_or(0, |packets| count(packets).len() + 2);
        shown(row.number, &row.text).chars().count() + seen
    });
    let lines = [Some(&node.title), node.table.as_ref(), node.hook.as_ref()];
    let lines = lines.into_iter().flatten().map(|line| line.chars().count());
    LETTER * float(rows.chain(lines).max().unwrap_or_default()) + 2.0 * MARGIN
}

/// A count of things in a picture.
fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}
