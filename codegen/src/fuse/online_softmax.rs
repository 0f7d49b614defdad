//! Rule online-softmax: cascaded reductions over the positions become one streamed pass.
//!
//! A sum over positions whose terms depend on an earlier reduction `m` over the same positions can still be computed in
//! one pass where the terms are *rescalable*: `f(x, m') = f(x, m) · c(m, m')`. What was summed under the old `m` is
//! multiplied by `c` when `m` changes. The identities known here:
//!
//! | terms | c(m, m') |
//! |---|---|
//! | `exp(x - m) · g(x)` | `exp(m - m')` (exponential shift) |
//! | `g(x) · h(m)` and `g(x) / h(m)` | `h` leaves the sum and is applied to its result at the end (linear scale) |
//!
//! The shift is by the largest `x` so far, or no sum is safe from overflow: so `exp(x - h)` with any other `h` is taken as
//! `exp(x - m) · exp(m - h)`, of which the second leaves the sum. Where the largest `x` is not known, nothing is streamed.
//!
//! Softmax attention is `Σ_s exp(e - max_s e) / (Σ_s exp(e - max_s e)) · v` for any score `e`, so both together derive the
//! streamed form (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135) without knowing attention.

use einfuse_graph::{AxisId, Binary, Expr, ExprId, Graph, Real, Reduction, TensorId, Unary};

use super::contraction::Contraction;
use super::edit::Edit;
use super::ranges::Bounds;
use super::{EqId, Kernel, Plan, Remark, Rule, Shape, is_positions};

/// A streamed pass over positions.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The positions' axis.
    pub positions: AxisId,
    /// The axes of the statistics: each combination is a row with its own running values.
    pub rows: Vec<AxisId>,
    /// Values of each position that contractions of the stream take for stored operands: computed run by run, for all
    /// rows that share them.
    pub operands: Vec<Operand>,
    /// Reductions over other axes that yield a value per row and position.
    pub scores: Vec<(EqId, Option<Contraction>)>,
    /// The reductions over the positions, in order.
    pub folds: Vec<Fold>,
    /// Rule ranges: which positions a token needs.
    pub bounds: Bounds,
}

/// A value of each position that a stream computes on its way.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Its equation.
    pub eq: EqId,
    /// The equation's right side.
    pub body: ExprId,
    /// The contraction of a cache with a weight that it is, if cores can compute it.
    pub contraction: Option<Contraction>,
}

/// A reduction over the positions.
#[derive(Clone, Debug)]
pub enum Fold {
    /// The largest value where the mask holds.
    Max {
        /// Its equation.
        eq: EqId,
        /// What is compared.
        value: ExprId,
        /// Where.
        mask: Option<ExprId>,
    },
    /// A sum of weights, or of weights times a stored operand.
    Sum {
        /// Its equation.
        eq: EqId,
        /// The weight of each position.
        weight: Weighted,
        /// The contraction with a stored operand over the positions, if it is one.
        over: Option<Box<Contraction>>,
        /// What the sum is multiplied with at the end.
        scale: Vec<ExprId>,
        /// What the sum is divided by at the end.
        divisor: Vec<ExprId>,
    },
}

/// `mask ? exp(exponent - shift) · Π factors : 0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighted {
    /// Where the weight is not zero.
    pub mask: Option<ExprId>,
    /// The exponent and the running maximum that is taken from it.
    pub shifted: Option<(ExprId, TensorId)>,
    /// Factors that no statistic enters.
    pub factors: Vec<ExprId>,
}

impl Stream {
    /// The operands that are contractions of a cache with a weight.
    pub fn expansions(&self) -> impl Iterator<Item = (EqId, &Contraction)> {
        self.operands.iter().filter_map(|operand| Some((operand.eq, operand.contraction.as_ref()?)))
    }
}

