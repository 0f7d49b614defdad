//! Rule inline: an elementwise producer moves into its consumer.

use std::collections::{HashMap, HashSet};

use einfuse_graph::{Binary, Expr, ExprId, Graph, Kind, MAX_DEPTH, Node, TensorId, Unary};

use super::contraction::Contraction;
use super::edit::{Edit, is_identity, loads_of};
use super::{Remark, Rule};

/// An expression of at most this many additions and multiplications, with one load, is cheaper to recompute than to store
/// and load again.
const CHEAP: usize = 2;

/// Inlines within each block of nodes. Also tells which maps stay that are read by more equations than one, and why.
pub(super) fn apply(graph: Graph, remarks: &mut Vec<Remark>) -> (Graph, Vec<(TensorId, String)>) {
    let mut stay = Vec::new();
    let mut edit = Edit::new(Graph { nodes: Vec::new(), ..graph.clone() });
    let mut kept: HashSet<TensorId> = HashSet::from([graph.output]);
    keep(&graph.nodes, &mut kept);
    let mut nodes = graph.nodes;
    let everywhere = loaded_in(&edit.graph, &nodes);
    for node in &mut nodes {
        if let Node::Layers(layers) = node {
            for body in &mut layers.bodies {
                kept.insert(body.result);
                block(&mut edit, &mut body.nodes, &kept, None, remarks, &mut stay);
            }
        }
    }
    block(&mut edit, &mut nodes, &kept, Some(&everywhere), remarks, &mut stay);
    (Graph { nodes, ..edit.graph }, stay)
}

/// Tensors that are needed beyond the equations that load them.
fn keep(nodes: &[Node], kept: &mut HashSet<TensorId>) {
    for node in nodes {
        match node {
            Node::Equation { .. } => {}
            Node::Append { rows, .. } => {
                kept.insert(*rows);
            }
            Node::Layers(layers) => {
                kept.insert(layers.initial);
                for body in &layers.bodies {
                    keep(&body.nodes, kept);
                }
            }
        }
    }
}

/// The tensors that layers load.
fn loaded_in(graph: &Graph, nodes: &[Node]) -> HashSet<TensorId> {
    let mut all = HashSet::new();
    for node in nodes {
        if let Node::Layers(layers) = node {
            for body in layers.bodies.iter().flat_map(|b| &b.nodes) {
                if let Node::Equation { body, .. } = body {
                    all.extend(graph.loaded(*body));
                }
            }
        }
    }
    all
}

fn block(
    edit: &mut Edit,
    nodes: &mut Vec<Node>,
    kept: &HashSet<TensorId>,
    elsewhere: Option<&HashSet<TensorId>>,
    remarks: &mut Vec<Remark>,
    stay: &mut Vec<(TensorId, String)>,
) {
    let mut at = 0;
    while at < nodes.len() {
        let Node::Equation { out, body } = nodes[at] else {
            at += 1;
            continue;
        };
        let is_map = !matches!(edit.graph.expr(body), Expr::Reduce { .. });
        let needed = kept.contains(&out) || elsewhere.is_some_and(|e| e.contains(&out));
        let consumers: Vec<usize> = (at + 1..nodes.len())
            .filter(|&c| matches!(nodes[c], Node::Equation { body, .. } if edit.graph.loaded(body).contains(&out)))
            .collect();
        if !is_map || needed || consumers.is_empty() {
            at += 1;
            continue;
        }
        if let Worth::Stays(why) = worth(edit, nodes, out, body, &consumers) {
            let name = &edit.graph.tensor(out).name;
            stay.extend(why.map(|why| (out, format!("`{name}` {why}"))));
            at += 1;
            continue;
        }
        let mut into = Vec::new();
        for &c in &consumers {
            if let Node::Equation { out: to, body: right } = nodes[c] {
                let right = edit.inline(right, out, body);
                nodes[c] = Node::Equation { out: to, body: right };
                into.push(format!("`{}`", edit.graph.tensor(to).name));
            }
        }
        let text = format!("`{}` moved into {}", edit.graph.tensor(out).name, into.join(", "));
        remarks.push(Remark { rule: Rule::Inline, text });
        nodes.remove(at);
        at = at.saturating_sub(1);
    }
}

/// What becomes of a map.
enum Worth {
    /// It moves into its consumers, without computing more than a load is worth.
    Moved,
    /// It stays, and why, unless it is an operand of a contraction.
    Stays(Option<String>),
}

fn worth(edit: &Edit, nodes: &[Node], out: TensorId, body: ExprId, consumers: &[usize]) -> Worth {
    let graph = &edit.graph;
    let cost = cost(graph, body, &mut HashMap::new());
    let axes = &graph.tensor(out).axes;
    let mut uses = 0;
    let own = depth(graph, body);
    for &c in consumers {
        let Node::Equation { out: to, body: right } = nodes[c] else { continue };
        if own + depth(graph, right) > MAX_DEPTH {
            return Worth::Stays(Some(format!("would make an expression that nests deeper than {MAX_DEPTH}")));
        }
        let is_operand = |c: Contraction| c.b == out || c.a == out && !is_copy(graph, out, body);
        if Contraction::of(graph, to, right).is_some_and(is_operand) {
            return Worth::Stays(None);
        }
        uses += loads_of(graph, right, out).len();
        let mut around = graph.tensor(to).axes.clone();
        if let Expr::Reduce { axes, .. } = graph.expr(right) {
            around.extend(axes);
        }
        if around.iter().any(|a| !axes.contains(a)) {
            uses += 1;
        }
    }
    match uses <= 1 || (cost <= CHEAP && graph.loaded(body).len() <= 1) {
        true => Worth::Moved,
        false => Worth::Stays(Some(format!("is read {uses} times, and costs more to compute than to load"))),
    }
}

/// How deep an expression nests.
fn depth(graph: &Graph, id: ExprId) -> usize {
    let mut depths: HashMap<ExprId, usize> = HashMap::new();
    for at in graph.reachable(id) {
        let below = graph.expr(at).children().into_iter().filter_map(|child| depths.get(&child)).max();
        depths.insert(at, 1 + below.copied().unwrap_or(0));
    }
    depths.get(&id).copied().unwrap_or(0)
}

/// Whether a map is another value under a new name, and lies in memory as that does.
fn is_copy(graph: &Graph, out: TensorId, body: ExprId) -> bool {
    let Expr::Load { tensor, index } = graph.expr(body) else { return false };
    let of = graph.tensor(*tensor);
    matches!(of.kind, Kind::Value | Kind::Carry)
        && of.axes == graph.tensor(out).axes
        && is_identity(graph, *tensor, index)
}

/// Operations per element, a transcendental function counted as eight. Integer arithmetic on coordinates is free.
fn cost(graph: &Graph, id: ExprId, memo: &mut HashMap<ExprId, usize>) -> usize {
    if let Some(&known) = memo.get(&id) {
        return known;
    }
    let expr = graph.expr(id);
    let own = match expr {
        _ if graph.type_of(id) == einfuse_graph::Type::Int => 0,
        Expr::Float(_) | Expr::Int(_) | Expr::Coordinate(_) => 0,
        Expr::Load { .. } => 0,
        Expr::Unary(Unary::Neg | Unary::Abs | Unary::Not | Unary::ToFloat, _) => 1,
        Expr::Unary(..) | Expr::Binary(Binary::Pow, ..) => 8,
        Expr::Binary(Binary::Div, ..) => 4,
        _ => 1,
    };
    let total = own + expr.children().into_iter().map(|c| cost(graph, c, memo)).sum::<usize>();
    memo.insert(id, total.min(1 << 20));
    total.min(1 << 20)
}
