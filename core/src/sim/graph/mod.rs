//! Rules as a picture: chains, what leads from one to another, and where packets end.

mod dot;
mod mermaid;
mod svg;

use std::collections::{BTreeMap, BTreeSet};

use super::Explanation;
use super::fate::Fate;
use super::program::{Bound, ChainId, Kind, Policy, Program, RuleId};
use super::rule::Action;
use super::witness::{Event, Met};
use crate::ruleset::Hook;
use crate::value::Family;

/// How a picture is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For Markdown that shows Mermaid's flow charts.
    Mermaid,
    /// For Graphviz, in its language DOT.
    Dot,
    /// A picture as it is.
    Svg,
}

/// The rules that a packet meets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    matched: BTreeSet<RuleId>,
    met: BTreeSet<RuleId>,
    /// The rule behind which its way can't be told, and why.
    stopped: Option<(RuleId, String)>,
}

impl Trail {
    /// Those of a connection's first packet.
    pub fn of(explanation: &Explanation) -> Self {
        let mut trail = Self::default();
        for event in &explanation.there {
            let Event::Rule { rule, met, .. } = event else { continue };
            trail.met.insert(*rule);
            if *met == Met::Matched {
                trail.matched.insert(*rule);
            }
        }
        if let Fate::Unknown { rule: Some(rule), what } = &explanation.answer.fate {
            trail.stopped = Some((*rule, what.clone()));
        }
        trail
    }
}

/// A rule in its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    number: usize,
    text: String,
    reason: Option<String>,
    packets: Option<u64>,
    /// Whether the packet of the trail matched it; none if it does not come here.
    matched: Option<bool>,
}

/// A chain, or an end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    title: String,
    /// Where the kernel calls it from.
    hook: Option<String>,
    /// The table that it lies in; an end lies in none.
    table: Option<String>,
    rows: Vec<Row>,
    /// Whether the packet of the trail gets here.
    reached: bool,
}

/// A way from a rule to a chain or an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edge {
    from: (usize, usize),
    to: usize,
    packets: Option<u64>,
    taken: bool,
}