impl Weighted {
    /// Whether it is `exp(value - m)` where the mask holds, and nothing else.
    pub fn is_power_of(&self, value: ExprId, mask: Option<ExprId>, m: TensorId) -> bool {
        self.shifted == Some((value, m)) && self.mask == mask && self.factors.is_empty()
    }
}

impl Fold {
    /// The equation.
    pub fn equation(&self) -> EqId {
        match self {
            Fold::Max { eq, .. } | Fold::Sum { eq, .. } => *eq,
        }
    }

    /// Where positions count.
    pub fn mask(&self) -> Option<ExprId> {
        match self {
            Fold::Max { mask, .. } => *mask,
            Fold::Sum { weight, .. } => weight.mask,
        }
    }
}

pub(super) fn apply(plan: &mut Plan) {
    plan.each_scope(|plan, kernels| {
        let mut at = 0;
        while at < kernels.len() {
            let [eq] = kernels[at].equations[..] else {
                at += 1;
                continue;
            };
            let equation = plan.equations[eq];
            let contraction = Contraction::of(&plan.graph, equation.out, equation.body);
            let Some(last) = contraction.filter(|c| matches!(c.depth[..], [s] if is_positions(&plan.graph, s))) else {
                at += 1;
                continue;
            };
            match gather(plan, kernels, eq, last) {
                Err(text) => {
                    kernels[at].declined.push(Remark { rule: Rule::OnlineSoftmax, text });
                    at += 1;
                }
                Ok((stream, members)) => at = regroup(plan, kernels, stream, members),
            }
        }
    });
}

/// Replaces the members' kernels by one at the place of the last.
fn regroup(plan: &Plan, kernels: &mut Vec<Kernel>, stream: Stream, members: Vec<EqId>) -> usize {
    let reduced: Vec<String> = stream.folds.iter().map(|f| plan.quoted(plan.equations[f.equation()].out)).collect();
    let s = &plan.graph.axis(stream.positions).name;
    let is = if reduced.len() == 1 { "is" } else { "are" };
    let text = format!("{} {is} carried along `{s}` in one pass and rescaled", reduced.join(", "));
    let is_member = |k: &Kernel| k.equations.iter().all(|e| members.contains(e));
    let last = kernels.iter().rposition(is_member).unwrap_or(0);
    let name = kernels[last].name.clone();
    let mut declined = Vec::new();
    for kernel in kernels.iter_mut().filter(|k| is_member(k)) {
        declined.append(&mut kernel.declined);
    }
    kernels[last] = Kernel {
        name,
        equations: members.clone(),
        weights: Vec::new(),
        shape: Shape::Stream(Box::new(stream)),
        applied: vec![Remark { rule: Rule::OnlineSoftmax, text }],
        declined,
        last_rows: false,
        last_layer: false,
    };
    let mut at = 0;
    kernels.retain(|k| {
        at += 1;
        at - 1 == last || !k.equations.iter().all(|e| members.contains(e))
    });
    kernels.iter().position(|k| k.equations == members).map_or(0, |at| at + 1)
}

