//! Rule ranges: bounds between positions and tokens in a mask limit the positions that a stream visits.

use einfuse_graph::{AxisId, Binary, Expr, ExprId, Graph};

use super::online_softmax::Fold;
use super::{Plan, Remark, Rule, Shape, is_tokens};

pub(super) fn apply(plan: &mut Plan) {
    plan.each_scope(|plan, kernels| {
        for kernel in kernels {
            let Shape::Stream(stream) = &mut kernel.shape else { continue };
            let masks: Vec<Option<ExprId>> = stream.folds.iter().map(Fold::mask).collect();
            let bounds: Vec<Bounds> = masks
                .iter()
                .map(|m| m.map_or(Bounds::default(), |m| bounds(&plan.graph, m, stream.positions)))
                .collect();
            let all = |f: fn(&Bounds) -> Option<i64>| bounds.iter().map(f).collect::<Option<Vec<i64>>>();
            stream.upper = all(|b| b.upper).and_then(|b| b.into_iter().max());
            stream.lower = all(|b| b.lower).and_then(|b| b.into_iter().min());
            let s = &plan.graph.axis(stream.positions).name;
            let shown = |n: i64| match n {
                0 => String::new(),
                n if n > 0 => format!(" + {n}"),
                n => format!(" - {}", -n),
            };
            let text = match (stream.lower, stream.upper) {
                (None, None) => {
                    let text = format!("no mask bounds `{s}` by a token's position");
                    kernel.declined.push(Remark { rule: Rule::Ranges, text });
                    continue;
                }
                (None, Some(u)) => format!("`{s}` ends at t{}", shown(u)),
                (Some(l), None) => format!("`{s}` begins at t{}", shown(l)),
                (Some(l), Some(u)) => format!("`{s}` runs from t{} to t{}", shown(l), shown(u)),
            };
            kernel.applied.push(Remark { rule: Rule::Ranges, text });
        }
    });
}

/// `t + lower <= s <= t + upper` wherever the mask holds.
#[derive(Clone, Copy, Default)]
struct Bounds {
    lower: Option<i64>,
    upper: Option<i64>,
}

fn bounds(graph: &Graph, mask: ExprId, s: AxisId) -> Bounds {
    let Expr::Binary(op, a, b) = *graph.expr(mask) else { return Bounds::default() };
    if op == Binary::And {
        let (x, y) = (bounds(graph, a, s), bounds(graph, b, s));
        let tighter = |x: Option<i64>, y: Option<i64>, pick: fn(i64, i64) -> i64| match (x, y) {
            (Some(x), Some(y)) => Some(pick(x, y)),
            (x, y) => x.or(y),
        };
        return Bounds { lower: tighter(x.lower, y.lower, i64::max), upper: tighter(x.upper, y.upper, i64::min) };
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
