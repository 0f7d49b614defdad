//! Rule ranges: bounds between positions and tokens in a mask limit the positions that a stream or another reduction visits.

use einfuse_graph::{AxisId, Binary, Expr, ExprId, Graph, Reduction};

use super::online_softmax::{Fold, Terms, masked};
use super::{Equation, Plan, Remark, Rule, Shape, is_positions, is_tokens};

pub(super) fn apply(plan: &mut Plan) {
    plan.each_scope(|plan, kernels| {
        for kernel in kernels {
            let (s, bounds) = match &mut kernel.shape {
                Shape::Stream(stream) => {
                    let of = |mask: Option<ExprId>| {
                        mask.map_or(Bounds::default(), |mask| bounds(&plan.graph, mask, stream.positions))
                    };
                    let bounds: Vec<Bounds> = stream.folds.iter().map(Fold::mask).map(of).collect();
                    let all = |f: fn(&Bounds) -> Option<i64>| bounds.iter().map(f).collect::<Option<Vec<i64>>>();
                    stream.bounds = Bounds {
                        upper: all(|b| b.upper).and_then(|b| b.into_iter().max()),
                        lower: all(|b| b.lower).and_then(|b| b.into_iter().min()),
                    };
                    (stream.positions, stream.bounds)
                }
                Shape::Contract(_) => continue,
                Shape::Rows => {
                    let [eq] = kernel.equations[..] else { continue };
                    let equation = plan.equations[eq];
                    let Some((s, bounds)) = reduced(&plan.graph, equation) else { continue };
                    plan.bounds.insert(equation.out, (s, bounds));
                    (s, bounds)
                }
            };
            match bounds.text(&plan.graph.axis(s).name) {
                Ok(text) => kernel.applied.push(Remark { rule: Rule::Ranges, text }),
                Err(text) => kernel.declined.push(Remark { rule: Rule::Ranges, text }),
            }
        }
    });
}

/// The bounds of what an equation reduces over one axis of positions, if it has any.
fn reduced(graph: &Graph, Equation { body, .. }: Equation) -> Option<(AxisId, Bounds)> {
    let Expr::Reduce { op, axes, body } = graph.expr(body) else { return None };
    let [s] = *axes.iter().copied().filter(|&a| is_positions(graph, a)).collect::<Vec<_>>() else { return None };
    let masks = match op {
        Reduction::Sum => Terms::of(graph, *body).masks,
        op => masked(graph, *body, op.neutral()).0.into_iter().collect(),
    };
    let bounds = masks.into_iter().map(|mask| bounds(graph, mask, s)).reduce(Bounds::and)?;
    (bounds.lower.is_some() || bounds.upper.is_some()).then_some((s, bounds))
}

/// `t + lower <= s <= t + upper` wherever a mask holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// A token at `t` needs no position below `t + lower`.
    pub lower: Option<i64>,
    /// A token at `t` needs no position above `t + upper`.
    pub upper: Option<i64>,
}

impl Bounds {
    /// What holds where both masks do.
    fn and(self, other: Bounds) -> Bounds {
        let tighter = |x: Option<i64>, y: Option<i64>, pick: fn(i64, i64) -> i64| match (x, y) {
            (Some(x), Some(y)) => Some(pick(x, y)),
            (x, y) => x.or(y),
        };
        Bounds { lower: tighter(self.lower, other.lower, i64::max), upper: tighter(self.upper, other.upper, i64::min) }
    }

    /// Which coordinates of `s` are visited, or that there is no bound.
    fn text(self, s: &str) -> Result<String, String> {
        let shown = |n: i64| match n {
            0 => String::new(),
            n if n > 0 => format!(" + {n}"),
            n => format!(" - {}", -n),
        };
        match (self.lower, self.upper) {
            (None, None) => Err(format!("no mask bounds `{s}` by a token's position")),
            (None, Some(u)) => Ok(format!("`{s}` ends at t{}", shown(u))),
            (Some(l), None) => Ok(format!("`{s}` begins at t{}", shown(l))),
            (Some(l), Some(u)) => Ok(format!("`{s}` runs from t{} to t{}", shown(l), shown(u))),
        }
    }
}

