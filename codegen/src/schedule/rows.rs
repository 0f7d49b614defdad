//! The skeleton of rows: maps and reductions, one row after the other.

use einfuse_graph::{AxisId, Extent};

use super::emit::{Emitter, Scope};
use super::layout::Layout;
use super::place::Place;
use super::{Context, Mode};
use crate::fuse::{EqId, Kernel, common_rows, is_positions};
use crate::loops::{Expr, Share};

pub(super) fn schedule(cx: &Context, kernel: &Kernel, e: &mut Emitter) {
    rows(cx, kernel, &kernel.equations, e);
}

/// Some equations of a kernel, row by row.
pub(super) fn rows(cx: &Context, kernel: &Kernel, equations: &[EqId], e: &mut Emitter) {
    let graph = &cx.plan.graph;
    let rows = common_rows(cx.plan, equations);
    let outputs = cx.plan.outputs(kernel);
    let mut scope = Scope::default();
    let mode = cx.mode(kernel);
    let tokens = rows.iter().copied().find(|&a| graph.axis(a).extent == Extent::Tokens);
    if let (Some(t), Mode::One(at)) = (tokens, &mode) {
        scope.at.insert(t, at.clone());
    }
    cx.bind_tokens(kernel, e);
    // One axis is shared out: the tokens where there are many, else another one that is not the innermost.
    let split: Option<AxisId> = rows.iter().copied().find(|&a| {
        let innermost = equations.iter().any(|&q| graph.tensor(cx.plan.equations[q].out).axes.last() == Some(&a));
        !scope.at.contains_key(&a) && !is_positions(graph, a) && (Some(a) == tokens || !innermost)
    });
    let (count, from) = match split {
        Some(a) => {
            let span = e.span(a);
            (span.to - span.from.clone(), span.from)
        }
        None => (Expr::Int(1), Expr::Int(0)),
    };
    e.parallel(count, Share::Blocks, |e, at| {
        if let Some(a) = split {
            scope.at.insert(a, from + at);
        }
        for &q in equations {
            let equation = cx.plan.equations[q];
            let out = equation.out;
            let axes = &graph.tensor(out).axes;
            if !outputs.contains(&out) {
                let sizes: Vec<usize> =
                    axes.iter().map(|a| if scope.at.contains_key(a) { 1 } else { graph.fixed_size(*a) }).collect();
                let buffer = e.floats(sizes.iter().product());
                let mut place = Place::flat(buffer, Layout::row_major(&sizes), axes.len());
                place.elem = cx.elem(out);
                for (dim, a) in axes.iter().enumerate() {
                    if let Some(at) = scope.at.get(a) {
                        place = place.with_origin(dim, at.clone());
                    }
                }
                e.places.insert(out, place);
            }
            let to = e.places[&out].clone();
            e.equation(&scope, out, equation.body, &to);
        }
    });
}