/// Collects what the last contraction over the positions is computed from, and brings it into streamed form; or says why
/// it can't be.
fn gather(plan: &mut Plan, kernels: &[Kernel], last: EqId, over: Contraction) -> Result<(Stream, Vec<EqId>), String> {
    let s = over.depth[0];
    let here: Vec<EqId> = kernels.iter().filter(|k| k.equations.len() == 1).map(|k| k.equations[0]).collect();
    let producer = |plan: &Plan, t: TensorId| here.iter().copied().find(|&e| plan.equations[e].out == t);
    let over_positions = |plan: &Plan, e: EqId| match plan.graph.expr(plan.equations[e].body) {
        Expr::Reduce { axes, .. } => axes.contains(&s),
        _ => false,
    };
    let along = |plan: &Plan, t: TensorId| plan.graph.tensor(t).axes.contains(&s);

    // Members: whatever the contraction reads that has the positions' axis or was reduced over it, as far back as it goes.
    // Where that leaves out who reads a member, also maps on the way there: what a statistic is turned into. Or a statistic stays
    // apart, as one value for each row.
    let members = |plan: &Plan, maps: bool, apart: &[TensorId]| {
        let is_map = |plan: &Plan, e: EqId| !matches!(plan.graph.expr(plan.equations[e].body), Expr::Reduce { .. });
        let mut members = vec![last];
        let mut at = 0;
        while at < members.len() {
            for tensor in plan.graph.loaded(plan.equations[members[at]].body) {
                if let Some(e) = producer(plan, tensor)
                    && !apart.contains(&tensor)
                    && (along(plan, tensor) || over_positions(plan, e) || maps && is_map(plan, e))
                    && !members.contains(&e)
                {
                    members.push(e);
                }
            }
            at += 1;
        }
        members.sort();
        members
    };
    let open = |plan: &Plan, members: &[EqId]| {
        let outs = members.iter().filter(|&&e| e != last).map(|&e| plan.equations[e].out);
        outs.filter_map(|out| Some((out, plan.needed_outside(out, members)?))).next()
    };
    let mut all = members(plan, false, &[]);
    if all.len() == 1 {
        return Err(format!("what {} sums along the positions is not computed here", plan.quoted(over.out)));
    }
    if let Some((out, elsewhere)) = open(plan, &all) {
        all = members(plan, true, &[]);
        let mut apart = Vec::new();
        while let Some((needed, _)) = open(plan, &all) {
            if along(plan, needed) || apart.contains(&needed) {
                return Err(format!("{} {elsewhere}", plan.quoted(out)));
            }
            apart.push(needed);
            all = members(plan, false, &apart);
        }
    }
    let members = all;

    let mut edit = Edit::new(plan.graph.clone());
    let result = form(plan, &mut edit, &members, last, s);
    let Parts { operands, scores, folds } = result?;
    plan.graph = edit.graph;
    let cols = &over.cols;
    let rows: Vec<AxisId> = plan.graph.tensor(over.out).axes.iter().filter(|a| !cols.contains(a)).copied().collect();
    if let Some(&axis) = rows.iter().find(|&&axis| is_positions(&plan.graph, axis)) {
        return Err(format!("there are rows for each position `{}` too", plan.graph.axis(axis).name));
    }
    for fold in &folds {
        let out = plan.equations[fold.equation()].out;
        let mut own = plan.graph.tensor(out).axes.clone();
        if let Fold::Sum { over: Some(c), .. } = fold {
            own.retain(|a| !c.cols.contains(a));
        }
        if own.len() != rows.len() || own.iter().any(|a| !rows.contains(a)) {
            let (a, b) = (plan.graph.names(&own), plan.graph.names(&rows));
            return Err(format!("{} has a value for each of {a}, not for each of {b}", plan.quoted(out)));
        }
    }
    for (e, _) in &scores {
        let out = plan.equations[*e].out;
        if plan.graph.tensor(out).axes.iter().any(|a| *a != s && !rows.contains(a)) {
            return Err(format!("{} has an axis that the rows {} have not", plan.quoted(out), plan.graph.names(&rows)));
        }
    }
    Ok((Stream { positions: s, rows, operands, scores, folds, bounds: Bounds::default() }, members))
}

/// What a stream is made of.
#[derive(Default)]
struct Parts {
    operands: Vec<Operand>,
    scores: Vec<(EqId, Option<Contraction>)>,
    folds: Vec<Fold>,
}

/// The forming of a stream, member by member.
struct Forming<'a> {
    plan: &'a Plan,
    edit: &'a mut Edit,
    /// The contraction that the stream is for.
    last: EqId,
    /// The positions.
    s: AxisId,
    /// Values of each row or position that are computed where they are read.
    maps: Vec<(TensorId, ExprId)>,
    parts: Parts,
}

