//! What a contraction is: a sum of products of an activation and a stored operand, with its axes sorted by their part.

use einfuse_graph::{AxisId, Binary, Expr, ExprId, Extent, Graph, Kind, Reduction, TensorId};

use super::edit::is_identity;

/// `out[rows, batch, cols] = Σ depth  a[rows, batch, depth] · b[batch, depth, cols]`, whatever the order of the axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Contraction {
    /// The result.
    pub out: TensorId,
    /// The activation: a load at the coordinates of its own axes.
    pub a: TensorId,
    /// The stored operand: a weight, or the state of a cache.
    pub b: TensorId,
    /// For each axis of `b`, the coordinate it is fixed at, if it is.
    pub fixed: Vec<Option<i64>>,
    /// The axis of `b` of which each row has a coordinate of its own, if there is one, and the integers that say which: a load
    /// at the coordinates of their own axes.
    pub chosen: Option<(AxisId, TensorId)>,
    /// Axes of the result that `b` has not: those of `a`, and those by which `b` is chosen.
    pub rows: Vec<AxisId>,
    /// Axes of the result that both have.
    pub batch: Vec<AxisId>,
    /// Axes of the result that only `b` has, in the result's order.
    pub cols: Vec<AxisId>,
    /// The summed axes, in the order of `a`.
    pub depth: Vec<AxisId>,
}

/// The factors of a product.
pub(crate) fn factors(graph: &Graph, id: ExprId) -> Vec<ExprId> {
    match *graph.expr(id) {
        Expr::Binary(Binary::Mul, a, b) => {
            let mut all = factors(graph, a);
            all.extend(factors(graph, b));
            all
        }
        _ => vec![id],
    }
}

/// How a load's index along one axis is part of a stored operand.
pub(super) enum Along {
    Own,
    Fixed,
    Chosen(TensorId),
}

impl Along {
    /// `None` for any other index.
    pub(super) fn of(graph: &Graph, axis: AxisId, index: ExprId) -> Option<Along> {
        match graph.expr(index) {
            Expr::Int(_) => Some(Along::Fixed),
            Expr::Coordinate(a) if *a == axis => Some(Along::Own),
            Expr::Load { tensor, index } if is_identity(graph, *tensor, index) => Some(Along::Chosen(*tensor)),
            _ => None,
        }
    }
}

/// The factor of a summed product that can be the stored operand of a contraction: a weight or a state, each of its axes
/// fixed, at its own coordinate, or (one of a weight) chosen by a tensor without the others, with all the summed axes and at
/// least one that no other factor has.
pub(super) fn stored_factor(graph: &Graph, summed: &[AxisId], factors: &[ExprId]) -> Option<usize> {
    (0..factors.len()).rev().find(|&at| {
        let Expr::Load { tensor, index } = graph.expr(factors[at]) else { return false };
        let tensor = graph.tensor(*tensor);
        if !matches!(tensor.kind, Kind::Weight(_) | Kind::State { .. }) {
            return false;
        }
        let (mut own, mut chosen) = (Vec::new(), Vec::new());
        for (&axis, &i) in tensor.axes.iter().zip(index) {
            match Along::of(graph, axis, i) {
                Some(Along::Own) => own.push(axis),
                Some(Along::Fixed) => {}
                Some(Along::Chosen(by)) if matches!(tensor.kind, Kind::Weight(_)) => chosen.push(by),
                Some(Along::Chosen(_)) | None => return false,
            }
        }
        let apart = |by: &TensorId| graph.tensor(*by).axes.iter().all(|a| !own.contains(a) && !summed.contains(a));
        if chosen.len() > 1 || !chosen.iter().all(apart) {
            return false;
        }
        let others: Vec<AxisId> =
            (0..factors.len()).filter(|&o| o != at).flat_map(|o| graph.free_axes(factors[o])).collect();
        summed.iter().all(|a| own.contains(a) && others.contains(a))
            && own.iter().any(|a| !summed.contains(a) && !others.contains(a))
    })
}

impl Contraction {
    /// Recognises an equation whose right side is a sum of the product of an activation, loaded at its own coordinates,
    /// and a stored operand.
    pub fn of(graph: &Graph, out: TensorId, body: ExprId) -> Option<Contraction> {
        let Expr::Reduce { op: Reduction::Sum, axes: summed, body } = graph.expr(body) else { return None };
        let factors = factors(graph, *body);
        let at = stored_factor(graph, summed, &factors)?;
        let [x, y] = factors[..] else { return None };
        let other = if at == 1 { x } else { y };
        let (Expr::Load { tensor: b, index: b_index }, Expr::Load { tensor: a, index: a_index }) =
            (graph.expr(factors[at]), graph.expr(other))
        else {
            return None;
        };
        if !is_identity(graph, *a, a_index) {
            return None;
        }
        let fixed: Vec<Option<i64>> = b_index
            .iter()
            .map(|&i| match graph.expr(i) {
                Expr::Int(at) => Some(*at),
                _ => None,
            })
            .collect();
        let a_axes = &graph.tensor(*a).axes;
        let (mut b_axes, mut chosen) = (Vec::new(), None);
        for (&axis, &i) in graph.tensor(*b).axes.iter().zip(b_index) {
            match Along::of(graph, axis, i)? {
                Along::Own => b_axes.push(axis),
                Along::Fixed => {}
                Along::Chosen(by) => chosen = Some((axis, by)),
            }
        }
        let out_axes = &graph.tensor(out).axes;
        let of = |of: &dyn Fn(&AxisId) -> bool| -> Vec<AxisId> { out_axes.iter().copied().filter(of).collect() };
        Some(Contraction {
            out,
            a: *a,
            b: *b,
            chosen,
            rows: of(&|x| !b_axes.contains(x)),
            batch: of(&|x| b_axes.contains(x) && a_axes.contains(x)),
            cols: of(&|x| b_axes.contains(x) && !a_axes.contains(x)),
            depth: a_axes.iter().filter(|x| summed.contains(x)).copied().collect(),
            fixed,
        })
    }

    /// Whether the stored operand is a cache.
    pub fn is_over_state(&self, graph: &Graph) -> bool {
        matches!(graph.tensor(self.b).kind, Kind::State { .. })
    }

    /// The order of the activation's axes in which its rows are evenly spaced: rows (those that it has), batch, depth.
    pub fn activation_order(&self, graph: &Graph) -> Vec<AxisId> {
        let has = |a: &&AxisId| graph.tensor(self.a).axes.contains(a);
        self.rows.iter().filter(has).chain(&self.batch).chain(&self.depth).copied().collect()
    }

    /// How many products each element sums; `None` where positions are summed.
    pub fn depth_size(&self, graph: &Graph) -> Option<usize> {
        self.depth.iter().map(|&a| graph.size(a)).product()
    }
}

/// Whether the axis is the tokens of this step.
pub(crate) fn is_tokens(graph: &Graph, axis: AxisId) -> bool {
    graph.axis(axis).extent == Extent::Tokens
}

/// Whether the axis runs over all positions of a sequence.
pub(crate) fn is_positions(graph: &Graph, axis: AxisId) -> bool {
    graph.axis(axis).extent == Extent::Positions
}
