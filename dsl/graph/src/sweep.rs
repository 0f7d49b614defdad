//! Taking away what a model's equations have no use for in the end.

use crate::graph::{Expr, ExprId, Graph, Kind, Node, TensorId};

/// The same graph without expressions that are part of no equation, and without constants that none reads: a bias that the
/// config says there is none of has become neither.
pub(crate) fn sweep(mut graph: Graph) -> Graph {
    let mut needed = vec![false; graph.exprs.len()];
    let made = graph.tensors.iter().filter_map(|tensor| match tensor.kind {
        Kind::Made(body) => Some(body),
        _ => None,
    });
    for root in graph.equations().map(|(_, body)| body).chain(made) {
        needed[root.index()] = true;
    }
    let is_constant = |tensor: &TensorId| matches!(graph.tensor(*tensor).kind, Kind::Constant(_));
    let ids = (0..graph.tensors.len()).map(|at| TensorId(at as u32));
    let mut kept: Vec<bool> = ids.map(|id| id == graph.output || !is_constant(&id)).collect();
    for at in (0..graph.exprs.len()).rev() {
        if needed[at] {
            graph.exprs[at].children().into_iter().for_each(|child| needed[child.index()] = true);
            if let Expr::Load { tensor, .. } = graph.exprs[at] {
                kept[tensor.index()] = true;
            }
        }
    }
    let (exprs, tensors) = (numbered(&needed), numbered(&kept));
    let (expr, tensor) = (|id: &mut ExprId| id.0 = exprs[id.index()], |id: &mut TensorId| id.0 = tensors[id.index()]);
    retain(&mut graph.exprs, &needed);
    retain(&mut graph.tensors, &kept);
    for one in &mut graph.exprs {
        one.for_each_child_mut(expr);
        if let Expr::Load { tensor: of, .. } = one {
            tensor(of);
        }
    }
    for one in &mut graph.tensors {
        if let Kind::Made(body) = &mut one.kind {
            expr(body);
        }
    }
    for node in &mut graph.nodes {
        renumber(node, &expr, &tensor);
    }
    tensor(&mut graph.output);
    graph
}

fn renumber(node: &mut Node, expr: &impl Fn(&mut ExprId), tensor: &impl Fn(&mut TensorId)) {
    match node {
        Node::Equation { out, body } => {
            tensor(out);
            expr(body);
        }
        Node::Append { state, rows } => [state, rows].into_iter().for_each(tensor),
        Node::Layers(layers) => {
            [&mut layers.carry, &mut layers.initial, &mut layers.out].into_iter().for_each(tensor);
            for body in &mut layers.bodies {
                body.nodes.iter_mut().for_each(|node| renumber(node, expr, tensor));
                tensor(&mut body.result);
            }
        }
    }
}

/// The numbers of those that stay, when the others are gone.
fn numbered(stay: &[bool]) -> Vec<u32> {
    let mut next = 0;
    let number = |&stays| {
        let number = next;
        next += u32::from(stays);
        number
    };
    stay.iter().map(number).collect()
}

fn retain<T>(all: &mut Vec<T>, stay: &[bool]) {
    let mut stay = stay.iter();
    all.retain(|_| stay.next().is_some_and(|stays| *stays));
}