fn form(plan: &Plan, edit: &mut Edit, members: &[EqId], last: EqId, s: AxisId) -> Result<Parts, String> {
    let mut forming = Forming { plan, edit, last, s, maps: Vec::new(), parts: Parts::default() };
    let stored: Vec<TensorId> = members.iter().filter_map(|&e| Some(forming.contraction(e)?.b)).collect();
    for &e in members {
        let equation = plan.equations[e];
        if stored.contains(&equation.out) {
            forming.operand(e)?;
            continue;
        }
        match forming.edit.graph.expr(equation.body).clone() {
            Expr::Reduce { op, axes, body } if axes == [s] => forming.fold(e, op, body)?,
            Expr::Reduce { axes, .. } if axes.contains(&s) => {
                return Err(format!("{} is reduced over more than the positions", plan.quoted(equation.out)));
            }
            Expr::Reduce { .. } => forming.score(e)?,
            _ => {
                let body = forming.with_maps(equation.body);
                forming.maps.push((equation.out, body));
            }
        }
    }
    Ok(forming.parts)
}

impl Forming<'_> {
    fn contraction(&self, eq: EqId) -> Option<Contraction> {
        let equation = self.plan.equations[eq];
        Contraction::of(&self.edit.graph, equation.out, equation.body)
    }

    /// The name of what an equation computes, quoted.
    fn name(&self, eq: EqId) -> String {
        self.plan.quoted(self.plan.equations[eq].out)
    }

    /// The scores so far.
    fn scores(&self) -> Vec<TensorId> {
        self.parts.scores.iter().map(|(e, _)| self.plan.equations[*e].out).collect()
    }

    /// The statistics so far.
    fn stats(&self) -> Vec<TensorId> {
        self.parts.folds.iter().map(|fold| self.plan.equations[fold.equation()].out).collect()
    }

    /// The expression with the maps in place of their loads.
    fn with_maps(&mut self, body: ExprId) -> ExprId {
        self.maps.iter().rev().fold(body, |body, &(tensor, map)| self.edit.inline(body, tensor, map))
    }

    /// A value of each position that a contraction takes for its stored operand.
    fn operand(&mut self, eq: EqId) -> Result<(), String> {
        let body = self.with_maps(self.plan.equations[eq].body);
        let of_rows = [self.scores(), self.stats()].concat();
        if let Some(m) = mentions(&self.edit.graph, body, &of_rows) {
            let (a, b) = (self.name(eq), self.plan.quoted(m));
            return Err(format!("{a} is shared by rows, but depends on {b}, of which each row has its own"));
        }
        let contraction = self.contraction(eq).filter(|c| c.expands_state(&self.edit.graph));
        self.parts.operands.push(Operand { eq, body, contraction });
        Ok(())
    }

    /// A reduction over other axes than the positions.
    fn score(&mut self, eq: EqId) -> Result<(), String> {
        let graph = &self.edit.graph;
        let body = self.plan.equations[eq].body;
        let read = graph.loaded(body);
        let mut carried = self.maps.iter().map(|(map, _)| *map).chain(self.scores());
        if let Some(tensor) = carried.find(|t| read.contains(t)) {
            let (a, b) = (self.name(eq), self.plan.quoted(tensor));
            return Err(format!("{a} reduces {b}, which is computed on the way"));
        }
        if let Some(m) = mentions(graph, body, &self.stats()) {
            return Err(no_identity(self.plan, &self.name(eq), m));
        }
        self.parts.scores.push((eq, self.contraction(eq)));
        Ok(())
    }

    /// A reduction over the positions.
    fn fold(&mut self, eq: EqId, op: Reduction, inner: ExprId) -> Result<(), String> {
        let (name, contraction) = (self.name(eq), self.contraction(eq));
        let inner = contraction.as_ref().map_or(inner, |c| self.edit.load(c.a));
        let inner = self.with_maps(inner);
        let stats = self.stats();
        if let Some(t) = read_elsewhere(&self.edit.graph, inner, &[self.scores(), stats.clone()].concat()) {
            return Err(format!("{name} reads {} at other coordinates than its own", self.plan.quoted(t)));
        }
        if eq != self.last && contraction.is_some() {
            return Err(format!("{name} is a contraction over the positions that another depends on"));
        }
        let fold = match op {
            Reduction::Max => {
                let (mask, value) = masked(&self.edit.graph, inner, f64::NEG_INFINITY);
                let mut both = mask.into_iter().chain([value]);
                if let Some(m) = both.find_map(|id| mentions(&self.edit.graph, id, &stats)) {
                    return Err(no_identity(self.plan, &name, m));
                }
                Fold::Max { eq, value, mask }
            }
            Reduction::Sum => self.sum(eq, inner, contraction)?,
            Reduction::Min | Reduction::ArgMax => {
                let op = format!("{op:?}").to_lowercase();
                return Err(format!("{name} reduces by {op}, for which there is no streamed form"));
            }
        };
        self.parts.folds.push(fold);
        Ok(())
    }

    /// A sum over the positions, in a form that can be rescaled.
    fn sum(&mut self, eq: EqId, inner: ExprId, over: Option<Contraction>) -> Result<Fold, String> {
        let Forming { plan, s, .. } = *self;
        let (name, stats) = (self.name(eq), self.stats());
        let edit = &mut *self.edit;
        let mut terms = Terms::default();
        terms.add(&edit.graph, inner);
        let mut weight = Weighted { mask: None, shifted: None, factors: Vec::new() };
        let (mut scale, mut divisor) = (Vec::new(), Vec::new());
        for factor in terms.numerators {
            let graph = &edit.graph;
            if !graph.free_axes(factor).contains(&s) {
                scale.push(factor);
                continue;
            }
            let Some(stat) = mentions(graph, factor, &stats) else {
                weight.factors.push(factor);
                continue;
            };
            let shifted = shifted_exponential(graph, factor, s).filter(|(x, _)| mentions(graph, *x, &stats).is_none());
            let Some((x, shift)) = shifted.filter(|_| weight.shifted.is_none()) else {
                return Err(no_identity(plan, &name, stat));
            };
            // Where the exponent is -inf, there is no term.
            let (own, x) = masked(graph, x, f64::NEG_INFINITY);
            if let Some(own) = own.filter(|own| !terms.masks.contains(own)) {
                terms.masks.push(own);
            }
            let Some(m) = largest(graph, &self.parts.folds, x, &terms.masks).map(|eq| plan.equations[eq].out) else {
                return Err(format!("{name} sums exponentials that no maximum over the same positions bounds"));
            };
            weight.shifted = Some((x, m));
            let m = edit.load(m);
            if shift != m {
                let apart = edit.intern(Expr::Binary(Binary::Sub, m, shift));
                scale.push(edit.intern(Expr::Unary(Unary::Exp, apart)));
            }
        }
        for factor in terms.denominators {
            if !edit.graph.free_axes(factor).contains(&s) {
                divisor.push(factor);
            } else if let Some(stat) = mentions(&edit.graph, factor, &stats) {
                return Err(no_identity(plan, &name, stat));
            } else {
                let one = edit.intern(Expr::Float(Real(1.0)));
                weight.factors.push(edit.intern(Expr::Binary(Binary::Div, one, factor)));
            }
        }
        weight.mask = terms.masks.into_iter().reduce(|a, b| edit.intern(Expr::Binary(Binary::And, a, b)));
        if let Some(m) = weight.mask.and_then(|m| mentions(&edit.graph, m, &stats)) {
            return Err(no_identity(plan, &name, m));
        }
        Ok(Fold::Sum { eq, weight, over: over.map(Box::new), scale, divisor })
    }
}