impl Edge {
    /// How wide it is drawn: twice as many packets are a little more, whether there are ten or
    /// ten million of them.
    fn width(&self) -> f64 {
        let bits = |packets: u64| f64::from(u64::BITS - packets.leading_zeros());
        self.packets.map_or(1.0, |packets| 1.0 + bits(packets) / 3.0)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Graph {
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

/// A picture of rules. A trail through them is highlighted; a family leaves the other one out.
pub fn picture(
    program: &Program,
    format: Format,
    family: Option<Family>,
    trail: Option<&Trail>,
) -> String {
    let graph = graph(program, family, trail);
    match format {
        Format::Mermaid => mermaid::text(&graph),
        Format::Dot => dot::text(&graph),
        Format::Svg => svg::text(&graph),
    }
}

fn graph(program: &Program, family: Option<Family>, trail: Option<&Trail>) -> Graph {
    let mut graph = Graph::default();
    let mut places: BTreeMap<usize, usize> = BTreeMap::new();
    for (id, chain) in program.chains() {
        let shown = family.is_none_or(|family| chain.families.contains(&family));
        let drops = chain.base.as_ref().is_some_and(|base| base.policy == Policy::Drop);
        if !shown || chain.rules.is_empty() && !drops {
            continue;
        }
        let families: Vec<String> = chain.families.iter().map(ToString::to_string).collect();
        let rows: Vec<Row> = chain.rules.iter().map(|id| row(program, *id, trail)).collect();
        places.insert(id.0, graph.nodes.len());
        graph.nodes.push(Node {
            title: chain.name.clone(),
            hook: chain.base.as_ref().map(|base| {
                let policy = if drops { ", else drop" } else { "" };
                match (base.kind, base.hook) {
                    (Kind::Socket, Hook::Output) => return "connect(), sendmsg()".to_owned(),
                    (Kind::Socket, _) => return "lookup of the socket".to_owned(),
                    _ => {}
                }
                format!("{}, priority {}{policy}", base.hook.as_str(), base.priority)
            }),
            table: Some(format!("{} {} ({})", families.join("+"), chain.table, chain.holder)),
            reached: rows.iter().any(|row| row.matched.is_some()),
            rows,
        });
    }
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for (chain, at) in &places {
        for (row, id) in program.chain(ChainId(*chain)).rules.iter().enumerate() {
            let mut end_at = |graph: &mut Graph, title: String| {
                *ends.entry(title.clone()).or_insert_with(|| graph.end(title))
            };
            let stopped = trail.and_then(|trail| trail.stopped.as_ref());
            let stopped = stopped.filter(|(rule, _)| rule == id);
            let stopped = stopped.map(|(_, what)| end_at(&mut graph, untold(what)));
            let mut ways: Vec<usize> = stopped.into_iter().collect();
            for step in program.steps(*id) {
                let to = match step {
                    Bound::Jump { to, .. } => places.get(&to.0).copied(),
                    Bound::Do(action) => end(action).map(|title| end_at(&mut graph, title)),
                    Bound::Test(_) => None,
                };
                ways.extend(to.filter(|to| Some(*to) != stopped));
            }
            for to in ways {
                let Row { packets, matched, .. } = graph.nodes[*at].rows[row];
                let taken = matched == Some(true) || Some(to) == stopped;
                graph.nodes[to].reached |= taken;
                graph.edges.push(Edge { from: (*at, row), to, packets, taken });
            }
        }
    }
    graph
}

fn row(program: &Program, id: RuleId, trail: Option<&Trail>) -> Row {
    let rule = program.rule(id);
    let met = trail.filter(|trail| trail.met.contains(&id));
    Row {
        number: rule.number,
        text: rule.text.clone(),
        reason: rule.reason.as_ref().map(ToString::to_string),
        packets: rule.counters.map(|counters| counters.packets),
        matched: met.map(|trail| trail.matched.contains(&id)),
    }
}

/// What becomes of a packet that goes on in no chain.
fn end(action: &Action) -> Option<String> {
    let port = |ports: Option<(u16, u16)>| match ports {
        Some((first, last)) if first == last => format!("port {first}"),
        Some((first, last)) => format!("ports {first} to {last}"),
        None => "this host".to_owned(),
    };
    Some(match action {
        Action::Redirect(to) => port(*to),
        Action::Hand(to) => port(Some((*to, *to))),
        Action::Connect { address, port: to } => {
            let to = to.map(|to| port(Some((to, to))));
            let whole = [address.map(|address| address.to_string()), to];
            whole.into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        Action::Tproxy { port: to, .. } => {
            format!("transparent socket, {}", port(to.map(|to| (to, to))))
        }
        Action::Dnat(to) => {
            let address =
                to.address.map_or_else(|| "the same address".to_owned(), |a| a.to_string());
            to.ports.map_or(address.clone(), |ports| format!("{address}, {}", port(Some(ports))))
        }
        Action::Drop => "dropped".to_owned(),
        Action::Reject(_) => "refused".to_owned(),
        Action::Unknown(what) => untold(what),
        _ => return None,
    })
}

fn untold(what: &str) -> String {
    format!("can't be told: {what}")
}

impl Graph {
    /// A new end without rules; its place among the nodes.
    fn end(&mut self, title: String) -> usize {
        let end = Node { title, hook: None, table: None, rows: Vec::new(), reached: false };
        self.nodes.push(end);
        self.nodes.len() - 1
    }

    /// The tables with their chains, in order.
    fn tables(&self) -> Vec<(&str, Vec<usize>)> {
        let mut tables: Vec<(&str, Vec<usize>)> = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(table) = node.table.as_deref() else { continue };
            match tables.iter_mut().find(|(name, _)| *name == table) {
                Some((_, chains)) => chains.push(at),
                None => tables.push((table, vec![at])),
            }
        }
        tables
    }

    /// Chains that end what a packet went through, and no chains.
    fn ends(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.table.is_none())
    }
}

/// Text between tags, or in quotes, of XML and of what is made like it.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() => safe.push(char::REPLACEMENT_CHARACTER),
            c => safe.push(c),
        }
    }
    safe
}

/// How many packets a rule has seen, short.
fn count(packets: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let unit = UNITS.iter().find(|(size, _)| packets >= *size);
    unit.map_or_else(|| packets.to_string(), |(size, name)| format!("{}{name}", packets / size))
}
