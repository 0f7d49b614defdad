//! What a contraction is: a sum of products of an activation and a stored operand, with its axes sorted by their part.

use einfuse_graph::{AxisId, Binary, Expr, ExprId, Extent, Graph, Kind, Reduction, TensorId, Type};

use super::edit::is_identity;

/// `out[rows, batch, cols] = Σ depth  a[rows, batch, depth] · b[batch, depth, cols]`, whatever the order of the axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Contraction {
    /// The result.
    pub out: TensorId,
    /// The activation: a load at the coordinates of its own axes.
    pub a: TensorId,
    /// The stored operand: a weight, the state of a cache, or a value that each position has.
    pub b: TensorId,
    /// For each axis of `b`, where along it the operand is.
    pub along: Vec<Along>,
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

/// Whether a tensor is computed in a step, so that it is an activation: neither stored nor kept nor given.
pub(super) fn is_computed(graph: &Graph, tensor: TensorId) -> bool {
    matches!(graph.tensor(tensor).kind, Kind::Value | Kind::Carry)
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

/// Where along one axis of a tensor a stored operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// At the coordinates of an axis, the tensor's own or another, which begin at an offset.
    Axis {
        /// The axis.
        axis: AxisId,
        /// Where its coordinate 0 is.
        from: usize,
    },
    /// At one coordinate.
    Fixed(usize),
    /// At a coordinate that each row has of its own: an element of a tensor of integers.
    Chosen(TensorId),
}

impl Along {
    /// `None` for any other index.
    pub(super) fn of(graph: &Graph, axis: AxisId, index: ExprId) -> Option<Along> {
        let shifted = |by: ExprId, index: ExprId| match (graph.expr(by), graph.expr(index)) {
            (Expr::Int(from), Expr::Coordinate(part)) => {
                let from = usize::try_from(*from).ok()?;
                let fits = from + graph.size(*part)? <= graph.size(axis)?;
                fits.then_some(Along::Axis { axis: *part, from })
            }
            _ => None,
        };
        match *graph.expr(index) {
            Expr::Int(at) => usize::try_from(at).ok().map(Along::Fixed),
            Expr::Coordinate(a) if a == axis => Some(Along::Axis { axis, from: 0 }),
            Expr::Coordinate(a) => (graph.size(a)? <= graph.size(axis)?).then_some(Along::Axis { axis: a, from: 0 }),
            Expr::Binary(Binary::Add, a, b) => shifted(a, b).or_else(|| shifted(b, a)),
            Expr::Load { tensor, ref index } if is_identity(graph, tensor, index) => Some(Along::Chosen(tensor)),
            _ => None,
        }
    }

    /// Whether it is the whole of the tensor's axis.
    pub(crate) fn is_whole(self, own: AxisId) -> bool {
        self == Along::Axis { axis: own, from: 0 }
    }

    /// Whether all of the tensor's axis is there, in order.
    pub(crate) fn is_all(self, own: AxisId) -> bool {
        self.is_whole(own) || matches!(self, Along::Chosen(_))
    }

    /// The first coordinate.
    pub(crate) fn first(self) -> usize {
        match self {
            Along::Axis { from: at, .. } | Along::Fixed(at) => at,
            Along::Chosen(_) => 0,
        }
    }

    /// The axis at whose coordinates it is.
    pub(crate) fn axis(self) -> Option<AxisId> {
        match self {
            Along::Axis { axis, .. } => Some(axis),
            Along::Fixed(_) | Along::Chosen(_) => None,
        }
    }
}

/// The factor of a summed product that can be the stored operand of a contraction: a weight or a state, each of its axes
/// fixed, at its own coordinate, or (of a weight) at that of an axis for a part of it, or (one of a weight) chosen by a tensor
/// without the others; with all the summed axes and at least one that no other factor has. Where there is none, a value that
/// each position has and no token alters.
pub(super) fn stored_factor(graph: &Graph, summed: &[AxisId], factors: &[ExprId]) -> Option<usize> {
    let given = |tensor: TensorId| graph.is_weight(tensor) || matches!(graph.tensor(tensor).kind, Kind::State { .. });
    stored_among(graph, summed, factors, &given)
        .or_else(|| stored_among(graph, summed, factors, &|tensor| is_of_positions(graph, tensor)))
}

/// The same for tensors of one kind.
fn stored_among(
    graph: &Graph,
    summed: &[AxisId],
    factors: &[ExprId],
    kind: &dyn Fn(TensorId) -> bool,
) -> Option<usize> {
    (0..factors.len()).rev().find(|&at| {
        let Expr::Load { tensor, index } = graph.expr(factors[at]) else { return false };
        if !kind(*tensor) {
            return false;
        }
        let is_weight = graph.is_weight(*tensor);
        let tensor = graph.tensor(*tensor);
        let (mut own, mut chosen) = (Vec::new(), Vec::new());
        for (&axis, &i) in tensor.axes.iter().zip(index) {
            match Along::of(graph, axis, i) {
                Some(at @ Along::Axis { axis: by, .. }) if (is_weight || at.is_whole(axis)) && !own.contains(&by) => {
                    own.push(by);
                }
                Some(Along::Fixed(_)) => {}
                Some(Along::Chosen(by)) if is_weight => chosen.push(by),
                Some(Along::Axis { .. } | Along::Chosen(_)) | None => return false,
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
        let a_axes = &graph.tensor(*a).axes;
        let own = graph.tensor(*b).axes.iter();
        let along =
            own.clone().zip(b_index).map(|(&axis, &i)| Along::of(graph, axis, i)).collect::<Option<Vec<_>>>()?;
        let b_axes: Vec<AxisId> = along.iter().filter_map(|along| along.axis()).collect();
        let chosen = own.zip(&along).find_map(|(&axis, along)| match *along {
            Along::Chosen(by) => Some((axis, by)),
            Along::Axis { .. } | Along::Fixed(_) => None,
        });
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
            along,
        })
    }

    /// Whether the stored operand is a cache, or computed from caches.
    pub fn is_over_positions(&self, graph: &Graph) -> bool {
        matches!(graph.tensor(self.b).kind, Kind::State { .. }) || is_of_positions(graph, self.b)
    }

    /// Whether it is a contraction of a cache with a weight, of which each row is a position.
    pub(super) fn expands_state(&self, graph: &Graph) -> bool {
        matches!(graph.tensor(self.a).kind, Kind::State { .. })
            && graph.is_weight(self.b)
            && self.chosen.is_none()
            && matches!(self.rows[..], [s] if is_positions(graph, s))
            && self.depth.iter().chain(&self.batch).chain(&self.cols).all(|&a| graph.size(a).is_some())
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

/// Whether a tensor is a value that each position has, whatever the tokens.
pub(super) fn is_of_positions(graph: &Graph, tensor: TensorId) -> bool {
    let tensor = graph.tensor(tensor);
    let has = |is: fn(&Graph, AxisId) -> bool| tensor.axes.iter().any(|&a| is(graph, a));
    tensor.kind == Kind::Value && tensor.ty == Type::Float && has(is_positions) && !has(is_tokens)
}

/// Whether the axis is the tokens of this step.
pub(crate) fn is_tokens(graph: &Graph, axis: AxisId) -> bool {
    graph.axis(axis).extent == Extent::Tokens
}

/// Whether the axis runs over all positions of a sequence.
pub(crate) fn is_positions(graph: &Graph, axis: AxisId) -> bool {
    graph.axis(axis).extent == Extent::Positions
}