fn bounds(graph: &Graph, mask: ExprId, s: AxisId) -> Bounds {
    let Expr::Binary(op, a, b) = *graph.expr(mask) else { return Bounds::default() };
    if op == Binary::And {
        return bounds(graph, a, s).and(bounds(graph, b, s));
    }
    let (Some(a), Some(b)) = (Affine::of(graph, a, s), Affine::of(graph, b, s)) else { return Bounds::default() };
    // a op b  <=>  d op 0 with d = a - b = ±(s - t) + offset
    let Some(d) = a.minus(b) else { return Bounds::default() };
    let (sign, op) = match (d.s, d.t) {
        (1, -1) => (1, op),
        (-1, 1) => (-1, flipped(op)),
        _ => return Bounds::default(),
    };
    // (s - t) op -sign * offset
    let c = -sign * d.offset;
    match op {
        Binary::Le => Bounds { lower: None, upper: Some(c) },
        Binary::Lt => Bounds { lower: None, upper: Some(c - 1) },
        Binary::Ge => Bounds { lower: Some(c), upper: None },
        Binary::Gt => Bounds { lower: Some(c + 1), upper: None },
        Binary::Eq => Bounds { lower: Some(c), upper: Some(c) },
        _ => Bounds::default(),
    }
}

/// Whether a mask is known to hold where a token meets its own position: then a sum has a term for each token.
pub(crate) fn holds_at_own(graph: &Graph, mask: ExprId, s: AxisId) -> bool {
    let Expr::Binary(op, a, b) = *graph.expr(mask) else { return false };
    if op == Binary::And {
        return holds_at_own(graph, a, s) && holds_at_own(graph, b, s);
    }
    let apart = Affine::of(graph, a, s).zip(Affine::of(graph, b, s)).and_then(|(a, b)| a.minus(b));
    let Some(Affine { s, t, offset }) = apart else { return false };
    let holds = match op {
        Binary::Le => offset <= 0,
        Binary::Lt => offset < 0,
        Binary::Ge => offset >= 0,
        Binary::Gt => offset > 0,
        Binary::Eq => offset == 0,
        Binary::Ne => offset != 0,
        _ => false,
    };
    holds && s + t == 0
}

fn flipped(op: Binary) -> Binary {
    match op {
        Binary::Le => Binary::Ge,
        Binary::Lt => Binary::Gt,
        Binary::Ge => Binary::Le,
        Binary::Gt => Binary::Lt,
        op => op,
    }
}

/// `s * S + t * T + offset`.
#[derive(Clone, Copy)]
struct Affine {
    s: i64,
    t: i64,
    offset: i64,
}

impl Affine {
    fn of(graph: &Graph, id: ExprId, s: AxisId) -> Option<Affine> {
        Some(match *graph.expr(id) {
            Expr::Int(offset) => Affine { s: 0, t: 0, offset },
            Expr::Coordinate(a) if a == s => Affine { s: 1, t: 0, offset: 0 },
            Expr::Coordinate(a) if is_tokens(graph, a) => Affine { s: 0, t: 1, offset: 0 },
            Expr::Binary(Binary::Add, a, b) => {
                let (a, b) = (Affine::of(graph, a, s)?, Affine::of(graph, b, s)?);
                Affine { s: a.s + b.s, t: a.t + b.t, offset: a.offset.checked_add(b.offset)? }
            }
            Expr::Binary(Binary::Sub, a, b) => {
                let (a, b) = (Affine::of(graph, a, s)?, Affine::of(graph, b, s)?);
                a.minus(b)?
            }
            _ => return None,
        })
    }

    fn minus(self, other: Affine) -> Option<Affine> {
        let offset = self.offset.checked_sub(other.offset)?;
        Some(Affine { s: self.s - other.s, t: self.t - other.t, offset })
    }
}