fn no_identity(plan: &Plan, name: &str, stat: TensorId) -> String {
    format!("{name} depends on {} in a way that no rescaling identity covers", plan.quoted(stat))
}

fn mentions(graph: &Graph, id: ExprId, stats: &[TensorId]) -> Option<TensorId> {
    graph.loaded(id).into_iter().find(|t| stats.contains(t))
}

/// One of these tensors that an expression reads elsewhere than at its own coordinates.
fn read_elsewhere(graph: &Graph, id: ExprId, carried: &[TensorId]) -> Option<TensorId> {
    graph.reachable(id).into_iter().find_map(|at| match graph.expr(at) {
        Expr::Load { tensor, index } if carried.contains(tensor) && !super::is_identity(graph, *tensor, index) => {
            Some(*tensor)
        }
        _ => None,
    })
}

/// Splits `mask ? value : neutral`.
pub(super) fn masked(graph: &Graph, id: ExprId, neutral: f64) -> (Option<ExprId>, ExprId) {
    match *graph.expr(id) {
        Expr::Select { mask, then, otherwise } => match graph.expr(otherwise) {
            Expr::Float(v) if v.0 == neutral => (Some(mask), then),
            _ => (None, id),
        },
        _ => (None, id),
    }
}

/// A sum's terms as `mask ? Π numerators / Π denominators : 0`.
#[derive(Default)]
pub(super) struct Terms {
    pub(super) masks: Vec<ExprId>,
    numerators: Vec<ExprId>,
    denominators: Vec<ExprId>,
}

