//! What is checked before a step: that every index which an input or a position yields lies within its axis.

use std::collections::HashSet;

use einfuse_graph::{Expr, ExprId, Extent, Graph, Kind, TensorId};

use crate::compile::CompileError;
use crate::program::StepError;

/// An index of a load.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Check {
    tensor: TensorId,
    dim: usize,
    index: ExprId,
}

/// The indices of a graph that only a step's tokens and positions decide.
#[derive(Clone, Debug)]
pub(crate) struct Checks {
    all: Vec<Check>,
    context: Option<usize>,
    graph: Graph,
}

impl Checks {
    /// Finds them; refuses one that is out of range for the first token of a sequence already.
    pub(crate) fn of(graph: &Graph) -> Result<Checks, CompileError> {
        let mut found: Vec<Check> = Vec::new();
        for (_, body) in graph.equations() {
            expression(graph, body, &mut found);
        }
        let mut context = None;
        for check in &found {
            if graph.loaded(check.index).is_empty() {
                let tensor = graph.tensor(check.tensor);
                let axis = tensor.axes[check.dim];
                let Some(size) = graph.size(axis) else { continue };
                let beyond = (0..=size)
                    .find(|&t| evaluate(graph, check.index, t as i64, 0).is_some_and(|at| at < 0 || at >= size as i64));
                if beyond == Some(0) {
                    let (tensor, axis) = (&tensor.name, &graph.axis(axis).name);
                    let text = format!("an index `{axis}` of `{tensor}` is out of range for the first token");
                    return Err(CompileError::Unsupported(text));
                }
                context = match (context, beyond) {
                    (Some(a), Some(b)) => Some(usize::min(a, b)),
                    (a, b) => a.or(b),
                };
            }
        }
        Ok(Checks { all: found, context, graph: graph.clone() })
    }

    /// How many positions there can be.
    pub(crate) fn context(&self) -> Option<usize> {
        self.context
    }

    /// How many tokens are known, if any are: as many as the smallest table has rows that they index as they are.
    pub(crate) fn ids(&self) -> Option<usize> {
        let graph = &self.graph;
        let is_token =
            |id| matches!(graph.expr(id), Expr::Load { tensor, .. } if graph.tensor(*tensor).kind == Kind::Input);
        let tables = self.all.iter().filter(|check| is_token(check.index));
        tables.filter_map(|check| graph.size(graph.tensor(check.tensor).axes[check.dim])).min()
    }

    pub(crate) fn run(&self, tokens: &[i32], past: usize) -> Result<(), StepError> {
        let graph = &self.graph;
        for check in &self.all {
            let tensor = graph.tensor(check.tensor);
            let axis = tensor.axes[check.dim];
            let Some(size) = graph.size(axis) else { continue };
            let by_token = !graph.loaded(check.index).is_empty();
            for (i, &token) in tokens.iter().enumerate() {
                let position = past + i;
                let value = evaluate(graph, check.index, position as i64, token.into());
                if let Some(value) = value.filter(|v| !(0..size as i64).contains(v)) {
                    let what = if by_token {
                        format!("token {token}")
                    } else {
                        format!("position {position} of the sequence")
                    };
                    let (tensor, axis) = (tensor.name.clone(), graph.axis(axis).name.clone());
                    return Err(StepError::OutOfRange { what, tensor, axis, value, size });
                }
            }
        }
        Ok(())
    }
}

/// Collects the indices outside of conditional parts (what is not chosen may be undefined).
fn expression(graph: &Graph, id: ExprId, found: &mut Vec<Check>) {
    let mut seen = HashSet::new();
    let mut stack = vec![id];
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        match graph.expr(id) {
            Expr::Select { mask, .. } => stack.push(*mask),
            Expr::Load { tensor, index } => {
                for (dim, &i) in index.iter().enumerate() {
                    let check = Check { tensor: *tensor, dim, index: i };
                    let own = Expr::Coordinate(graph.tensor(*tensor).axes[dim]);
                    if *graph.expr(i) != own && is_known(graph, i) && !found.contains(&check) {
                        found.push(check);
                    }
                }
                stack.extend(index);
            }
            expr => stack.extend(expr.children()),
        }
    }
}

/// Whether an index depends on nothing but the step's tokens and their positions.
fn is_known(graph: &Graph, id: ExprId) -> bool {
    match graph.expr(id) {
        Expr::Int(_) => false,
        Expr::Coordinate(axis) => graph.axis(*axis).extent == Extent::Tokens,
        _ => evaluate(graph, id, 0, 0).is_some() && !graph.free_axes(id).is_empty(),
    }
}

/// The value of an index for one token at a position; `None` where it depends on more.
fn evaluate(graph: &Graph, id: ExprId, position: i64, token: i64) -> Option<i64> {
    graph.integer(id, &|leaf| match leaf {
        Expr::Coordinate(axis) => (graph.axis(*axis).extent == Extent::Tokens).then_some(position),
        Expr::Load { tensor, index } => {
            let here = index.iter().all(|&i| matches!(graph.expr(i), Expr::Coordinate(_)));
            (matches!(graph.tensor(*tensor).kind, Kind::Input) && here).then_some(token)
        }
        _ => None,
    })
}
