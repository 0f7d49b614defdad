//! Integers and masks that are known when the loops are written: what lies between which bounds, and where along an axis
//! they are affine.

use std::collections::HashSet;

use einfuse_graph as graph;
use einfuse_graph::{AxisId, ExprId, Graph, Type};

use super::MOST_POSITIONS;
use super::emit::{Emitter, Scope, Span};
use crate::loops::LANES;

/// `slope · coordinate + offset`, and the smallest and largest value that it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Affine {
    pub(super) axis: AxisId,
    pub(super) slope: i64,
    pub(super) offset: i64,
    pub(super) range: (i64, i64),
}

/// Whether integers between these are those of a lane, which has 32 bits.
pub(super) fn fits_lanes((low, high): (i64, i64)) -> bool {
    i32::try_from(low).is_ok() && i32::try_from(high).is_ok()
}

impl Emitter<'_> {
    /// The smallest and largest value of an integer, where they are known.
    pub(super) fn range(&mut self, scope: &Scope, id: ExprId) -> Option<(i64, i64)> {
        if let Some(affine) = scope.affine.get(&id) {
            return Some(affine.range);
        }
        match *self.graph.expr(id) {
            graph::Expr::Int(x) => Some((x, x)),
            graph::Expr::Coordinate(axis) => {
                let size = self.graph.size(axis).unwrap_or(MOST_POSITIONS);
                Some((0, size as i64 - 1))
            }
            // All that is stored has 32 bits.
            graph::Expr::Load { .. } => Some((i32::MIN.into(), i32::MAX.into())),
            graph::Expr::Unary(graph::Unary::Neg, x) => {
                let (a, x) = self.range(scope, x)?;
                Some((x.checked_neg()?, a.checked_neg()?))
            }
            graph::Expr::Binary(op, a, b) => {
                let ((a, x), (b, y)) = (self.range(scope, a)?, self.range(scope, b)?);
                match op {
                    graph::Binary::Sub => Some((op.of_ints(a, y)?, op.of_ints(x, b)?)),
                    graph::Binary::Mul => {
                        let all = [(a, b), (a, y), (x, b), (x, y)].map(|(a, b)| op.of_ints(a, b));
                        all.into_iter().try_fold((i64::MAX, i64::MIN), |(l, h), at| Some((l.min(at?), h.max(at?))))
                    }
                    graph::Binary::Div if b == y && b > 0 => Some((op.of_ints(a, b)?, op.of_ints(x, b)?)),
                    graph::Binary::Rem if b == y && b > 0 => Some((0, b - 1)),
                    graph::Binary::Add | graph::Binary::Min | graph::Binary::Max => {
                        Some((op.of_ints(a, b)?, op.of_ints(x, y)?))
                    }
                    _ => None,
                }
            }
            graph::Expr::Select { then, otherwise, .. } => {
                let ((a, x), (b, y)) = (self.range(scope, then)?, self.range(scope, otherwise)?);
                Some((a.min(b), x.max(y)))
            }
            _ => None,
        }
    }

    /// Cuts a span where integers and masks that depend on the axis alone change their course, so that within a segment
    /// each is `slope · coordinate + offset`, or known.
    pub(super) fn segments(&mut self, scope: Scope, axis: AxisId, span: Span, body: ExprId) -> Vec<(Scope, Span)> {
        const MOST: usize = 8;
        let (Some(0), Some(size)) = (span.from.as_int(), span.len) else { return vec![(scope, span)] };
        if size > 1 << 16 || self.graph.size(axis) != Some(size) {
            return vec![(scope, span)];
        }
        let (mut ints, mut masks) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        let mut stack = vec![body];
        while let Some(id) = stack.pop() {
            if !seen.insert(id) {
                continue;
            }
            let expr = self.graph.expr(id);
            let alone = self.free(id) == [axis];
            match self.graph.type_of(id) {
                Type::Int if alone && !matches!(expr, graph::Expr::Coordinate(_) | graph::Expr::Load { .. }) => {
                    if let Some(values) = tabulate(self.graph, id, axis, size) {
                        ints.push((id, values));
                        continue;
                    }
                }
                Type::Mask if alone => {
                    if let Some(values) = tabulate(self.graph, id, axis, size) {
                        masks.push((id, values));
                        continue;
                    }
                }
                _ => {}
            }
            stack.extend(expr.children());
        }
        if ints.is_empty() && masks.is_empty() {
            return vec![(scope, span)];
        }
        let mut cuts = vec![0];
        let mut from = 0;
        for at in 1..size {
            let broken = ints.iter().any(|(_, v)| at > from + 1 && v[at] - v[at - 1] != v[from + 1] - v[from])
                || masks.iter().any(|(_, v)| v[at] != v[from]);
            if broken {
                cuts.push(at);
                from = at;
                if cuts.len() > MOST {
                    return vec![(scope, span)];
                }
            }
        }
        cuts.push(size);
        let mut segments = Vec::new();
        for cut in cuts.windows(2) {
            let (from, to) = (cut[0], cut[1]);
            let mut scope = scope.clone();
            for (id, values) in &ints {
                let slope = if to - from > 1 { values[from + 1] - values[from] } else { 0 };
                let (first, last) = (values[from], values[to - 1]);
                let range = (first.min(last), first.max(last));
                scope.affine.insert(*id, Affine { axis, slope, offset: first - slope * from as i64, range });
            }
            for (id, values) in &masks {
                scope.truth.insert(*id, values[from] != 0);
            }
            let aligned = from % LANES == 0;
            segments.push((scope, Span { from: from.into(), to: to.into(), aligned, len: Some(to - from) }));
        }
        segments
    }
}

/// The values of an integer or mask (as 0 and 1) for all coordinates of the only axis that it depends on, if lanes hold them.
fn tabulate(graph: &Graph, id: ExprId, axis: AxisId, size: usize) -> Option<Vec<i64>> {
    let of = |at: i64| graph.integer(id, &|leaf| (*leaf == graph::Expr::Coordinate(axis)).then_some(at));
    (0..size as i64).map(|at| of(at).filter(|&value| fits_lanes((value, value)))).collect()
}