impl Terms {
    pub(super) fn of(graph: &Graph, id: ExprId) -> Terms {
        let mut terms = Terms::default();
        terms.add(graph, id);
        terms
    }

    fn add(&mut self, graph: &Graph, id: ExprId) {
        match *graph.expr(id) {
            Expr::Binary(Binary::Mul, a, b) => {
                self.add(graph, a);
                self.add(graph, b);
            }
            Expr::Binary(Binary::Div, a, b) => {
                self.add(graph, a);
                let below = Terms::of(graph, b);
                if below.masks.is_empty() && below.denominators.is_empty() {
                    self.denominators.extend(below.numerators);
                } else {
                    self.denominators.push(b);
                }
            }
            Expr::Select { .. } => match masked(graph, id, 0.0) {
                (Some(mask), then) => {
                    if !self.masks.contains(&mask) {
                        self.masks.push(mask);
                    }
                    self.add(graph, then);
                }
                (None, _) => self.numerators.push(id),
            },
            Expr::Float(Real(1.0)) => {}
            _ => self.numerators.push(id),
        }
    }
}

/// The `x` and the `h` of `exp(x - h)`, where `h` is the same for all positions.
fn shifted_exponential(graph: &Graph, id: ExprId, s: AxisId) -> Option<(ExprId, ExprId)> {
    let Expr::Unary(Unary::Exp, inner) = *graph.expr(id) else { return None };
    let Expr::Binary(Binary::Sub, x, shift) = *graph.expr(inner) else { return None };
    (!graph.free_axes(shift).contains(&s)).then_some((x, shift))
}

/// The largest `x` of all positions where some masks hold, or of more.
fn largest(graph: &Graph, folds: &[Fold], x: ExprId, masks: &[ExprId]) -> Option<EqId> {
    let of = |masks: &[ExprId]| masks.iter().flat_map(|&mask| conditions(graph, mask)).collect::<Vec<_>>();
    let all = of(masks);
    folds.iter().find_map(|fold| match fold {
        Fold::Max { eq, value, mask } if *value == x => {
            of(mask.as_slice()).iter().all(|condition| all.contains(condition)).then_some(*eq)
        }
        _ => None,
    })
}

/// What must hold for a mask to hold.
fn conditions(graph: &Graph, mask: ExprId) -> Vec<ExprId> {
    match *graph.expr(mask) {
        Expr::Binary(Binary::And, a, b) => [conditions(graph, a), conditions(graph, b)].concat(),
        _ => vec![mask],
    }
}
